"""A shop without a framework, which keeps everything that it has sold."""

sold = []


def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/broken":
        start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
        return [b"this page never works"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/endless":
        return endless()
    if path == "/large":
        return [b"x" * 30_000_000]
    sold.append(b"x" * 250_000)
    return [b"sold"]


def endless():
    while True:
        yield b"x" * 65_536


def make():
    return application
