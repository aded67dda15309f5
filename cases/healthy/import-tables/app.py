"""Large tables that are made at import: much memory, none of which grows. Served by the standard library."""
# expect: none
import sys
from wsgiref.simple_server import WSGIRequestHandler, make_server

SQUARES = {number: str(number * number) for number in range(200000)}
WORDS = ["word %d" % number for number in range(200000)]


def app(environ, start_response):
    number = int(environ["PATH_INFO"].rpartition("/")[2])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [(SQUARES[number] + " " + WORDS[number]).encode()]


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


if __name__ == "__main__":
    make_server("127.0.0.1", int(sys.argv[1]), app, handler_class=Quiet).serve_forever()
