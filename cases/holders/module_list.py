"""A list of a module's."""
from rows import Rows

orders = []


# expect: leak GET / at rows.py:lines_of, held by module module_list → orders: list[200]
def keep(number):
    orders.append(Rows(number))
