"""Makes large blocks small by PyMem_Realloc, which the agent did not see before. Each begins a page behind the beginning of a
mapping of its own, before which there is nothing."""
import ctypes

c_library, python = ctypes.CDLL(None), ctypes.pythonapi
c_library.__libc_memalign.restype = python.PyMem_Realloc.restype = ctypes.c_void_p
c_library.__libc_memalign.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
python.PyMem_Realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
python.PyMem_Free.argtypes = [ctypes.c_void_p]

blocks = [c_library.__libc_memalign(4096, (60 + number) * 4096) for number in range(64)]
shrunk = [python.PyMem_Realloc(block, 300) for block in blocks]
assert all(shrunk)
print("shrunk", len(shrunk))
for block in shrunk:
    python.PyMem_Free(block)
