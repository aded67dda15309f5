"""WebSockets that stay open: each has a queue on the server and gets what others say. Guests come by invitation: whoever
asks for one makes the service next door open a WebSocket, and the one that has been here the longest then leaves."""
import asyncio
import sys

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

# expect: none
app = FastAPI()
guests = {}


@app.websocket("/room/{name}")
async def room(socket: WebSocket, name: str):
    await socket.accept()
    queue = guests[name] = asyncio.Queue(maxsize=10)
    sender = asyncio.ensure_future(forward(socket, queue))
    try:
        while True:
            said = await socket.receive_text()
            for other in list(guests.values()):
                if not other.full():
                    other.put_nowait(name + ": " + said)
    except WebSocketDisconnect:
        pass
    finally:
        sender.cancel()
        del guests[name]


async def forward(socket, queue):
    while True:
        await socket.send_text(await queue.get())


@app.get("/invite/{name}")
async def invite(name: str):
    reader, writer = await asyncio.open_connection("127.0.0.1", service_port)
    writer.write(b"%d %s\n" % (port, name.encode()))
    answer = await reader.readline()
    writer.close()
    return {"answer": answer.decode(), "guests": len(guests)}


if __name__ == "__main__":
    port, service_port = map(int, sys.argv[1:])
    # Compressors of connections that have gone wait for the collector: what that frees stays with the allocator, half of
    # the server's memory with the agent or without, and is rightly called retained.
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", ws_per_message_deflate=False)
