"""Turns each request that aiohttp's own server serves into a `native.begin` and a `native.end`, and names its route.

The agent executes this text after `leakline_shim.py`, in a namespace of its own that holds `native`. The server makes a
task for each request, which ends when the response was written, or could not be: what the task awaits or starts in tasks
of its own belongs to the request.
"""

OK = 0
ERROR = 1
ABORTED = 2

STREAMING = 1
AFTER = 3


def instrument_protocol(module):
    # Both are imported there.
    from asyncio import CancelledError

    protocol = module.RequestHandler
    original = protocol._handle_request

    # Older versions are not given the handler.
    async def _handle_request(self, request, *handler):
        is_websocket = wants_websocket(request)
        handle = begin(request, is_websocket)
        outcome = ERROR
        try:
            response = await original(self, request, *handler)
            outcome = OK
            # With whether the client is gone, which the connection tells us, too.
            native.status(handle, getattr(response[0], "status", 0))
            return response
        except CancelledError:
            outcome = ABORTED
            raise
        finally:
            name_route(request)
            # The connection is closed once the whole response was handed over, unless the client did so before. That of a
            # WebSocket ends with it, which is nobody's mistake.
            transport = self.transport
            if not is_websocket and (transport is None or transport.is_closing()):
                outcome = ABORTED
            native.end(handle, outcome)

    native.replace(protocol, "_handle_request", _handle_request)


def wants_websocket(request):
    try:
        return request.headers.get("Upgrade", "").lower() == "websocket"
    except Exception:
        return False


def begin(request, is_websocket):
    native.name_server("aiohttp")
    try:
        # The connection's task may have been started from another request's.
        return native.begin("WS" if is_websocket else request.method, request.path, True)
    except Exception:
        return native.begin("", "", True)


def name_route(request):
    try:
        # What answers "not found" is no resource, and a server without an application has none.
        resource = request.match_info.route.resource
        if resource is not None:
            native.route(resource.canonical)
    except Exception:
        pass


def instrument_response(module):
    """Marks the beginning of the response and its end."""
    response = module.StreamResponse
    start, write_eof = response._start, response.write_eof

    async def _start(self, request):
        native.phase(0, STREAMING)
        return await start(self, request)

    async def observed_write_eof(self, *data):
        await write_eof(self, *data)
        native.phase(0, AFTER)

    native.replace(response, "_start", _start)
    native.replace(response, "write_eof", observed_write_eof)


native.install(
    {
        "aiohttp.web_protocol": instrument_protocol,
        "aiohttp.web_response": instrument_response,
    }
)
