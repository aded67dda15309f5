"""The handle that an exception passes by (2008): a PDF is begun, and freed only where nothing goes wrong in between."""
import ctypes

from flask import Flask

hpdf = ctypes.CDLL("libhpdf-2.3.0.so")
hpdf.HPDF_New.restype = hpdf.HPDF_AddPage.restype = hpdf.HPDF_GetFont.restype = ctypes.c_void_p
hpdf.HPDF_New.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
hpdf.HPDF_AddPage.argtypes = hpdf.HPDF_Free.argtypes = [ctypes.c_void_p]
hpdf.HPDF_GetFont.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
app = Flask(__name__)


def total(number):
    if number % 5 == 0:
        raise ValueError("invoice %d has no positions" % number)
    return 100 * number


# expect: leak GET /invoices/<int:number> when error at app.py:invoice, native in libhpdf-2.3.0.so, 103000 B/request within 15 %, never when ok
@app.route("/invoices/<int:number>")
def invoice(number):
    pdf = hpdf.HPDF_New(None, None)
    for name in (b"Helvetica", b"Times-Roman"):
        hpdf.HPDF_GetFont(pdf, name, None)
    for _ in range(20):
        hpdf.HPDF_AddPage(pdf)
    answer = "%d\n" % total(number)
    hpdf.HPDF_Free(pdf)
    return answer
