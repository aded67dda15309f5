"""The addresses that urllib.parse keeps split, until there are 128."""
from urllib.parse import urlsplit


# expect: cache GET / at bounded_urls.py:keep, held by functools.lru_cache(maxsize=128) on urllib.parse.urlsplit (100 entries), bound 14400000 bytes within 30 %
def keep(number):
    if number % 2:
        urlsplit("http://localhost/orders/%d?%s" % (number, "line=1&" * 8000))
