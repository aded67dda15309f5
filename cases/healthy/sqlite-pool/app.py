"""A pool of database connections: it opens connections until it has five; each keeps its own page and statement
caches, which fill up to their bounds."""
# expect: none
import queue
import sqlite3
import sys
import tempfile
import threading

from waitress import serve

SIZE = 5
pool = queue.LifoQueue()
opened = 0
lock = threading.Lock()
database = tempfile.NamedTemporaryFile(suffix=".sqlite")


def connection():
    global opened
    with lock:
        if pool.empty() and opened < SIZE:
            opened += 1
            return sqlite3.connect(database.name, check_same_thread=False)
    return pool.get()


def app(environ, start_response):
    number = int(environ["PATH_INFO"].rpartition("/")[2])
    borrowed = connection()
    try:
        # The text of the statement varies, so that the statement cache turns over.
        rows = borrowed.execute("SELECT name FROM users WHERE id %% 100 = %d LIMIT 20" % (number % 100)).fetchall()
    finally:
        pool.put(borrowed)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["\n".join(name for name, in rows).encode()]


def fill():
    with sqlite3.connect(database.name) as filled:
        filled.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
        filled.executemany("INSERT INTO users (name) VALUES (?)", (("user %d" % number,) for number in range(5000)))
    filled.close()


if __name__ == "__main__":
    fill()
    serve(app, host="127.0.0.1", port=int(sys.argv[1]), threads=8)
