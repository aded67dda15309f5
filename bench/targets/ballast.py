"""Keeps some blocks of every size that pymalloc serves, a different number of them for each PYTHONHASHSEED. In each process
other pools are full then: a size whose last pool comes and goes with every turn costs several percent, and whether there
is one is chance."""

import os
import random

chance = random.Random(os.environ.get("PYTHONHASHSEED"))
kept = [bytes(size) for size in range(0, 480, 16) for _ in range(chance.randrange(256))]
