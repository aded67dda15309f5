"""A Falcon shop that keeps everything that it has sold: `app` speaks WSGI and `asgi` ASGI, and keeps something for each
WebSocket, too."""

import asyncio

import falcon
import falcon.asgi

sold = []


def stream():
    while True:
        yield b"x" * 65_536


async def asynchronous_stream():
    # Not endless: nobody stops Falcon's streams when the client has gone.
    for _ in range(1_000):
        yield b"x" * 65_536
        await asyncio.sleep(0)


class Sell:
    def on_get(self, request, response, number):
        sold.append(b"x" * 250_000)
        response.text = "sold"


class Broken:
    def on_get(self, request, response):
        raise RuntimeError("this page never works")


class Endless:
    def on_get(self, request, response):
        response.stream = stream()


class Large:
    def on_get(self, request, response):
        response.data = b"x" * 30_000_000


class Talk:
    async def on_websocket(self, request, socket, number):
        await socket.accept()
        sold.append(b"x" * 600_000)
        try:
            while True:
                await socket.send_text(await socket.receive_text())
        except falcon.WebSocketDisconnected:
            pass


def asynchronous(resource):
    class Asynchronous:
        async def on_get(self, request, response, **parameters):
            resource.on_get(request, response, **parameters)
            if response.stream is not None:
                response.stream = asynchronous_stream()

    return Asynchronous()


app, asgi = falcon.App(), falcon.asgi.App()
for template, resource in [("/sell/{number:int}", Sell()), ("/broken", Broken()), ("/endless", Endless()), ("/large", Large())]:
    app.add_route(template, resource)
    asgi.add_route(template, asynchronous(resource))
asgi.add_route("/talk/{number:int}", Talk())
