"""Fills memory with holes, says what its allocators know about that, and gives back what can be given back when it is
told to. What it says comes from the allocators themselves: pymalloc's statistics and malloc's."""
import ctypes
import os
import random
import re
import sys
import threading

libc = ctypes.CDLL(None)


class Info(ctypes.Structure):
    """`struct mallinfo2` (glibc 2.33 and later)."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


def mallinfo():
    libc.mallinfo2.restype = Info
    return libc.mallinfo2()


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def pymalloc():
    """The bytes of blocks in use, as CPython prints them."""
    read, write = os.pipe()
    own = os.dup(2)
    os.dup2(write, 2)
    # The statistics fit into a pipe's 64 KiB.
    sys._debugmallocstats()
    os.dup2(own, 2)
    os.close(write)
    with os.fdopen(read) as text:
        return int(re.search(r"# bytes in allocated blocks\s*=\s*([\d,]+)", text.read()).group(1).replace(",", ""))


def holes(count, most, seed):
    """Blocks of many sizes, of which two of three are dropped again."""
    chance = random.Random(seed)
    # Written to, so that all of their pages are resident.
    blocks = [b"x" * chance.randrange(600, most) for _ in range(count)]
    return [block for block in blocks if chance.randrange(3) == 0]


def work(number):
    kept.append(holes(300, 60000, number))
    done.set()
    end.wait()


kept = [holes(3000, 20000, 1), b"x" * (5 << 20)]
# Objects, most of which go, from arenas all over the place.
objects = [(str(number), [number]) for number in range(200000)]
kept.append(random.Random(2).sample(objects, 20000))
del objects
end = threading.Event()
threads = []
for number in range(int(sys.argv[1])):
    done = threading.Event()
    threads.append(threading.Thread(target=work, args=(number,)))
    threads[-1].start()
    done.wait()
info = mallinfo()
print(sys.version_info[1], pymalloc(), info.uordblks + info.hblkhd, info.fordblks, flush=True)
sys.stdin.readline()
before = resident()
libc.malloc_trim(0)
print(before - resident(), flush=True)
sys.stdin.readline()
end.set()
