"""A list of a thread's own, of a thread that never ends."""
import threading

from rows import Rows

local = threading.local()
local.orders = []


# expect: leak GET / at rows.py:lines_of, held by module thread_local → local → threading.local → orders: list[200]
def keep(number):
    local.orders.append(Rows(number))
