"""A bounded cache that is still warming up: it grows with every miss, ever more slowly, to its bound."""
# expect: none
from functools import lru_cache

from flask import Flask

app = Flask(__name__)


@lru_cache(maxsize=1500)
def profile(number):
    return {"id": number, "name": "user %d" % number, "bio": ("%d " % number) * 200}


@app.route("/profile/<int:number>")
def show(number):
    return profile(number)["bio"]
