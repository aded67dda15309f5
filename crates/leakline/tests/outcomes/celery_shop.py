"""A Celery worker that sends itself tasks, each of which keeps something: directly, or by another task that it applies in
place. Its port says that it works, and nothing else."""

import socket
import sys

from celery import Celery
from celery.signals import worker_ready

pool, port = sys.argv[1], int(sys.argv[2])
app = Celery("shop", broker="memory://")
app.conf.task_ignore_result = True
kept = []


@app.task(name="shop.sell")
def sell(size):
    kept.append(b"x" * size)


@app.task(name="shop.bundle")
def bundle():
    sell.apply((240_000,))


@app.task(name="shop.broken")
def broken():
    raise RuntimeError("this task never works")


@worker_ready.connect
def work(**arguments):
    app.port = socket.create_server(("127.0.0.1", port))
    for _ in range(60):
        sell.delay(250_000)
        bundle.delay()
    for _ in range(10):
        broken.delay()


app.worker_main(["worker", "--pool", pool, "--concurrency", "2", "--loglevel", "CRITICAL", "--without-mingle"])
