"""A small Flask application: one route that does nothing, where what the agent adds to every request shows most, and
one that does what routes do: it looks something up, builds rows and serialises them."""

from flask import Flask, jsonify

app = Flask(__name__)
ARTICLES = [{"name": "Article %d" % number, "cents": 100 + number} for number in range(500)]


@app.route("/health")
def health():
    return "ok\n"


@app.route("/orders/<int:number>")
def order(number):
    lines = rows(number)
    return jsonify(number=number, lines=lines, total=sum(line["total"] for line in lines))


def rows(number):
    lines = []
    for position in range(30):
        article = ARTICLES[(number * 7 + position) % len(ARTICLES)]
        quantity = 1 + (number + position) % 5
        total = quantity * article["cents"]
        lines.append({"position": position, "article": article["name"], "quantity": quantity, "total": total})
    return lines
