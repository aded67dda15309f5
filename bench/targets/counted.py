"""Does a script's turns as the bench wants them: `run(work, words)`, where the words are

    COUNT         for callgrind: as many turns that are counted, after five times as many that are not. Callgrind is told where
                  the counted ones begin and end, and counts nothing else. Prints how many samples the agent took meanwhile.
    live:RATE     for the clock: RATE turns a second, until the agent has found its interval and has kept it for a while.
                  Prints the interval, and the samples of a turn.
"""

import ctypes
import gc
import mmap
import os
import pathlib
import statistics
import struct
import time

# Where a table's header has the interval in force, and how many samples were taken, see Header in leakline-table's
# layout.rs.
INTERVAL_BYTES = (64, "<d")
SAMPLES_TAKEN = (72, "<Q")

# Seconds that the agent gets to find its interval, of which it looks for a new one twice a second at most, and those that
# are measured.
SETTLING, MEASURED = 10, 20


def run(work, words):
    kind, _, rate = words.partition(":")
    print(live(work, float(rate)) if kind == "live" else count(work, int(words)))


def count(work, turns):
    for turn in range(5 * turns):
        work(turn)
    tell = valgrind()
    before = header(*SAMPLES_TAKEN)
    # So that the collector goes as often over as much in each process: one run more or less is worth half a percent.
    gc.collect()
    tell(START_INSTRUMENTATION)
    for turn in range(turns):
        work(turn)
    tell(STOP_INSTRUMENTATION)
    return header(*SAMPLES_TAKEN) - before


def live(work, rate):
    began = next_turn = time.monotonic()
    intervals, before = [], 0
    while next_turn < began + SETTLING + MEASURED:
        time.sleep(max(0, next_turn - time.monotonic()))
        work(0)
        # Who is late does not hurry afterwards.
        next_turn = max(next_turn + 1 / rate, time.monotonic())
        if next_turn < began + SETTLING:
            before = header(*SAMPLES_TAKEN)
        else:
            intervals.append(header(*INTERVAL_BYTES))
    return f"{statistics.median(intervals):.0f} {(header(*SAMPLES_TAKEN) - before) / len(intervals):.2f}"


def header(offset, form):
    """A number of the table's header, 0 without an agent."""
    for table in pathlib.Path(os.environ.get("LEAKLINE_TABLES", "/nowhere")).glob("*"):
        with table.open("rb") as opened:
            return struct.unpack_from(form, opened.read(offset + 8), offset)[0]
    return 0


# Callgrind's requests (callgrind.h).
START_INSTRUMENTATION = 0x43540004
STOP_INSTRUMENTATION = 0x43540005
# What valgrind takes for a request and a processor for nothing (valgrind.h): four rotations that add up to none, and an
# exchange of a register with itself. The request's words are at `rax`.
REQUEST = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")


def valgrind():
    """The function that makes a request of valgrind."""
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(REQUEST)
    words = (ctypes.c_ulong * 6)()
    request = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))

    def tell(number):
        words[0] = number
        return request(ctypes.addressof(words))

    # The function lives in the memory.
    tell.memory = memory
    return tell
