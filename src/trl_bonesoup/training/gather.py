"""Gathering: the backbones that machines without a common disk trained, in one folder with one soup.json."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.training.run import Run, differences
from trl_bonesoup.training.saved_run import RECORD, earlier_soup

__all__ = ["gather"]

_ADAPTER = "adapter_config.json"


def gather(folders: Sequence[str | Path], output_dir: str | Path) -> SoupManifest:
    """Copy the finished backbones and logs of several runs into one folder, and write its soup.json.

    Every run is one call of `seek` with the same settings and other `backbones`. All have to share
    one scale of scores: the machine that starts first measures it, and its seek.json belongs into
    the output folders of the others before they train. A base model on disk may lie at another
    path on each machine if its config.json and the sizes of its weight files agree; soup.json and
    the copied adapters then name the first path that exists here.

    Everything is checked before anything is written, and a backbone appears in `output_dir`
    complete or not at all. A second call changes nothing.

    Args:
        folders: output folders of the runs, at least one.
        output_dir: a new or empty folder, or one that holds a part of the same run already, such as
            one of `folders`.

    Returns:
        The manifest of the soup.

    Raises:
        ConfigurationError: for a folder without a run, runs with different settings or scales, a
            backbone that is missing or that two folders have in different versions, and an
            `output_dir` that holds anything else.
    """
    output = Path(output_dir)
    runs = [Run.load(folder) for folder in _folders(folders, output)]
    _check_same(runs)
    sources = _sources(runs)
    first = runs[0]
    request = {**first.request, "base_model": {**first.request["base_model"], "id": _base_id(runs, output)}}
    result = Run(output, request, first.statistics, first.correlation)
    earlier_soup(output, request)
    for j, source in enumerate(sources):
        if not result.is_finished(j):
            _copy(source, result, j)
    result.save()
    manifest = result.finish()
    assert manifest is not None
    return manifest


def _folders(folders: Sequence[str | Path], output: Path) -> list[Path]:
    """Return the folders to read, each once, with the output folder first if it holds a run."""
    if not folders:
        raise ConfigurationError("There is nothing to gather: name the folders in which the backbones were trained.")
    if output.exists() and not output.is_dir():
        raise ConfigurationError(f"{output} is a file; choose a folder to gather the backbones in.")
    started = (output / RECORD).is_file()
    if output.is_dir() and any(output.iterdir()) and not started:
        raise ConfigurationError(
            f"{output} is not empty and holds no run of `seek`; choose another folder to gather the backbones in."
        )
    chosen = [output] if started else []
    for folder in map(Path, folders):
        if folder.resolve() not in [path.resolve() for path in chosen]:
            chosen.append(folder)
    return chosen


def _check_same(runs: Sequence[Run]) -> None:
    first = runs[0]
    for other in runs[1:]:
        places = (f"in {first.folder}", f"in {other.folder}")
        if found := differences(first.request, other.request, places):
            raise ConfigurationError(
                f"The folders hold different runs ({'; '.join(found)}). Gather backbones that were trained with the "
                "same settings."
            )
        if first.statistics != other.statistics:
            raise ConfigurationError(
                f"The backbones in {first.folder} and {other.folder} were trained on different scales of the scores "
                f"({_scales(first)} and {_scales(other)}), so that B would mix different units. Copy {RECORD} of the "
                "machine that starts first into the output folders of the others, once it has measured the scale and "
                "before they train; then train those again."
            )


def _scales(run: Run) -> str:
    if run.statistics is None:
        return "none measured"
    return ", ".join(f"{entry.mean:.4g} ± {entry.std:.4g}" for entry in run.statistics)


def _sources(runs: Sequence[Run]) -> list[Run]:
    """Return, for every backbone, the run to copy it from."""
    slugs = runs[0].slugs
    owners = [[run for run in runs if run.is_finished(j)] for j in range(len(slugs))]
    missing = [f"{j} ({slugs[j]})" for j in range(len(slugs)) if not owners[j]]
    if missing:
        raise ConfigurationError(
            f"No folder has a finished backbone {', '.join(missing)}. Train it with `seek` and the same settings, "
            "backbones=[j] (--backbone j), and gather again."
        )
    for j, having in enumerate(owners):
        for run in having:
            if not run.log_file(j).is_file():
                raise ConfigurationError(f"{run.log_file(j)} is missing; copy the whole folder of the run.")
            if not _same_files(having[0].backbone_folder(j), run.backbone_folder(j)):
                raise ConfigurationError(
                    f"{having[0].backbone_folder(j)} and {run.backbone_folder(j)} are different versions of backbone "
                    f"{j}. Leave out one of the folders, or remove the backbone that is not meant."
                )
    return [having[0] for having in owners]


def _same_files(first: Path, second: Path) -> bool:
    """Whether two backbones agree in every byte, but for the place of the base model that an adapter names."""
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (first, second)]
    files = [str(name) for name in names[0] if (first / name).is_file() and name.name != _ADAPTER]
    same_bytes = filecmp.cmpfiles(first, second, files, shallow=False)[0] == files
    return names[0] == names[1] and same_bytes and _adapter_config(first) == _adapter_config(second)


def _adapter_config(folder: Path) -> dict[str, Any]:
    file = folder / _ADAPTER
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {**config, "base_model_name_or_path": None}


def _base_id(runs: Sequence[Run], output: Path) -> str:
    """Return the first base model that exists on this machine, as `output`/soup.json should name it; else the first."""
    for run in runs:
        path = run.folder / run.request["base_model"]["id"]  # an absolute id stays as it is
        if path.is_dir():
            inside = path.resolve().is_relative_to(output.resolve())
            return path.resolve().relative_to(output.resolve()).as_posix() if inside else str(path.resolve())
    return runs[0].request["base_model"]["id"]


def _copy(source: Run, result: Run, j: int) -> None:
    """Copy backbone j and its log, beside their places first; all adapters of the soup name one base model."""
    log, beside = result.log_file(j), result.folder / f".gathering-{result.slugs[j]}"
    log.parent.mkdir(parents=True, exist_ok=True)
    result.save()  # from now on, the folder holds this run
    _write(log, source.log_file(j).read_text(encoding="utf-8"))
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source.backbone_folder(j), beside)
    if (beside / _ADAPTER).is_file():
        base, local = result.request["base_model"]["id"], result.request["base_files"] is not None
        config = {
            **_adapter_config(beside),
            "base_model_name_or_path": str((result.folder / base).resolve()) if local else base,
        }
        _write(beside / _ADAPTER, json.dumps(config, indent=2, sort_keys=True))
    beside.replace(result.backbone_folder(j))


def _write(target: Path, text: str) -> None:
    beside = target.with_name(f".{target.name}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(target)
