"""A server that calls itself gunicorn: it serves one request in a context of its own, and a copy of that context, as a
task has one, works on when the request has ended. Keeps something for each of them."""

import contextvars
import gc
import importlib
import sys
import types
import weakref
from importlib.machinery import ModuleSpec

COUNT = 300


def request_keeps():
    return [bytes(1000) for _ in range(COUNT)]


def server_keeps():
    return [bytes(1000) for _ in range(COUNT)]


def task_keeps():
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
    # A task that an application starts gets a copy of its context.
    environ["task"] = contextvars.copy_context()
    kept.append(request_keeps())
    return Body()


class FileWrapper:
    pass


class Config:
    """Settings as gunicorn keeps them."""

    def __init__(self):
        hook = types.SimpleNamespace(value=lambda *arguments: None)
        self.settings = {"pre_request": hook, "post_request": hook}


class SyncWorker:
    """Serves as gunicorn's worker does."""

    def __init__(self):
        self.cfg, self.wsgi = Config(), None

    def load_wsgi(self):
        self.wsgi = application

    def serve(self, path, environ):
        request = types.SimpleNamespace(method="GET", path=path)
        self.cfg.pre_request(self, request)
        response = self.wsgi(environ, lambda status, headers: None)
        chunks = list(response)
        response.close()
        self.cfg.post_request(self, request, environ, types.SimpleNamespace(status="200 OK"))
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
