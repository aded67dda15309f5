"""What a copy of a server could disturb: a handler for the ends of children, threads that allocate and lock all the while,
a second interpreter, open files. `guest.py PORT` serves and tells; gunicorn and uvicorn serve `app` and `asgi`."""
import json
import os
import signal
import sys
import threading
import time
from wsgiref.simple_server import WSGIRequestHandler, make_server

try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

children = 0


def child_ended(number, frame):
    global children
    children += 1


def churn():
    lock = threading.Lock()
    while True:
        with lock:
            kept = [{"number": number, "bytes": bytes(number)} for number in range(2000)]
        time.sleep(0.001)
        del kept


def interpret():
    """Keeps a second interpreter at work; from 3.12 on it has a GIL of its own."""
    run = getattr(interpreters, "exec", None) or interpreters.run_string
    run(second, "import time\nwhile True:\n    kept = [[n] for n in range(2000)]\n    time.sleep(0.001)")


def state():
    try:
        waited = os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        waited = "none"
    pipe = os.fstat(kept_pipe[0]).st_ino
    return {"signals": children, "waited": waited, "threads": len(os.listdir("/proc/self/task")), "pipe": pipe}


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(state()).encode()]


async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"served\n"})


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


kept_pipe = os.pipe()
if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, child_ended)
    second = interpreters.create()
    for work in churn, churn, interpret:
        threading.Thread(target=work, daemon=True).start()
    make_server("127.0.0.1", int(sys.argv[1]), app, handler_class=Quiet).serve_forever()
