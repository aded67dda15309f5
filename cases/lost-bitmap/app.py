"""A leak in a C library that only failures have: a page's bitmap is made, and an exception passes its destruction by."""
import pypdfium2.raw as pdfium
from flask import Flask

app = Flask(__name__)


class NoSuchPage(Exception):
    pass


def stamp(bitmap, number):
    if number % 4 == 0:
        raise NoSuchPage(number)
    pdfium.FPDFBitmap_FillRect(bitmap, 10, 10, 100, 20, 0xFF0000FF)


# expect: leak GET /pages/<int:number> when error at app.py:preview, native in libpdfium.so, 2174960 B/request within 15 %, lost 50 %, never when ok
@app.route("/pages/<int:number>")
def preview(number):
    # 620 x 877 pixels of 4 bytes. Nothing of Python's holds them: neither its own tools nor its collector see them.
    bitmap = pdfium.FPDFBitmap_Create(620, 877, 0)
    pdfium.FPDFBitmap_FillRect(bitmap, 0, 0, 620, 877, 0xFFFFFFFF)
    stamp(bitmap, number)
    pdfium.FPDFBitmap_Destroy(bitmap)
    return "page %d\n" % number
