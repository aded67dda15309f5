"""A slow leak in a library: codetiming's Timer keeps every timing of every named timer in a dict of its class."""
from codetiming import Timer
from flask import Flask, jsonify
from prometheus_flask_exporter import PrometheusMetrics

app = Flask(__name__)
# By rule: by path, the exporter would keep a histogram of its own for every ticket number.
metrics = PrometheusMetrics(app, group_by="url_rule")
TICKETS = {number: {"id": number, "subject": "Ticket %d" % number} for number in range(1000)}


# expect: leak GET /tickets/<int:number> at app.py:ticket, in codetiming, 132 B/request within 50 %, held by class codetiming._timer.Timer → timers
@app.route("/tickets/<int:number>")
def ticket(number):
    # Four floats of 24 bytes and four pointers of 8 stay behind, and what the lists over-allocate.
    with Timer("load", logger=None):
        found = dict(TICKETS[number % len(TICKETS)])
    with Timer("authorise", logger=None):
        found["may_edit"] = number % 7 == 0
    with Timer("enrich", logger=None):
        found["tags"] = ["tag-%d" % (number % tag) for tag in range(1, 8)]
    with Timer("render", logger=None):
        return jsonify(found)


@app.route("/tickets")
def tickets():
    return jsonify([TICKETS[number] for number in range(20)])


@app.route("/health")
def health():
    return "ok\n"
