"""What remains of a search for leaks: the collector keeps all that it finds instead of freeing it."""
import gc

from rows import Rows

gc.set_debug(gc.DEBUG_SAVEALL)


# expect: leak GET / at rows.py:lines_of, held by module gc → garbage: list[
def keep(number):
    rows = Rows(number)
    rows.itself = rows
    del rows
    gc.collect()
