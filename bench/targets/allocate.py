"""Does hardly anything but allocate and free, in the ways Python programs do: `allocate.py TURNS`. As many turns warm up,
and two system calls that nothing else makes mark for callgrind where the measured ones begin and end."""

import os
import sys

import ballast


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


turns = int(sys.argv[1])
for turn in range(turns):
    work(turn)
os.getsid(0)
for turn in range(turns):
    work(turn)
os.getpgid(0)
