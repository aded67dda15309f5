"""Runs leakline_shim.py against a `native` written in Python, with nothing but the standard library.

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
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello ", b"world"]


def answering(status, body):
    def application(environ, start_response):
        start_response(status, [])
        return body

    return application


class Endless:
    """A body that notes in which phases it is asked for more, and closed."""

    def __init__(self, native):
        self.native = native
        self.phases = []

    def __iter__(self):
        return self

    def __next__(self):
        self.phases.append(self.native.requests[-1].phase)
        return b"more"

    def close(self):
        self.phases.append(self.native.requests[-1].phase)


class Application(Scratch):
    """The wrapped application, called as a server calls it."""

    def setUp(self):
        super().setUp()
        self.native, namespace = execute_shim()
        self.wrap = lambda application: namespace["instrumented"](application, False)

    def call(self, application, chunks=None, path="/", close=True, **more):
        """What a client gets: status and body. Reads `chunks` pieces of the body, or all of them."""
        environ = dict(more, PATH_INFO=path)
        util.setup_testing_defaults(environ)
        given = []
        written = []

        def start_response(status, headers, exc_info=None):
            given.append(status)
            return written.append

        body = self.wrap(application)(environ, start_response)
        try:
            for piece in body:
                written.append(piece)
                if len(written) == chunks:
                    break
        finally:
            if close:
                body.close()
        return given[-1], b"".join(written)

    @property
    def outcomes(self):
        return [request.outcome for request in self.native.requests]

    def test_both_sides_keep_to_pep_3333(self):
        # The validator complains of whatever breaks the rules on either side of it.
        outer = validate.validator(self.wrap(validate.validator(answer)))
        environ = {}
        util.setup_testing_defaults(environ)
        environ.update(PATH_INFO="/here", SCRIPT_NAME="/mount", QUERY_STRING="q=1")

        def start_response(status, headers, exc_info=None):
            return lambda data: None

        body = outer(environ, start_response)
        pieces = list(body)
        self.assertEqual(self.outcomes, [None], "the request ends when the body is closed, not before")
        body.close()
        self.assertEqual(pieces, [b"hello ", b"world"])
        self.assertEqual(self.outcomes, [OK])
        self.assertEqual((self.native.requests[0].method, self.native.requests[0].path), ("GET", "/mount/here"))

    def test_a_sized_body_stays_sized_and_others_do_not_become_so(self):
        environ = {}
        util.setup_testing_defaults(environ)
        self.assertEqual(len(self.wrap(answer)(environ, lambda *given: None)), 2)
        generator = self.wrap(lambda environ, start_response: (piece for piece in [b"x"]))
        self.assertFalse(hasattr(generator(environ, lambda *given: None), "__len__"))

    def test_a_generator_that_starts_late_and_writes(self):
        def late(environ, start_response):
            write = start_response("200 OK", [])
            write(b"written ")
            yield b"yielded"

        self.assertEqual(self.call(late), ("200 OK", b"written yielded"))
        self.assertEqual(self.outcomes, [OK])

    def test_a_status_of_5xx_is_an_error_and_4xx_is_not(self):
        for status, outcome in [("503 Busy", ERROR), ("404 Not Found", OK), ("599 ", ERROR), ("5", OK)]:
            with self.subTest(status=status):
                self.assertEqual(self.call(answering(status, []))[0], status)
                self.assertEqual(self.outcomes[-1], outcome)

    def test_a_page_for_an_error_replaces_the_status(self):
        def recovering(environ, start_response):
            start_response("200 OK", [])
            try:
                raise KeyError("broken")
            except KeyError:
                start_response("500 Broken", [], sys.exc_info())
            return [b"sorry"]

        self.assertEqual(self.call(recovering), ("500 Broken", b"sorry"))
        self.assertEqual(self.outcomes, [ERROR])

    def test_exceptions_pass_and_count_wherever_they_come_from(self):
        def in_the_call(environ, start_response):
            raise KeyError("call")

        def in_the_body(environ, start_response):
            start_response("200 OK", [])
            yield b"begun"
            raise KeyError("body")

        class Closing(list):
            def close(self):
                raise KeyError("close")

        for application in [in_the_call, in_the_body, answering("200 OK", Closing([b"x"]))]:
            with self.assertRaises(KeyError):
                self.call(application)
            self.assertEqual(self.outcomes[-1], ERROR)
        self.call(answer)
        self.assertEqual(self.outcomes, [ERROR, ERROR, ERROR, OK])

    def test_a_server_that_stops_early_closes_once_and_is_no_error(self):
        body = Endless(self.native)
        status, pieces = self.call(answering("200 OK", body), chunks=3)
        self.assertEqual((pieces, body.phases), (b"moremoremore", [STREAMING] * 3 + [CLOSING]))
        self.assertEqual(self.outcomes, [OK])

    def test_a_server_that_cannot_send_closes_the_response_of_a_client_that_is_gone(self):
        for error, outcome in [(BrokenPipeError, ABORTED), (ConnectionResetError, ABORTED), (ValueError, ERROR)]:
            body = Endless(self.native)
            environ = {}
            util.setup_testing_defaults(environ)
            response = self.wrap(answering("200 OK", body))(environ, lambda *given: None)
            with self.assertRaises(error):
                try:
                    for piece in response:
                        raise error("the server's, not the application's")
                finally:
                    response.close()
            self.assertEqual((body.phases, self.outcomes[-1]), ([STREAMING, CLOSING], outcome))

    def test_a_body_that_nobody_closes_ends_when_it_is_dropped(self):
        gc.disable()
        self.addCleanup(gc.enable)
        self.call(answer, close=False)
        self.assertEqual(self.outcomes, [OK], "no collection may be needed")

    def test_a_file_goes_back_as_the_instance_that_the_server_knows(self):
        with tempfile.TemporaryFile() as file:
            file.write(b"contents")
            file.seek(0)
            given = []

            def send(environ, start_response):
                start_response("200 OK", [])
                given.append(environ["wsgi.file_wrapper"](file))
                return given[0]

            environ = {"wsgi.file_wrapper": util.FileWrapper}
            util.setup_testing_defaults(environ)
            body = self.wrap(send)(environ, lambda *given: None)
            self.assertIs(body, given[0])
            self.assertEqual(b"".join(body), b"contents")
            self.assertEqual(self.outcomes, [None])
            body.close()
            self.assertTrue(file.closed)
            self.assertEqual(self.outcomes, [OK])

    def test_layers_of_one_request_count_once(self):
        self.assertEqual(self.call(self.wrap(answer)), ("200 OK", b"hello world"))
        self.assertEqual(self.outcomes, [OK])

    def test_a_path_arrives_as_the_client_meant_it(self):
        self.call(answer, path="/caf\u00e9".encode("utf-8").decode("latin-1"))
        self.assertEqual(self.native.requests[0].path, "/caf\u00e9")
        self.call(answer, path=None)
        self.assertEqual(self.outcomes, [OK, OK])


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
        self.assertEqual(self.fetch(server, "/now"), (200, b"hello world"))
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
        server.set_app(answering("500 Broken", []))
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
        self.assertEqual(self.fetch(server, "/unwatched"), (200, b"hello world"))
        native.name = None
        native.reinstate()
        self.assertEqual(self.fetch(server, "/again"), (200, b"hello world"))
        self.assertEqual([request.path for request in native.requests], ["/watched", "/again"])
        self.assertEqual((native.name, namespace["failed"]), ("wsgiref", {}))

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
