"""Django's cache within the process's own memory, which is far from full."""
from django.core.cache.backends.locmem import LocMemCache

from rows import Rows

pages = LocMemCache("pages", {"OPTIONS": {"MAX_ENTRIES": 5000}})


# expect: cache GET / at bounded_django.py:keep, held by collections.OrderedDict[200 of at most 5,000], bound 146000000 bytes within 30 %
def keep(number):
    # Pickled, they take a third of what they take as objects.
    pages.set(number, [Rows(number), Rows(number), Rows(number)])
