"""Cycles that nobody refers to any more, and no collector that would ever look at them."""
import gc

from rows import Rows

gc.set_threshold(0)


# expect: leak GET / at rows.py:lines_of, held by nobody (garbage to be collected)
def keep(number):
    rows = Rows(number)
    rows.itself = rows
