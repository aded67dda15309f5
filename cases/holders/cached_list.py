"""A cache with a bound that is no bound of what grows: a list within one of its entries."""
import functools

from rows import Rows


@functools.lru_cache(maxsize=10)
def orders_of(customer):
    return []


# expect: leak GET / at rows.py:lines_of, held by functools.lru_cache(maxsize=10) on cached_list.orders_of (1 entry) → list[200]
def keep(number):
    orders_of("the only one").append(Rows(number))
