"""Two pages, each of which keeps something in every way that asynchronous code has to do its work: before and after it
waits, in a task, in the loop's pool of threads, in Starlette's, and in a page that is no coroutine but depends on one."""

import asyncio
import random

from fastapi import Depends, FastAPI
from starlette.concurrency import run_in_threadpool

app = FastAPI()
kept = []


def keep_little():
    kept.append([b"%d" % number for number in range(10)] + [b"x" * 2_000])


def keep_much():
    kept.append([b"%d" % number for number in range(50)] + [b"x" * 10_000])


async def work(keep):
    keep()
    await asyncio.sleep(random.random() / 50)
    keep()
    await asyncio.gather(later(keep), asyncio.ensure_future(later(keep)))
    await asyncio.get_running_loop().run_in_executor(None, keep)
    if hasattr(asyncio, "to_thread"):
        await asyncio.to_thread(keep)
    await run_in_threadpool(keep)
    keep()


async def later(keep):
    await asyncio.sleep(random.random() / 50)
    keep()


async def work_little():
    await work(keep_little)


@app.get("/little/{number}")
def little(number: int, worked: None = Depends(work_little)):
    keep_little()
    return number


@app.get("/much/{number}")
async def much(number: int):
    await work(keep_much)
    return number
