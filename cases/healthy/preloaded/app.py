"""An application that gunicorn loads before it forks: workers copy the pages that they touch, and so their resident
sets grow for a while though they allocate nothing that stays."""
# expect: none
import gc

from flask import Flask

app = Flask(__name__)
CATALOGUE = [{"id": number, "title": "item %d" % number, "price": number * 1.5} for number in range(100000)]
gc.freeze()


@app.route("/item/<int:number>")
def item(number):
    return dict(CATALOGUE[number % len(CATALOGUE)])
