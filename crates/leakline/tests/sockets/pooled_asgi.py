"""An ASGI application that reads from a peer, for every path /NAME/BYTES so many bytes: over connections which all requests
share, whoever opened them, or with POOLED=no each over its own. For /large/BYTES it
sends so many at once."""

import asyncio
import os

pool = []


async def application(scope, receive, send):
    if scope["type"] != "http":
        return
    count = int(scope["path"].rpartition("/")[2])
    if scope["path"].startswith("/large/"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(count)})
        return
    reader, writer = pool.pop() if pool else await asyncio.open_connection("127.0.0.1", int(os.environ["PEER_PORT"]))
    writer.write(b"%08d" % count)
    await writer.drain()
    await reader.readexactly(count)
    if os.environ["POOLED"] == "yes":
        pool.append((reader, writer))
    else:
        writer.close()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
