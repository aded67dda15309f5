"""A route whose work is done in C: it parses a document with lxml, calculates with numpy and writes a document again, so that
what is sampled lies below native stacks."""

import lxml.etree
import numpy
from flask import Flask

app = Flask(__name__)
FEED = "<feed>%s</feed>" % "".join("<entry id='%d'><price>%d.5</price></entry>" % (n, n * 7 % 100) for n in range(100))


@app.route("/feeds/<int:number>")
def feed(number):
    entries = lxml.etree.fromstring(FEED).findall("entry")
    prices = numpy.array([float(entry.findtext("price")) for entry in entries])
    table = numpy.outer(prices, numpy.arange(1.0, 41.0)) + number
    cheapest = numpy.sort(table, axis=0)[:5]
    answer = lxml.etree.Element("cheapest")
    for entry, total in zip(entries, cheapest.sum(axis=1)):
        lxml.etree.SubElement(answer, "entry", id=entry.get("id")).text = "%.1f" % total
    return lxml.etree.tostring(answer), {"Content-Type": "application/xml"}
