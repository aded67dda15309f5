"""Turns each request and each WebSocket that an ASGI server serves into a `native.begin` and a `native.end`, names its
route, and lets work that is handed to other threads keep its request.

The agent executes this text after `leakline_shim.py`, in a namespace of its own. Beside what that one describes there is

    native.begin(method, path, True)   begins a request whatever this context serves
    native.current() -> handle         of the current context's request, 0 without one
    native.resume(handle)              makes it the current one of this context
    native.serves(file)                the current request answers the client of this socket
    native.unsent(file)                what is still to be sent on this socket, its client will not get

A server makes a task for each request, and the task's context carries the request to all tasks that are made in it. A
request lasts until the application returns. When its response is complete, what is allocated comes after it.

Whether the client has gone is known to the server, whether or not the application asks for it, and so we look there.
"""

ERROR = 1
ABORTED = 2

STREAMING = 1
AFTER = 3


def instrumented(gone, file=None):
    """What makes of an ASGI application one that serves as it does and marks where each request begins and ends.
    `gone(receive, send)` tells whether the client left before the response was complete, `file(receive)` which socket
    leads to it, where writing is left to a loop that knows no context."""

    def wrap(application):
        # The server has imported it by now.
        from asyncio import CancelledError

        async def serve(scope, receive, send):
            kind = scope["type"]
            if kind == "http":
                method = scope["method"]
            elif kind == "websocket":
                method = "WS"
            else:
                return await application(scope, receive, send)
            # This context may have been copied from another request's: a connection's callbacks run in that of
            # whoever resumed its reading.
            handle = native.begin(method, scope["path"], True)
            if file is not None:
                try:
                    native.serves(file(receive))
                except Exception:
                    pass

            headers, sent = (), 0

            # No coroutine of its own where the server's will do: that would cost each message 2,000 instructions.
            def observed_send(message):
                nonlocal headers, sent
                kind = message["type"]
                if kind == "http.response.start":
                    native.phase(handle, STREAMING)
                    native.status(handle, int(message["status"]))
                    headers = message.get("headers", ())
                elif kind == "http.response.body":
                    if not gone(receive, send):
                        sent += len(message.get("body", b""))
                    if not message.get("more_body"):
                        return send_last(message)
                return send(message)

            async def send_last(message):
                await send(message)
                native.phase(handle, AFTER)

            outcome = ERROR
            try:
                result = await application(scope, receive, observed_send)
                outcome = 0
                return result
            except CancelledError:
                outcome = ABORTED
                raise
            finally:
                # The end of a WebSocket is nobody's mistake.
                if kind == "http" and gone(receive, send) and not is_whole(headers, sent):
                    outcome = ABORTED
                native.end(handle, outcome)

        return serve

    return wrap


def is_whole(headers, sent):
    """Whether so many bytes are the whole response: who has it may go before the application says that it was all."""
    try:
        return any(name.lower() == b"content-length" and int(value) == sent for name, value in headers)
    except Exception:
        return False


def gone_from_uvicorn(receive, send):
    # A uvicorn that calls it otherwise must not fail for it.
    return getattr(getattr(receive, "__self__", None), "disconnected", False)


def file_of_uvicorn(receive):
    return receive.__self__.transport.get_extra_info("socket").fileno()


def gone_from_hypercorn(receive, send):
    return getattr(getattr(send, "__self__", None), "_leakline_gone", False)


def gone_from_daphne(receive, send):
    # Twisted's name for a connection that was lost before the request was finished.
    return any(getattr(argument, "_disconnected", False) for argument in getattr(send, "args", ()))


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
        name_route(route_class, lambda route, scope: scope.get("leakline.mount", "") + route.path_format)
    name_route(module.Mount, mounted)


def mounted(mount, scope):
    path = scope["leakline.mount"] = scope.get("leakline.mount", "") + mount.path
    # Unless the mounted application has routes of its own, which come later and count.
    return path + "/{path}"


def instrument_fastapi(module):
    if "handle" in vars(module.APIRoute):
        name_route(module.APIRoute, included)


def included(route, scope):
    # A router that was included stays as it is, and the whole path is kept beside it.
    effective = scope.get("fastapi", {}).get("effective_route_context")
    if getattr(effective, "original_route", None) is route:
        route = effective
    return scope.get("leakline.mount", "") + route.path_format


def name_route(route_class, template):
    original = route_class.handle

    def handle(self, scope, receive, send):
        try:
            native.route(template(self, scope))
        except Exception:
            pass
        return original(self, scope, receive, send)

    handle.__wrapped__ = original
    native.replace(route_class, "handle", handle)


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
    """The protocol of a connection hands its application to a cycle for each request. Were it replaced in the protocol,
    we had to look into that instance, and then CPython 3.11 and 3.12 would be slower to read its attributes."""
    cycle = module.RequestResponseCycle
    original, wrap = cycle.run_asgi, instrumented(gone_from_uvicorn, file_of_uvicorn)
    application = served = None

    def run_asgi(self, app):
        nonlocal application, served
        if app is not application:
            native.name_server("uvicorn")
            application, served = app, wrap(app)
        return original(self, served)

    run_asgi.__wrapped__ = original
    native.replace(cycle, "run_asgi", run_asgi)


def uvicorn_websocket(class_name):
    return native.instrument_application(class_name, "app", instrumented(gone_from_uvicorn, file_of_uvicorn))


def instrument_threads(module):
    """Lets a thread that a request starts work for that request, and for a while after it has ended: its handle stands for
    nothing any more when another request has taken its place. So threads that stay become nobody's."""
    thread = module.Thread
    start, bootstrap = thread.start, thread._bootstrap_inner

    def observed_start(self):
        handle = native.current()
        if handle:
            self._leakline_handle = handle
        start(self)

    def _bootstrap_inner(self):
        handle = getattr(self, "_leakline_handle", 0)
        if handle:
            native.resume(handle)
        bootstrap(self)

    native.replace(thread, "start", observed_start)
    native.replace(thread, "_bootstrap_inner", _bootstrap_inner)


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


native.install(
    {
        "uvicorn.protocols.http.h11_impl": instrument_uvicorn,
        "uvicorn.protocols.http.httptools_impl": instrument_uvicorn,
        "uvicorn.protocols.websockets.websockets_impl": uvicorn_websocket("WebSocketProtocol"),
        "uvicorn.protocols.websockets.websockets_sansio_impl": uvicorn_websocket("WebSocketsSansIOProtocol"),
        "uvicorn.protocols.websockets.wsproto_impl": uvicorn_websocket("WSProtocol"),
        "hypercorn.app_wrappers": native.instrument_application("ASGIWrapper", "app", instrumented(gone_from_hypercorn)),
        "hypercorn.protocol.http_stream": instrument_hypercorn_stream,
        "daphne.server": native.instrument_application("Server", "application", instrumented(gone_from_daphne)),
        "twisted.internet.tcp": instrument_twisted,
        "starlette.routing": instrument_starlette,
        "fastapi.routing": instrument_fastapi,
        "concurrent.futures.thread": instrument_executor,
        "threading": instrument_threads,
        "gevent": instrument_greenlets,
    }
)
