"""A task that waits for the next order, and keeps all that have come in a local variable."""
import asyncio

from rows import Rows

loop = asyncio.new_event_loop()


async def handler(queue):
    payload = []
    while True:
        payload.append(await queue.get())


async def start():
    queue = asyncio.Queue()
    return queue, asyncio.ensure_future(handler(queue))


queue, task = loop.run_until_complete(start())


async def send(order):
    await queue.put(order)
    await asyncio.sleep(0)


# expect: leak GET / at rows.py:lines_of, held by Task <handler> awaiting Queue.get → frame local 'payload': list[200]
def keep(number):
    loop.run_until_complete(send(Rows(number)))
