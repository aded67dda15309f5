"""A Flask shop that keeps everything that it has sold."""

import sys

from flask import Flask

app = Flask(__name__)
sold = []


@app.route("/sell/<int:number>")
def sell(number):
    sold.append(b"x" * 250_000)  # kept for ever
    return "sold number %d" % number


@app.route("/broken")
def broken():
    raise RuntimeError("this page never works")


@app.route("/healthy")
def healthy():
    return "well"


if __name__ == "__main__":
    from werkzeug.serving import run_simple

    run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True)
