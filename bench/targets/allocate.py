"""Does hardly anything but allocate and free, in the ways Python programs do: `allocate.py TURNS` (see counted.py), or a turn
for each byte that comes on standard input, each answered by one."""

import os
import select
import sys

import ballast
import counted


class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y


def work(turn):
    points = [Point(number, float(number)) for number in range(100)]
    rows = [{"name": "row %d" % number, "at": (number, turn)} for number in range(100)]
    text = ",".join([row["name"] for row in rows])
    words = text.split(",")
    by_name = {word: point for word, point in zip(words, points)}
    growing = []
    for number in range(300):
        growing.append(number * 1000 + turn)
    blocks = [bytes(1 << size) for size in range(6, 16)]
    return len(by_name) + len(growing) + len(blocks)


if len(sys.argv) > 1:
    counted.run(work, sys.argv[1])
else:
    # In poll whoever attaches may come in, and in read not.
    while select.select([0], [], []) and os.read(0, 1):
        work(7)
        os.write(1, b".")
