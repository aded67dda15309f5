"""Serves TURNS requests of PATH to itself, through wsgiref and without a socket: `serve_in_process.py PATH TURNS`. As many
requests warm up, and two system calls that nothing else makes mark for callgrind where the measured ones begin and end.
"""

import io
import os
import sys
from wsgiref.handlers import SimpleHandler
from wsgiref.simple_server import WSGIServer
from wsgiref.util import setup_testing_defaults

from orders import app


def serve(server, path):
    environ = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    response = io.BytesIO()
    # The server's attribute is read for each request, as wsgiref's own request handler does.
    SimpleHandler(io.BytesIO(), response, sys.stderr, environ).run(server.get_app())
    assert response.getvalue().startswith(b"HTTP/1.0 200 OK\r\n")


path, turns = sys.argv[1], int(sys.argv[2])
server = WSGIServer(("127.0.0.1", 0), None, bind_and_activate=False)
server.set_app(app)
for turn in range(turns):
    serve(server, path)
os.getsid(0)
for turn in range(turns):
    serve(server, path)
os.getpgid(0)
server.server_close()
