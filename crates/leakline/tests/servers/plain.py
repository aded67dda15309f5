"""A shop without a framework, served by the standard library, that keeps everything that it has sold."""

import sys
from wsgiref.simple_server import make_server

sold = []


def application(environ, start_response):
    if environ["PATH_INFO"] == "/broken":
        raise RuntimeError("this page never works")
    sold.append(b"x" * 250_000)  # kept for ever
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"sold"]


make_server("127.0.0.1", int(sys.argv[1]), application).serve_forever()
