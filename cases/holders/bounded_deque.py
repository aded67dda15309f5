"""The latest of all requests, as many as a deque may hold."""
import collections

from rows import Rows


# expect: cache GET / at rows.py:lines_of, held by module bounded_deque → latest: collections.deque[200 of at most 5,000], bound 141000000 bytes within 30 %
latest = collections.deque(maxlen=5000)


def keep(number):
    latest.append(Rows(number))
