"""Text that the C library keeps in the process's environment: nothing of Python's holds it, and it is not lost."""
import os


# expect: leak GET / at environment.py:keep, held
def keep(number):
    os.putenv("REQUEST_%d" % number, "row of a request; " * 1700)
