"""Serves TURNS requests of PATH to itself: `serve_in_process.py gunicorn|wsgiref|uvicorn MODULE PATH TURNS`.

Gunicorn's synchronous worker and uvicorn's protocol on asyncio's loop are the real ones, with a pair of connected sockets
for client and server; wsgiref's handler reads and writes memory.
"""

import importlib
import io
import os
import socket
import sys

import ballast
import counted

name, path, turns = sys.argv[1], sys.argv[3], int(sys.argv[4])
app = importlib.import_module(sys.argv[2]).app


def gunicorn_worker():
    from gunicorn.app.base import BaseApplication
    from gunicorn.glogging import Logger
    from gunicorn.workers.sync import SyncWorker

    class Application(BaseApplication):
        def load_config(self):
            pass

        def load(self):
            return app

    application = Application()
    listener = socket.create_server(("127.0.0.1", 0))
    worker = SyncWorker(0, os.getppid(), [listener], application, 30, application.cfg, Logger(application.cfg))
    worker.load_wsgi()

    def serve(path):
        client, server = socket.socketpair()
        client.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        worker.handle(listener, server, ("127.0.0.1", 1))
        answer = client.recv(65536)
        client.close()
        return answer

    return serve


def wsgiref_server():
    from wsgiref.handlers import SimpleHandler
    from wsgiref.simple_server import WSGIServer
    from wsgiref.util import setup_testing_defaults

    server = WSGIServer(("127.0.0.1", 0), None, bind_and_activate=False)
    server.set_app(app)

    def serve(path):
        environ = {"PATH_INFO": path}
        setup_testing_defaults(environ)
        answer = io.BytesIO()
        # The server's attribute is read for each request, as wsgiref's own request handler does.
        SimpleHandler(io.BytesIO(), answer, sys.stderr, environ).run(server.get_app())
        return answer.getvalue()

    return serve


def uvicorn_server():
    import asyncio

    from uvicorn import Config
    from uvicorn.server import ServerState

    config = Config(app, http="httptools", lifespan="off", log_level="critical")
    config.load()
    loop = asyncio.new_event_loop()
    client, server = socket.socketpair()
    client.setblocking(False)

    def protocol():
        return config.http_protocol_class(config=config, server_state=ServerState(), app_state={})

    loop.run_until_complete(loop.connect_accepted_socket(protocol, server))

    def serve(path):
        client.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        answer = b""
        # Headers and body are sent one after the other.
        while not answer.endswith((b"}", b"ok\n")):
            # Told to stop before it runs, the loop takes one turn.
            loop.stop()
            loop.run_forever()
            try:
                answer += client.recv(65536)
            except BlockingIOError:
                pass
        return answer

    return serve


serve = {"gunicorn": gunicorn_worker, "wsgiref": wsgiref_server, "uvicorn": uvicorn_server}[name]()
assert b" 200 OK\r\n" in serve(path)[:20]
counted.run(lambda turn: serve(path), turns)
