"""Keeps what three libraries of native code allocate, under the eyes of a witness."""
import ctypes
import os
import sys

import lxml.etree
import numpy
from PIL import Image

witness = ctypes.CDLL(sys.argv[1])
kept = []


def work(number):
    rows = numpy.arange(200.0 + number)
    kept.append(numpy.sort(rows[::-1]) + rows)
    document = lxml.etree.fromstring(b"<list>" + b"<item name='a'>text</item>" * 20 + b"</list>")
    kept.append(document.xpath("//item[@name='a']"))
    kept.append(Image.new("RGB", (64 + number, 32)).resize((20, 20)))


work(0)
witness.watch(1)
for number in range(40):
    # By another library's hands, too: numpy calls Python back, which calls numpy.
    numpy.apply_along_axis(lambda row: work(number) or row.sum(), 0, numpy.ones((2, 1)))
witness.watch(0)
# At the end of an interpreter what was kept is freed: the table no longer follows that, and the witness would.
os._exit(0)
