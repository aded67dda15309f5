"""Turns each request and each WebSocket that an ASGI server serves into one of the agent's, names its route, and lets work
that is handed to other threads keep its request.

The agent executes this text after `leakline_shim.py`, in a namespace of its own. Beside what that one describes there is

    native.exchange(application, client, tells, file) -> application
                                       one that serves one call, as a request that begins when what it returns is first
                                       awaited, and ends with it. `client` has an attribute `tells` that is true when the
                                       client has left; `file` is the number of the socket that leads to it where a loop
                                       writes there that knows no context, else -1
    native.exchange_by(judge, awaited) what the agent asks us for that
    native.run_asgi(original, serves) -> method
                                       of uvicorn's cycle, which serves by such an exchange and calls `serves` first of all
    native.files_by(file_of)           `file_of(cycle)` is the number of its socket, where a loop writes there that knows no
                                       context
    native.route_handle(original) -> method
                                       of Starlette's routes, which names the route
    native.current() -> handle         of the current context's request, 0 without one
    native.resume(handle)              makes it the current one of this context
    native.thread_start(original) -> method
    native.thread_bootstrap(original) -> method
                                       of threading's class, which carry the request from who starts a thread to the thread
    native.serves(file)                what is sent on this socket from now on is the current context's request's
    native.unsent(file)                what is still to be sent on this socket, its client will not get

A server makes a task for each request, and the task's context carries the request to all tasks that are made in it. A
request lasts until the application returns. When its response is complete, what is allocated comes after it.

Whether the client has gone is known to the server, whether or not the application asks for it, and so we look there.
"""

import sys

OK = 0
ERROR = 1
ABORTED = 2


def instrumented(client, tells, file=None):
    """What makes of an ASGI application one that serves as it does and marks where each request begins and ends.
    `client(receive, send)` is what has an attribute of the name `tells`, `file(client)` the socket's number."""

    def wrap(application):
        def serve(scope, receive, send):
            whom = client(receive, send)
            number = -1 if file is None else file(whom)
            return native.exchange(application, whom, tells, number)(scope, receive, send)

        return serve

    return wrap


def judge(error, is_websocket, is_gone, headers, sent):
    """The outcome of a request that ended with this error, or whose client has gone."""
    # The end of a WebSocket is nobody's mistake.
    if is_gone and not is_websocket and not is_whole(headers, sent):
        return ABORTED
    if error is None:
        return OK
    # The server has imported it by now.
    from asyncio import CancelledError

    return ABORTED if issubclass(error, (CancelledError, GeneratorExit)) else ERROR


def is_whole(headers, sent):
    """Whether so many bytes are the whole response: who has it may go before the application says that it was all."""
    try:
        return any(name.lower() == b"content-length" and int(value) == sent for name, value in headers)
    except Exception:
        return False


async def awaited(awaitable):
    """For applications that return no coroutine."""
    return await awaitable


def client_of_uvicorn(receive, send):
    return getattr(receive, "__self__", None)


def file_of_uvicorn(client):
    # Only uvloop writes in no context.
    if "uvloop" in sys.modules:
        try:
            return client.transport.get_extra_info("socket").fileno()
        except Exception:
            pass
    return -1


def client_of_hypercorn(receive, send):
    return getattr(send, "__self__", None)


def client_of_daphne(receive, send):
    # Twisted's request, which knows when the connection was lost before it was finished.
    return next((argument for argument in getattr(send, "args", ()) if hasattr(argument, "_disconnected")), None)


def instrument_twisted(module):
    """Tells of a connection that is lost while something is left to send. Twisted writes only as much as the system takes
    at once, so that the system's answers do not tell."""
    connection = module.Connection
    original = connection.connectionLost

    def connectionLost(self, reason):
        try:
            if self.connected and (len(self.dataBuffer) > self.offset or self._tempDataBuffer):
                native.unsent(self.fileno())
        except Exception:
            pass
        original(self, reason)

    native.replace(connection, "connectionLost", connectionLost)


def instrument_hypercorn_stream(module):
    """Notes when a stream is closed before its response was complete, as Hypercorn's own access log does."""
    stream = module.HTTPStream
    original = stream.handle

    async def handle(self, event):
        if type(event).__name__ == "StreamClosed" and not self.closed and self.state.name != "CLOSED":
            self._leakline_gone = True
        await original(self, event)

    handle.__wrapped__ = original
    native.replace(stream, "handle", handle)


