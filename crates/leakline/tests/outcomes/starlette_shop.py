"""A Starlette shop that keeps something for each request of most of its pages: in a coroutine, in Starlette's pool of
threads and in another one, below a mount, and when the answer is complete."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

kept = []
threads = ThreadPoolExecutor(2)


def keep(size):
    kept.append(b"x" * size)


async def sell(request):
    keep(250_000)
    return PlainTextResponse("sold number " + request.path_params["number"])


async def lend(request):
    await run_in_threadpool(keep, 240_000)
    return PlainTextResponse("lent")


async def pool(request):
    await asyncio.wrap_future(threads.submit(keep, 230_000))
    return PlainTextResponse("pooled")


async def later(request):
    return PlainTextResponse("done", background=BackgroundTask(keep, 220_000))


def order(request):
    keep(210_000)
    return PlainTextResponse("ordered")


def keep_in_handler():
    keep(200_000)


def keep_while_streaming():
    keep(200_000)


def keep_after():
    keep(200_000)


async def phases(request):
    """What comes after is a background task, a task that nobody waits for, and a callback."""

    async def pieces():
        keep_while_streaming()
        yield b"all"

    async def work():
        await asyncio.sleep(0.1)
        keep_after()

    async def background():
        keep_after()
        asyncio.ensure_future(work())
        asyncio.get_running_loop().call_later(0.05, keep_after)
        # The request lasts until they are done.
        await asyncio.sleep(0.2)

    keep_in_handler()
    return StreamingResponse(pieces(), background=BackgroundTask(background))


async def broken(request):
    raise RuntimeError("this page never works")


async def endless(request):
    async def pieces():
        while True:
            yield b"x" * 65_536
            # To a client that has gone a server sends without waiting, and then nothing else would ever run.
            await asyncio.sleep(0)

    return StreamingResponse(pieces())


async def large(request):
    return Response(b"x" * 30_000_000)


app = Starlette(
    routes=[
        Route("/sell/{number}", sell),
        Route("/lend/{number}", lend),
        Route("/pool/{number}", pool),
        Route("/later/{number}", later),
        Mount("/branch", routes=[Route("/order/{number}", order)]),
        Route("/phases", phases),
        Route("/broken", broken),
        Route("/endless", endless),
        Route("/large", large),
    ]
)
