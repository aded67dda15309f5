"""A server of wsgiref's whose applications end in every way. Each is called as servers call it, under a path of its own, and
what it does and gives is compared with what it would without an agent between."""

import gc
import sys
import tempfile
import warnings
from wsgiref import simple_server, util, validate

server = simple_server.WSGIServer(("127.0.0.1", 0), None, bind_and_activate=False)


def wrap(application):
    """What a server finds in the place of its application."""
    server.set_app(application)
    served = server.get_app()
    assert served is not application, "the shim has not seen the server"
    return served


def environment(path, **more):
    environ = dict(more, PATH_INFO=path)
    util.setup_testing_defaults(environ)
    return environ


def call(path, application, chunks=None, close=True, **more):
    """What a client gets: status and body. Reads `chunks` pieces of the body, or all of them."""
    given, written = [], []

    def start_response(status, headers, exc_info=None):
        given.append(status)
        return written.append

    body = wrap(application)(environment(path, **more), start_response)
    try:
        for piece in body:
            written.append(piece)
            if len(written) == chunks:
                break
    finally:
        if close:
            body.close()
    return given[-1], b"".join(written)


def answer(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello ", b"world"]


def answering(status, body):
    def application(environ, start_response):
        start_response(status, [])
        return body

    return application


class Endless:
    def __init__(self):
        self.closed = 0

    def __iter__(self):
        return self

    def __next__(self):
        return b"more"

    def close(self):
        self.closed += 1


def raised(error, *arguments, **named):
    try:
        call(*arguments, **named)
    except error:
        return
    raise AssertionError("nothing was raised")


def both_sides_keep_to_pep_3333():
    # The validator complains of whatever breaks the rules on either side of it.
    outer = validate.validator(wrap(validate.validator(answer)))
    environ = environment("/here", SCRIPT_NAME="/mount", QUERY_STRING="q=1")
    body = outer(environ, lambda status, headers, exc_info=None: lambda data: None)
    assert list(body) == [b"hello ", b"world"]
    body.close()


def a_sized_body_stays_sized_and_others_do_not_become_so():
    body = wrap(answer)(environment("/sized"), lambda *given: None)
    assert len(body) == 2 and list(body) == list(body), "it may be read twice, as the application's own"
    body.close()
    body = wrap(lambda environ, start_response: (piece for piece in [b"x"]))(environment("/unsized"), lambda *given: None)
    assert not hasattr(body, "__len__")
    body.close()


def a_generator_that_starts_late_and_writes():
    def late(environ, start_response):
        write = start_response("200 OK", [])
        write(b"written ")
        yield b"yielded"

    assert call("/late", late) == ("200 OK", b"written yielded")


def a_status_of_5xx_is_an_error_and_4xx_is_not():
    for path, status in [("/503", "503 Busy"), ("/404", "404 Not Found"), ("/599", "599 "), ("/5", "5")]:
        assert call("/status" + path, answering(status, []))[0] == status

    def by_name(environ, start_response):
        start_response(headers=[], status="500 Broken")
        return []

    assert call("/status/name", by_name) == ("500 Broken", b"")


def a_page_for_an_error_replaces_the_status():
    def recovering(environ, start_response):
        start_response("200 OK", [])
        try:
            raise KeyError("broken")
        except KeyError:
            start_response("500 Broken", [], exc_info=sys.exc_info())
        return [b"sorry"]

    assert call("/recovers", recovering) == ("500 Broken", b"sorry")


def exceptions_pass_and_count_wherever_they_come_from():
    def in_the_call(environ, start_response):
        raise KeyError("call")

    def in_the_body(environ, start_response):
        start_response("200 OK", [])
        yield b"begun"
        # The application's own trouble, and no client that is gone.
        raise ConnectionResetError("body")

    class Closing(list):
        def close(self):
            raise KeyError("close")

    raised(KeyError, "/raises/call", in_the_call)
    raised(ConnectionResetError, "/raises/body", in_the_body)
    raised(KeyError, "/raises/close", answering("200 OK", Closing([b"x"])))
    raised(TypeError, "/raises/none", answering("200 OK", None), close=False)
    raised(ValueError, "/raises/start", lambda environ, start_response: start_response(int("x"), []))
    call("/after", answer)


def a_server_that_stops_early_closes_once_and_is_no_error():
    body = Endless()
    assert call("/early", answering("200 OK", body), chunks=3) == ("200 OK", b"moremoremore")
    assert body.closed == 1


def a_server_that_cannot_send_closes_the_response_of_a_client_that_is_gone():
    for error in BrokenPipeError, ConnectionResetError, ValueError:
        body = Endless()
        response = wrap(answering("200 OK", body))(environment("/gone/" + error.__name__), lambda *given: None)
        try:
            try:
                for piece in response:
                    raise error("the server's, not the application's")
            finally:
                response.close()
        except error:
            pass
        assert body.closed == 1


def a_body_that_nobody_closes_ends_when_it_is_dropped():
    gc.disable()
    call("/dropped/list", answer, close=False)

    def generator(environ, start_response):
        start_response("200 OK", [])
        yield b"one"
        yield b"two"

    # Whose frame holds the `start_response` that it was given.
    call("/dropped/generator", generator, chunks=1, close=False)
    call("/dropped/after", answer)
    gc.enable()


def a_file_goes_back_as_the_instance_that_the_server_knows():
    with tempfile.TemporaryFile() as file:
        file.write(b"contents")
        file.seek(0)
        given = []

        def send(environ, start_response):
            start_response("200 OK", [])
            given.append(environ["wsgi.file_wrapper"](file))
            return given[0]

        environ = environment("/file", **{"wsgi.file_wrapper": util.FileWrapper})
        body = wrap(send)(environ, lambda *given: None)
        assert body is given[0]
        with warnings.catch_warnings():
            # Some versions read it by an old protocol.
            warnings.simplefilter("ignore")
            assert b"".join(body) == b"contents"
        body.close()
        assert file.closed


def layers_of_one_request_count_once():
    assert call("/layers", wrap(answer)) == ("200 OK", b"hello world")


def a_path_arrives_as_the_client_meant_it():
    call("/caf\u00e9".encode("utf-8").decode("latin-1"), answer)
    call("/bytes/\xff", answer)
    call(None, answer)


def responses_are_freed_and_their_types_references_add_up():
    def generator(environ, start_response):
        start_response("200 OK", [])
        yield b"piece"

    for application in answer, generator:
        served = wrap(application)

        def serve():
            body = served(environment("/freed"), lambda *given: None)
            pieces = iter(body)
            kinds = type(body), type(pieces)
            for _ in pieces:
                pass
            body.close()
            return kinds

        kinds = serve()
        gc.collect()
        before = [sys.getrefcount(kind) for kind in kinds]
        for _ in range(50):
            serve()
        gc.collect()
        after = [sys.getrefcount(kind) for kind in kinds]
        assert after == before, (before, after)
        for kind in kinds:
            # What somebody makes by calling the type holds nothing.
            for use in iter, len, list:
                try:
                    use(kind())
                except TypeError:
                    pass


both_sides_keep_to_pep_3333()
a_sized_body_stays_sized_and_others_do_not_become_so()
a_generator_that_starts_late_and_writes()
a_status_of_5xx_is_an_error_and_4xx_is_not()
a_page_for_an_error_replaces_the_status()
exceptions_pass_and_count_wherever_they_come_from()
a_server_that_stops_early_closes_once_and_is_no_error()
a_server_that_cannot_send_closes_the_response_of_a_client_that_is_gone()
a_body_that_nobody_closes_ends_when_it_is_dropped()
a_file_goes_back_as_the_instance_that_the_server_knows()
layers_of_one_request_count_once()
a_path_arrives_as_the_client_meant_it()
responses_are_freed_and_their_types_references_add_up()
