"""A leak in a database driver, after a story of 2008: mariadb 1.0.0 forgets each row that it fetches. The rows are ordinary
Python objects, but nothing refers to them, so that Python's own tools find nobody who holds them."""
import os

import mariadb
from flask import Flask

app = Flask(__name__)
database = mariadb.connect(host="127.0.0.1", port=int(os.environ["DATABASE_PORT"]), user="root", database="mysql")


# A row is a tuple of two (72 bytes), a number (28) and a text (49 and its 579 letters).
# expect: leak GET /stories/<int:page> at app.py:stories, mixed in mariadb, by field_fetch_fromtext, 72800 B/request within 15 %
@app.route("/stories/<int:page>")
def stories(page):
    cursor = database.cursor()
    cursor.execute("SELECT seq + %d, REPEAT('x', 579) FROM seq_1001_to_1100" % page)
    found = cursor.fetchall()
    cursor.close()
    return "%d stories\n" % len(found)


@app.route("/count")
def count():
    cursor = database.cursor()
    cursor.execute("SELECT COUNT(*) FROM seq_1001_to_1100")
    total = cursor.fetchone()[0]
    cursor.close()
    return "%d\n" % total
