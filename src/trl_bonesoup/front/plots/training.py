"""Training curves: what the logs of a run say of reward, KL and each objective, for every backbone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.front import BACKBONE_PREFIX
from trl_bonesoup.front.plots.style import NARROW, add_legend, columns_of, method_styles, new_panels, save, styled
from trl_bonesoup.training.run import RECORD, folder_names
from trl_bonesoup.weights import FloatArray

TITLES = {
    "reward": "weighted reward",
    "kl": "KL from base (nats/token)",
    "entropy": "entropy (nats/token)",
    "value/explained_variance": "explained variance of the critic",
}

SMOOTHED = 15
"""Curves of at least twice as many points get a running mean over a fifteenth of them."""

__all__ = ["plot_training", "read_training_logs"]


def plot_training(
    runs: str | Path | Mapping[str, str | Path],
    path: str | Path | None = None,
    *,
    width: float | None = None,
    metrics: Sequence[str] | None = None,
) -> Figure:
    """Draw the training curves of every backbone: a panel per metric, against optimizer steps.

    Long curves are drawn faintly, with their running mean on top.

    Args:
        runs: where to read, see `read_training_logs`.
        path: where to write it: SVG, PDF or PNG by its ending.
        width: inches, 3.3 for a column of a paper. By default 3 per panel, at most 9.
        metrics: what to draw, by the names under which it is logged. By default `reward`, `kl` and
            `rewards/<name>/mean` of every objective.

    Raises:
        ConfigurationError: if there are no logs, or none holds one of the metrics.
        FrontError: for another file ending.
    """
    logs = read_training_logs(runs)
    logged = list(dict.fromkeys(name for log in logs.values() for entry in log for name in entry))
    wanted = list(metrics) if metrics is not None else _default_metrics(logged)
    missing = [name for name in wanted if name not in logged]
    if missing or not wanted:
        raise ConfigurationError(f"The logs hold no {missing or 'rewards'}; they hold {sorted(logged)}.")
    width = width if width is not None else 3.0 * columns_of(len(wanted), 9.0, least=3.0)
    with styled(width):
        columns = columns_of(len(wanted), width, least=2.4)
        figure, panels = new_panels(len(wanted), width, columns=columns, height=1.9 if width < NARROW else 2.6)
        styles = method_styles(list(logs))
        for axes, metric in zip(panels, wanted, strict=True):
            for label, log in logs.items():
                steps, values = _series(log, metric)
                window = max(1, len(values) // SMOOTHED)
                look: dict[str, Any] = {"color": styles[label].colour, "label": label}
                if window > 1:
                    axes.plot(steps, values, color=styles[label].colour, linewidth=0.6, alpha=0.35)
                axes.plot(steps, _running_mean(values, window), linestyle=styles[label].dashes, linewidth=1.3, **look)
            axes.set_xlabel("optimizer step")
            axes.set_ylabel(_title(metric))
        handles = [Line2D([], [], color=s.colour, linestyle=s.dashes) for s in styles.values()]
        add_legend(figure, handles, list(styles))
        return save(figure, path)


def read_training_logs(runs: str | Path | Mapping[str, str | Path]) -> dict[str, list[dict[str, Any]]]:
    """Return the entries of training logs by backbone.

    Args:
        runs: a folder of `seek` (finished backbones, and those in training up to their newest
            checkpoint), an output folder or checkpoint of a trainer, or a JSON file of either; or
            several of them by name, whose names then go before the backbones'.

    Raises:
        ConfigurationError: if there are none, or they cannot be read.
    """
    if not isinstance(runs, Mapping):
        return _logs_of(Path(runs))
    logs = {}
    for name, run in runs.items():
        found = _logs_of(Path(run))
        logs.update({name if len(found) == 1 else f"{name}, {label}": log for label, log in found.items()})
    return logs


def _logs_of(place: Path) -> dict[str, list[dict[str, Any]]]:
    if place.is_file():
        return {place.stem if place.name != "trainer_state.json" else place.resolve().parent.name: _entries(place)}
    files = {file.stem: file for file in sorted((place / "logs").glob("*.json"))}
    for work in sorted(place.glob(".training-*")):
        if state := _newest_state(work):
            files.setdefault(work.name.removeprefix(".training-"), state)
    if not files and (state := _newest_state(place)):
        files[place.resolve().name] = state
    if not files:
        raise ConfigurationError(
            f"{place} holds no training logs. Give the folder of `bonesoup seek` once a backbone is finished or has a "
            "checkpoint, a trainer's output folder, or a trainer_state.json."
        )
    backbones = _backbones(place)
    order = sorted(files, key=lambda label: (backbones.index(label) if label in backbones else len(backbones), label))
    return {f"{BACKBONE_PREFIX if label in backbones else ''}{label}": _entries(files[label]) for label in order}


def _backbones(run: Path) -> list[str]:
    """Return the names of the backbones of a run of `seek`, in the order of its objectives; of anything else, none."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return folder_names(json.loads((run / RECORD).read_text(encoding="utf-8"))["request"]["objectives"])
    return []


def _newest_state(folder: Path) -> Path | None:
    """Return the trainer_state.json of a checkpoint, or of the newest checkpoint in a folder."""
    if (state := folder / "trainer_state.json").is_file():
        return state
    states = [state for state in folder.glob("checkpoint-*/trainer_state.json") if _step(state.parent) >= 0]
    return max(states, key=lambda state: _step(state.parent), default=None)


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        log = data["log"] if "log" in data else data["log_history"]
        return [dict(entry) for entry in log if "step" in entry]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{file} is neither a log of `bonesoup seek` nor a trainer_state.json ({type(error).__name__}: {error})."
        ) from error


def _default_metrics(logged: Iterable[str]) -> list[str]:
    names = list(logged)
    objectives = [name for name in names if name.startswith("rewards/") and name.endswith("/mean")]
    return [name for name in ("reward", "kl") if name in names] + objectives


def _series(log: Sequence[Mapping[str, Any]], metric: str) -> tuple[FloatArray, FloatArray]:
    entries = [(entry["step"], entry[metric]) for entry in log if metric in entry]
    steps, values = np.array(entries, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def _running_mean(values: FloatArray, window: int) -> FloatArray:
    """Return the mean of the last `window` values at each place, of fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _title(metric: str) -> str:
    if metric.startswith("rewards/") and metric.endswith("/mean"):
        return f"mean {metric.removeprefix('rewards/').removesuffix('/mean')}"
    return TITLES.get(metric, metric)
