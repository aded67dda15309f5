"""A generator that is never exhausted, with all that it was sent in a local variable."""
from rows import Rows


def collect():
    payload = []
    while True:
        payload.append((yield len(payload)))


collector = collect()
next(collector)


# expect: leak GET / at rows.py:lines_of, held by generator collect → frame local 'payload': list[200]
def keep(number):
    collector.send(Rows(number))
