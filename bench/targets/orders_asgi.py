"""The two routes of `orders.py`, for servers that speak ASGI."""

from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from orders import rows


async def health(request):
    return PlainTextResponse("ok\n")


async def order(request):
    number = request.path_params["number"]
    lines = rows(number)
    return JSONResponse({"number": number, "lines": lines, "total": sum(line["total"] for line in lines)})


app = Starlette(routes=[Route("/health", health), Route("/orders/{number:int}", order)])
