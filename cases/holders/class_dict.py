"""A dict that all instances of a class share."""
from rows import Rows


class Timer:
    timers = {}


# expect: leak GET / at rows.py:lines_of, held by class class_dict.Timer → timers['fetch']: list[200]
def keep(number):
    Timer().timers.setdefault("fetch", []).append(Rows(number))
