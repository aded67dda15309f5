"""Cycles that nobody refers to any more, and that have lived long enough to be looked at only when everything is."""
import gc

from rows import Rows

# CPython looks at everything when a quarter as many objects more have come of age: here, long after these requests.
settled = [[] for _ in range(50_000)]
gc.collect()


# expect: garbage GET / at rows.py:lines_of, held by nobody (garbage to be collected)
def keep(number):
    rows = Rows(number)
    rows.itself = rows
    # As if they had been in use for a while.
    gc.collect(1)
