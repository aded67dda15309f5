"""Grows blocks by realloc, in place, by moving and by mremap, and says how many bytes they have in the end."""

import sys
from itertools import repeat

CHUNK = (None,) * 5000
BLOCK = bytes(5000)
TEXT = "x" * 40000
ROUNDS = int(sys.argv[1])


def appended():
    grown = []
    for _ in repeat(None, ROUNDS * 2000):
        grown.append(None)
    return [grown]


def extended():
    grown = []
    for _ in repeat(None, ROUNDS):
        grown.extend(CHUNK)
    return [grown]


def lengthened(bystanders):
    """A string that nobody else holds grows in its place, by realloc each time."""
    grown = ""
    for place in range(ROUNDS):
        grown += TEXT
        bystander(bystanders, place)
    return [grown]


def bystander(bystanders, place):
    bystanders[place] = bytes(600)


def stretched():
    grown = bytearray()
    for _ in repeat(None, ROUNDS):
        grown += BLOCK
    return [grown]


def crossing():
    """From a few bytes over the border of 512 to more."""
    many = [None] * ROUNDS
    for place in range(ROUNDS):
        many[place] = grown = []
        for _ in repeat(None, 150):
            grown.append(None)
    return many


def shrunk():
    many = [None] * ROUNDS
    for place in range(ROUNDS):
        many[place] = bytearray(9000)
        del many[place][1000:]
    return many


everything = [None] * ROUNDS
kept = {"appended": appended(), "extended": extended(), "lengthened": lengthened(everything), "bystander": everything}
kept.update({"stretched": stretched(), "crossing": crossing(), "shrunk": shrunk()})
for name, objects in kept.items():
    print(name, sum(map(sys.getsizeof, objects)))
