"""A signal's receivers: each request connects another one, for good."""
from blinker import Signal

from rows import Rows

saved = Signal()


class Audit:
    def __init__(self, rows):
        self.rows = rows

    def note(self, sender):
        return len(self.rows.lines)


# expect: leak GET / at rows.py:lines_of, held by module receivers → saved → receivers: dict[200]
def keep(number):
    saved.connect(Audit(Rows(number)).note, weak=False)
