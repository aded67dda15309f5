"""Three ways to keep memory: a list of Python's, threads of a C library, and what that library maps for itself."""
import ctypes
import os

library = ctypes.CDLL(os.environ["POOL"])
for function in (library.submit, library.map_pages):
    function.argtypes, function.restype = [ctypes.c_size_t], None
assert library.start(3) == 0
ROW = ("row",)
kept = []


def remember():
    kept.extend([ROW] * 5000)


def submit():
    library.submit(30000)


def open_pages():
    library.map_pages(65536)


PAGES = {"/list": remember, "/pool": submit, "/pages": open_pages}


def app(environ, start_response):
    PAGES.get(environ["PATH_INFO"], str)()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done\n"]
