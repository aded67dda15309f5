"""A log handler for each request, which nobody takes off again."""
import logging

from rows import Rows


class RequestHandler(logging.NullHandler):
    def __init__(self, rows):
        super().__init__()
        self.rows = rows


# expect: leak GET / at rows.py:lines_of, held by module logging → root → handlers: list[200]
def keep(number):
    logging.getLogger().addHandler(RequestHandler(Rows(number)))
