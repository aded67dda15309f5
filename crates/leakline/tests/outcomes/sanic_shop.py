"""A Sanic shop that keeps something for each request of most of its pages."""

import asyncio
import sys

from sanic import Sanic, response

app = Sanic("shop")
sold = []


def keep(size):
    sold.append(b"x" * size)


@app.get("/sell/<number:int>")
async def sell(request, number):
    await asyncio.sleep(0)
    keep(250_000)
    return response.text("sold")


@app.get("/pool/<number:int>")
async def pool(request, number):
    await asyncio.get_running_loop().run_in_executor(None, keep, 240_000)
    return response.text("pooled")


@app.get("/broken")
async def broken(request):
    raise RuntimeError("this page never works")


@app.get("/endless")
async def endless(request):
    answer = await request.respond(content_type="text/plain")
    while True:
        await answer.send(b"x" * 65_536)
        # As long as a server need not wait for its client, nothing else would ever run.
        await asyncio.sleep(0)


@app.get("/large")
async def large(request):
    return response.raw(b"x" * 30_000_000)


if __name__ == "__main__":
    app.run("127.0.0.1", int(sys.argv[1]), single_process=True, access_log=False)
