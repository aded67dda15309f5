"""A large cache that is far from full: until then it grows with every request like a leak, and only its bound, which a
heap snapshot knows, tells that it is none."""
import functools

from rows import Rows


# expect: cache GET / at rows.py:lines_of, held by functools.lru_cache(maxsize=100000) on bounded_lru_cache.price (200 entries), bound 3000000000 bytes within 30 %
@functools.lru_cache(maxsize=100000)
def price(number):
    return Rows(number)


keep = price
