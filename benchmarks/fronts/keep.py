"""Keep what came of a plan in the repository: fronts, answers, tables and figures, but no models and no folders' names.

    python -m benchmarks.fronts.keep positivity-plainness

copies them from runs/fronts/PLAN to benchmarks/fronts/results/PLAN and puts the tables into README.md. To go on from
there, such as with more seeds, copy them back to runs/fronts/PLAN: seeds whose fronts are there are not trained again.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
KEPT = ["plan.json", "compare.json", "compare.md", "front.png", "preference.png", "*/seed-*/front.json",
        "*/seed-*/answers.parquet", "policies/seed-*/seek.json"]  # fmt: skip
"""Of a comparison's folder."""

_SECTION = re.compile(r"(?<=<!-- results: begin -->\n).*(?=<!-- results: end -->)", flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="name of the plan, such as positivity-plainness")
    parser.add_argument("--runs", type=Path, default=Path("runs/fronts"), help="where it was run (runs/fronts)")
    arguments = parser.parse_args()
    keep(arguments.runs / arguments.plan, RESULTS / arguments.plan)
    readme = HERE / "README.md"
    readme.write_text(with_results(readme.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")


def keep(run: Path, kept: Path) -> None:
    """Replace `kept` by the results of a comparison in the folder `run`."""
    shutil.rmtree(kept, ignore_errors=True)
    for pattern in KEPT:
        for file in sorted(run.glob(pattern)):
            copy = kept / file.relative_to(run)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".json":
                record = portable(json.loads(file.read_text(encoding="utf-8")), str(run.resolve()))
                copy.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            else:
                shutil.copyfile(file, copy)


def portable(value: Any, run: str) -> Any:
    """Return a record with paths from the comparison's folder on, and no more of a system than its kind."""
    if isinstance(value, dict):
        return {key: portable(entry, run) for key, entry in value.items()}
    if isinstance(value, list):
        return [portable(entry, run) for entry in value]
    if not isinstance(value, str):
        return value
    system = f"{platform.system()} {platform.machine()}" if value == platform.platform() else value
    return system.removeprefix(f"{run}/")


def with_results(readme: str, results: Path) -> str:
    """Return README.md with the tables of all kept plans in the place that is marked for them."""
    parts = [
        f"### {plan.name}\n\n![Mean rewards of every method](results/{plan.name}/front.png)\n\n"
        f"{(plan / 'compare.md').read_text(encoding='utf-8').strip()}\n\n{_about(plan)}\n"
        for plan in sorted(results.iterdir())
        if plan.is_dir()
    ]
    return _SECTION.sub(lambda _: "\n" + "\n".join(parts) + "\n", readme)


def _about(plan: Path) -> str:
    record = json.loads((plan / "compare.json").read_text(encoding="utf-8"))
    front = json.loads(next(plan.glob("*/seed-*/front.json")).read_text(encoding="utf-8"))
    where, versions = front["provenance"]["machine"], front["provenance"]["versions"]
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    hours = (record["cost"]["seconds_steps"] + record["cost"]["seconds_answers"]) / 3600
    return f"{where['processor']}, {where['threads']} thread(s), {where['system']}; {hours:.1f} h; {used}."


if __name__ == "__main__":
    main()
