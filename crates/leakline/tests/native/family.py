"""Calls every function that is named on the command line 64 times with 4096 bytes."""
import ctypes
import sys

functions = [ctypes.CDLL(library)[name] for library, name in (word.split(":") for word in sys.argv[1:])]
for function in functions:
    function.argtypes = [ctypes.c_size_t]
    function.restype = None


def call_all():
    for _ in range(64):
        for function in functions:
            function(4096)


call_all()
