"""Runs leakline_shim.py against a `native` written in Python, with nothing but the standard library: how it gets into servers,
and out of them. What the application is given there is the agent's (tests/interpreters/wsgi.py).

The servers and frameworks that must be installed have their own test (crates/leakline/tests/servers.rs).
"""

import contextvars
import gc
import http.client
import importlib
import os
import pathlib
import sys
import tempfile
import threading
import types
import unittest
from wsgiref import simple_server, util, validate

SHIM = pathlib.Path(__file__).parent.parent / "leakline_shim.py"
OK, ERROR, ABORTED = 0, 1, 2
HANDLER, STREAMING, CLOSING = 0, 1, 2


class Native:
    """What the agent offers the shim, as the shim's opening describes it."""

    def __init__(self):
        self.requests = []
        self.name = None
        self.failures = 0
        self.current = contextvars.ContextVar("current", default=0)

    def begin(self, method, path):
        if self.current.get() and self.requests[self.current.get() - 1].outcome is None:
            return 0
        request = types.SimpleNamespace(method=method, path=path, phase=HANDLER, route=None, status=None, outcome=None)
        self.requests.append(request)
        self.current.set(len(self.requests))
        return len(self.requests)

    def phase(self, handle, phase):
        self.requests[(handle or self.current.get()) - 1].phase = phase

    def serve_by(self, meant, judge_at_close, end_when_closed):
        self.meant = meant

    def served(self, application, manner):
        def serve(environ, start_response):
            handle = self.begin(environ["REQUEST_METHOD"], self.meant(environ["PATH_INFO"]))

            def respond(status, headers):
                self.status(handle, int(status[:3]))
                return start_response(status, headers)

            try:
                return application(environ, respond)
            finally:
                self.end(handle, OK)

        return serve

    def before_request(self, setting, meant):
        def pre_request(worker, request):
            request.handle = self.begin(request.method, meant(request.path))
            setting.value(worker, request)

        return pre_request

    def after_request(self, setting, judge):
        def post_request(worker, request, environ, response):
            error = sys.exc_info()[1]
            setting.value(worker, request, environ, response)
            failed = ERROR if response.status >= "5" else OK
            self.end(request.handle, failed if error is None else judge(error), True)

        return post_request

    def phased(self, application):
        def serve(environ, start_response):
            inner = application(environ, start_response)
            self.phase(0, STREAMING)
            return inner if isinstance(inner, environ["wsgi.file_wrapper"]) else Response(self, inner)

        return serve

    def status(self, handle, status):
        self.requests[handle - 1].status = status

    def route(self, template):
        self.requests[self.current.get() - 1].route = template

    def end(self, handle, outcome, goes_on=False):
        request = self.requests[handle - 1]
        if request.outcome is None:
            failed = request.status is not None and request.status >= 500
            request.outcome = ERROR if failed else outcome
        if self.current.get() == handle:
            self.current.set(0)

    def server(self, name):
        self.name = self.name or name

    def failed(self):
        self.failures += 1


class Response:
    """What the agent makes of a response."""

    def __init__(self, native, inner):
        self.native, self.inner = native, inner

    def __iter__(self):
        return iter(self.inner)

    def close(self):
        self.native.phase(0, CLOSING)
        if hasattr(self.inner, "close"):
            self.inner.close()


def execute_shim():
    native = Native()
    namespace = {"__name__": "leakline_shim", "native": native}
    exec(compile(SHIM.read_text(), str(SHIM), "exec"), namespace)
    return native, namespace


class Scratch(unittest.TestCase):
    """Takes back what a test and the shim change in the interpreter, and nothing else: CPython 3.9 crashes when it
    exits after `atexit` was imported in a test and dropped from sys.modules at its end."""

    def setUp(self):
        path, finders = list(sys.path), list(sys.meta_path)
        application = vars(simple_server.WSGIServer)["application"]

        def restore():
            sys.path[:], sys.meta_path[:] = path, finders
            simple_server.WSGIServer.application = application
            sys.modules["wsgiref.simple_server"] = simple_server
            for name in ["waitress", "waitress.server"]:
                sys.modules.pop(name, None)

        self.addCleanup(restore)


def answer(environ, start_response):
    start_response("200 OK", [])
    return [b"here"]


def fail(environ, start_response):
    start_response("500 Broken", [])
    return []


