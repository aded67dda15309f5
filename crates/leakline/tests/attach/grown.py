"""Keeps a list and a buffer that were large before anybody came, and that each request makes larger, beside what it never
touches again. `/sizes` says how many bytes both have."""

import sys
from wsgiref.simple_server import make_server

untouched = b"x" * 30_000_000
row = ("Ada", "Lovelace", "ada@example.com")
rows = [row] * 1_000_000
text = bytearray(b"x" * 8_000_000)


def append_rows():
    for _ in range(5_000):
        rows.append(row)  # the list grows


def append_text():
    text.extend(b"x" * 40_000)  # the buffer grows


def application(environ, start_response):
    answer = b""
    if environ["PATH_INFO"] == "/rows":
        append_rows()
    elif environ["PATH_INFO"] == "/text":
        append_text()
    elif environ["PATH_INFO"] == "/sizes":
        answer = b"%d %d" % (sys.getsizeof(rows), sys.getsizeof(text))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer]


make_server("127.0.0.1", int(sys.argv[1]), application).serve_forever()
