"""A FastAPI shop with a Flask shop below it: a request of the latter passes through two frameworks and counts once."""

from a2wsgi import WSGIMiddleware
from fastapi import FastAPI

import flask_shop

app = FastAPI()
kept = []


@app.get("/lend/{number}")
async def lend(number: int):
    kept.append(b"x" * 240_000)
    return number


app.mount("/", WSGIMiddleware(flask_shop.app))
