"""A Celery worker that sends itself tasks, each of which keeps something: directly, or by another task that it applies in
place. Whoever sends a letter to its port decides which: `o` for those that keep something, `n` for nothing."""

import socket
import sys
import threading
import time

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


@app.task(name="shop.nothing")
def nothing():
    # So that the next one is not this process's, too.
    time.sleep(0.01)


@worker_ready.connect
def work(**arguments):
    threading.Thread(target=take_orders, args=(socket.create_server(("127.0.0.1", port)),), daemon=True).start()


def take_orders(shop):
    while True:
        client, _ = shop.accept()
        with client:
            order = client.recv(1)
        if order == b"n":
            for _ in range(10):
                nothing.delay()
        elif order == b"o":
            for _ in range(60):
                sell.delay(250_000)
                bundle.delay()
            for _ in range(10):
                broken.delay()


app.worker_main(["worker", "--pool", pool, "--concurrency", "2", "--loglevel", "CRITICAL", "--without-mingle"])
