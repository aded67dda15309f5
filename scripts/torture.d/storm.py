"""Does at random, in several threads at once, what is hard on a library inside a process: allocates, forks, execs, starts
threads, loads and unloads libraries, and is interrupted by signals all the while. Checks what it holds, and its children.

    storm.py SECONDS SEED
"""

import _ctypes
import ctypes
import ctypes.util
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time

END = time.monotonic() + float(sys.argv[1])
SEED = int(sys.argv[2])
LIBRARIES = [name for name in map(ctypes.util.find_library, ["z", "bz2", "lzma", "expat", "m", "uuid", "ffi"]) if name]
done = {}
wrong = []


def count(what):
    done[what] = done.get(what, 0) + 1


class Thread(threading.Thread):
    def __init__(self, number, children=True):
        super().__init__()
        self.chance = random.Random(SEED * 1000 + number)
        self.children = children
        self.held = []

    def run(self):
        acts = [self.hold] * 30 + [self.grow] * 10 + [self.drop] * 10 + [self.collect, self.thread, self.library]
        if self.children:
            acts += [self.fork, self.run_program]
        while time.monotonic() < END:
            act = self.chance.choice(acts)
            try:
                act()
                count(act.__name__)
            except Interrupted:
                count("interrupted")
            except Exception as error:
                wrong.append(f"{act.__name__}: {error!r}")
                return
        for body, mark in self.held:
            check(body, mark)

    def hold(self):
        size, mark = int(self.chance.paretovariate(0.7) * 16) % 300_000, self.chance.randrange(256)
        self.held.append((bytearray([mark]) * size, mark))
        if len(self.held) > 500:
            self.drop()

    def grow(self):
        if self.held:
            body, mark = self.chance.choice(self.held)
            body.extend(bytes([mark]) * self.chance.randrange(5000))

    def drop(self):
        for _ in range(min(len(self.held), self.chance.randrange(1, 100))):
            check(*self.held.pop(self.chance.randrange(len(self.held))))

    def collect(self):
        cycle = []
        cycle.append(cycle)
        del cycle
        gc.collect(self.chance.randrange(3))

    def thread(self):
        inner = threading.Thread(target=lambda: [bytes(1000 + i) for i in range(200)])
        inner.start()
        inner.join()

    def library(self):
        # Not of CPython's own cache of libraries: the handle is ours to close.
        handle = _ctypes.dlopen(self.chance.choice(LIBRARIES), self.chance.choice([1, 2]))
        _ctypes.dlclose(handle)

    def fork(self):
        pid = os.fork()
        if pid == 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
            # Whatever happens in here must not go on as the parent.
            try:
                kept = [bytes(size) for size in range(0, 4000, 7)]
                inner = threading.Thread(target=lambda: kept.extend(bytes(100) for _ in range(1000)))
                inner.start()
                inner.join()
                os._exit(0 if len(kept) == 1572 else 7)
            finally:
                os._exit(9)
        ended(os.waitpid(pid, 0)[1], "a forked child")

    def run_program(self):
        words = self.chance.choice([["true"], [sys.executable, "-c", "print(len(bytes(10**6)))"], ["sh", "-c", "exit 0"]])
        ended(subprocess.run(words, stdout=subprocess.DEVNULL).returncode, words[0])


class Interrupted(Exception):
    """What a handler of signals raises in the midst of anything, now and then."""


def check(body, mark):
    if body and (body[0] != mark or body[-1] != mark or body.count(mark) != len(body)):
        wrong.append("a block has other bytes than were put into it")


def ended(status, who):
    if status != 0:
        wrong.append(f"{who} ended with {status}")


def on_signal(number, frame):
    [bytes(n) for n in range(0, 2000, 100)]
    count("signal")


def main():
    signal.signal(signal.SIGALRM, on_signal)
    signal.signal(signal.SIGPROF, on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    signal.setitimer(signal.ITIMER_PROF, 0.007, 0.007)
    # Older Pythons may deadlock when a thread forks while another one starts, by themselves: there one thread forks.
    threads = [Thread(number, children=number == 0) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(", ".join(f"{times} x {what}" for what, times in sorted(done.items())))
    for what in wrong:
        print(what, file=sys.stderr)
    sys.exit(bool(wrong))


main()
