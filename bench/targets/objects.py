"""A server that holds so many objects (`objects.py PORT COUNT`) and can be asked what each way to look at them costs it:
GET /fork, /guppy3, /pympler, /objgraph. The answer is the time that it stood still, and how much more memory it took."""

import ctypes
import gc
import json
import sys
import time
from wsgiref.simple_server import WSGIRequestHandler, make_server


class Order:
    def __init__(self, number):
        self.number = number * 1000
        self.lines = [{"article": "article %d" % number, "cents": float(number)} for _ in range(2)]


# An order is an object with a list of two dicts, each with a string and a float, and an int: nine objects or so.
orders = [Order(number) for number in range(int(sys.argv[2]) // 9)]


def fork():
    """A bare one: neither the interpreter nor anybody who has registered with the C library is asked."""
    system = ctypes.CDLL(None, use_errno=True)
    began = time.perf_counter()
    child = system.syscall(57)
    if child == 0:
        system.syscall(231, 0)
    pause = time.perf_counter() - began
    system.waitpid(child, None, 0)
    return pause


def guppy3():
    from guppy import hpy

    return str(hpy().heap())


def pympler():
    from pympler import muppy, summary

    return summary.summarize(muppy.get_objects())


def objgraph():
    import objgraph

    return objgraph.most_common_types(limit=20)


def cost(look):
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = resident("VmRSS")
    began = time.perf_counter()
    found = look()
    seconds = found if look is fork else time.perf_counter() - began
    return {"seconds": seconds, "bytes": resident("VmHWM") - before}


def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    look = {"/fork": fork, "/guppy3": guppy3, "/pympler": pympler, "/objgraph": objgraph}.get(environ["PATH_INFO"])
    return [json.dumps(cost(look) if look else len(gc.get_objects())).encode()]


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


if __name__ == "__main__":
    make_server("127.0.0.1", int(sys.argv[1]), application, handler_class=Quiet).serve_forever()
