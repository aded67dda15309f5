"""A CherryPy shop that keeps everything that it has sold."""

import sys

import cherrypy

sold = []


class Shop:
    @cherrypy.expose
    def sell(self, number):
        sold.append(b"x" * 250_000)
        return "sold number " + number

    @cherrypy.expose
    def broken(self):
        raise RuntimeError("this page never works")

    @cherrypy.expose
    def endless(self):
        def pieces():
            while True:
                yield b"x" * 65_536

        return pieces()

    endless._cp_config = {"response.stream": True}

    @cherrypy.expose
    def large(self):
        return b"x" * 30_000_000


@cherrypy.expose
class Orders:
    def GET(self, number):
        sold.append(b"x" * 210_000)
        return "ordered"


cherrypy.config.update(
    {"server.socket_host": "127.0.0.1", "server.socket_port": int(sys.argv[1]), "engine.autoreload.on": False,
     "server.socket_timeout": 60, "environment": "production"}
)
cherrypy.tree.mount(Orders(), "/orders", {"/": {"request.dispatch": cherrypy.dispatch.MethodDispatcher()}})
cherrypy.quickstart(Shop())
