"""A Bottle shop that keeps everything that it has sold."""

from bottle import Bottle

app, branch = Bottle(), Bottle()
sold = []


@app.get("/sell/<number:int>")
def sell(number):
    sold.append(b"x" * 250_000)
    return "sold number %d" % number


@branch.get("/order/<number>")
def order(number):
    sold.append(b"x" * 210_000)
    return "ordered"


@app.get("/broken")
def broken():
    raise RuntimeError("this page never works")


@app.get("/endless")
def endless():
    while True:
        yield b"x" * 65_536


@app.get("/large")
def large():
    return b"x" * 30_000_000


app.mount("/branch/", branch)
