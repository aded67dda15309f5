"""Says on which line of a script an instruction lies. Arguments: the script, then FUNCTION:OFFSET as often as wanted."""

import dis
import sys


def codes(code):
    yield code
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):
            for inner in codes(constant):
                yield inner


path = sys.argv[1]
with open(path) as script:
    named = {code.co_name: code for code in codes(compile(script.read(), path, "exec"))}
for word in sys.argv[2:]:
    name, offset = word.split(":")
    lines = [line for start, line in dis.findlinestarts(named[name]) if start <= int(offset)]
    print(lines[-1])
