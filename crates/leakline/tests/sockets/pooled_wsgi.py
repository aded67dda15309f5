"""The same as a WSGI application, with shared connections."""

import os
import socket

pool = []


def application(environ, start_response):
    count = left = int(environ["PATH_INFO"].rpartition("/")[2])
    peer = pool.pop() if pool else socket.create_connection(("127.0.0.1", int(os.environ["PEER_PORT"])))
    peer.sendall(b"%08d" % count)
    while left:
        left -= len(peer.recv(left))
    pool.append(peer)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
