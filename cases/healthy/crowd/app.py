"""An asynchronous server with much to do at once: two hundred requests wait for each other's locks, for the clock and for
threads, and all that they have built goes when they end. What is shared is bounded."""
import asyncio
import json
import random
from functools import lru_cache

from fastapi import FastAPI

# expect: none
app = FastAPI()
gate = asyncio.Semaphore(50)


@lru_cache(maxsize=200)
def price(number):
    return {"number": number, "history": [random.random() for _ in range(50)]}


def render(rows):
    return json.loads(json.dumps(rows))


@app.get("/quotes/{number}")
async def quotes(number: int):
    rows = [dict(price(number % 300), row=row) for row in range(20)]
    async with gate:
        await asyncio.sleep(random.random() / 100)
    found = await asyncio.gather(*(lookup(row) for row in rows[:3]))
    return {"found": found, "rows": len(rows)}


async def lookup(row):
    await asyncio.sleep(random.random() / 200)
    return row["number"]


@app.get("/reports/{number}")
async def reports(number: int):
    rows = [{"number": number, "text": "x" * 200, "row": row} for row in range(100)]
    return len(await asyncio.get_running_loop().run_in_executor(None, render, rows))


@app.get("/totals/{number}")
def totals(number: int):
    return sum(sum(price(one)["history"]) for one in range(number % 100, number % 100 + 10))
