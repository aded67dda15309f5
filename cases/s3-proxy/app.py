"""A proxy in front of S3, after a story of 2015: boto's Key, used as the response's body, reads the rest of the object
into memory when it is closed, and it is closed when a client hangs up."""
import os

from boto.s3.connection import OrdinaryCallingFormat, S3Connection
from flask import Flask, Response, request

app = Flask(__name__)
s3 = S3Connection(
    "key", "secret", is_secure=False, host="127.0.0.1", port=int(os.environ["S3_PORT"]),
    calling_format=OrdinaryCallingFormat(),
)


# expect: balloon GET /data/<id> when aborted, in boto, while closing, 262144000 bytes within 20 %, never when ok, 200000000 bytes read from the service for nobody
@app.route("/data/<id>")
def data(id):
    key = s3.get_bucket("data", validate=False).get_key(id)
    wanted = request.headers.get("Range")
    if wanted is None:
        return Response(key, 200, headers={"Content-Length": str(key.size), "Accept-Ranges": "bytes"})
    first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
    key.open_read(headers={"Range": wanted})
    headers = {"Content-Length": str(last + 1 - first), "Content-Range": "bytes %d-%d/%d" % (first, last, key.size)}
    return Response(key, 206, headers=headers)
