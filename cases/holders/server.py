"""A server whose requests do what one of the modules beside it says: `python server.py MODULE PORT`.

Each module keeps some 30 kB of every request in another way, and says in a comment who must be named for it.
"""
import importlib
import sys
from wsgiref.simple_server import WSGIRequestHandler, make_server

keep = importlib.import_module(sys.argv[1]).keep
requests = 0


def application(environ, start_response):
    global requests
    requests += 1
    keep(requests)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"kept\n"]


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


if __name__ == "__main__":
    make_server("127.0.0.1", int(sys.argv[2]), application, handler_class=Quiet).serve_forever()
