"""Soups as files: one, many in one pass, and how the time grows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from benchmarks.merge.models import adapter_run, full_run
from benchmarks.merge.processes import BIN, Taken, read_through, run, together, touch

from trl_bonesoup import SoupManifest, simplex_grid
from trl_bonesoup.soup.recipe import mergekit_yaml

Contestant = Callable[[Path, Path], Taken]
SMALL = 2**26
"""Bytes of weights from which on the memory that a merge takes is worth using beforehand."""
INSIDE = [BIN / "python", "-m", "benchmarks.merge.inside"]


def one_soup(work: Path, size: str, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Time one soup of two checkpoints: copied, merged by this project, merged by mergekit."""
    source = full_run(work, size, 2)
    preference = [[0.75, 0.25]]
    soup, linear = (_recipe(source, work, method, preference[0]) for method in ("bone_soup", "linear"))
    weights = source / "backbone0" / "model.safetensors"
    mergekit = BIN / "mergekit-yaml"
    merge = [BIN / "bonesoup", "merge", "--preference", "0.75,0.25", source]
    contestants: dict[str, Contestant] = {
        "copy": lambda out, log: run([*INSIDE, "copy", weights, out], log),
        "bonesoup merge": lambda out, log: run([*merge, out], log),
        "bonesoup merge, imported": lambda out, log: run([*INSIDE, "merge", source, out, *_given(preference)], log),
        "mergekit-yaml bone_soup": lambda out, log: run([mergekit, soup, out, "--quiet"], log),
        "mergekit-yaml linear": lambda out, log: run([mergekit, linear, out, "--quiet"], log),
        "mergekit bone_soup, imported": lambda out, log: run([*INSIDE, "mergekit", soup, out], log),
    }
    return _take_turns(contestants, source, repeats)


def many_soups(work: Path, size: str, n: int, step: float, repeats: int, commands: bool) -> dict[str, Any]:
    """Time K soups in one pass against copying as many files and, once, as many runs of mergekit's command."""
    source = full_run(work, size, n)
    grid = simplex_grid(n, step).tolist()
    weights = source / "backbone0" / "model.safetensors"
    contestants: dict[str, Contestant] = {
        "copy": lambda out, log: run([*INSIDE, "copy", weights, out, *_given(grid)], log),
        "bonesoup sweep": lambda out, log: run([BIN / "bonesoup", "sweep", source, out, "--grid", str(step)], log),
        "bonesoup sweep, imported": lambda out, log: run([*INSIDE, "sweep", source, out, *_given(grid)], log),
    }
    by_command = f"{len(grid)} x mergekit-yaml bone_soup"
    if commands:
        contestants[by_command] = lambda out, log: _one_by_one(source, work, grid, out, log)
    results = _take_turns(contestants, source, repeats, once=[by_command])
    return {"soups": len(grid), "bytes": len(grid) * weights.stat().st_size, "runs": results}


def adapter_soups(work: Path, base: str, n: int, rank: int, step: float, repeats: int) -> dict[str, Any]:
    """Time K adapters in one pass against copying as many bytes."""
    source = adapter_run(work, n, rank, base)
    grid = simplex_grid(n, step).tolist()
    sample = work / "one-adapter"
    if not sample.exists():
        run([BIN / "bonesoup", "merge", source, sample, "--preference", ",".join(map(str, grid[0]))], work / "log.txt")
    weights = sample / "adapter_model.safetensors"
    contestants: dict[str, Contestant] = {
        "copy": lambda out, log: run([*INSIDE, "copy", weights, out, *_given(grid)], log),
        "bonesoup sweep": lambda out, log: run([BIN / "bonesoup", "sweep", source, out, "--grid", str(step)], log),
        "bonesoup sweep, imported": lambda out, log: run([*INSIDE, "sweep", source, out, *_given(grid)], log),
    }
    size = len(grid) * weights.stat().st_size
    return {"soups": len(grid), "bytes": size, "runs": _take_turns(contestants, source, repeats)}


def growth(
    work: Path, sizes: Sequence[str], backbones: Sequence[int], soups: Sequence[int], repeats: int
) -> list[dict]:
    """Time one soup by its number of backbones and by their size, and K soups of two backbones by K."""
    cases = [(sizes[0], n, 1) for n in backbones] + [(size, 2, 1) for size in sizes[1:]]
    cases += [(sizes[0], 2, k) for k in soups if k > 1]
    rows = []
    for size, n, k in cases:
        source = full_run(work, size, n)
        preferences = [[1.0 - i / 100, i / 100, *[0.0] * (n - 2)] for i in range(k)]
        command = [*INSIDE, "sweep", source, work / "out", *_given(preferences)]
        runs = _take_turns({"sweep": lambda out, log, c=command: run(c, log)}, source, repeats)["sweep"]
        rows.append({"size": size, "backbones": n, "soups": k, "runs": runs})
    return rows


def _take_turns(
    contestants: dict[str, Contestant], source: Path, repeats: int, once: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Run every contestant once per repeat, each repeat beginning with another one.

    Before each run the files of `source` are read and, unless they are small, memory is touched.
    """
    work = source.parent
    is_small = sum(file.stat().st_size for file in source.rglob("*.safetensors")) < SMALL
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    names, out, log = list(contestants), work / "out", work / "log.txt"
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in [*names[turn:], *names[:turn]]:
            if name in once and runs[name]:
                continue
            shutil.rmtree(out, ignore_errors=True)
            if not is_small:
                touch()
            read_through(source)
            runs[name].append(asdict(contestants[name](out, log)))
            print(f"  {name}: {runs[name][-1]['seconds']:.2f} s", flush=True)
    shutil.rmtree(out, ignore_errors=True)
    return runs


def _one_by_one(source: Path, work: Path, grid: Sequence[Sequence[float]], out: Path, log: Path) -> Taken:
    taken = []
    for k, preference in enumerate(grid):
        recipe = _recipe(source, work, "bone_soup", preference)
        taken.append(run([BIN / "mergekit-yaml", recipe, out / str(k), "--quiet"], log))
    return together(taken)


def _recipe(source: Path, work: Path, method: str, preference: Sequence[float]) -> Path:
    """Write the YAML of a soup, or one of mergekit's own linear merge of the same models."""
    config = yaml.safe_load(mergekit_yaml(SoupManifest.load(source), source, preference))
    if method == "linear":
        config = {"merge_method": "linear", "models": config["models"]}
        for model in config["models"]:
            model["parameters"] = {"weight": model["parameters"]["preference"]}
    file = work / f"{method}.yml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return file


def _given(preferences: Sequence[Sequence[float]]) -> list[str]:
    return ["--preferences", json.dumps(preferences)]
