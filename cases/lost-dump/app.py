"""A leak in an extension module that only failures have: ujson 5.12.0 forgets the text that a writer did not take."""
import ujson
from flask import Flask

app = Flask(__name__)
ROWS = [{"id": number, "name": "customer %d" % number} for number in range(2000)]


class Upload:
    """Takes what is written, up to a quota."""

    def __init__(self, quota):
        self.quota = quota

    def write(self, text):
        if len(text) > self.quota:
            raise OSError("the quota is exceeded")


# expect: leak GET /export/<int:number> when error at app.py:export, mixed in ujson, 67822 B/request within 15 %, lost 60 %, never when ok
@app.route("/export/<int:number>")
def export(number):
    ujson.dump(ROWS, Upload(quota=50_000 if number % 2 else 100_000))
    return "exported\n"
