"""Names the route of a request as its framework does, where the framework serves WSGI.

The agent executes this text after `leakline_shim.py`, in a namespace of its own that holds `native`. Whatever server
began the request, `native.route(template)` names the one that the current context serves.
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
    native.replace(adapter, "match", match)


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


def instrument_pyramid(module):
    """Names the pattern that matched. What is found by traversal alone has none."""
    mapper = module.RoutesMapper
    original = mapper.__call__

    def __call__(self, request):
        found = original(self, request)
        try:
            route = found["route"]
            if route is not None:
                native.route(mount(request.environ) + "/" + route.pattern.lstrip("/"))
        except Exception:
            pass
        return found

    native.replace(mapper, "__call__", __call__)


def mount(environ):
    """Where the server, or an application around this one, has put it."""
    return environ.get("SCRIPT_NAME", "").rstrip("/")


def instrument_falcon(module):
    """Names the template that matched, for WSGI and ASGI: both applications look their resources up like this."""
    application = module.App
    original = application._get_responder

    def _get_responder(self, request):
        found = original(self, request)
        try:
            template = found[3]
            if template is not None:
                native.route(request.root_path.rstrip("/") + template)
        except Exception:
            pass
        return found

    native.replace(application, "_get_responder", _get_responder)


def instrument_bottle(module):
    """Names the rule that matched. That of an application which is mounted in another comes after the other's."""
    router = module.Router
    original = router.match

    def match(self, environ):
        found = original(self, environ)
        try:
            native.route(mount(environ) + found[0].rule)
        except Exception:
            pass
        return found

    native.replace(router, "match", match)


def instrument_cherrypy(module):
    """Names the path that led to the page handler, and the parameters that the rest of the path is given to."""
    dispatcher = module.Dispatcher
    original = dispatcher.find_handler

    def find_handler(self, path):
        found = original(self, path)
        try:
            handler, rest = found
            if handler is not None:
                native.route(module.cherrypy.serving.request.script_name + handled(handler, path, len(rest)))
        except Exception:
            pass
        return found

    native.replace(dispatcher, "find_handler", find_handler)


def handled(handler, path, rest):
    names = [name for name in path.split("/") if name]
    code = getattr(handler, "__code__", None)
    parameters = code.co_varnames[1 : code.co_argcount] if code is not None else ()
    given = ["{%s}" % (parameters[at] if at < len(parameters) else at) for at in range(rest)]
    return "/" + "/".join(names[: len(names) - rest] + given)


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