class Quiet(simple_server.WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


class Installing(Scratch):
    """How the shim gets into a server's class."""

    def fetch(self, server, path="/"):
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        try:
            client = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
            client.request("GET", path)
            response = client.getresponse()
            return response.status, response.read()
        finally:
            client.close()
            thread.join()

    def serve(self, module, application):
        server = module.make_server("127.0.0.1", 0, application, handler_class=Quiet)
        self.addCleanup(server.server_close)
        return server

    def test_a_server_that_runs_already(self):
        server = self.serve(simple_server, answer)
        native, namespace = execute_shim()
        self.assertEqual(self.fetch(server, "/now"), (200, b"here"))
        self.assertEqual([(request.path, request.outcome) for request in native.requests], [("/now", OK)])
        self.assertEqual((native.name, namespace["failed"]), ("wsgiref", {}))
        self.assertIs(vars(server)["application"], answer, "the plain application stays where it was")

    def test_a_server_that_is_imported_later_and_changes_its_application(self):
        del sys.modules["wsgiref.simple_server"]
        native, namespace = execute_shim()
        module = importlib.import_module("wsgiref.simple_server")
        self.assertIsNot(module, simple_server)
        self.assertNotIn("exec_module", vars(module.__loader__))
        server = self.serve(module, None)
        self.assertIsNone(server.get_app())
        server.set_app(answer)
        self.assertEqual(self.fetch(server)[0], 200)
        server.set_app(fail)
        self.assertEqual(self.fetch(server)[0], 500)
        self.assertEqual([request.outcome for request in native.requests], [OK, ERROR])
        self.assertEqual(namespace["failed"], {})

    def test_a_server_that_we_leave_is_as_it_was_and_may_be_watched_again(self):
        before = vars(simple_server.WSGIServer).copy()
        finders = list(sys.meta_path)
        server = self.serve(simple_server, answer)
        native, namespace = execute_shim()
        self.fetch(server, "/watched")
        native.withdraw()
        self.assertEqual((dict(vars(simple_server.WSGIServer)), sys.meta_path), (dict(before), finders))
        self.assertEqual(self.fetch(server, "/unwatched"), (200, b"here"))
        native.name = None
        native.reinstate()
        self.assertEqual(self.fetch(server, "/again"), (200, b"here"))
        self.assertEqual([request.path for request in native.requests], ["/watched", "/again"])
        self.assertEqual((native.name, namespace["failed"]), ("wsgiref", {}))
        # Whoever comes back before we could leave finds us, and then we leave as a whole.
        native.reinstate()
        native.withdraw()
        self.assertEqual((dict(vars(simple_server.WSGIServer)), sys.meta_path), (dict(before), finders))

    def test_what_somebody_wraps_around_us_stays_when_we_leave(self):
        native, namespace = execute_shim()
        ours = vars(simple_server.WSGIServer)["application"]
        theirs = property(lambda server: ours.__get__(server), ours.__set__)
        simple_server.WSGIServer.application = theirs
        native.withdraw()
        self.assertIs(vars(simple_server.WSGIServer)["application"], theirs)
        native.reinstate()
        self.assertIs(vars(simple_server.WSGIServer)["application"], theirs)

    def test_a_worker_of_gunicorn_that_runs_already(self):
        module = types.ModuleType("gunicorn.workers.sync")

        class Config:
            """Settings are found by their names, and nobody may set one this way."""

            def __init__(self):
                hook = types.SimpleNamespace(value=lambda *arguments: None)
                vars(self)["settings"] = {"pre_request": hook, "post_request": hook}

            def __getattr__(self, name):
                return self.settings[name].value

            def __setattr__(self, name, value):
                raise AttributeError(name)

        class SyncWorker:
            def __init__(self):
                self.cfg, self.wsgi = Config(), answer

            def load_wsgi(self):
                self.wsgi = answer

            def run(self, step=lambda: None):
                return step()

        module.SyncWorker = SyncWorker
        sys.modules[module.__name__] = module
        self.addCleanup(sys.modules.pop, module.__name__)
        worker = SyncWorker()
        plain = dict(vars(worker)), dict(vars(worker.cfg))
        native, namespace = worker.run(execute_shim)
        self.assertEqual((native.name, namespace["failed"]), ("gunicorn", {}))
        request = types.SimpleNamespace(method="GET", path="/running")
        worker.cfg.pre_request(worker, request)
        self.assertIsNot(worker.wsgi, answer)
        worker.cfg.post_request(worker, request, {}, types.SimpleNamespace(status="200 OK"))
        self.assertEqual([(request.path, request.outcome) for request in native.requests], [("/running", OK)])
        native.withdraw()
        self.assertEqual((vars(worker), vars(worker.cfg)), plain)

        # One that has not loaded its application yet.
        worker = SyncWorker()
        worker.wsgi = None
        native, namespace = worker.run(execute_shim)
        worker.wsgi = answer
        worker.run()
        self.assertIsNot(worker.wsgi, answer)
        self.assertEqual((native.name, namespace["failed"]), ("gunicorn", {}))

        # One that was started while nobody was looking.
        native.withdraw()
        worker = SyncWorker()
        for _ in range(2):
            worker.run(native.reinstate)
            observed = worker.wsgi
            self.assertIsNot(observed, answer)
            native.withdraw()
            self.assertIs(worker.wsgi, answer)
        worker.run(native.reinstate)
        self.assertEqual((worker.wsgi, namespace["failed"]), (observed, {}))

    def test_a_module_that_looks_different_stays_as_it_is(self):
        with tempfile.TemporaryDirectory() as folder:
            package = os.path.join(folder, "waitress")
            os.mkdir(package)
            open(os.path.join(package, "__init__.py"), "w").close()
            with open(os.path.join(package, "server.py"), "w") as file:
                file.write("class Server:\n    application = 'mine'\n")
            sys.path.insert(0, folder)
            importlib.invalidate_caches()
            native, namespace = execute_shim()
            module = importlib.import_module("waitress.server")
            self.assertEqual(module.Server.application, "mine")
            self.assertEqual((list(namespace["failed"]), native.failures), (["waitress.server"], 1))


if __name__ == "__main__":
    unittest.main()
