"""Jinja's cache of compiled templates, which is far from full."""
from jinja2 import Environment, FunctionLoader


def source(name):
    return "".join("{{ price_%d }} of %s\n" % (index, name) for index in range(80))


environment = Environment(loader=FunctionLoader(source), cache_size=5000)


# expect: cache GET / at bounded_jinja.py:keep, held by _mapping: dict[200 of at most 5,000], bound 63000000 bytes within 30 %
def keep(number):
    environment.get_template("page_%d" % number)
