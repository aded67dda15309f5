"""Nothing leaks, and yet the resident set stays at three times of what it was. An export builds all of its rows before it
sends them; among them it notes a few marks, which live on until the next export. When the rows are gone, the marks lie
scattered over the memory that the rows had, and malloc can cut its heap only behind the last one."""
from flask import Flask

app = Flask(__name__)
marks = {}


# expect: retained after GET /export at app.py:mark, 60000000 bytes at least, remedy malloc_trim
@app.route("/export")
def export():
    rows, noted = [], []
    for number in range(50000):
        rows.append("%d;" % number + "x" * (600 + number * 37 % 2000))
        if number % 500 == 499:
            noted.append(mark(number))
    marks["export"] = noted
    return "%d bytes\n" % sum(map(len, rows))


def mark(number):
    return b"%8d" % number * 2000


@app.route("/")
def index():
    return "%d marks\n" % sum(map(len, marks.values()))
