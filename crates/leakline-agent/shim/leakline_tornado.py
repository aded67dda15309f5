"""Turns each request that Tornado serves into a `native.begin` and a `native.end`, and names its route.

The agent executes this text after `leakline_shim.py`, in a namespace of its own that holds `native`. A request belongs to
a `RequestHandler`, or to a container of a WSGI application; either works in a task, whose context carries the request.
Tornado makes an `HTTP1Connection` for each request, on which we keep what belongs together:

    _leakline_handle    of the request
    _leakline_gone      the client left before the response was complete
    _leakline_outcome   the handler has ended so, and not its response, which others will finish
"""

OK = 0
ERROR = 1
ABORTED = 2

STREAMING = 1
AFTER = 3


def begin(request):
    native.name_server("tornado")
    # The connection's task may have been started from another request's.
    handle = native.begin(request.method or "", request.path, True)
    try:
        request.connection._leakline_handle = handle
    except AttributeError:
        # Somebody else's connection: the request ends with its handler.
        pass
    return handle


def instrument_web(module):
    handler, fallback = module.RequestHandler, module.FallbackHandler
    execute, send_error = handler._execute, handler.send_error

    async def _execute(self, *args, **kwargs):
        request = self.request
        if isinstance(self, fallback):
            # It only hands the request on.
            return await execute(self, *args, **kwargs)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            # Its response is complete when the conversation begins, and the end of that is nobody's mistake.
            native.name_server("tornado")
            handle, connection = native.begin("WS", request.path, True), None
        else:
            handle, connection = begin(request), request.connection
        template = vars(request).get("_leakline_route")
        if template is not None:
            native.route(template)
        outcome = ERROR
        try:
            result = await execute(self, *args, **kwargs)
            outcome = OK
            return result
        finally:
            if outcome or self._finished or not hasattr(connection, "_leakline_handle"):
                native.end(handle, ABORTED if hasattr(connection, "_leakline_gone") else outcome)
            else:
                connection._leakline_outcome = outcome

    def observed_send_error(self, status_code=500, **kwargs):
        # The status was sent before where the response had begun.
        native.status(getattr(self.request.connection, "_leakline_handle", 0), int(status_code))
        send_error(self, status_code, **kwargs)

    native.replace(handler, "_execute", _execute)
    native.replace(handler, "send_error", observed_send_error)


def instrument_wsgi(module):
    container = module.WSGIContainer
    handle_request = container.handle_request

    async def observed_handle_request(self, request):
        handle = begin(request)
        outcome = ERROR
        try:
            await handle_request(self, request)
            outcome = OK
        finally:
            native.end(handle, ABORTED if hasattr(request.connection, "_leakline_gone") else outcome)

    native.replace(container, "handle_request", observed_handle_request)


def instrument_connection(module):
    connection = module.HTTP1Connection
    write_headers, finish, on_close = connection.write_headers, connection.finish, connection._on_connection_close

    def observed_write_headers(self, start_line, *args, **kwargs):
        handle = vars(self).get("_leakline_handle")
        if handle:
            native.phase(handle, STREAMING)
            native.status(handle, getattr(start_line, "code", 0))
        return write_headers(self, start_line, *args, **kwargs)

    def observed_finish(self):
        handle = vars(self).get("_leakline_handle")
        is_gone = handle and self.stream.closed()
        finish(self)
        if not handle:
            return
        native.phase(handle, AFTER)
        if is_gone:
            leave(self)
        elif self._pending_write is not None and not self._pending_write.done():
            # The rest lies in a buffer.
            self._pending_write.add_done_callback(lambda write: write.exception() is None or leave(self))
        conclude(self)

    def _on_connection_close(self):
        on_close(self)
        if vars(self).get("_leakline_handle"):
            leave(self)
            conclude(self)

    native.replace(connection, "write_headers", observed_write_headers)
    native.replace(connection, "finish", observed_finish)
    native.replace(connection, "_on_connection_close", _on_connection_close)


def leave(connection):
    """The client has gone; its request may have ended already."""
    connection._leakline_gone = True
    native.amend(connection._leakline_handle, ABORTED)


def conclude(connection):
    """Ends the request whose handler has ended before its response."""
    outcome = vars(connection).pop("_leakline_outcome", None)
    if outcome is not None:
        native.end(connection._leakline_handle, ABORTED if hasattr(connection, "_leakline_gone") else outcome)


def instrument_routing(module):
    """Notes the pattern that matched last: it is the innermost one that led to a handler."""
    matcher = module.PathMatches
    original = matcher.match

    def match(self, request):
        found = original(self, request)
        if found is not None:
            request._leakline_route = self.regex.pattern.rstrip("$")
        return found

    native.replace(matcher, "match", match)


native.install(
    {
        "tornado.web": instrument_web,
        "tornado.wsgi": instrument_wsgi,
        "tornado.http1connection": instrument_connection,
        "tornado.routing": instrument_routing,
    }
)
