"""Times PPO, side by side: this trainer, TRL 1.12's PPOTrainer and, as the floor, GRPOTrainer. See README.md."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.ppo.jobs import TITLES, WORKERS, add_arguments, provenance, run_job, work_from
from benchmarks.report import machine, spread, table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, steps=3, contestants=list(WORKERS))
    parser.add_argument("--repeats", type=int, default=5, help="runs of each contestant (%(default)s)")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every contestant once per repeat, each repeat starting with another one."""
    runs: dict[str, list] = {contestant: [] for contestant in arguments.contestants}
    for repeat in range(arguments.repeats):
        work = work_from(arguments, warm_up=1, fixed_length=True, seed=repeat)
        turn = repeat % len(runs)
        for contestant in [*arguments.contestants[turn:], *arguments.contestants[:turn]]:
            path = arguments.out / f"timing-{contestant}-{repeat}.json"
            runs[contestant].append(run_job(contestant, work, path, arguments.trl_python))
    return {"machine": machine(), "runs": runs}


def timed_seconds(run: dict[str, Any], field: str = "seconds") -> list[float]:
    return [step[field] for step in run["steps"][run["work"]["warm_up"] :]]


def tokens_per_second(run: dict[str, Any]) -> float:
    return sum(timed_seconds(run, "tokens")) / sum(timed_seconds(run))


def summary(results: dict[str, Any], markdown: bool) -> str:
    """Return the figures of each contestant, and how each compares to this trainer, repeat by repeat."""
    rows = []
    for contestant, runs in results["runs"].items():
        seconds = [median(timed_seconds(run)) for run in runs]
        generation = [median(timed_seconds(run, "generation_seconds")) for run in runs]
        rows.append(
            [
                TITLES[contestant],
                spread(seconds, ".2f"),
                spread(generation, ".2f"),
                spread([tokens_per_second(run) for run in runs], ".1f"),
                spread([run["peak_mib"] for run in runs], ".0f"),
                spread([run["steps"][0]["seconds"] for run in runs], ".2f"),
            ]
        )
    header = ["contestant", "s/step", "of which generating", "tokens/s", "peak RSS, MiB", "first step, s"]
    parts = [table(header, rows, markdown), ratios(results, markdown), provenance(results)]
    return "\n\n".join(part for part in parts if part)


def ratios(results: dict[str, Any], markdown: bool) -> str:
    """Compare this trainer to the others: ratios within each repeat, their median and their range."""
    ours = results["runs"].get("bonesoup")
    rows = []
    for contestant, runs in results["runs"].items():
        if ours is None or contestant == "bonesoup":
            continue
        pairs = list(zip(runs, ours, strict=True))
        times = [median(timed_seconds(other)) / median(timed_seconds(own)) for other, own in pairs]
        memory = [own["peak_mib"] / other["peak_mib"] for other, own in pairs]
        rows.append([TITLES[contestant], spread(times, ".2f"), spread(memory, ".2f")])
    header = ["against", "its time / ours", "our peak / its peak"]
    return table(header, rows, markdown) if rows else ""


def main() -> None:
    arguments = parse()
    results = measure(arguments)
    file: Path = arguments.out / "results.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(summary(results, arguments.markdown))


if __name__ == "__main__":
    main()
