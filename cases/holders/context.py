"""A context that outlives the request, and a list in one of its variables."""
import contextvars

from rows import Rows

request = contextvars.ContextVar("request")
background = contextvars.copy_context()
background.run(request.set, [])


# expect: leak GET / at rows.py:lines_of, held by module context → background → contextvars.Context → request: list[200]
def keep(number):
    background[request].append(Rows(number))
