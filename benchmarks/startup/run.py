"""Times the start of an interpreter with and without the start-up file that this package installs. See README.md."""

from __future__ import annotations

import argparse
import compileall
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from statistics import median, quantiles

PLUGIN = Path(__file__).resolve().parents[2] / "mergekit_plugin"
PACKAGE = "mergekit_bonesoup"
START_UP = f"zz_{PACKAGE}"
SWITCH = "MERGEKIT_BONESOUP_AUTOLOAD"
LIMIT_MS = 3.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400, help="starts of each kind (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=20, help="rounds before the first that counts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the order within each round (%(default)s)")
    return parser.parse_args()


def environment(folder: Path, *, start_up: bool) -> str:
    """Make a bare environment that holds the package, byte-compiled, and return its interpreter."""
    venv.create(folder, symlinks=os.name != "nt")
    (site,) = folder.glob("lib/python*/site-packages")
    shutil.copytree(PLUGIN / PACKAGE, site / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    if start_up:
        for suffix in (".pth", ".start"):
            shutil.copy(PLUGIN / f"{START_UP}{suffix}", site)
    compileall.compile_dir(site, quiet=1)
    return str(folder / "bin" / "python")


def start(python: str, variables: dict[str, str]) -> float:
    """Start an interpreter that does nothing, and return the milliseconds until it has ended."""
    begin = time.perf_counter()
    subprocess.run([python, "-c", "pass"], env=variables, check=True)
    return 1000.0 * (time.perf_counter() - begin)


def measure(kinds: dict[str, tuple[str, dict[str, str]]], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Start every kind once per round, in random order."""
    shuffle = random.Random(arguments.seed).shuffle
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(arguments.warm_up + arguments.rounds):
        order = list(kinds)
        shuffle(order)
        for kind in order:
            elapsed = start(*kinds[kind])
            if number >= arguments.warm_up:
                times[kind].append(elapsed)
    return times


def modules(python: str, variables: dict[str, str]) -> set[str]:
    code = "import sys; print(*sys.modules)"
    done = subprocess.run([python, "-c", code], env=variables, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def row(title: str, values: list[float]) -> str:
    low, _, high = quantiles(values, n=4)
    return f"| {title} | {median(values):.2f} | {low:.2f} to {high:.2f} |"


def main() -> int:
    arguments = parse()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") and name != SWITCH}
    with tempfile.TemporaryDirectory() as folder:
        bare = environment(Path(folder, "bare"), start_up=False)
        hooked = environment(Path(folder, "hooked"), start_up=True)
        kinds = {
            "without the start-up file": (bare, clean),
            "with it": (hooked, clean),
            f"with it, turned off by {SWITCH}=0": (hooked, {**clean, SWITCH: "0"}),
        }
        first, *others = kinds
        added = {kind: modules(*kinds[kind]) - modules(*kinds[first]) for kind in others}
        times = measure(kinds, arguments)
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {arguments.rounds} rounds, milliseconds\n")
    print("| start of an interpreter | median | middle half |\n| --- | --- | --- |")
    for kind, values in times.items():
        print(row(kind, values))
    print("\n| more than without, round by round | median | middle half |\n| --- | --- | --- |")
    extra = {kind: [a - b for a, b in zip(times[kind], times[first], strict=True)] for kind in others}
    for kind, values in extra.items():
        print(row(kind, values))
    for kind in others:
        print(f"\nImported {kind}: {', '.join(sorted(added[kind]))}")
    cost = median(extra[others[0]])
    if cost >= LIMIT_MS:
        print(f"\nThe start-up file costs {cost:.2f} ms; the limit is {LIMIT_MS} ms.", file=sys.stderr)
    return int(cost >= LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
