"""What routes do with memory: ways to leak, and ways to keep it that are healthy. Each is the text of a function."""

import dataclasses
import math

NAMES = ["tickets", "orders", "invoices", "stories", "users", "photos", "prices", "events", "cities", "songs", "books"]

HEAD = '''"""What a generated shop does."""

import collections
import ctypes
import functools
import json
import re
import sqlite3
import string
import sys
import threading


def rows_of(number, count):
    return [{"id": number + i, "name": "row %d" % i, "price": i * 1.5} for i in range(count)]


# How often the route that leaks was asked for, and how often it leaked.
asked = leaked = 0


def told():
    """For the route that leaks, in this worker: bytes kept, requests, requests that leaked."""
    return "%d %d %d" % (kept(), asked, leaked)


def weigh(thing, seen):
    """Bytes that an object and all that only it can hold take, by sys.getsizeof."""
    if id(thing) in seen or isinstance(thing, (type, type(weigh), type(sys))):
        return 0
    seen.add(id(thing))
    parts = []
    if isinstance(thing, dict):
        parts = list(thing) + list(thing.values())
    elif isinstance(thing, (list, tuple, set)):
        parts = thing
    elif hasattr(thing, "__dict__"):
        parts = [thing.__dict__]
    return sys.getsizeof(thing) + sum(weigh(part, seen) for part in parts)


'''


@dataclasses.dataclass
class Condition:
    test: str
    then: str
    outcome: str
    # The share of the route's requests that leak.
    leaking: float


CONDITIONS = {
    "always": Condition("True", "", "any", 1),
    "errors": Condition("number % 3 == 0", '        raise ValueError("no such thing")\n', "error", 1 / 3),
    "one value": Condition("number % 5 == 0", "", "any", 1 / 5),
}

# How a request's memory stays. `kept()` tells how many bytes of it there are.
LEAKS = {
    "one block in a list": """
{name}_kept = []

def remember_{name}(number):
    {name}_kept.append(bytes({bytes}))

def kept():
    return weigh({name}_kept, set())
""",
    "a dict by key that never repeats": """
{name}_by_key = {{}}

def remember_{name}(number):
    key = "%d/%d" % (number, len({name}_by_key))
    {name}_by_key[key] = "x" * {bytes}

def kept():
    return weigh({name}_by_key, set())
""",
    "rows of small dicts": """
{name}_rows = []

def remember_{name}(number):
    for i in range({rows}):
        {name}_rows.append({{"id": number + i, "name": "row %d of %d" % (i, number)}})

def kept():
    return weigh({name}_rows, set())
""",
    "references to what is shared": """
{name}_seen = []
a_constant = ("Ada", "Lovelace")

def remember_{name}(number):
    for _ in range({pointers}):
        {name}_seen.append(a_constant)

def kept():
    return sys.getsizeof({name}_seen)
""",
    "objects on a class": """
class {title}:
    instances = []

    def __init__(self, number):
        self.number = number
        self.body = "%d " % number * {words}

def remember_{name}(number):
    {title}.instances.append({title}(number))

def kept():
    return weigh({title}.instances, set())
""",
    "listeners that are never removed": """
{name}_listeners = []
{name}_bodies = 0

def remember_{name}(number):
    global {name}_bodies
    body = bytearray({bytes})
    {name}_bodies += sys.getsizeof(body)
    {name}_listeners.append(lambda: (number, body))

def kept():
    if not {name}_listeners:
        return 0
    function = {name}_listeners[0]
    each = sys.getsizeof(function) + sum(sys.getsizeof(cell) for cell in function.__closure__)
    each += sys.getsizeof(function.__closure__) + sys.getsizeof(1 << 31)
    return {name}_bodies + each * len({name}_listeners) + sys.getsizeof({name}_listeners)
""",
    "a cache without a bound": """
{name}_asked = 0

@functools.lru_cache(maxsize=None)
def page_of_{name}(number, version):
    return remember_{name}(number)

def remember_{name}(number):
    return bytes({bytes})

def kept():
    # A key of two numbers, its link in the cache's dict, and the result.
    entries = page_of_{name}.cache_info().currsize
    return entries * ({bytes} + 33 + 56 + 2 * 32 + 64 + 104)
""",
    "memory of a C library": """
{name}_forgotten = 0
take = ctypes.CDLL(None).malloc
take.restype, take.argtypes = ctypes.c_void_p, [ctypes.c_size_t]

def remember_{name}(number):
    global {name}_forgotten
    ctypes.memset(take({bytes}), 1, {bytes})
    {name}_forgotten += {bytes}

def kept():
    return {name}_forgotten
""",
}


