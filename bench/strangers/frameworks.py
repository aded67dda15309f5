"""Hangs functions into a framework's application, and starts it in a server."""

import dataclasses

WSGI = ["gunicorn sync", "gunicorn gthread", "waitress"]
ASGI = ["uvicorn", "hypercorn"]


@dataclasses.dataclass
class Server:
    words: list
    may_fork: bool = False

    def command(self, workers):
        return [*self.words, *(["--workers", str(workers)] if self.may_fork else [])]


SERVERS = {
    "gunicorn sync": Server(["gunicorn", "--log-level", "critical", "--bind", "127.0.0.1:{port}", "app:app"], True),
    "gunicorn gthread": Server(
        ["gunicorn", "--log-level", "critical", "--threads", "4", "--bind", "127.0.0.1:{port}", "app:app"], True
    ),
    "waitress": Server(["waitress", "--listen", "127.0.0.1:{port}", "app:app"]),
    # Not forked: uvicorn's workers leave Nagle's algorithm on, and each answer takes 40 ms.
    "uvicorn": Server(["uvicorn", "--log-level", "critical", "--port", "{port}", "app:app"]),
    "hypercorn": Server(["hypercorn", "--log-level", "critical", "--bind", "127.0.0.1:{port}", "app:app"]),
}

FLASK = """import flask

import shop

app = flask.Flask(__name__)
app.logger.disabled = True


def answer(do):
    return lambda number: flask.Response(do(number), mimetype="application/json")


for name in {names}:
    app.add_url_rule("/%s/<int:number>" % name, name, answer(getattr(shop, name)))
app.add_url_rule("/kept", "kept", lambda: shop.told())
"""

DJANGO = """import logging

from django.conf import settings
from django.core.{kind} import get_{kind}_application
from django.http import HttpResponse
from django.urls import path

import shop

logging.disable()


def answer(do):
    {define} view(request, number):
        return HttpResponse(do(number), content_type="application/json")

    return view


urlpatterns = [path("%s/<int:number>" % name, answer(getattr(shop, name))) for name in {names}]
urlpatterns.append(path("kept", lambda request: HttpResponse(shop.told())))
settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__, SECRET_KEY="of a benchmark")
app = get_{kind}_application()
"""

FASTAPI = """from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

import shop

app = FastAPI()


def answer(do):
    {define} view(number: int):
        return PlainTextResponse(do(number))

    return view


for name in {names}:
    app.add_api_route("/%s/{{number}}" % name, answer(getattr(shop, name)))


@app.get("/kept")
def kept():
    return PlainTextResponse(shop.told())
"""

FALCON = """import falcon{asgi}

import shop


class Page:
    def __init__(self, do):
        self.do = do

    {define} on_get(self, request, response, number):
        response.text = self.do(number)


class Kept:
    {define} on_get(self, request, response):
        response.text = shop.told()


app = falcon{asgi}.App()
for name in {names}:
    app.add_route("/%s/{{number:int}}" % name, Page(getattr(shop, name)))
app.add_route("/kept", Kept())
"""

BOTTLE = """import bottle

import shop

app = bottle.Bottle()


def answer(do):
    return lambda number: do(number)


for name in {names}:
    app.route("/%s/<number:int>" % name, callback=answer(getattr(shop, name)))
app.route("/kept", callback=lambda: shop.told())
"""


@dataclasses.dataclass
class Framework:
    text: str
    servers: list
    # What a handler may be defined with.
    define: tuple = ("def",)
    words: dict = dataclasses.field(default_factory=dict)

    def application(self, chance, names):
        return self.text.format(names=sorted(names), define=chance.choice(self.define), **self.words)


FRAMEWORKS = {
    "Flask": Framework(FLASK, WSGI),
    "Django": Framework(DJANGO, WSGI, words={"kind": "wsgi"}),
    "Django ASGI": Framework(DJANGO, ASGI, ("def", "async def"), {"kind": "asgi"}),
    "FastAPI": Framework(FASTAPI, ASGI, ("def", "async def")),
    "Falcon": Framework(FALCON, WSGI, words={"asgi": ""}),
    "Falcon ASGI": Framework(FALCON, ASGI, ("async def",), {"asgi": ".asgi"}),
    "Bottle": Framework(BOTTLE, WSGI),
}
