"""One object for each way to be held, and a server that counts its objects from inside: `holders.py PORT [alone]`.

`# held: TYPE TEXT` says what stands in the way to the objects of that type.
"""
import array
import asyncio
import collections
import contextvars
import ctypes
import decimal
import functools
import gc
import json
import logging
import os
import sys
import threading
import tracemalloc
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


class Line:
    """Its attributes are kept without a dict from 3.11 on, and in a table that instances share."""

    def __init__(self):
        self.article = self.cents = self.number = None


class Wide:
    """More attributes than instances share a table for."""

    def __init__(self):
        for name in wide_names:
            setattr(self, name, None)


wide_names = ["name%d" % number for number in range(40)]


def with_dict():
    line = Line()
    # vars() would leave its arguments on a list of free tuples.
    line.__dict__
    return line


def of_instance(make):
    """An instance, where it and its dict are, and what the allocator gives for them: sys.getsizeof passes attributes over
    that are kept without a dict."""
    tracemalloc.start()
    taken = []
    # Twice nothing: what the second time takes is what measuring takes.
    for each in [lambda: None, lambda: None, make]:
        # The first ones of a class get room for more attributes than they have.
        for _ in range(40):
            each()
        # Empties the lists of free objects, which are handed out again without an allocation.
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        made = each()
        taken.append(tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()
    # To ask for a dict makes one, from 3.11 on.
    has_dict = make is not Slots and (sys.version_info < (3, 11) or make is not Line)
    places = [id(made), id(vars(made))] if has_dict else [id(made)]
    return made, places, taken[2] - taken[1]


instances = {make.__name__: of_instance(make) for make in (Line, with_dict, Wide, Slots)}


def forget():
    # held: InCycle nobody (garbage to be collected)
    cycle = kind("InCycle")()
    cycle.itself = cycle


forget()

# An interpreter beside the main one, which shares its GIL.
try:
    import _interpreters as interpreters
except ImportError:
    try:
        import _xxsubinterpreters as interpreters
    except ImportError:
        # 3.7 has none that would outlive a call.
        interpreters = None
if "alone" in sys.argv:
    # CPython 3.8 hangs when a process with several of them forks.
    interpreters = None


def interpreter():
    if sys.version_info >= (3, 13):
        return interpreters.create("legacy")
    return interpreters.create(isolated=False) if sys.version_info >= (3, 9) else interpreters.create()


def interpret(source):
    return getattr(interpreters, "exec", interpreters.run_string)(second, source)


if interpreters:
    second = interpreter()
    # To make one freezes some of the main one's objects (3.12).
    gc.unfreeze()
    interpret("""
import collections, gc, json, os
gc.disable()
gc.unfreeze()

class InInterpreter:
    pass

# held: InInterpreter module __main__ → kept_there[…]
kept_there = [InInterpreter() for _ in range(3)]
""")


def counted():
    """Objects by type, of all interpreters. Until 3.8 the collector has one set of lists for all of them."""
    found = collections.Counter(type(each).__name__ for each in gc.get_objects())
    if interpreters and sys.version_info >= (3, 9):
        reading, writing = os.pipe()
        types = "collections.Counter(type(each).__name__ for each in gc.get_objects())"
        interpret("os.write(%d, json.dumps(%s).encode())" % (writing, types))
        os.close(writing)
        found.update(json.loads(os.read(reading, 1 << 16)))
        os.close(reading)
    return found


def grow():
    orders.extend(type(orders[0])() for _ in range(1000))
    for number in range(500):
        price(price.cache_info().currsize)


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
    "frozenset": frozenset(range(1000)),
    "OrderedDict": collections.OrderedDict.fromkeys(range(1000)),
    "dict of anything": dict.fromkeys(range(100000)),
    "dict that was larger": dict.fromkeys(range(1000)),
    "list that was larger": [None] * 1000,
    "bytearray that was cut": bytearray(5000),
    "str beyond Latin": "日" * 5000,
    "str beyond the plane": "😀" * 5000,
    "str that was encoded": "日" * 500,
    "deque": collections.deque(range(1000)),
    "a file": open(os.devnull, "rb"),
    "Decimal": decimal.Decimal(10) ** 5000 / 3,
    "a static type": int,
    "generator": running,
    "function": count,
}
for number in range(990):
    del sizes["dict that was larger"][number]
del sizes["list that was larger"][10:], sizes["bytearray that was cut"][:100]
sizes["str that was encoded"].encode()


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
        answer = {name: [[id(of)], sys.getsizeof(of) - beside.get(name, 0)] for name, of in sizes.items()}
        answer.update((name, [places, taken]) for name, (_, places, taken) in instances.items())
    elif environ["PATH_INFO"] == "/fork":
        answer = forked()
    elif environ["PATH_INFO"] == "/grow":
        answer = grow()
    else:
        answer = counted()
    return [json.dumps(answer).encode()]


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


make_server("127.0.0.1", int(sys.argv[1]), application, handler_class=Quiet).serve_forever()
