"""A Litestar shop that keeps something for each request of most of its pages."""

import asyncio

from litestar import Litestar, Router, get
from litestar.response import Response, Stream

sold = []


def keep(size):
    sold.append(b"x" * size)


@get("/sell/{number:int}")
async def sell(number: int) -> str:
    await asyncio.sleep(0)
    keep(250_000)
    return "sold"


@get("/lend/{number:int}", sync_to_thread=True)
def lend(number: int) -> str:
    keep(240_000)
    return "lent"


@get("/order/{number:int}")
async def order(number: int) -> str:
    keep(210_000)
    return "ordered"


@get("/broken")
async def broken() -> None:
    raise RuntimeError("this page never works")


@get("/endless")
async def endless() -> Stream:
    async def pieces():
        while True:
            yield b"x" * 65_536
            # To a client that has gone a server sends without waiting, and then nothing else would ever run.
            await asyncio.sleep(0)

    return Stream(pieces())


@get("/large")
async def large() -> Response[bytes]:
    return Response(b"x" * 30_000_000, media_type="application/octet-stream")


app = Litestar([sell, lend, broken, endless, large, Router("/branch", route_handlers=[order])])
