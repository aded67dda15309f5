"""Serves requests of PATH, a turn each: `serve_in_process.py gunicorn|wsgiref|uvicorn MODULE PATH TURNS` (see counted.py).

Gunicorn's synchronous worker and uvicorn's protocol on asyncio's loop are the real ones; their client is a process of its
own, so that its work is not counted. wsgiref's handler reads and writes memory.
"""

import importlib
import io
import os
import socket
import subprocess
import sys

import ballast
import counted

name, module, path, turns = sys.argv[1:]
app = importlib.import_module(module).app
listener = socket.create_server(("127.0.0.1", 0))
# What is sent in two parts does not wait for the client's word in between. Connections have it from their listener.
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def start_client():
    """Without the agent; and it ends with us: its pipe breaks."""
    words = [sys.executable, "-c", CLIENT, str(listener.getsockname()[1]), path]
    return subprocess.Popen(words, env={}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


# Asks again and again, on the same connection where the server keeps it, and prints the status of each answer that it has
# read.
CLIENT = """
import http.client, sys
server = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
while True:
    server.request("GET", sys.argv[2])
    answer = server.getresponse()
    answer.read()
    print(answer.status, flush=True)
"""


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
    worker = SyncWorker(0, os.getppid(), [listener], application, 30, application.cfg, Logger(application.cfg))
    worker.load_wsgi()
    client = start_client()

    def serve():
        worker.accept(listener)
        return client.stdout.readline()

    return serve


def wsgiref_server():
    from wsgiref.handlers import SimpleHandler
    from wsgiref.simple_server import WSGIServer
    from wsgiref.util import setup_testing_defaults

    server = WSGIServer(("127.0.0.1", 0), None, bind_and_activate=False)
    server.set_app(app)

    def serve():
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

    config = Config(app, http="httptools", lifespan="off", log_level="critical", timeout_keep_alive=3600)
    config.load()
    loop = asyncio.new_event_loop()

    def protocol():
        return config.http_protocol_class(config=config, server_state=ServerState(), app_state={})

    loop.run_until_complete(loop.create_server(protocol, sock=listener))
    client = start_client()
    loop.add_reader(client.stdout, loop.stop)

    def serve():
        loop.run_forever()
        return client.stdout.readline()

    return serve


serve = {"gunicorn": gunicorn_worker, "wsgiref": wsgiref_server, "uvicorn": uvicorn_server}[name]()
assert b"200" in serve()[:20]
counted.run(lambda turn: serve(), turns)
