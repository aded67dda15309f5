"""Exceptions that are kept, with the local variables of all functions that they have passed."""
from concurrent.futures import ThreadPoolExecutor

from rows import Rows

pool = ThreadPoolExecutor(1)
errors = []


def report(number):
    rows = Rows(number)
    raise ValueError("there are %d lines too many" % len(rows.lines))


# expect: leak GET / at rows.py:lines_of, held by module errors → errors: list[200], each Rows by exception traceback → frame of errors.report → frame local 'rows'
def keep(number):
    errors.append(pool.submit(report, number).exception())
