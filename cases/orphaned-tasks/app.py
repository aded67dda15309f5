"""Tasks that outlive their request: each request starts one that waits for the client's next message with the data of the
request in hand. When the client has gone, nobody cancels it."""
import asyncio

from fastapi import FastAPI
from starlette.responses import StreamingResponse

app = FastAPI()
waiting = set()


async def wait_for_message(event, rows):
    await event.wait()
    return len(rows)


# expect: leak GET /feed/{name} when aborted at app.py:follow, 24000 B/request within 30 %, never when ok
def follow(name, left):
    rows = bytearray(24_000)
    rows[::4096] = b"x" * 6
    event = asyncio.Event()
    task = asyncio.ensure_future(wait_for_message(event, rows))
    waiting.add(task)
    task.add_done_callback(waiting.discard)
    return event


@app.get("/feed/{name}")
async def feed(name: str):
    async def rows():
        event = follow(name, waiting)
        for _ in range(20):
            yield b"row\n" * 2000
            await asyncio.sleep(0.005)
        # Only who reads to the end gets here.
        event.set()

    return StreamingResponse(rows(), media_type="text/plain")
