"""The turns that callgrind counts, after as many that warm up: two system calls that nothing else makes mark where they
begin (getsid) and end (getpgid). Printed is how many samples the agent took meanwhile, 0 without an agent."""

import os
import pathlib
import struct

# Where a table's header counts them, see Header in leakline-table's layout.rs.
SAMPLES_TAKEN = 72


def run(work, turns):
    for turn in range(turns):
        work(turn)
    before = samples()
    os.getsid(0)
    for turn in range(turns):
        work(turn)
    os.getpgid(0)
    print(samples() - before)


def samples():
    for table in pathlib.Path(os.environ.get("LEAKLINE_TABLES", "/nowhere")).glob("*"):
        with table.open("rb") as opened:
            return struct.unpack_from("<Q", opened.read(4096), SAMPLES_TAKEN)[0]
    return 0
