"""Server-sent events: every client has a queue while it listens, and clients come and go."""
import asyncio

from fastapi import FastAPI
from starlette.responses import StreamingResponse

# expect: none
app = FastAPI()
listeners = set()


@app.get("/events")
async def events():
    async def stream():
        queue = asyncio.Queue()
        listeners.add(queue)
        try:
            for number in range(30):
                queue.put_nowait(b"data: %d %s\n\n" % (number, b"x" * 4000))
                yield await queue.get()
                await asyncio.sleep(0.002)
        finally:
            listeners.discard(queue)

    return StreamingResponse(stream(), media_type="text/event-stream")


@app.get("/listeners")
async def count():
    return {"listeners": len(listeners)}
