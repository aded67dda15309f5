"""A Pyramid shop that keeps everything that it has sold. Served by Waitress."""

from pyramid.config import Configurator
from pyramid.response import Response

sold = []


def sell(request):
    sold.append(b"x" * 250_000)
    return Response("sold number " + request.matchdict["number"])


def broken(request):
    raise RuntimeError("this page never works")


def endless(request):
    def pieces():
        while True:
            yield b"x" * 65_536

    return Response(app_iter=pieces())


def large(request):
    return Response(body=b"x" * 30_000_000)


with Configurator() as config:
    for view, pattern in [(sell, "/sell/{number}"), (broken, "broken"), (endless, "/endless"), (large, "/large")]:
        config.add_route(view.__name__, pattern)
        config.add_view(view, route_name=view.__name__)
    app = config.make_wsgi_app()
