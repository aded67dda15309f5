"""Turns each request that a WSGI server serves into a `native.begin` and a `native.end`.

The agent executes this text once, with the GIL held, in a namespace of its own that holds `__name__` and `native`:

    native.begin(method, path) -> handle   0 when this context serves a request already: then do nothing more
    native.phase(handle, phase)            of the current context's request where the handle is 0
    native.served(application, manner) -> application
                                           one that marks where each request begins and ends, for a server of this manner
    native.serve_by(meant, judge_at_close, end_when_closed)
                                           what the agent asks us for that
    native.before_request(setting, meant) -> hook
    native.after_request(setting, judge) -> hook
                                           gunicorn's, by which requests begin and end, around those of its settings
    native.phased(application) -> application
                                           the same, marks where its response begins and is closed
    native.status(handle, status)          a status of 500 or more makes an ok end an error
    native.route(template)                 of the current context's request; the last call wins
    native.end(handle, outcome)            idempotent; with a third argument, the next request begins in this context
    native.amend(handle, outcome)          the request ended already, but otherwise than we knew
    native.server(name)                    the first call wins
    native.failed()                        something could not be instrumented

None of them raises. What the agent and other texts of the shim need from this one, it adds to `native` at its end.
Everything here runs inside somebody else's server, so it imports nothing that the server has not imported by itself, and
whatever goes wrong in it leaves the server as it was and is written into `failed`. The server may be in the middle of its
work when we come, and we may have to go again: what stands in for something of the server's is put there by `replace`.

There are two ways to see a request. Gunicorn calls a hook before and after each one. Any other server we give an
application that wraps its own, which returns a response that wraps the application's.

The client has gone when the server stops in the midst of a response because its socket failed it: then it closes the
response while that error passes through. Waitress keeps what it has to send in a buffer and learns it later.

What is called for each request is the agent's, made as C makes it.
"""

import os
import sys

OK = 0
ERROR = 1
ABORTED = 2

CLOSING = 2

# What a server does with responses: waitress goes on reading a `wsgi.file_wrapper` after it has left the request's thread,
# uWSGI reads to the end unless the client has gone.
USUAL = 0
FILES_LEAVE_THE_THREAD = 1
READS_TO_THE_END = 2

end = native.end

# Module name to what went wrong when it was instrumented. The module is then as it would be without us.
failed = {}


def leave_alone(name, error):
    failed[name] = repr(error)
    native.failed()


# What stands in for what: owner, name, ours, and what was there before, in the order in which it was put there.
REPLACED = []
NOTHING = object()


def replace(owner, name, ours):
    """Puts `ours` in the place of an attribute of a class, a module, or an instance whose class has none of this name,
    until `withdraw` takes it back."""
    REPLACED.append((owner, name, ours, held(owner, name)))
    put(owner, name, ours)


def has_replaced(owner):
    """Something of its."""
    return any(known is owner for known, *_ in REPLACED)


def held(owner, name):
    if isinstance(owner, type):
        return vars(owner).get(name, NOTHING)
    # Not by `vars`: on 3.11 and 3.12 an instance that was asked for its dict is slower to read ever after.
    try:
        return object.__getattribute__(owner, name)
    except AttributeError:
        return NOTHING


def put(owner, name, value):
    # Not by setattr: gunicorn's configuration, for one, forbids it.
    kind = next(kind for kind in (type, type(sys), object) if isinstance(owner, kind))
    if value is NOTHING:
        kind.__delattr__(owner, name)
    else:
        kind.__setattr__(owner, name, value)


def withdraw():
    """Takes back what `replace` has put anywhere. What somebody else has wrapped meanwhile stays and does nothing: no
    request begins any more."""
    for owner, name, ours, original in reversed(REPLACED):
        if held(owner, name) is ours:
            put(owner, name, original)
    if FINDER in sys.meta_path:
        sys.meta_path.remove(FINDER)


def reinstate():
    """Undoes `withdraw`, and instruments what was imported in between."""
    for owner, name, ours, original in REPLACED:
        if held(owner, name) is original:
            put(owner, name, ours)
    # Whoever comes back before `withdraw` could be called finds it there.
    if FINDER not in sys.meta_path:
        sys.meta_path.insert(0, FINDER)
    instrument_imported()
    for observe in AT_WORK:
        try:
            observe()
        except Exception as error:
            leave_alone(observe.__module__, error)
    if served_by:
        native.server(served_by[0])


# What looks for those that are at work already, when we come, and when we come again: a worker may have been forked, or
# may have made something of its own, while nobody was looking.
AT_WORK = []


