"""A Flask shop that keeps everything that it has sold. Served by the server that is named on the
command line, or imported by gunicorn."""

import sys

from flask import Flask, Response

app = Flask(__name__)
sold = []


@app.route("/sell/<int:number>")
def sell(number):
    sold.append(b"x" * 250_000)
    return "sold number %d" % number


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


if __name__ == "__main__":
    server, port = sys.argv[1], int(sys.argv[2])
    if server == "cheroot":
        from cheroot.wsgi import Server

        Server(("127.0.0.1", port), app).start()
    elif server == "wsgiref":
        from wsgiref.simple_server import make_server

        make_server("127.0.0.1", port, app).serve_forever()
    elif server == "werkzeug":
        from werkzeug.serving import run_simple

        run_simple("127.0.0.1", port, app, threaded=True)
