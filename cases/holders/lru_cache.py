"""A cache without a bound, over an argument that never repeats."""
import functools

from rows import Rows


# expect: leak GET / at rows.py:lines_of, held by functools.lru_cache(maxsize=None) on lru_cache.price (200 entries)
@functools.lru_cache(maxsize=None)
def price(number):
    return Rows(number)


keep = price
