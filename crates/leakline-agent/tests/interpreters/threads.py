"""Allocates in four threads at the same time, and if asked to also in other interpreters. In each thread's traceback are
only frames that would be there without the agent."""

import sys
import threading

try:
    import _interpreters as interpreters
except ImportError:
    try:
        import _xxsubinterpreters as interpreters
    except ImportError:
        interpreters = None

COUNT = 2000
IN_ANOTHER = """
kept = [bytes(300) for _ in range(1000)]
for _ in range(300):
    [bytearray(2000) for _ in range(10)]
"""


def keeps(kept):
    frame = sys._getframe()
    while frame is not None:
        files.add(frame.f_code.co_filename)
        frame = frame.f_back
    for _ in range(30):
        for place in range(COUNT):
            kept[place] = bytes(200)


def another():
    interpreter = interpreters.create()
    interpreters.run_string(interpreter, IN_ANOTHER)
    interpreters.destroy(interpreter)


files = set()
kept = [[None] * COUNT for _ in range(4)]
threads = [threading.Thread(target=keeps, args=(one,)) for one in kept]
if sys.argv[1] == "interpreters" and interpreters:
    threads += [threading.Thread(target=another) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert files == {__file__, threading.__file__}, files
print("keeps", sum(sys.getsizeof(item) for one in kept for item in one))