def at_work(observe):
    AT_WORK.append(observe)
    observe()


# The server's name, as soon as it is known.
served_by = []


def name_server(package):
    if not served_by:
        served_by.append(name_and_version(package))
    native.server(served_by[0])


def running(kind):
    """The instance of a class that is at work in this thread, further out: the server that we have come into."""
    frame = sys._getframe()
    while frame is not None:
        if "self" in frame.f_code.co_varnames:
            found = frame.f_locals.get("self")
            if isinstance(found, kind):
                return found
        frame = frame.f_back
    return None


def meant(path):
    """The path that the client meant. WSGI hands over bytes that pose as Latin-1."""
    return path.encode("latin-1", "replace").decode("utf-8", "replace")


def judge_at_close(error):
    """What the error that passes through the server while it closes a response says of the request."""
    # Waitress has an exception of its own.
    gone = isinstance(error, OSError) or type(error).__name__ == "ClientDisconnected"
    return ABORTED if gone else ERROR


def end_when_closed(file, handle):
    """Ends the request when the server closes `file`, the instance of its own file wrapper."""
    close = getattr(file, "close", None)

    def close_and_end():
        nonlocal close
        # Often a method bound to `file`, which holds us in turn: let go of it, so that no cycle keeps the file.
        inner, close = close, None
        error = sys.exc_info()[1]
        outcome = OK if error is None else judge_at_close(error)
        native.phase(handle, CLOSING)
        try:
            if inner is not None:
                inner()
        except BaseException:
            end(handle, outcome or ERROR)
            raise
        end(handle, outcome)

    try:
        file.close = close_and_end
    except Exception:
        end(handle, OK)


def instrument_gunicorn(module):
    """Puts a hook before and after each request, around those that the user has configured."""
    worker_class = module.SyncWorker if module.__name__.endswith("sync") else module.ThreadWorker
    # Gunicorn has imported it long since.
    from urllib.parse import unquote

    def plain(path):
        return unquote(path if path.isascii() else meant(path))

    def judge(error):
        return ABORTED if client_is_gone(error) else ERROR

    def add_hooks(config):
        name_server("gunicorn")
        # Gunicorn looks its settings up in `__getattr__`, which is asked for what the instance itself does not have.
        # What is here saves that detour twice a request, which pays for a good part of the hooks.
        replace(config, "pre_request", native.before_request(config.settings["pre_request"], plain))
        replace(config, "post_request", native.after_request(config.settings["post_request"], judge))

    def observe(worker):
        try:
            add_hooks(worker.cfg)
            replace(worker, "wsgi", native.phased(worker.wsgi))
        except Exception as error:
            leave_alone(module.__name__, error)

    original = worker_class.load_wsgi

    def load_wsgi(self):
        original(self)
        observe(self)

    replace(worker_class, "load_wsgi", load_wsgi)

    def observe_running():
        worker = running(worker_class)
        if worker is None or has_replaced(worker):
            return
        if getattr(worker, "wsgi", None) is not None:
            observe(worker)
            return
        # It is in the middle of the original `load_wsgi`.
        run = worker.run

        def observed_run():
            observe(worker)
            run()

        replace(worker, "run", observed_run)

    at_work(observe_running)


def client_is_gone(error):
    """Whether the server raised `error` when it wrote to the client, as opposed to an application that has trouble
    with a file or a connection of its own."""
    if not isinstance(error, OSError):
        return False
    raiser = ""
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__") or ""
        if module not in ("socket", "ssl"):
            raiser = module
        trace = trace.tb_next
    return raiser.startswith("gunicorn.")


def server(class_name, attribute, wrap):
    """What instruments a server that keeps its application in an attribute of this class.

    It puts a property in the attribute's place. That hands out what `wrap` makes of the application and leaves the
    plain one where it was, so a server that is running already is instrumented like one still to come, and taking the
    property away undoes it all."""
    shadow = "_leakline_" + attribute

    def instrument_server(module):
        def get(server):
            state = vars(server)
            served = state.get(shadow)
            if served is None:
                if attribute not in state:
                    raise AttributeError(attribute)
                application = state[attribute]
                if application is None:
                    return None
                name_server(module.__name__.partition(".")[0])
                served = state[shadow] = wrap(application)
            return served

        def put(server, application):
            state = vars(server)
            state[attribute] = application
            state.pop(shadow, None)

        replace(getattr(module, class_name), attribute, property(get, put))

    return instrument_server


def usually(application):
    return native.served(application, USUAL)


