"""Measures soups as files and in memory, beside copying, mergekit and static adapters. See README.md."""

from __future__ import annotations

import argparse
import json
import logging
import os
from pathlib import Path
from typing import Any

PARTS = ("one", "many", "growth", "adapters", "switch", "rows")
FULL = {
    "one": [{"size": "1B", "repeats": 4}],
    "many": [
        {"size": "1B", "n": 2, "step": 0.1, "repeats": 2, "commands": True},
        {"size": "135M", "n": 2, "step": 0.1, "repeats": 3, "commands": True},
        {"size": "135M", "n": 3, "step": 0.1, "repeats": 2, "commands": True},
    ],
    "growth": [{"sizes": ["360M", "135M", "1B"], "backbones": [2, 3, 5], "soups": [2, 5, 11, 22], "repeats": 2}],
    "adapters": [{"base": "SmolLM2", "n": 3, "rank": 16, "step": 0.1, "repeats": 5}],
    "switch": [{"base": "SmolLM2", "n": n, "rank": 16, "repeats": 1000} for n in (2, 3, 8)],
    "rows": [{"base": "SmolLM2", "n": n, "rank": 16, "prompt": 64, "new_tokens": 16, "repeats": 6} for n in (2, 3, 8)],
}
SMOKE = {
    "one": [{"size": "tiny", "repeats": 1}],
    "many": [{"size": "tiny", "n": 2, "step": 0.5, "repeats": 1, "commands": False}],
    "growth": [{"sizes": ["tiny"], "backbones": [2], "soups": [2], "repeats": 1}],
    "adapters": [{"base": "tiny", "n": 2, "rank": 4, "step": 0.5, "repeats": 1}],
    "switch": [{"base": "tiny", "n": 2, "rank": 4, "repeats": 3}],
    "rows": [{"base": "tiny", "n": 2, "rank": 4, "prompt": 4, "new_tokens": 2, "repeats": 2}],
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all of it)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/benchmark-merge"), help="%(default)s")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--smoke", action="store_true", help="tiny models, once: whether it runs, in seconds")
    parser.add_argument("--again", action="store_true", help="measure parts anew that have been measured")
    return parser.parse_args()


def measure(part: str, settings: dict[str, Any], work: Path) -> Any:
    from benchmarks.merge import files, serving

    actions = {
        "one": files.one_soup,
        "many": files.many_soups,
        "growth": files.growth,
        "adapters": files.adapter_soups,
        "switch": serving.switches,
        "rows": serving.rows,
    }
    return actions[part](work, **settings)


def measured(part: str, plan: list[dict[str, Any]], work: Path, again: bool) -> list[dict[str, Any]]:
    """Return the measurements of a part: those that are kept, and the others made now and kept."""
    from benchmarks.report import machine, versions

    file = work / f"{part}.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() and not again else []
    for settings in plan:
        if any(each["settings"] == settings for each in found):
            continue
        print(f"{part}: {settings}", flush=True)
        packages = versions("trl-bonesoup", "torch", "transformers", "peft", "mergekit", "safetensors")
        results = measure(part, settings, work)
        found.append({"settings": settings, "machine": machine(), "versions": packages, "results": results})
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return [each for settings in plan for each in found if each["settings"] == settings]


def main() -> None:
    arguments = parse()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable(logging.WARNING)
    from benchmarks.merge.tables import tables

    plan = SMOKE if arguments.smoke else FULL
    work = arguments.out.resolve()
    work.mkdir(parents=True, exist_ok=True)
    print(
        tables(
            {part: measured(part, plan[part], work, arguments.again) for part in arguments.parts}, arguments.markdown
        )
    )


if __name__ == "__main__":
    main()
