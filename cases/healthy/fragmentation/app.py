"""Fragmentation: a ring of blocks of mixed sizes is replaced at random. Little is live, and yet the resident set grows
for a while, because the allocator cannot give back pages that a few survivors pin."""
# expect: none
import random

from flask import Flask

app = Flask(__name__)
ring = [b""] * 400


@app.route("/shuffle")
def shuffle():
    # A burst of blocks of many sizes, of which a few take the places of older ones.
    burst = [bytes(random.randrange(1000, 60000)) for _ in range(40)]
    for block in burst[::10]:
        ring[random.randrange(len(ring))] = block
    return "%d bytes\n" % sum(map(len, burst))
