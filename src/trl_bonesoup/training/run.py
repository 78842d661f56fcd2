"""The folder of one run of `seek`: what was asked for, the scale of the scores, and which backbones are finished."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from trl_bonesoup import __version__
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import FILE_NAME, Backbone, BaseModelRef, Objective, ScoreStatistics, SoupManifest
from trl_bonesoup.markdown import hide_local_paths
from trl_bonesoup.rewards.normalization import score_correlation, score_statistics
from trl_bonesoup.training.lock import is_held
from trl_bonesoup.training.saved_run import FORMAT_VERSION, RECORD, SavedRun, earlier_soup
from trl_bonesoup.weights import FloatArray

logger = logging.getLogger(__name__)

_LIBRARIES = ("trl", "transformers", "peft", "torch", "datasets", "accelerate")

_CUT_OFF = "completions/clipped_ratio"
_LAST_ROLLOUTS = 5

_Result = TypeVar("_Result")


@dataclass
class Run:
    """What `seek` and `gather` know of one folder."""

    folder: Path
    request: dict[str, Any]
    statistics: list[ScoreStatistics] | None = None
    correlation: list[list[float]] | None = None

    @classmethod
    def open(cls, folder: Path, request: dict[str, Any]) -> Self:
        """Start a run in `folder`, or continue the one that is there.

        One that failed before it measured or kept anything gives way to a run with other settings.

        Raises:
            ConfigurationError: if the folder holds a run with other settings.
        """
        run = cls(folder, request)
        if (folder / RECORD).exists():
            saved = cls.load(folder)
            found = differences(saved.request, request)
            if found and not saved.is_empty():
                raise ConfigurationError(
                    f"{folder} holds a run with other settings ({'; '.join(found)}). Choose another output_dir, "
                    "or repeat the settings to continue it."
                )
            run = cls(folder, request, saved.statistics, saved.correlation)
            if request == saved.request:  # another process may be recording its scale at this moment
                return run
        run.save()
        return run

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the run that is in `folder`.

        Raises:
            ConfigurationError: if there is none, or its record cannot be read.
        """
        saved, request = SavedRun.load(folder)
        return cls(folder, request, saved.statistics, saved.correlation)

    @classmethod
    def is_complete(cls, folder: Path) -> bool:
        """Whether `folder` holds a run of which every backbone is finished."""
        if not (folder / RECORD).exists():
            return False
        run = cls.load(folder)
        return all(run.is_finished(j) for j in range(len(run.slugs)))

    def is_empty(self) -> bool:
        """Whether nothing was measured or kept of this run, and no process works on it."""
        kept = [".training-*/checkpoint-*", "logs/*.json", FILE_NAME]
        return (
            self.statistics is None
            and not any(self.is_finished(j) for j in range(len(self.slugs)))
            and not any(True for pattern in kept for _ in self.folder.glob(pattern))
            and not any(is_held(lock) for lock in self.folder.glob(".lock-*"))
        )

    @property
    def scale(self) -> list[ScoreStatistics] | None:
        """What scores are normalised by: as the settings say, or as measured; `None` if not at all, or not yet."""
        scores = self.request["scores"]
        if scores["normalization"] == "fixed":
            return [
                ScoreStatistics(mean=mean, std=std) for mean, std in zip(scores["mean"], scores["std"], strict=True)
            ]
        return self.statistics

    def agreed_scale(self, scores: FloatArray) -> tuple[list[ScoreStatistics], list[list[float]] | None]:
        """Take the scale of the scores from samples of the base model, (K, N), and record it; return it.

        If another process that trains other backbones of this run has recorded one meanwhile, that one
        holds.
        """
        saved = self.load(self.folder)
        if saved.statistics is not None:
            return saved.statistics, saved.correlation
        for name, scores_K in zip(self.request["objectives"], scores.T, strict=True):
            if len(np.unique(scores_K[~np.isnan(scores_K)])) < 2:
                logger.warning(
                    "Objective '%s' gave no two different scores in %d samples of the base model, so that its scale is "
                    "not known: its standard deviation counts as 1. Where its scores differ later, they are weighted "
                    "in their own unit.",
                    name,
                    len(scores_K),
                )
        self.statistics = score_statistics(scores)
        self.correlation = score_correlation(scores)
        self.save()
        return self.statistics, self.correlation

    def save(self) -> None:
        """Write the record, completely or not at all."""
        statistics = None if self.statistics is None else [entry.model_dump() for entry in self.statistics]
        record = {
            "format_version": FORMAT_VERSION,
            "request": self.request,
            "statistics": statistics,
            "correlation": self.correlation,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{RECORD}.{os.getpid()}"
        beside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        beside.replace(self.folder / RECORD)

    @property
    def slugs(self) -> list[str]:
        """The backbones' folder names, in the order of the objectives."""
        return folder_names(self.request["objectives"])

    def backbone_folder(self, j: int) -> Path:
        """Where backbone j appears when it is finished."""
        return self.folder / self.slugs[j]

    def work_folder(self, j: int) -> Path:
        """Where backbone j has its checkpoints while it is trained."""
        return self.folder / f".training-{self.slugs[j]}"

    def log_file(self, j: int) -> Path:
        """Where the training log of backbone j is kept."""
        return self.folder / "logs" / f"{self.slugs[j]}.json"

    def is_finished(self, j: int) -> bool:
        """Whether backbone j is complete: its folder is renamed into place as the last thing."""
        return any((self.backbone_folder(j) / name).exists() for name in ("config.json", "adapter_config.json"))

    def checkpoint(self, j: int) -> Path | None:
        """Return the newest complete checkpoint of backbone j while it is trained, or `None`."""
        from trl_bonesoup.training.resume import last_complete_checkpoint

        return last_complete_checkpoint(self.work_folder(j))

    def has_reached(self, j: int, step: int | None) -> bool:
        """Whether backbone j has a checkpoint of this optimizer step or a later one."""
        return step is not None and self.steps(j) >= step

    def finish(self) -> SoupManifest | None:
        """Write soup.json if every backbone is finished, and return it.

        One that was written before keeps its presets and the versions that trained it.

        Raises:
            ConfigurationError: for a soup.json that is not this run's.
        """
        missing = [slug for j, slug in enumerate(self.slugs) if not self.is_finished(j)]
        if missing:
            logger.info("Still to train before soup.json can be written: %s.", ", ".join(missing))
            return None
        manifest = self.manifest(
            self.request["combination_weights"], self.slugs, [self.steps(j) for j in range(len(self.slugs))]
        )
        earlier = earlier_soup(self.folder, self.request)
        if earlier is not None:
            manifest = manifest.model_copy(update={"presets": earlier.presets, "versions": earlier.versions})
        if manifest != earlier:
            manifest.save(self.folder)
        return manifest

    def manifest(self, weights: Any, paths: Sequence[str], steps: Sequence[int]) -> SoupManifest:
        """Return the record of a soup of N backbones that this run trained, or has checkpoints of.

        Args:
            weights: B of shape (N, N).
            paths: of the backbones, as soup.json shall name them.
            steps: optimizer steps of each.
        """
        request = self.request
        scales: Sequence[ScoreStatistics | None] = self.scale or [None] * len(request["objectives"])
        return SoupManifest(
            base_model=BaseModelRef(**request["base_model"]),
            objectives=tuple(
                Objective(name=name, reward=spec, normalization=scale)
                for name, spec, scale in zip(request["objectives"], request["rewards"], scales, strict=True)
            ),
            combination_weights=weights,
            backbones=tuple(
                Backbone(path=path, kind=request["kind"], steps=count, seed=request["settings"]["seed"])
                for path, count in zip(paths, steps, strict=True)
            ),
            training=hide_local_paths({**request["settings"], **request["adapter"]}),
            versions=library_versions(),
        )

    def steps(self, j: int) -> int:
        """Return the optimizer steps of backbone j that are kept: all of them, or those of its last checkpoint."""
        if self.is_finished(j):
            return json.loads(self.log_file(j).read_text(encoding="utf-8"))["steps"]
        found = self.checkpoint(j)
        return 0 if found is None else checkpoint_step(found)


def cut_off(run: Run) -> dict[str, float]:
    """Return which share of the completions of the last rollouts was cut off, for each backbone that is finished."""
    shares = {}
    for j, slug in enumerate(run.slugs):
        if run.is_finished(j):
            log = json.loads(run.log_file(j).read_text(encoding="utf-8"))["log"]
            found = [entry[_CUT_OFF] for entry in log if entry.get(_CUT_OFF) is not None]
            shares[slug] = float(np.mean(found[-_LAST_ROLLOUTS:])) if found else 0.0
    return shares


def library_versions() -> dict[str, str]:
    """Return the versions of this package and of those that train with it."""
    return {"trl-bonesoup": __version__, **{name: version(name) for name in _LIBRARIES}}


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer step of a checkpoint's folder."""
    return int(checkpoint.name.rpartition("-")[2])


def differences(there: dict[str, Any], now: dict[str, Any], places: tuple[str, str] = ("there", "now")) -> list[str]:
    """Say in which settings two requests differ, one text each; `places` says what the two are called.

    The same base model may lie at different paths on different machines: where both requests
    fingerprint its files, the path does not count.
    """
    first, second = dict(_flat(there)), dict(_flat(now))
    if first.get("base_files") is not None and first.get("base_files") == second.get("base_files"):
        for request in (first, second):
            request.pop("base_model.id", None)
    return [
        f"{key}: {first.get(key)!r} {places[0]}, {second.get(key)!r} {places[1]}"
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
    ]


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def folder_names(objectives: Sequence[str]) -> list[str]:
    """Return one distinct and safe folder name per objective."""
    slugs: list[str] = []
    for j, name in enumerate(objectives):
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:60] or f"backbone-{j}"
        slugs.append(f"{slug}-{j}" if slug in slugs or slug in ("base", "logs") else slug)
    return slugs


def on_main_process(state: Any, action: Callable[[], _Result]) -> _Result:
    """Run `action` in the main process alone; return its result, or raise its error, in every process.

    Args:
        state: accelerate's `PartialState`, as in `args.distributed_state`.
        action: something whose result can be pickled.
    """
    if state.num_processes == 1:
        return action()
    from accelerate.utils import broadcast_object_list

    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return result
