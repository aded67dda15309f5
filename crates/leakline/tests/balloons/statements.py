"""A route whose failures take 64 MB at once, beside one that always takes 24 MB: the first is a balloon, the second is not.
A third one takes 64 MB and does not end; a fourth one fails and leaves 64 MB in a cycle."""
import gc
import os
import time

from flask import Flask

app = Flask(__name__)
# As servers do that want to be interrupted by collections seldom.
gc.set_threshold(1_000_000)


def pages(megabytes):
    # Pieces so large that hardly any escapes the sampler, and not of zeros, so that they become resident.
    return [b"page" * 0x200000 for _ in range(megabytes // 8)]


@app.get("/statement/<int:number>")
def statement(number):
    if number == 0:
        found = pages(64)  # the balloon
        return f"none of {len(found)} pages is about it", 500
    return f"statement {number}"


@app.get("/export")
def export():
    return f"{len(pages(24))} pages"


@app.get("/endless/<int:number>")
def endless(number):
    found = []
    if number == 0:
        found = pages(64)  # never given back
        print("process %d holds its pages" % os.getpid(), flush=True)
        time.sleep(600)
    return f"{len(found)} pages"


@app.get("/invoice/<int:number>")
def invoice(number):
    if number == 0:
        lines = pages(64)  # held by the exception's traceback
        try:
            raise KeyError("whose invoice is it?")
        except KeyError as error:
            # The frame holds the exception, which holds the frame.
            failure = error
        return f"{len(lines)} pages, and {failure}", 500
    return f"invoice {number}"


@app.get("/collect")
def collect():
    return f"{gc.collect()} objects"
