"""An aiohttp shop that keeps something for each request of most of its pages: in a coroutine, in a thread that it waits
for, in the loop's pool of threads, in a task, in an application below it, and for each WebSocket."""

import asyncio
import sys

from aiohttp import web

kept = []


def keep(size):
    kept.append(b"x" * size)


async def sell(request):
    keep(250_000)
    return web.Response(text="sold number %s" % request.match_info["number"])


async def lend(request):
    await asyncio.to_thread(keep, 240_000)
    return web.Response(text="lent")


async def pool(request):
    await asyncio.get_running_loop().run_in_executor(None, keep, 230_000)
    return web.Response(text="pooled")


async def later(request):
    async def work():
        keep(220_000)

    await asyncio.ensure_future(work())
    return web.Response(text="done")


async def order(request):
    keep(210_000)
    return web.Response(text="ordered")


async def talk(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    keep(600_000)
    async for said in socket:
        await socket.send_str(said.data)
    return socket


def keep_in_handler():
    keep(200_000)


def keep_while_streaming():
    keep(200_000)


def keep_after():
    keep(200_000)


async def phases(request):
    keep_in_handler()
    response = web.StreamResponse()
    await response.prepare(request)
    keep_while_streaming()
    await response.write(b"all")
    await response.write_eof()
    keep_after()
    return response


async def broken(request):
    raise RuntimeError("this page never works")


async def endless(request):
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * 65_536)


async def large(request):
    return web.Response(body=b"x" * 30_000_000)


def application():
    app = web.Application()
    app.router.add_get("/sell/{number}", sell)
    app.router.add_get("/lend/{number}", lend)
    app.router.add_get("/pool/{number}", pool)
    app.router.add_get("/later/{number}", later)
    app.router.add_get("/talk/{number}", talk)
    app.router.add_get("/phases", phases)
    app.router.add_get("/broken", broken)
    app.router.add_get("/endless", endless)
    app.router.add_get("/large", large)
    branch = web.Application()
    branch.router.add_get("/order/{number:\\d+}", order)
    app.add_subapp("/branch", branch)
    return app


async def app():
    """For gunicorn, which makes the application in its worker."""
    return application()


if __name__ == "__main__":
    web.run_app(application(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