def instrument_waitress_channel(module):
    """Amends the outcome when a connection is closed and a part of the response was not sent yet."""
    channel = module.HTTPChannel
    original = channel.handle_close

    def handle_close(self):
        if self.total_outbufs_len:
            native.amend(getattr(self, "_leakline_handle", 0), ABORTED)
        original(self)

    replace(channel, "handle_close", handle_close)


def name_and_version(package):
    """As in "gunicorn 21.2.0". The version comes from the folder that the installer left beside the package, where
    the package has no `__version__`: importlib.metadata would be an import that the server may never make."""
    try:
        module = sys.modules[package]
        version = vars(module).get("__version__")
        if version is None:
            for entry in os.listdir(os.path.dirname(os.path.dirname(module.__file__))):
                name, _, rest = entry.partition("-")
                if name.lower() == package and rest.endswith(".dist-info"):
                    version = rest[: -len(".dist-info")]
        if isinstance(version, str):
            return package + " " + version
    except Exception:
        pass
    return package


# Module name to all that instruments it, and the modules that were.
INSTRUMENTS = {}
INSTRUMENTED = set()
# Called with the name of each module that is about to be imported, to install what depends on the server's options.
ANNOUNCE = []


def install(instruments):
    for name, instrument_module in instruments.items():
        INSTRUMENTS.setdefault(name, []).append(instrument_module)
        if name in INSTRUMENTED:
            apply(instrument_module, sys.modules[name])
    instrument_imported()


def instrument_imported():
    # What is instrumented may install more.
    for name in list(INSTRUMENTS):
        if name in sys.modules and name not in INSTRUMENTED:
            instrument(name, sys.modules[name])


def instrument(name, module):
    INSTRUMENTED.add(name)
    for instrument_module in INSTRUMENTS[name]:
        apply(instrument_module, module)


def apply(instrument_module, module):
    try:
        instrument_module(module)
    except Exception as error:
        leave_alone(module.__name__, error)


class Finder:
    """Lets the other finders find a module of the table, and instruments it as soon as it has been executed."""

    def __init__(self):
        self._asking = set()

    def find_spec(self, name, path=None, target=None):
        for announce in ANNOUNCE:
            announce(name)
        # Another tool's finder may do as we do and ask us in turn.
        if name not in INSTRUMENTS or name in self._asking:
            return None
        self._asking.add(name)
        try:
            for finder in sys.meta_path:
                find_spec = getattr(finder, "find_spec", None)
                spec = None if finder is self or find_spec is None else find_spec(name, path, target)
                if spec is not None:
                    instrument_after_execution(name, spec.loader)
                    return spec
            return None
        finally:
            self._asking.discard(name)


def instrument_after_execution(name, loader):
    """Shadows `loader.exec_module` for one call. The loader itself stays, because others look at its type."""

    def exec_module(module):
        own.pop("exec_module", None)
        execute(module)
        # One loader may serve a whole archive, and so another module than the one that was asked for.
        if module.__name__ == name:
            instrument(name, module)

    try:
        own = vars(loader)
        execute = loader.exec_module
        own["exec_module"] = exec_module
    except Exception as error:
        leave_alone(name, error)


native.serve_by(meant, judge_at_close, end_when_closed)
FINDER = Finder()
sys.meta_path.insert(0, FINDER)
install(
    {
        "gunicorn.workers.sync": instrument_gunicorn,
        "gunicorn.workers.gthread": instrument_gunicorn,
        # Wrapped because not all asynchronous workers call the hooks. The base class of all workers won't do: it also
        # carries those whose "application" does not speak WSGI (uvicorn's, Tornado's).
        "gunicorn.workers.base_async": server("AsyncWorker", "wsgi", usually),
        "werkzeug.serving": server("BaseWSGIServer", "app", usually),
        "wsgiref.simple_server": server("WSGIServer", "application", usually),
        "waitress.server": server("BaseWSGIServer", "application", lambda app: native.served(app, FILES_LEAVE_THE_THREAD)),
        "waitress.channel": instrument_waitress_channel,
        "cheroot.wsgi": server("Server", "wsgi_app", usually),
        "gevent.pywsgi": server("WSGIServer", "application", usually),
        "eventlet.wsgi": server("Server", "app", usually),
    }
)
native.install = install
native.replace = replace
native.has_replaced = has_replaced
native.withdraw = withdraw
native.reinstate = reinstate
native.at_work = at_work
native.instrument_application = server
native.name_server = name_server
native.announce = ANNOUNCE
