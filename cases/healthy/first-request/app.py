"""What a first request does once: it imports modules and builds an index that every later request only reads."""
# expect: none
from flask import Flask

app = Flask(__name__)
index = {}


@app.route("/find/<int:number>")
def find(number):
    import decimal
    import email.mime.multipart
    import sqlite3
    import xml.dom.minidom

    if not index:
        index.update((number, decimal.Decimal(number) / 7) for number in range(50000))
    modules = (email.mime.multipart, sqlite3, xml.dom.minidom)
    return "%s %d\n" % (index[number % len(index)], len(modules))
