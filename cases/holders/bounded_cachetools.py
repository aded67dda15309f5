"""cachetools' cache, which is far from full."""
import cachetools

from rows import Rows

prices = cachetools.TTLCache(maxsize=5000, ttl=3600)


# expect: cache GET / at rows.py:lines_of, held by module bounded_cachetools → prices → _Cache__data: dict[200 of at most 5,000], bound 141000000 bytes within 30 %
def keep(number):
    prices[number] = Rows(number)
