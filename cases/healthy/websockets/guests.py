"""The guests: each line that arrives, a port and a name, is one more, who connects to that port, says something, and stays
until twenty others have come."""
import asyncio
import sys
from collections import deque

import websockets

here = deque()


async def invited(reader, writer):
    line = await reader.readline()
    if not line:
        # Somebody only wanted to know whether we are here.
        return
    port, name = line.decode().split()
    guest = await websockets.connect("ws://127.0.0.1:%s/room/%s" % (port, name))
    for _ in range(3):
        await guest.send("hello " * 200)
    # What the others say is read, too.
    here.append((guest, asyncio.ensure_future(listen(guest))))
    if len(here) > 20:
        oldest, listening = here.popleft()
        await oldest.close()
        await listening
    writer.write(b"welcome\n")
    writer.close()


async def listen(guest):
    try:
        async for said in guest:
            pass
    except websockets.ConnectionClosed:
        pass


async def serve(port):
    server = await asyncio.start_server(invited, "127.0.0.1", port)
    await server.serve_forever()


asyncio.run(serve(int(sys.argv[1])))
