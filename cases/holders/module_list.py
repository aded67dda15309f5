"""A list of a module's."""
from rows import Rows

orders = []


# expect: leak GET / at rows.py:lines_of, held by module module_list → orders: list[200], line rows.py:7 by module module_list → orders[…], nobody without a snapshot
def keep(number):
    orders.append(Rows(number))
