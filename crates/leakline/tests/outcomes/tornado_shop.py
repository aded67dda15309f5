"""A Tornado shop that keeps something for each request of most of its pages: in a coroutine, in the loop's pool of
threads, in a callback that finishes the response later, for each WebSocket, and in a Flask application beside it."""

import asyncio
import sys

from flask_shop import app
from tornado.ioloop import IOLoop
from tornado.web import Application, FallbackHandler, RequestHandler
from tornado.websocket import WebSocketHandler
from tornado.wsgi import WSGIContainer

kept = []


def keep(size):
    kept.append(b"x" * size)


class Lend(RequestHandler):
    async def get(self, number):
        keep(240_000)
        self.write("lent number " + number)


class Pool(RequestHandler):
    async def get(self, number):
        await IOLoop.current().run_in_executor(None, keep, 230_000)
        self.write("pooled")


class Later(RequestHandler):
    def get(self, number):
        self._auto_finish = False
        IOLoop.current().call_later(0.01, self.answer)

    def answer(self):
        keep(220_000)
        self.finish("done")


class Talk(WebSocketHandler):
    def open(self, number):
        keep(600_000)

    def on_message(self, said):
        self.write_message(said)


def keep_in_handler():
    keep(200_000)


def keep_while_streaming():
    keep(200_000)


def keep_after():
    keep(200_000)


class Phases(RequestHandler):
    async def get(self):
        keep_in_handler()
        self.write("all")
        await self.flush()
        keep_while_streaming()
        await self.finish()
        keep_after()


class Broken(RequestHandler):
    def get(self):
        raise RuntimeError("this page never works")


class Endless(RequestHandler):
    async def get(self):
        while True:
            self.write(b"x" * 65_536)
            await self.flush()


class Large(RequestHandler):
    def get(self):
        self.write(b"x" * 30_000_000)


async def serve(port):
    pages = [
        (r"/lend/([0-9]+)", Lend),
        (r"/pool/(?P<number>[0-9]+)", Pool),
        (r"/later/([0-9]+)", Later),
        (r"/talk/([0-9]+)", Talk),
        (r"/phases", Phases),
        (r"/broken", Broken),
        (r"/endless", Endless),
        (r"/large", Large),
        (r".*", FallbackHandler, {"fallback": WSGIContainer(app)}),
    ]
    Application(pages, log_function=lambda handler: None).listen(port, "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
