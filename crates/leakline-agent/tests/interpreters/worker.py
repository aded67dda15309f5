"""A server that calls itself gunicorn: it serves requests in a context of its own, and copies of that context, as tasks
have them, work on when their requests have ended. Keeps something for each of them."""

import contextvars
import gc
import importlib
import sys
import types
import urllib.parse
import weakref
from importlib.machinery import ModuleSpec

COUNT = 300


def request_keeps():
    return [bytes(1000) for _ in range(COUNT)]


def server_keeps():
    return [bytes(1000) for _ in range(COUNT)]


def task_keeps():
    return [bytes(1000) for _ in range(COUNT)]


def copy_works():
    return [bytes(1000) for _ in range(COUNT)]


def changed_one_works():
    return [bytes(1000) for _ in range(COUNT)]


class Body:
    closed = 0

    def __iter__(self):
        return iter([b"hello ", b"world"])

    def close(self):
        Body.closed += 1


def application(environ, start_response):
    if "body" in environ:
        return environ["body"]
    if "work" in environ:
        environ["work"]()
        return Body()
    # A task that an application starts gets a copy of its context.
    environ["task"] = contextvars.copy_context()
    kept.append(request_keeps())
    return Body()


class FileWrapper:
    pass


class Config:
    """Settings as gunicorn keeps them."""

    def __init__(self):
        names = "pre_request", "post_request"
        self.settings = {name: types.SimpleNamespace(value=lambda *arguments: None) for name in names}


class SyncWorker:
    """Serves as gunicorn's worker does."""

    def __init__(self):
        self.cfg, self.wsgi = Config(), None

    def load_wsgi(self):
        self.wsgi = application

    def begins(self, request):
        self.cfg.pre_request(self, request)

    def serve(self, path, environ, status="200 OK"):
        request = types.SimpleNamespace(method="GET", path=path)
        try:
            self.begins(request)
            response = self.wsgi(environ, lambda status, headers: None)
            chunks = list(response)
            response.close()
        finally:
            self.cfg.post_request(self, request, environ, types.SimpleNamespace(status=status))
        return b"".join(chunks)


class Loader:
    """Makes the module that the shim looks for."""

    def create_module(self, spec):
        return types.ModuleType(spec.name)

    def exec_module(self, module):
        module.SyncWorker = SyncWorker


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return ModuleSpec(name, Loader()) if name == "gunicorn.workers.sync" else None


for package in "gunicorn", "gunicorn.workers":
    sys.modules[package] = types.ModuleType(package)
    sys.modules[package].__path__ = []
sys.meta_path.append(Finder)
importlib.import_module("gunicorn.workers.sync")

# What it keeps from its first time on is not for the count.
urllib.parse.unquote("%61")
kept = []
worker = SyncWorker()
worker.load_wsgi()
assert worker.wsgi is not application, "the shim has not seen the server"
environ = {"wsgi.file_wrapper": FileWrapper}
assert worker.serve("/first", environ) == b"hello world"
assert Body.closed == 1
kept.append(server_keeps())
kept.append(environ["task"].run(task_keeps))

# Contexts that outlive their request, as those of tasks do, hold what it takes to tell the request.
for _ in range(COUNT):
    context = contextvars.Context()
    context.run(worker.serve, "/task", {"wsgi.file_wrapper": FileWrapper, "body": [b"x"]})
    kept.append(context)

# The next requests change the context's value where it lies, and must not do so where a copy has it, too: one that is a
# copy still, and one that has become another since.
variables = [contextvars.ContextVar(str(number)) for number in range(40)]
copies = []


def copy():
    copies.append(contextvars.copy_context())


def copy_and_change():
    copy()
    for variable in variables:
        copies[-1].run(variable.set, variable)


for path, work in [("copied", copy), ("plain", list), ("changed", copy_and_change), ("held", copy), ("last", list)]:
    worker.serve("/" + path, {"wsgi.file_wrapper": FileWrapper, "work": work})
    if path == "held":
        # Whoever has looked has the value, too.
        [held] = [value for variable, value in copies.pop().items() if variable.name == "leakline_request"]
        number = str(held)
assert str(held) == number
kept.append(copies[0].run(copy_works))
kept.append(copies[1].run(changed_one_works))

# A path that is quoted; the status that a response has; an error of the application's, and of the user's own hook.
worker.serve("/k%61fe", {"wsgi.file_wrapper": FileWrapper, "body": [b"x"]}, "404 Not Found")
worker.serve("/failing", {"wsgi.file_wrapper": FileWrapper, "body": [b"x"]}, "503 Service Unavailable")
try:
    worker.serve("/raising", {"wsgi.file_wrapper": FileWrapper, "work": lambda: 1 / 0})
    raise AssertionError("the error is gone")
except ZeroDivisionError:
    pass
worker.cfg.settings["post_request"].value = lambda *arguments: [][0]
try:
    worker.serve("/hook", {"wsgi.file_wrapper": FileWrapper, "body": [b"x"]})
    raise AssertionError("the hook's error is gone")
except IndexError:
    pass

# A file wrapper goes back as it is, and what has no `close` is closed without one.
wrapper = FileWrapper()
assert worker.wsgi({"wsgi.file_wrapper": FileWrapper, "body": wrapper}, None) is wrapper
response = worker.wsgi({"wsgi.file_wrapper": FileWrapper, "body": [b"x"]}, None)
assert list(response) == [b"x"] and response.close() is None

# What a response holds is known to the collector, and so is the type, which outlives them all.
body = Body()
references = sys.getrefcount(type(response))
body.response = worker.wsgi({"wsgi.file_wrapper": FileWrapper, "body": body}, None)
assert body in gc.get_referents(body.response)
ended = weakref.ref(body)
body = None
gc.collect()
assert ended() is None and sys.getrefcount(type(response)) == references

# An error in `close` is the server's to see; calling the type itself makes an empty response, which harms nobody.
try:
    worker.wsgi({"wsgi.file_wrapper": FileWrapper, "body": types.SimpleNamespace(close=lambda: 1 / 0)}, None).close()
    raise AssertionError("the error is gone")
except ZeroDivisionError:
    pass
try:
    empty = type(response)()
    empty.close()
    iter(empty)
    raise AssertionError("nothing can be iterated")
except TypeError:
    pass
