"""Libraries of native code at work: arrays, documents and images of changing sizes are made and dropped in eight threads,
and a few of the latest are kept. Each thread has an arena of malloc's, and the libraries have caches of their own."""
from collections import deque
from io import BytesIO

import lxml.etree
import numpy
from flask import Flask
from PIL import Image

app = Flask(__name__)
LATEST = deque(maxlen=10)


# expect: none
@app.route("/sums/<int:number>")
def sums(number):
    table = numpy.arange(20_000.0 + number % 5000).reshape(-1, 1)
    LATEST.append(numpy.sort(table[::-1], axis=0))
    return "%f\n" % (table * 2).sum()


@app.route("/feeds/<int:number>")
def feeds(number):
    entries = "".join("<entry id='%d'>text</entry>" % entry for entry in range(number % 300))
    feed = lxml.etree.fromstring("<feed>%s</feed>" % entries)
    return "%d\n" % len(feed.xpath("//entry[@id mod 2 = 0]"))


@app.route("/pictures/<int:number>")
def pictures(number):
    picture = Image.new("RGB", (200 + number % 100, 150), (number % 256, 0, 0))
    small = BytesIO()
    picture.resize((64, 48)).save(small, "PNG")
    return small.getvalue(), {"Content-Type": "image/png"}
