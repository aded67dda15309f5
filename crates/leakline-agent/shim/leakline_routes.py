"""Names the route of a request as its framework does, where the framework serves WSGI.

The agent executes this text after `leakline_shim.py`, in a namespace of its own that holds `native`. Whatever server
began the request, `native.route(template)` names the one that the current context serves, and so does by itself what
`native.rule_match(original, match)` makes of Werkzeug's `match`, where it is called as Flask does.
"""


def instrument_werkzeug(module):
    """Names the rule that matched: for Flask of any version and for whoever else routes by Werkzeug."""
    adapter = module.MapAdapter
    original = adapter.match

    # The parameters are spelled out because passing on `*args` costs twice the call. Werkzeug 0.16 and older have no
    # `websocket`.
    def match(self, path_info=None, method=None, return_rule=False, query_args=None, websocket=None):
        if websocket is None:
            matched = original(self, path_info, method, True, query_args)
        else:
            matched = original(self, path_info, method, True, query_args, websocket)
        rule = matched[0]
        # Whoever passes a path asks about that path, not about the request.
        if path_info is None:
            mount = self.script_name
            native.route(rule.rule if mount == "/" else mount[:-1] + rule.rule)
        return matched if return_rule else (rule.endpoint, matched[1])

    match.__wrapped__ = original
    native.replace(adapter, "match", native.rule_match(original, match))


def instrument_django(module):
    """Names the pattern that Django resolved. It keeps the match on the request from version 2.2 on."""
    handler = module.BaseHandler
    original = handler.get_response

    def name_route(request):
        template = getattr(getattr(request, "resolver_match", None), "route", None)
        if template is not None:
            native.route("/" + template.lstrip("^").rstrip("$"))

    def get_response(self, request):
        try:
            return original(self, request)
        finally:
            name_route(request)

    get_response.__wrapped__ = original
    native.replace(handler, "get_response", get_response)

    # From version 3.1 on.
    original_async = getattr(handler, "get_response_async", None)
    if original_async is not None:

        async def get_response_async(self, request):
            try:
                return await original_async(self, request)
            finally:
                name_route(request)

        get_response_async.__wrapped__ = original_async
        native.replace(handler, "get_response_async", get_response_async)


def name_by(kind, name, template):
    """Lets each call of this method name the route that `template` tells from its argument and its result, if any."""
    original = getattr(kind, name)

    def method(self, argument):
        found = original(self, argument)
        try:
            route = template(argument, found)
            if route is not None:
                native.route(route)
        except Exception:
            pass
        return found

    method.__wrapped__ = original
    native.replace(kind, name, method)


def mount(environ):
    """Where the server, or an application around this one, has put it."""
    return environ.get("SCRIPT_NAME", "").rstrip("/")


def instrument_pyramid(module):
    def pattern(request, found):
        # What is found by traversal alone has none.
        return found["route"] and mount(request.environ) + "/" + found["route"].pattern.lstrip("/")

    name_by(module.RoutesMapper, "__call__", pattern)


def instrument_falcon(module):
    """For WSGI and for ASGI."""

    def uri_template(request, found):
        return found[3] and request.root_path.rstrip("/") + found[3]

    name_by(module.App, "_get_responder", uri_template)


def instrument_bottle(module):
    # An application that is mounted in another asks after the other, and the last route counts.
    name_by(module.Router, "match", lambda environ, found: mount(environ) + found[0].rule)


def instrument_cherrypy(module):
    """Names the path that led to the page handler, and its parameters, which the rest of the path is given to."""

    def handled(path, found):
        handler, rest = found
        if handler is None:
            return None
        names = [name for name in path.split("/") if name]
        code = getattr(handler, "__code__", None)
        parameters = code.co_varnames[1 : code.co_argcount] if code is not None else ()
        given = ["{%s}" % (parameters[at] if at < len(parameters) else at) for at in range(len(rest))]
        return module.cherrypy.serving.request.script_name + "/" + "/".join(names[: len(names) - len(rest)] + given)

    name_by(module.Dispatcher, "find_handler", handled)


native.install(
    {
        "werkzeug.routing": instrument_werkzeug,
        "django.core.handlers.base": instrument_django,
        "pyramid.urldispatch": instrument_pyramid,
        "falcon.app": instrument_falcon,
        "bottle": instrument_bottle,
        "cherrypy._cpdispatch": instrument_cherrypy,
    }
)
