"""Starts other programs in every way there is."""

import os
import subprocess
import sys

COMMAND = ["/bin/sh", "-c", "exit 0"]


def in_child():
    return [bytes(1000) for _ in range(100)]


subprocess.run(COMMAND, check=True)
subprocess.run(COMMAND, check=True, close_fds=False)
subprocess.run(COMMAND, check=True, preexec_fn=in_child)
assert os.system("exit 0") == 0
if hasattr(os, "posix_spawn"):
    assert os.waitpid(os.posix_spawn(COMMAND[0], COMMAND, os.environ), 0)[1] == 0
child = os.fork()
if child == 0:
    kept = in_child()
    os.execv(COMMAND[0], COMMAND)
assert os.waitpid(child, 0)[1] == 0
subprocess.run([sys.executable, "-c", "raise SystemExit(0)"], check=True, env={})
print("pid", os.getpid())
