"""Copies itself by the system call alone, of which nobody is told; the copy keeps something, and forks."""

import ctypes
import os
import signal

CLONE = 56


def keeps():
    kept = [None] * 4000
    for place in range(len(kept)):
        kept[place] = bytes(1000)
    return kept


def child(copy, run):
    pid = copy()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0, "the child ended with %d" % status


keeping = [keeps()]
child(
    lambda: ctypes.PyDLL(None).syscall(CLONE, int(signal.SIGCHLD), None, None, None, None),
    lambda: keeping.append(keeps()) or child(os.fork, lambda: keeping.append(keeps())),
)
print("process", os.getpid())
