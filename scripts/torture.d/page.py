"""A server for the soak: pages that keep nothing, a page that leaks, and a page that forks."""

import json
import os

import flask

app = flask.Flask(__name__)
kept = []


@app.route("/rows/<int:number>")
def rows(number):
    return json.dumps([{"id": number + i, "name": "row %d" % i} for i in range(30)])


@app.route("/leak/<int:number>")
def leak(number):
    kept.append("x" * 2000)
    del kept[:-20_000]
    return "kept"


@app.route("/fork/<int:number>")
def fork(number):
    pid = os.fork()
    if pid == 0:
        os._exit(len([bytes(i) for i in range(100)]) - 100)
    return str(os.waitpid(pid, 0)[1])
