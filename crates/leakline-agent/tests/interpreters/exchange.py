"""A server that calls itself uvicorn: it awaits applications that end in every way, in tasks as servers do, and compares
what they do and get with what they would without an agent between. Keeps something in each phase of a request."""

import asyncio
import gc
import importlib
import sys
import time
import types
import weakref
from importlib.machinery import ModuleSpec

COUNT = 100
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]}
BODY = {"type": "http.response.body", "body": b"body"}


class RequestResponseCycle:
    """A request and its response, as uvicorn keeps them."""

    def __init__(self, path, kind="http"):
        self.scope = {"type": kind, "method": "GET", "path": path}
        self.sent, self.disconnected = [], False

    async def run_asgi(self, app):
        return await app(self.scope, self.receive, self.send)

    async def receive(self):
        return {"type": "http.request", "body": b""}

    async def send(self, message):
        await asyncio.sleep(0)
        self.sent.append(message)
        return len(self.sent)


class Finder:
    """Finds the server's module, and makes it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return ModuleSpec(name, Finder()) if name == "uvicorn.protocols.http.h11_impl" else None

    @staticmethod
    def create_module(spec):
        return types.ModuleType(spec.name)

    @staticmethod
    def exec_module(module):
        module.RequestResponseCycle = RequestResponseCycle


for package in "uvicorn", "uvicorn.protocols", "uvicorn.protocols.http":
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = []
sys.meta_path.append(Finder)
plain = RequestResponseCycle.run_asgi
importlib.import_module("uvicorn.protocols.http.h11_impl")
assert RequestResponseCycle.run_asgi is not plain, "the shim has not seen the server"

kept = []


def handler_keeps():
    kept.extend(bytes(1000) for _ in range(COUNT))


def streaming_keeps():
    kept.extend(bytes(1000) for _ in range(COUNT))


def after_keeps():
    kept.extend(bytes(1000) for _ in range(COUNT))


async def whole(scope, receive, send):
    assert (await receive())["type"] == "http.request"
    handler_keeps()
    assert await send(START) == 1
    streaming_keeps()
    # By name, as some do.
    assert await send(message=BODY) == 2
    after_keeps()


async def raises(scope, receive, send):
    raise KeyError("the application's own")


async def fails(scope, receive, send):
    await send({**START, "status": 503})
    await send(BODY)


async def returns(scope, receive, send):
    return scope["path"], 1


async def waits(scope, receive, send):
    try:
        await send(START)
        await asyncio.sleep(1000)
    finally:
        kept.append("swept")


async def swallows(scope, receive, send):
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        return "swallowed"


def raises_at_once(scope, receive, send):
    raise ValueError("before there was a coroutine")


class Awaitable:
    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return "awaited"


def gives_awaitable(scope, receive, send):
    return Awaitable()


async def leaves_early(scope, receive, send):
    await send(START)
    receive.__self__.disconnected = True
    await send(BODY)


async def leaves_when_it_has_all(scope, receive, send):
    await send(START)
    await send({**BODY, "more_body": True})
    receive.__self__.disconnected = True
    await send({**BODY, "body": b""})


async def sends_nonsense(scope, receive, send):
    for nonsense in ({}, {"type": 1}, {"type": "http.response.start", "status": "no"}, [], None):
        await send(nonsense)
    for arguments in ((), (1, 2)):
        try:
            send(*arguments)
            raise AssertionError("that is no message")
        except (RuntimeError, TypeError):
            pass


async def answer(path, app, kind="http"):
    cycle = RequestResponseCycle(path, kind)
    try:
        return await asyncio.ensure_future(cycle.run_asgi(app)), cycle
    except Exception as error:
        return error, cycle


async def cancelled(path, app, turns):
    task = asyncio.ensure_future(RequestResponseCycle(path).run_asgi(app))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return "cancelled"


async def main():
    result, cycle = await answer("/whole", whole)
    assert result is None and cycle.sent == [START, BODY]
    result, _ = await answer("/raises", raises)
    assert isinstance(result, KeyError)
    # Nobody stands between the application's frames and the server's but the two.
    frames, trace = [], result.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert frames == ["answer", "run_asgi", "raises"], frames
    await answer("/fails", fails)
    result, _ = await answer("/returns", returns)
    assert result == ("/returns", 1)
    result, _ = await answer("/at-once", raises_at_once)
    assert isinstance(result, ValueError)
    result, _ = await answer("/awaitable", gives_awaitable)
    assert result == "awaited"
    assert await cancelled("/waits", waits, 5) == "cancelled" and kept[-1] == "swept"
    assert await cancelled("/swallows", swallows, 5) == "swallowed"
    await answer("/early", leaves_early)
    await answer("/all", leaves_when_it_has_all)
    result, cycle = await answer("/nonsense", sends_nonsense)
    assert result is None and len(cycle.sent) == 5
    await answer("/socket", whole, "websocket")
    result, _ = await answer("", returns, "lifespan")
    assert result == ("", 1)
    by_hand()
    for _ in range(3):
        await answer("/freed", whole)
    is_freed()


def by_hand():
    """As a loop drives it, without one: values and errors that are handed in, and coroutines that are dropped."""

    @types.coroutine
    def asks(scope, receive, send):
        return (yield "asked")

    async def app(scope, receive, send):
        try:
            return await asks(scope, receive, send)
        except ZeroDivisionError:
            return "thrown"

    def step(driver, value):
        try:
            return driver(value)
        except StopIteration as stop:
            return "stopped", stop.value

    first = RequestResponseCycle("/hand").run_asgi(app)
    assert first.send(None) == "asked" and step(first.send, 7) == ("stopped", 7)
    first = RequestResponseCycle("/hand").run_asgi(app)
    assert first.send(None) == "asked" and step(first.throw, ZeroDivisionError()) == ("stopped", "thrown")
    dropped = RequestResponseCycle("/dropped").run_asgi(waits)
    kept.append(None)
    dropped.send(None)
    # In the midst of its work, which is asked to end.
    del dropped
    assert kept[-1] == "swept"
    closed = RequestResponseCycle("/dropped").run_asgi(app)
    closed.send(None)
    closed.close()

    async def clings(scope, receive, send):
        try:
            await asks(scope, receive, send)
        finally:
            raise ValueError("while it is closed")

    clinging = RequestResponseCycle("/dropped").run_asgi(clings)
    clinging.send(None)
    # When a request ends, the agent looks at the process if it has not for a second: that must not lose the error.
    time.sleep(1.1)
    try:
        clinging.close()
        raise AssertionError("what the application raised is lost")
    except ValueError as error:
        assert str(error) == "while it is closed"

    found = []

    async def grasps(scope, receive, send):
        found.append(send)

    step(RequestResponseCycle("/grasped").run_asgi(grasps).send, None)
    # What the server awaits is known by a method of its own: of an application that has ended nothing is left.
    exchange = found[0].__self__
    for call in (lambda: exchange.send(None), lambda: next(exchange), lambda: exchange.throw(ValueError())):
        try:
            call()
            raise AssertionError("it goes on for ever")
        except RuntimeError as error:
            assert "already awaited" in str(error)
    assert exchange.close() is None
    empty = type(exchange)()
    assert empty.close() is None
    asyncio.iscoroutine(exchange) or sys.exit("a loop would not take it")


def is_freed():
    """An application that holds its `send` in a cycle is freed by the collector, and the type's references add up."""
    cycles = []

    async def app(scope, receive, send):
        class Held:
            pass

        held = Held()
        held.itself, held.send = held, send
        cycles.append((weakref.ref(held), type(send.__self__)))

    def serve():
        try:
            RequestResponseCycle("/freed").run_asgi(app).send(None)
        except StopIteration:
            pass

    serve()
    gc.collect()
    kind = cycles[0][1]
    references = sys.getrefcount(kind)
    for _ in range(50):
        serve()
    gc.collect()
    assert all(held() is None for held, _ in cycles)
    cycles.clear()
    assert sys.getrefcount(kind) <= references, (sys.getrefcount(kind), references)


asyncio.get_event_loop_policy().new_event_loop().run_until_complete(main())
