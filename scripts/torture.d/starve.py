"""Runs out of address space again and again, in Python's allocators and in malloc, and goes on.

    starve.py TIMES
"""

import ctypes
import resource
import sys

with open("/proc/self/statm") as statm:
    mapped = int(statm.read().split()[0]) * 4096
_, most = resource.getrlimit(resource.RLIMIT_AS)
wanted = mapped + (48 << 20)
resource.setrlimit(resource.RLIMIT_AS, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

refused = 0
for turn in range(int(sys.argv[1])):
    held = []
    try:
        size = [100, 500, 3000, 70_000, 5_000_000][turn % 5]
        while True:
            held.append(bytearray(size))
    except MemoryError:
        refused += 1
    del held
    blocks = []
    while True:
        block = malloc(1 << 20)
        if not block:
            break
        blocks.append(block)
    for block in blocks:
        free(block)
assert refused == int(sys.argv[1])
print("refused", refused, "times")
