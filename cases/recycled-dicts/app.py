"""The free-list trap: CPython hands the dicts that /healthy drops to /report, which keeps them, without an allocation.

A tool that blames whoever allocated a block blames /healthy for the growth that only /report causes.
"""
import json

from flask import Flask

import ledger

app = Flask(__name__)


@app.route("/healthy")
def healthy():
    rows = [{"id": number, "name": "row %d" % number, "state": "new %d" % number} for number in range(140)]
    return json.dumps(rows)


@app.route("/report")
def report():
    return "%d rows\n" % ledger.record(140)


@app.route("/kept")
def kept():
    return "%d\n" % ledger.kept_bytes()
