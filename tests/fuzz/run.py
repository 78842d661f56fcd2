"""Coverage-guided fuzzing of everything that parses what strangers write: `make fuzz`.

    python tests/fuzz/run.py                       every target for 30 seconds each
    python tests/fuzz/run.py --seconds 600 soup_json tensor_file

Prints how many inputs each target ran and how much of the code they reached. An input that breaks a target is
kept in build/fuzz/, named in the output, and makes the exit status 1; run it again with --input FILE TARGET.
Inputs that reached new code are kept there, too, and the next run starts from them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from targets import TARGETS

KEPT = Path(__file__).resolve().parents[2] / "build" / "fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (all)")
    parser.add_argument("--seconds", type=int, default=30, help="for each target (30)")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run this input alone")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"unknown targets {sorted(unknown)}; there are {', '.join(TARGETS)}")
    if arguments.input:
        for name in arguments.targets or TARGETS:
            TARGETS[name][0](arguments.input.read_bytes())
        return 0
    print(f"{'target':<16}{'executions':>12}{'a second':>10}{'branches':>10}  result")
    return int(sum(_report(name, arguments.seconds) for name in arguments.targets or TARGETS) > 0)


def _report(name: str, seconds: int) -> bool:
    """Fuzz one target in a process of its own, print its line and return whether it broke."""
    corpus = KEPT / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name][1]):
        (corpus / f"seed-{number}").write_bytes(seed)
    command = [
        sys.executable,
        str(Path(__file__).with_name("one.py")),
        name,
        f"-max_total_time={seconds}",
        "-print_final_stats=1",
    ]
    options = ["-max_len=4096", "-rss_limit_mb=4096", "-timeout=20", f"-artifact_prefix={KEPT}/{name}-", str(corpus)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, errors="replace", check=False)
    executed = _last(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    speed = _last(r"stat::average_exec_per_sec:\s*(\d+)", done.stderr)
    branches = _last(r"\bcov: (\d+)", done.stderr)
    kept = re.findall(r"Test unit written to (\S+)", done.stderr)
    result = "nothing found" if not done.returncode else f"broke: {kept[-1] if kept else f'status {done.returncode}'}"
    print(f"{name:<16}{executed:>12}{speed:>10}{branches:>10}  {result}", flush=True)
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr)
    return bool(done.returncode)


def _last(pattern: str, text: str) -> str:
    return (re.findall(pattern, text) or ["?"])[-1]


if __name__ == "__main__":
    sys.exit(main())
