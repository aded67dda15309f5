"""A WSGI server, its clients and the peers that it asks, all in one process; says how many bytes went where.

The peers send as many zeros as they are asked for with eight digits. What it prints is the way, the route, the outcome
and the peer, with the bytes."""

import contextvars
import ctypes
import os
import shutil
import socket
import socketserver
import struct
import tempfile
import threading
from collections import Counter
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

OK, ABORTED = 0, 2
exchanged = Counter()


class Peer(socketserver.BaseRequestHandler):
    def handle(self):
        while True:
            asked = self.request.recv(8, socket.MSG_WAITALL)
            if not asked:
                return
            self.request.sendall(bytes(int(asked)))


def serve(server):
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class TcpPeer(socketserver.ThreadingTCPServer):
    pass


class UnixPeer(socketserver.ThreadingUnixStreamServer):
    pass


folder = tempfile.mkdtemp()
tcp = serve(TcpPeer(("127.0.0.1", 0), Peer)).server_address
other_tcp = serve(TcpPeer(("127.0.0.1", 0), Peer)).server_address
path = os.path.join(folder, "peer")
serve(UnixPeer(path, Peer))


def ask(peer, count):
    peer.sendall(b"%08d" % count)
    left = count
    while left:
        left -= len(peer.recv(left))


class Part(ctypes.Structure):
    _fields_ = [("start", ctypes.c_char_p), ("bytes", ctypes.c_size_t)]


class Message(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p), ("name_bytes", ctypes.c_uint), ("parts", ctypes.POINTER(Part)),
        ("count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_long), ("passed", ctypes.c_uint),
    ]


libc = ctypes.CDLL(None, use_errno=True)


def messages(*texts):
    return (Message * len(texts))(*(Message(parts=ctypes.pointer(Part(text, len(text))), count=1) for text in texts))


def ask_otherwise(peer, count):
    """As `ask` does, by the calls that Python has no names for: half of the digits by sendmmsg, half by sendfile, and then
    the answer by recvmmsg and by splice."""
    digits = b"%08d" % count
    assert libc.sendmmsg(peer.fileno(), messages(digits[:1], digits[1:4]), 2, 0) == 2
    with tempfile.TemporaryFile() as file:
        file.write(digits)
        file.flush()
        assert os.sendfile(peer.fileno(), file.fileno(), 4, 4) == 4
    pieces = messages(bytes(300), bytes(200))
    wait_for_one = 0x10000
    passed = libc.recvmmsg(peer.fileno(), pieces, 2, wait_for_one, None)
    left = count - sum(piece.passed for piece in pieces[:passed])
    reading, writing = os.pipe()
    while left:
        moved = libc.splice(peer.fileno(), None, writing, None, ctypes.c_size_t(left), 0)
        left -= len(os.read(reading, moved))
    os.close(reading)
    os.close(writing)


def connected(address):
    peer = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    peer.connect(address)
    return peer


def note(route, outcome, address, read, written):
    name = address if isinstance(address, str) else "%s:%d" % address
    exchanged["read|%s|%d|%s" % (route, outcome, name)] += read
    exchanged["written|%s|%d|%s" % (route, outcome, name)] += written


pooled, pool_lock = connected(other_tcp), threading.Lock()
variables = [contextvars.ContextVar("variable-%d" % number) for number in range(200)]


class Drained:
    """A body that reads the rest of its object when it is closed."""

    def __iter__(self):
        self.peer = connected(tcp)
        while True:
            ask(self.peer, 10000)
            note("/drain/<id>", ABORTED, tcp, 10000, 8)
            yield bytes(10000)

    def close(self):
        with self.peer:
            ask(self.peer, 3000000)
        note("/drain/<id>", ABORTED, tcp, 3000000, 8)


def application(environ, start_response):
    _, route, number = environ["PATH_INFO"].split("/")
    number = int(number)
    if number % 2:
        # Trees of values of different depth.
        for variable in variables[:number % 200]:
            variable.set(number)
    start_response("200 OK", [("Content-Type", "text/plain")])
    if route == "drain":
        return Drained()
    if route == "pool":
        with pool_lock:
            ask(pooled, number)
        note("/pool/<id>", OK, other_tcp, number, 8)
    else:
        address = path if route == "unix" else tcp
        with connected(address) as peer:
            (ask_otherwise if route == "otherwise" else ask)(peer, number)
        note("/%s/<id>" % route, OK, address, number, 8)
    return [b"done"]


class Handler(WSGIRequestHandler):
    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, WSGIServer):
    # Servers report clients that leave.
    def handle_error(self, request, client_address):
        pass


server = Server(("127.0.0.1", 0), Handler)
server.set_app(application)
serving = threading.Thread(target=server.serve_forever)
serving.start()


def get(route, number):
    with socket.create_connection(server.server_address[:2]) as client:
        client.sendall(b"GET /%s/%d HTTP/1.0\r\n\r\n" % (route.encode(), number))
        answer = b""
        while True:
            piece = client.recv(65536)
            if not piece:
                break
            answer += piece
    assert answer.endswith(b"done"), answer
    exchanged["written|/%s/<id>|0|client" % route] += len(answer)


def browse(first):
    for number in range(first, first + 40):
        for route in ("tcp", "pool", "unix", "otherwise"):
            get(route, number * 97)


def leave():
    with socket.create_connection(server.server_address[:2]) as client:
        client.sendall(b"GET /drain/1 HTTP/1.0\r\n\r\n")
        client.recv(10)
        # With what has arrived and was not read, a reset.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


clients = [threading.Thread(target=browse, args=(first,)) for first in (1, 1000, 10000)]
clients += [threading.Thread(target=leave) for _ in range(3)]
for client in clients:
    client.start()
for client in clients:
    client.join()
server.shutdown()
serving.join()
# Waits for the threads that answer.
server.server_close()
for thread in threading.enumerate():
    if not thread.daemon and thread is not threading.current_thread():
        thread.join()
shutil.rmtree(folder)
for key, count in sorted(exchanged.items()):
    print(key, count)
