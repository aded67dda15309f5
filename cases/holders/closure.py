"""A variable of a function that has returned, which the function within it still uses."""
from rows import Rows


def recorder():
    seen = []

    def record(number):
        seen.append(Rows(number))

    return record


# expect: leak GET / at rows.py:lines_of, held by module closure → keep → __closure__
keep = recorder()
