"""A large cache that is far from full: until then it grows with every request like a leak, and only its bound, which a
heap snapshot knows, tells that it is none."""
import functools

from flask import Flask

app = Flask(__name__)


# expect: none
@functools.lru_cache(maxsize=100000)
def price(number):
    prices = []
    for amount in range(300):
        prices.append("%d for %d" % (number * amount, amount))
    return prices


@app.route("/price/<int:number>")
def show(number):
    return price(number)[-1] + "\n"
