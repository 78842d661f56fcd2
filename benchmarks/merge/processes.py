"""Running commands one at a time, on memory that has been touched, and reading what they took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
_LAUNCH = """
import json, os, subprocess, sys, time
begin = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - begin
with open(sys.argv[1], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss], file)
"""
"""Starts a command from a small process: the peak that the system reports for a child begins at its parent's size."""

_TOUCH = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]))
while memory.tell() < len(memory):
    memory.write(bytes(2**20))
"""


@dataclass(frozen=True)
class Taken:
    """What a command took.

    Attributes:
        seconds: from its start to its end.
        peak_mib: its largest resident set.
        inside: seconds of the work alone, without starting Python and importing, if it says so.
    """

    seconds: float
    peak_mib: float
    inside: float | None = None


def run(command: Sequence[str | Path], log: Path) -> Taken:
    """Run a command to its end; its output goes to `log`.

    Raises:
        SystemExit: if it fails.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    result = log.with_suffix(".json")
    with log.open("wb") as output:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, result, *command]
        subprocess.run(list(map(str, launcher)), stdout=output, stderr=output, env=environment, check=True)
    code, seconds, peak = json.loads(result.read_text(encoding="utf-8"))
    if code:
        raise SystemExit(f"{' '.join(map(str, command))} failed; see {log}")
    return Taken(seconds, peak / (2**20 if sys.platform == "darwin" else 2**10), _inside(log))


def together(runs: Sequence[Taken]) -> Taken:
    """Return what several commands took one after the other."""
    return Taken(sum(taken.seconds for taken in runs), max(taken.peak_mib for taken in runs))


def touch() -> None:
    """Use and give back 7/10 of the memory that is free.

    On a virtual machine the host provides memory when it is first used, and takes it away again after
    a while. Whoever comes first would pay for that.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    subprocess.run([sys.executable, "-I", "-S", "-c", _TOUCH, str((free * 7 // 10 // 2**20 + 1) * 2**20)], check=True)


def read_through(folder: Path) -> None:
    """Read every file of a folder, so that all who read it next find it in the page cache."""
    buffer = bytearray(2**24)
    for file in folder.rglob("*.safetensors"):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def _inside(log: Path) -> float | None:
    """Return the seconds that `inside.py` printed as its last line, if that is what was run."""
    last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    try:
        return float(json.loads(last)["seconds"])
    except (ValueError, KeyError, TypeError):
        return None
