"""Forks, from the main thread and while threads allocate, and says what each process is and keeps."""

import os
import threading
import warnings

# From 3.12 on Python warns of what is done here.
warnings.simplefilter("ignore", DeprecationWarning)


def parent_keeps():
    kept = [None] * 8000
    for place in range(len(kept)):
        kept[place] = bytes(1000)
    return kept


def child_keeps():
    kept = [None] * 4000
    for place in range(len(kept)):
        kept[place] = bytes(1000)
    return kept


def forked(run):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            # Not through the interpreter's end, as forked servers that are killed.
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the child ended with %d" % status
    return child


kept = parent_keeps()
# What a child keeps has to live until it exits.
keeping = []
print("parent", os.getpid())
print("child", forked(lambda: keeping.append(child_keeps())))

from_a_thread = threading.Thread(target=lambda: print("child", forked(lambda: keeping.append(child_keeps()))))
from_a_thread.start()
from_a_thread.join()

stop = threading.Event()


def churn():
    while not stop.is_set():
        for _ in range(100):
            bytes(300), bytearray(3000)


threads = [threading.Thread(target=churn) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(10):
    print("child", forked(lambda: keeping.append(child_keeps())))
stop.set()
for thread in threads:
    thread.join()