def instrument_starlette(module):
    """Names the route that matched, with the mounts that lead to it."""
    for route_class in (module.Route, module.WebSocketRoute):
        native.replace(route_class, "handle", native.route_handle(route_class.handle))
    mount = module.Mount
    original = mount.handle

    def handle(self, scope, receive, send):
        try:
            path = scope["leakline.mount"] = scope.get("leakline.mount", "") + self.path
            # Unless the mounted application has routes of its own, which come later and count.
            native.route(path + "/{path}")
        except Exception:
            pass
        return original(self, scope, receive, send)

    handle.__wrapped__ = original
    native.replace(mount, "handle", handle)


def instrument_fastapi(module):
    route = module.APIRoute
    if "handle" in vars(route):
        native.replace(route, "handle", native.route_handle(route.handle))


def instrument_litestar(module):
    """Names the template that the router has left in the request's scope."""
    router = module.ASGIRouter
    original = router.__call__

    async def __call__(self, scope, receive, send):
        try:
            await original(self, scope, receive, send)
        finally:
            template = scope.get("path_template")
            if isinstance(template, str):
                native.route(template)

    __call__.__wrapped__ = original
    native.replace(router, "__call__", __call__)


def instrument_executor(module):
    """Lets what is submitted to a pool of threads belong to the request that submits it. Only this is carried over and
    not the whole context, which would change what the application sees."""
    executor = module.ThreadPoolExecutor
    original = executor.submit

    def submit(*args, **kwargs):
        handle = native.current()
        if handle and len(args) > 1:
            return original(args[0], carried, handle, *args[1:], **kwargs)
        return original(*args, **kwargs)

    submit.__wrapped__ = original
    native.replace(executor, "submit", submit)


def carried(*args, **kwargs):
    handle, function, *rest = args
    native.resume(handle)
    try:
        return function(*rest, **kwargs)
    finally:
        native.resume(0)


def instrument_uvicorn(module):
    cycle = module.RequestResponseCycle
    native.replace(cycle, "run_asgi", native.run_asgi(cycle.run_asgi, lambda: native.name_server("uvicorn")))


def instrument_uvloop(module):
    native.files_by(file_of_uvicorn)


def uvicorn_websocket(class_name):
    return native.instrument_application(class_name, "app", instrumented(client_of_uvicorn, "disconnected", file_of_uvicorn))


def instrument_threads(module):
    """Lets a thread that a request starts work for that request, and for a while after it has ended: its handle stands for
    nothing any more when another request has taken its place. So threads that stay become nobody's."""
    thread = module.Thread
    native.replace(thread, "start", native.thread_start(thread.start))
    native.replace(thread, "_bootstrap_inner", native.thread_bootstrap(thread._bootstrap_inner))


def instrument_greenlets(module):
    """The same for greenlets, whose contexts begin empty, too."""
    # Built into the interpreter.
    from _contextvars import Context

    def spawned(greenlet):
        handle = native.current()
        if handle and greenlet.gr_context is None:
            context = Context()
            context.run(native.resume, handle)
            greenlet.gr_context = context

    module.Greenlet.add_spawn_callback(spawned)


native.exchange_by(judge, awaited)
native.install(
    {
        "uvloop": instrument_uvloop,
        "uvicorn.protocols.http.h11_impl": instrument_uvicorn,
        "uvicorn.protocols.http.httptools_impl": instrument_uvicorn,
        "uvicorn.protocols.websockets.websockets_impl": uvicorn_websocket("WebSocketProtocol"),
        "uvicorn.protocols.websockets.websockets_sansio_impl": uvicorn_websocket("WebSocketsSansIOProtocol"),
        "uvicorn.protocols.websockets.wsproto_impl": uvicorn_websocket("WSProtocol"),
        "hypercorn.app_wrappers": native.instrument_application("ASGIWrapper", "app", instrumented(client_of_hypercorn, "_leakline_gone")),
        "hypercorn.protocol.http_stream": instrument_hypercorn_stream,
        "daphne.server": native.instrument_application("Server", "application", instrumented(client_of_daphne, "_disconnected")),
        "twisted.internet.tcp": instrument_twisted,
        "starlette.routing": instrument_starlette,
        "fastapi.routing": instrument_fastapi,
        "litestar._asgi.asgi_router": instrument_litestar,
        "concurrent.futures.thread": instrument_executor,
        "threading": instrument_threads,
        "gevent": instrument_greenlets,
    }
)