def make_leaky(kind, name, size, condition):
    text = LEAKS[kind].format(
        name=name,
        title=name.title(),
        bytes=max(1, size - 40),
        rows=max(1, size // 330),
        pointers=max(1, size // 8),
        words=max(1, size // 8),
    )
    call = f"remember_{name}(number)"
    if kind == "a cache without a bound":
        call = f"count_{name}(number)"
        text += f"""
def count_{name}(number):
    global {name}_asked
    {name}_asked += 1
    page_of_{name}(number, {name}_asked)
"""
    return f"""# leaks: {kind}{text}
def {name}(number):
    global asked, leaked
    asked += 1
    rows = rows_of(number, 12)
    if {condition.test}:
        leaked += 1
        {call}
{condition.then}    return json.dumps(rows)
"""


# Each with the sizes that it needs: `entries` is at most a third of the route's requests, `bytes` is an entry's size.
HEALTHY = {
    "nothing is kept": """
def {name}(number):
    return json.dumps(rows_of(number, {some}))
""",
    "a bounded lru_cache": """
@functools.lru_cache(maxsize={entries})
def page_of_{name}(number):
    return "x" * {bytes}

def {name}(number):
    return json.dumps([len(page_of_{name}(number)), rows_of(number, 5)])
""",
    "a cache of popular keys": """
{name}_cache = {{}}

def {name}(number):
    # All keys are asked for equally often, so it fills as e^-x does.
    key = number % {keys}
    if key not in {name}_cache:
        {name}_cache[key] = bytes({bytes})
    return json.dumps([key, len({name}_cache[key])])
""",
    "a cache that drops the oldest": """
{name}_cache = collections.OrderedDict()

def {name}(number):
    {name}_cache[number] = json.dumps(rows_of(number, {some}))
    while len({name}_cache) > {entries}:
        {name}_cache.popitem(last=False)
    return {name}_cache[number]
""",
    "sessions that are renewed": """
{name}_sessions = {{}}

def {name}(number):
    {name}_sessions[number % {keys}] = {{"number": number, "basket": rows_of(number, 3), "token": "x" * {bytes}}}
    return json.dumps(len({name}_sessions))
""",
    "a database": """
{name}_local = threading.local()

def {name}_database():
    if not hasattr({name}_local, "database"):
        {name}_local.database = sqlite3.connect(":memory:")
        {name}_local.database.execute("create table things (id integer primary key, body text)")
        rows = [(i, "x" * 200) for i in range(500)]
        {name}_local.database.executemany("insert into things values (?, ?)", rows)
    return {name}_local.database

def {name}(number):
    return json.dumps({name}_database().execute("select * from things limit ?", ({some},)).fetchall())
""",
    "cycles for the collector": """
class Node:
    def __init__(self, number):
        self.number = number
        self.body = bytes({bytes})
        self.myself = self

def {name}(number):
    return json.dumps([Node(number + i).number for i in range(3)])
""",
    "patterns and templates": """
def {name}(number):
    pattern = re.compile(r"(row|line) %d+" % (number % 40))
    template = string.Template("$name has ${{price}} " * {some})
    return json.dumps([template.substitute(name="a row", price=number), bool(pattern.match("row 1"))])
""",
    "the latest in a ring": """
{name}_latest = collections.deque(maxlen={entries})

def {name}(number):
    {name}_latest.append({{"number": number, "body": "x" * {bytes}}})
    return json.dumps(len({name}_latest))
""",
    "a table made at first": """
@functools.lru_cache(maxsize=1)
def {name}_table():
    return {{i: "entry %d" % i for i in range(20000)}}

def {name}(number):
    return json.dumps({name}_table()[number % 20000])
""",
    "a buffer that is flushed": """
{name}_buffer = []

def {name}(number):
    {name}_buffer.append("request %d " % number * {some})
    if len({name}_buffer) >= {entries}:
        {name}_buffer.clear()
    return json.dumps(len({name}_buffer))
""",
    "values that expire": """
{name}_values = {{}}
{name}_turn = 0

def {name}(number):
    global {name}_turn
    {name}_turn += 1
    {name}_values[{name}_turn] = bytes({bytes})
    {name}_values.pop({name}_turn - {entries}, None)
    return json.dumps(len({name}_values))
""",
}


def make_healthy(chance, name, requests):
    kind = chance.choice(sorted(HEALTHY))
    entries = round(math.exp(chance.uniform(math.log(3), math.log(requests / 3))))
    text = HEALTHY[kind].format(
        name=name,
        entries=entries,
        # Keys that come at random have all been there after some three rounds of as many requests.
        keys=max(2, entries // 3),
        bytes=round(math.exp(chance.uniform(math.log(64), math.log(32_000)))),
        some=chance.randint(3, 60),
    )
    return f"# healthy: {kind}{text}"
