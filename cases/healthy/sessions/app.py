"""Sessions that expire: each request opens one of 4 kB, and those older than two seconds are dropped."""
# expect: none
import sys
import threading
import time
from collections import OrderedDict

from waitress import serve

LIFETIME = 2.0
sessions = OrderedDict()
lock = threading.Lock()


def open_session(name):
    now = time.monotonic()
    with lock:
        while sessions and next(iter(sessions.values()))["opened"] < now - LIFETIME:
            sessions.popitem(last=False)
        sessions.pop(name, None)
        sessions[name] = {"opened": now, "basket": bytearray(4096), "user": "user " + name}
        return len(sessions)


def app(environ, start_response):
    count = open_session(environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d sessions\n" % count]


if __name__ == "__main__":
    serve(app, host="127.0.0.1", port=int(sys.argv[1]), threads=4)
