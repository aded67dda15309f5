"""Turns each request that Sanic's own server serves into a `native.begin` and a `native.end`, and names the routes of Sanic,
whoever serves it.

The agent executes this text after `leakline_shim.py`, in a namespace of its own that holds `native`. A connection is one
task, which has its application handle one request after the other, and is cancelled when the client leaves. Sanic compiles
many of its methods anew from their source when it starts, which ours have none of: those here are none of them.
"""

import sys

OK = 0
ERROR = 1
ABORTED = 2


def instrument_protocol(module):
    # Sanic has imported it by now.
    from asyncio import CancelledError

    protocol = module.HttpProtocol
    original = protocol.__init__

    def observed(handle_request):
        async def observed_handle_request(request):
            handle = begin(request)
            outcome = ERROR
            try:
                await handle_request(request)
                outcome = OK
                # Errors are answered in there, too.
                native.status(handle, status(request))
            except CancelledError:
                outcome = ABORTED
                raise
            finally:
                native.end(handle, outcome)

        return observed_handle_request

    def __init__(self, *arguments, **named):
        original(self, *arguments, **named)
        self.request_handler = observed(self.request_handler)

    native.replace(protocol, "__init__", __init__)


def begin(request):
    native.name_server("sanic")
    try:
        is_websocket = request.headers.get("upgrade", "").lower() == "websocket"
        # The connection's task may have been started from another request's.
        handle = native.begin("WS" if is_websocket else request.method, request.path, True)
    except Exception:
        return native.begin("", "", True)
    # Only uvloop writes in no context.
    if "uvloop" in sys.modules:
        serve(request)
    return handle


def serve(request):
    """What is sent on the request's socket is its own. One whose client has left may have none."""
    try:
        native.serves(request.transport.get_extra_info("socket").fileno())
    except Exception:
        pass


def status(request):
    return getattr(getattr(request.stream, "response", None), "status", 0)


def instrument_router(module):
    router = module.Router
    original = router.get

    def get(self, path, method, host):
        found = original(self, path, method, host)
        try:
            native.route("/" + found[0].path)
        except Exception:
            pass
        return found

    native.replace(router, "get", get)


native.install(
    {
        "sanic.server.protocols.http_protocol": instrument_protocol,
        "sanic.router": instrument_router,
    }
)
