"""A Flask shop that keeps something for each request of most of its pages: in the request's own thread or greenlet, in a
pool of threads, in a thread and in a greenlet that the request starts. Served by the server that is named on the command
line, or imported by gunicorn."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from flask import Flask, Response

app = Flask(__name__)
sold = []
# Fewer threads than requests at a time: each works for many requests.
threads = ThreadPoolExecutor(2)


def keep(size):
    sold.append(b"x" * size)


@app.route("/sell/<int:number>")
def sell(number):
    keep(250_000)
    return "sold number %d" % number


@app.route("/pool/<int:number>")
def pool(number):
    threads.submit(keep, 240_000).result()
    return "pooled"


@app.route("/thread/<int:number>")
def thread(number):
    worker = threading.Thread(target=keep, args=(230_000,))
    worker.start()
    worker.join()
    return "done"


@app.route("/greenlet/<int:number>")
def greenlet(number):
    import gevent

    gevent.spawn(keep, 220_000).get()
    return "done"


def keep_in_handler():
    keep(200_000)


def keep_while_streaming():
    keep(200_000)


def keep_while_closing():
    keep(200_000)


@app.route("/phases")
def phases():
    def pieces():
        keep_while_streaming()
        yield b"all"

    keep_in_handler()
    response = Response(pieces())
    response.call_on_close(keep_while_closing)
    return response


@app.route("/broken")
def broken():
    raise RuntimeError("this page never works")


@app.route("/endless")
def endless():
    def pieces():
        while True:
            yield b"x" * 65_536

    return Response(pieces())


@app.route("/large")
def large():
    return b"x" * 30_000_000


def make():
    return app


if __name__ == "__main__":
    server, port = sys.argv[1], int(sys.argv[2])
    if server == "cheroot":
        from cheroot.wsgi import Server

        Server(("127.0.0.1", port), app, timeout=60).start()
    elif server == "eventlet":
        import eventlet
        from eventlet import wsgi

        wsgi.server(eventlet.listen(("127.0.0.1", port)), app)
    elif server == "gevent":
        from gevent.pywsgi import WSGIServer

        WSGIServer(("127.0.0.1", port), app).serve_forever()
    elif server == "wsgiref":
        from wsgiref.simple_server import make_server

        make_server("127.0.0.1", port, app).serve_forever()
    elif server == "werkzeug":
        from werkzeug.serving import run_simple

        run_simple("127.0.0.1", port, app, threaded=True)
