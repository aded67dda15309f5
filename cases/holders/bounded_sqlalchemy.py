"""SQLAlchemy's cache of compiled statements, which is far from full."""
from sqlalchemy import create_engine, literal, select

engine = create_engine("sqlite://", query_cache_size=5000)


# expect: cache GET / at bounded_sqlalchemy.py:keep, held by _data: dict[200 of at most 5,000], bound 135000000 bytes within 30 %
def keep(number):
    with engine.connect() as connection:
        connection.execute(select(*[literal(1).label("price_%d_%d" % (number, index)) for index in range(8)]))
