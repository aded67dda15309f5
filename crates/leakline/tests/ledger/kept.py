"""Leaves free memory behind, in one of three ways, and says how much is resident then."""
import random
import sys
import threading

kept = []
chance = random.Random(1)


def in_threads():
    """Eight threads that do the same, one after the other: each has an arena of its own."""
    stay = threading.Event()

    def work(done):
        rows = []
        for number in range(20000):
            rows.append(b"x" * (700 + number * 37 % 1500))
            if number % 200 == 199:
                kept.append(bytes(2000))
        rows.clear()
        done.set()
        stay.wait()

    for _ in range(8):
        done = threading.Event()
        threading.Thread(target=work, args=(done,), daemon=True).start()
        done.wait()


def in_holes():
    """Between blocks that live on there is never room for a page."""
    rows = []
    for _ in range(60000):
        rows.append(b"x" * chance.randrange(700, 2500))
        kept.append(bytes(520))


def in_objects():
    """Of two hundred small objects one lives on."""
    rows = [(number,) for number in range(1500000)]
    kept.extend(rows[::200])


{"threads": in_threads, "holes": in_holes, "objects": in_objects}[sys.argv[1]]()
with open("/proc/self/statm") as statm:
    print(int(statm.read().split()[1]) * 4096, flush=True)
sys.stdin.readline()
