"""A large file, sent as it should be: a piece at a time, and closed when the response is, whether it was read to the end or
not."""
import tempfile

from flask import Flask, Response

# expect: none
app = Flask(__name__)
PIECE = 64 * 1024
file = tempfile.NamedTemporaryFile()
file.write(b"x" * (8 * 1024 * 1024))
file.flush()


@app.get("/video")
def video():
    def pieces():
        with open(file.name, "rb") as video:
            while piece := video.read(PIECE):
                yield piece

    return Response(pieces(), mimetype="video/mp4")


@app.get("/poster")
def poster():
    return b"x" * 50_000
