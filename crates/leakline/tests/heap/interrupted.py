"""A server whose requests leave something in a list, and that says "ready" when it has served 200 of its own
(`python interrupted.py TABLES`). Ctrl-C ends it when there is a heap snapshot in TABLES, or after half a minute."""

import glob
import sys
import threading
import time
import urllib.request
from wsgiref.simple_server import WSGIRequestHandler, make_server

orders = []


def application(environ, start_response):
    orders.append(["row %d of an order" % row for row in range(400)])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"kept\n"]


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


server = make_server("127.0.0.1", 0, application, handler_class=Quiet)


def ask():
    for _ in range(200):
        urllib.request.urlopen("http://127.0.0.1:%d/" % server.server_port).read()
        # So that the agent has the time to find its interval.
        time.sleep(0.01)
    print("ready", flush=True)


threading.Thread(target=ask, daemon=True).start()
try:
    server.serve_forever()
except KeyboardInterrupt:
    end = time.monotonic() + 30
    while not glob.glob(sys.argv[1] + "/*/*.heap") and time.monotonic() < end:
        time.sleep(0.05)
