"""Turns a Python and a folder into the tools that are compared: how each is told to watch a program, and what it leaves."""

import dataclasses
import os
import pathlib
import subprocess

# ddtrace's memory profiler alone, and its profiles as files: there is no agent of theirs to send them to.
DDTRACE = {
    "DD_PROFILING_ENABLED": "true",
    "DD_PROFILING_MEMORY_ENABLED": "true",
    "DD_PROFILING_STACK_ENABLED": "false",
    "DD_PROFILING_LOCK_ENABLED": "false",
    "DD_TRACE_ENABLED": "false",
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
}


@dataclasses.dataclass
class Tool:
    name: str
    # What stands before a script or `-m module`.
    command: list
    surroundings: dict
    # What is run once the program answers, with its process.
    comes_later: list
    # What it writes goes there.
    folder: pathlib.Path
    # The distribution that it needs.
    needs: str = ""

    def come(self, process):
        if self.comes_later:
            words = [*self.comes_later, str(process)]
            surroundings = {**os.environ, **self.surroundings}
            subprocess.run(
                words, check=True, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60
            )

    def written_bytes(self):
        """Room on the disk that its files take by now."""
        return sum(file.stat().st_blocks * 512 for file in self.folder.rglob("*") if file.is_file())


def tools(python, leakline, agent, folder):
    """All of them, the bare Python first. `folder` gets one for each."""
    made = []

    def tool(name, command, surroundings=None, comes_later=(), needs=""):
        place = pathlib.Path(folder, str(len(made)))
        place.mkdir(mode=0o700)
        put = lambda word: str(word).replace("FOLDER", str(place))
        surroundings = {key: put(value) for key, value in (surroundings or {}).items()}
        made.append(Tool(name, [*map(put, command)], surroundings, [*map(put, comes_later)], place, needs))

    ours = [leakline, "--dir", "FOLDER"]
    with_agent = {"LEAKLINE_AGENT": agent}
    memray = [python, "-m", "memray", "run", "--quiet", "--follow-fork", "--output", "FOLDER/memray"]
    tool("nothing", [python])
    tool("leakline run", [*ours, "run", "--", python], with_agent)
    tool("leakline attach", [python], with_agent, comes_later=[*ours, "attach"])
    tool("leakline run --no-native", [*ours, "run", "--no-native", "--", python], with_agent)
    tool("leakline run --exact", [*ours, "run", "--exact", "--", python], with_agent)
    tool("tracemalloc, 1 frame", [python], {"PYTHONTRACEMALLOC": "1"})
    tool("tracemalloc, 25 frames", [python], {"PYTHONTRACEMALLOC": "25"})
    tool("memray", memray, needs="memray")
    tool("memray --native", [*memray, "--native"], needs="memray")
    tool("memray --trace-python-allocators", [*memray, "--trace-python-allocators"], needs="memray")
    ddtrace = [python, "-m", "ddtrace.commands.ddtrace_run", python]
    tool("ddtrace's memory profiler", ddtrace, {**DDTRACE, "DD_PROFILING_OUTPUT_PPROF": "FOLDER/pprof"}, needs="ddtrace")
    tool("scalene --memory", [python, "-m", "scalene", "run", "--memory", "-o", "FOLDER/scalene.json"], needs="scalene")
    return made
