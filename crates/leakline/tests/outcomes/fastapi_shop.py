"""A FastAPI shop that keeps something for each request of most of its pages: in a coroutine, in Starlette's pool of
threads, in the loop's, in a task that runs when the answer is complete, and for each WebSocket."""

import asyncio

from fastapi import APIRouter, BackgroundTasks, FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import Response, StreamingResponse

app = FastAPI()
kept = []


def keep(size):
    kept.append(b"x" * size)


@app.get("/sell/{number}")
async def sell(number: int):
    keep(250_000)
    return number


@app.get("/lend/{number}")
def lend(number: int):
    keep(240_000)
    return number


@app.get("/pool/{number}")
async def pool(number: int):
    await asyncio.get_running_loop().run_in_executor(None, keep, 230_000)
    return number


@app.get("/later/{number}")
async def later(number: int, tasks: BackgroundTasks):
    tasks.add_task(keep, 220_000)
    return number


@app.websocket("/talk/{number}")
async def talk(socket: WebSocket, number: int):
    await socket.accept()
    keep(600_000)
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass


@app.get("/broken")
async def broken():
    raise RuntimeError("this page never works")


@app.get("/endless")
async def endless():
    async def pieces():
        while True:
            yield b"x" * 65_536
            # To a client that has gone a server sends without waiting, and then nothing else would ever run.
            await asyncio.sleep(0)

    return StreamingResponse(pieces())


@app.get("/large")
async def large():
    return Response(b"x" * 30_000_000)


branch = APIRouter()


@branch.get("/order/{number}")
async def order(number: int):
    keep(210_000)
    return number


app.include_router(branch, prefix="/branch/{town}")

mounted = FastAPI()
mounted.include_router(branch)
app.mount("/mounted", mounted)
