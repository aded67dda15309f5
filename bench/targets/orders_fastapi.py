"""The two routes of `orders.py`, by FastAPI and with coroutines."""

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from orders import rows

app = FastAPI()


@app.get("/health")
async def health():
    return PlainTextResponse("ok\n")


@app.get("/orders/{number}")
async def order(number: int):
    lines = rows(number)
    return {"number": number, "lines": lines, "total": sum(line["total"] for line in lines)}
