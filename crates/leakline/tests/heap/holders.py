"""One object for each way to be held, and a server that counts its objects from inside.

`# held: TYPE TEXT` says what stands in the way to the objects of that type.
"""
import array
import asyncio
import collections
import contextvars
import ctypes
import functools
import gc
import json
import logging
import os
import sys
import threading
from wsgiref.simple_server import WSGIRequestHandler, make_server

# What is garbage shall stay garbage.
gc.disable()
# gc.get_objects leaves out what is frozen, and 3.12 freezes the base classes of its own types.
gc.unfreeze()


class Kept:
    def __init__(self):
        self.weight = [0] * 200


def kind(name):
    return type(name, (Kept,), {})


# held: InList module __main__ → orders[…]
orders = [kind("InList")() for _ in range(3)]
# held: InDict module __main__ → by_name['first order']
by_name = {"first order": kind("InDict")(), "second": None}
# held: InTuples module __main__ → tuples[…][…]
tuples = [(1, kind("InTuples")())]
# held: InSet module __main__ → members[…]
members = {kind("InSet")()}
# held: InDeque module __main__ → recent[…]
recent = collections.deque([kind("InDeque")()], maxlen=500)


class Timer:
    # held: InClass class __main__.Timer → timers['fetch']
    timers = {"fetch": kind("InClass")()}


class Book:
    def __init__(self):
        # held: InAttribute module __main__ → book → page
        self.page = kind("InAttribute")()


book = Book()


class Slots:
    __slots__ = ("left", "right")


slots = Slots()
# held: InSlot module __main__ → slots → right
slots.right = kind("InSlot")()


class Price(kind("InCache")):
    pass


# held: Price functools.lru_cache(maxsize=None) on __main__.price (7 entries)
@functools.lru_cache(maxsize=None)
def price(number):
    return Price()


for number in range(7):
    price(number)


def make_counter():
    seen = [kind("InClosure")()]

    def count():
        return len(seen)

    return count


# held: InClosure module __main__ → count → __closure__
count = make_counter()

# held: InDefault module __main__ → lookup → tuple[1][…]
def lookup(value=kind("InDefault")()):
    return value


def stream():
    # held: InGenerator generator stream → frame local 'payload'
    payload = kind("InGenerator")()
    yield 1
    yield payload


running = stream()
next(running)


async def handler():
    # held: InTask Task <handler> awaiting Future → frame local 'payload'
    payload = kind("InTask")()
    await asyncio.get_running_loop().create_future()
    return payload


async def start():
    task = asyncio.ensure_future(handler())
    await asyncio.sleep(0)
    return task


loop = asyncio.new_event_loop()
task = loop.run_until_complete(start())


def fail():
    # held: InTraceback exception traceback → frame of __main__.fail → frame local 'payload'
    payload = kind("InTraceback")()
    raise ValueError(len(payload.weight))


try:
    fail()
except ValueError as error:
    saved = error

variable = contextvars.ContextVar("variable")
context = contextvars.copy_context()
# held: InContext module __main__ → context → contextvars.Context → variable
context.run(variable.set, kind("InContext")())

# held: InHandler module logging → root → handlers[…] → kept
log_handler = logging.NullHandler()
log_handler.kept = kind("InHandler")()
logging.getLogger().addHandler(log_handler)
del log_handler

# held: InGarbage module gc → garbage[…]
gc.garbage.append(kind("InGarbage")())

local = threading.local()
ready = threading.Event()


def wait():
    # held: InThread module __main__ → local → threading.local → kept
    local.kept = kind("InThread")()
    ready.set()
    threading.Event().wait()


threading.Thread(target=wait, daemon=True).start()
ready.wait()

# held: InExtension unknown holder outside of all objects
ctypes.pythonapi.Py_IncRef(ctypes.py_object(kind("InExtension")()))


def forget():
    # held: InCycle nobody (garbage to be collected)
    cycle = kind("InCycle")()
    cycle.itself = cycle


forget()

# What is larger than it says of itself, with buffers of known sizes.
sizes = {
    "list": [None] * 1000,
    "dict": {str(number): None for number in range(1000)},
    "set": set(range(1000)),
    "bytearray": bytearray(5000),
    "bytes": bytes(5000),
    "str": "ä" * 5000,
    "array.array": array.array("d", [1.0]) * 500,
    "tuple": (None,) * 1000,
    "int": 1 << 30000,
}


# Where an array's dimensions and strides lie is numpy's own secret: eight bytes each.
beside = {}
try:
    import numpy
except ImportError:
    pass
else:
    sizes["numpy.ndarray"] = numpy.zeros((50, 30))
    sizes["view of an array"] = sizes["numpy.ndarray"][10:]
    beside = {name: 16 * sizes[name].ndim for name in ("numpy.ndarray", "view of an array")}


def forked():
    """Forks, and returns how many threads this process and its child have."""
    child = os.fork()
    if child == 0:
        os._exit(len(os.listdir("/proc/self/task")))
    threads = len(os.listdir("/proc/self/task"))
    return [threads, os.waitpid(child, 0)[1] >> 8]


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    if environ["PATH_INFO"] == "/sizes":
        answer = {name: [id(of), sys.getsizeof(of) - beside.get(name, 0)] for name, of in sizes.items()}
    elif environ["PATH_INFO"] == "/fork":
        answer = forked()
    else:
        answer = collections.Counter(type(each).__name__ for each in gc.get_objects())
    return [json.dumps(answer).encode()]


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


make_server("127.0.0.1", int(sys.argv[1]), application, handler_class=Quiet).serve_forever()
