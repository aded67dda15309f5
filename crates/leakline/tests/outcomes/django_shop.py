"""A Django shop for ASGI servers, in one file, that keeps something for each request of most of its pages, and for each
WebSocket, which Django leaves to others."""

import asyncio

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import include, path

kept = []


async def sell(request, number):
    kept.append(b"x" * 250_000)
    return HttpResponse("sold number %d" % number)


def lend(request, number):
    kept.append(b"x" * 240_000)
    return HttpResponse("lent number %d" % number)


async def broken(request):
    raise RuntimeError("this page never works")


async def endless(request):
    async def pieces():
        while True:
            yield b"x" * 65_536
            # To a client that has gone a server sends without waiting, and then nothing else would ever run.
            await asyncio.sleep(0)

    return StreamingHttpResponse(pieces())


async def large(request):
    return HttpResponse(b"x" * 30_000_000)


urlpatterns = [
    path("sell/", include([path("<int:number>", sell)])),
    path("lend/<int:number>", lend),
    path("broken", broken),
    path("endless", endless),
    path("large", large),
]

settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__, SECRET_KEY="of a test")
pages = get_asgi_application()


async def talk(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    kept.append(b"x" * 600_000)
    message = await receive()
    while message["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
        message = await receive()


async def application(scope, receive, send):
    if scope["type"] == "websocket":
        await talk(receive, send)
    else:
        await pages(scope, receive, send)
