"""Keeps the rows of every report that was ever made."""
import sys

_reports = []


# expect: leak GET /report at ledger.py:record, bytes as GET /kept within 10 %, share 95 %, held by module ledger → _reports
def record(count):
    rows = []
    for number in range(count):
        rows.append({"id": number, "name": "row %d" % number, "state": "kept %d" % number})
    _reports.append(rows)
    return len(rows)


def kept_bytes():
    """The exact size of what the reports keep: lists, dicts and strings; the keys and the small ints are shared."""
    total = sys.getsizeof(_reports)
    for rows in _reports:
        total += sys.getsizeof(rows)
        for row in rows:
            total += sys.getsizeof(row) + sys.getsizeof(row["name"]) + sys.getsizeof(row["state"])
    return total
