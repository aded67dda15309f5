"""A reference that an extension module takes and never gives back. Here ctypes stands for it."""
import ctypes

from rows import Rows


# expect: leak GET / at rows.py:lines_of, held by unknown holder outside of all objects (a frame that runs or a C extension): Rows
def keep(number):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(Rows(number)))
