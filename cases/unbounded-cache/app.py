"""A cache without a bound: each request asks for the price of an article that nobody has asked for before."""
import functools

from flask import Flask

app = Flask(__name__)


# expect: leak GET /price/<int:number> at app.py:price, held by functools.lru_cache(maxsize=None) on app.price (
@functools.lru_cache(maxsize=None)
def price(number):
    prices = []
    for amount in range(300):
        prices.append("%d for %d" % (number * amount, amount))
    return prices


@app.route("/price/<int:number>")
def show(number):
    return price(number)[-1] + "\n"
