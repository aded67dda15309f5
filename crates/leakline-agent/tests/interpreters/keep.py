"""Keeps COUNT objects of each kind, each kind in a function of its own, and says how many bytes they are."""

import sys

COUNT = int(sys.argv[1])
KINDS = []
# Not a constant, which the compiler would multiply.
ONE = (None,)


def kind(function):
    KINDS.append(function)
    return function


class Slotted:
    __slots__ = ("one", "two")


@kind
def small(kept):
    for place in range(COUNT):
        kept[place] = bytes(100)  # small


@kind
def largest_small(kept):
    for place in range(COUNT):
        kept[place] = bytes(512 - 33)  # largest_small


@kind
def smallest_large(kept):
    for place in range(COUNT):
        kept[place] = bytes(513 - 33)  # smallest_large


@kind
def buffers(kept):
    for place in range(COUNT):
        kept[place] = bytearray(3000)  # buffers


@kind
def strings(kept):
    for place in range(COUNT):
        kept[place] = chr(228) * 200  # strings


@kind
def lists(kept):
    for place in range(COUNT):
        kept[place] = [None] * 40  # lists


@kind
def tuples(kept):
    for place in range(COUNT):
        kept[place] = ONE * 25  # tuples


@kind
def dicts(kept):
    for place in range(COUNT):
        kept[place] = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6, "g": 7, "h": 8}  # dicts


@kind
def sets(kept):
    for place in range(COUNT):
        kept[place] = set(range(10))  # sets


@kind
def instances(kept):
    for place in range(COUNT):
        kept[place] = Slotted()  # instances


@kind
def one_in_ten(kept):
    for place in range(10 * COUNT):
        kept[place // 10] = bytes(300)  # one_in_ten


@kind
def dropped(kept):
    for place in range(COUNT):
        kept[0] = bytes(200)  # dropped


everything = []
for function in KINDS:
    kept = [None] * COUNT
    function(kept)
    everything.append(kept)
    print(function.__name__, sum(sys.getsizeof(item) for item in kept if item is not None))
