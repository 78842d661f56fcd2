"""Writing the soups of many preferences in one go: resumable, and each folder complete or absent."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trl_bonesoup.errors import SoupError
from trl_bonesoup.manifest import Preference
from trl_bonesoup.soup.export import one_soup
from trl_bonesoup.soup.folders import check_target, complete_folder, room_for, tidy_up
from trl_bonesoup.soup.lora import BoneSoup
from trl_bonesoup.soup.parts import copy_companions, open_ingredients, stacked, write_merged
from trl_bonesoup.soup.rounding import warn_about_rounding
from trl_bonesoup.soup.source import SoupSource, open_soup
from trl_bonesoup.soup.unfinished import remove_finished_pass, unfinished_bytes, unfinished_pass
from trl_bonesoup.weights import FloatArray

POINT_FILE = "sweep_point.json"
"""Says in each folder which preference and which backbones it was made from, and what rounding lost."""

__all__ = ["sweep"]


@dataclass(frozen=True)
class _Point:
    folder: Path
    coefficients_N: FloatArray
    record: dict[str, Any]

    def is_done(self) -> bool:
        file = self.folder / POINT_FILE
        try:
            return json.loads(file.read_text(encoding="utf-8")).items() >= self.record.items()
        except (OSError, ValueError, AttributeError):
            return False

    def sign(self, folder: Path, rounding_loss: float | None) -> None:
        text = json.dumps({**self.record, "rounding_loss": rounding_loss}, indent=2, ensure_ascii=False)
        (folder / POINT_FILE).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Options:
    overwrite: bool
    allow_nan: bool
    show_progress: bool


def sweep(
    path: str | Path,
    out: str | Path,
    preferences: FloatArray | Sequence[Preference],
    *,
    full: bool = False,
    extrapolation: float | Sequence[float] = 0.0,
    overwrite: bool = False,
    base_model: str | Path | None = None,
    revision: str | None = None,
    allow_nan: bool = False,
    show_progress: bool = True,
) -> list[Path]:
    """Write the soups of K preferences into `out`, one folder each, such as `mu-0.70-0.30`.

    Adapter soups become K adapters, made from the adapter files alone, or with `full` K full
    checkpoints. For full backbones every input is read once and all K checkpoints are written in
    that one pass. An interrupted sweep is resumed by calling it again: a folder that is already there
    from the same preference, extrapolation and backbones is kept, and a pass goes on where it was.

    Args:
        path: folder of soup.json, or Hub id.
        out: the folder for the K folders.
        preferences: μ, shape (K, N), or K dicts by objective name.
        full: write full checkpoints. Soups of full checkpoints always do.
        extrapolation: α, the same for every preference.
        overwrite: replace folders that hold another model.
        base_model: Hub id or folder to use in place of the recorded base model.
        revision: of the soup on the Hub.
        allow_nan: write NaN and infinity that the models have already, where they come out.
        show_progress: say how much will be written and draw a progress bar, on stderr.

    Returns:
        The K folders in the order of the preferences.

    Raises:
        SoupError: if the backbones cannot be merged exactly, a folder holds something else, two
            preferences share a folder, or the disk is too small; nothing has been written then.

    Warns:
        RoundingWarning: for each full checkpoint whose dtype loses more than 1 % of the soup's effect.
    """
    source = open_soup(path, base_model=base_model, revision=revision)
    points = _points(source, Path(out), preferences, extrapolation, full)
    for point in points:
        tidy_up(point.folder)
    pending = [point for point in points if not point.is_done()]
    for point in pending:
        check_target(point.folder, overwrite=overwrite, inputs=source.inputs())
    if pending:
        write = _write_full_backbones if source.kind == "full" else _write_merged if full else _write_adapters
        write(source, pending, _Options(overwrite, allow_nan, show_progress))
    else:
        remove_finished_pass(Path(out))
    return [point.folder for point in points]


def _points(
    source: SoupSource,
    out: Path,
    preferences: FloatArray | Sequence[Preference],
    extrapolation: float | Sequence[float],
    full: bool,
) -> list[_Point]:
    names = source.manifest.objective_names
    soups = [one_soup(source.manifest, preference, extrapolation) for preference in preferences]
    origin = _fingerprint(source)
    points: dict[Path, _Point] = {}
    for mu_N, lambda_N in soups:
        folder = out / _folder_name(mu_N, extrapolation)
        if folder in points:
            raise SoupError(f"Two preferences would both be written to {folder}; they must differ by 1e-6 or more.")
        record = {
            "preference": dict(zip(names, mu_N.tolist(), strict=True)),
            "coefficients": lambda_N.tolist(),
            "full": full or source.kind == "full",
            "backbones": origin,
        }
        points[folder] = _Point(folder, lambda_N, record)
    if not points:
        raise SoupError("A sweep needs at least one preference; got none. `simplex_grid(n)` makes a grid.")
    return list(points.values())


def _write_adapters(source: SoupSource, points: Sequence[_Point], options: _Options) -> None:
    from trl_bonesoup.soup.threads import in_order

    adapters, backbone = stacked(source, allow_nan=options.allow_nan), source.backbones()[0]

    def write(point: _Point) -> None:
        with complete_folder(point.folder, overwrite=options.overwrite) as folder:
            adapters.write(point.coefficients_N, folder)
            copy_companions(backbone, folder, with_config=False)
            point.sign(folder, 0.0)

    needed = adapters.nbytes * len(points)
    with room_for(points[0].folder.parent, needed), _progress(points, adapters.nbytes, options.show_progress) as bar:
        for _ in in_order(write, points):
            bar.update(adapters.nbytes)


def _write_merged(source: SoupSource, points: Sequence[_Point], options: _Options) -> None:
    soup = BoneSoup.from_source(source, allow_nan=options.allow_nan)
    size, out = soup.scales.base_bytes(), points[0].folder.parent
    with room_for(out, size * len(points)), _progress(points, size, options.show_progress) as bar:
        for point in points:
            with complete_folder(point.folder, overwrite=options.overwrite) as folder:
                loss = write_merged(soup, point.coefficients_N, folder, allow_nan=options.allow_nan)
                point.sign(folder, loss)
            warn_about_rounding(loss, point.folder)
            bar.update(size)


def _write_full_backbones(source: SoupSource, points: Sequence[_Point], options: _Options) -> None:
    from trl_bonesoup.soup.streaming import piece_layout, write_soups

    out, records, names = points[0].folder.parent, [p.record for p in points], [p.folder.name for p in points]
    coefficients_KN = np.array([point.coefficients_N for point in points])
    ingredients = open_ingredients(source, coefficients_KN)
    needed = ingredients.soup_bytes() * len(points) - unfinished_bytes(out)
    with room_for(out, needed), unfinished_pass(out, records, names, piece_layout()) as unfinished:
        with _progress(points, ingredients.soup_bytes(), options.show_progress) as bar:
            losses = write_soups(
                ingredients,
                coefficients_KN,
                unfinished.folders,
                allow_nan=options.allow_nan,
                report=bar.update,
                progress=unfinished,
            )
        for point, folder, loss in zip(points, unfinished.folders, losses, strict=True):
            copy_companions(source.backbones()[0], folder, with_config=True)
            point.sign(folder, loss)
        unfinished.finish([point.folder for point in points])
    for point, loss in zip(points, losses, strict=True):
        warn_about_rounding(loss, point.folder)


def _progress(points: Sequence[_Point], size: int, show: bool) -> Any:
    """Say how much will be written, at `size` bytes per point, and return a progress bar."""
    from tqdm import tqdm

    if show:
        needed = size * len(points) / 1e9
        print(f"Writing {len(points)} soups, {needed:.3f} GB in all, to {points[0].folder.parent}", file=sys.stderr)
    return tqdm(total=size * len(points), unit="B", unit_scale=True, desc="sweep", disable=not show)


def _folder_name(mu_N: FloatArray, extrapolation: float | Sequence[float]) -> str:
    name = "mu-" + "-".join(map(_decimals, mu_N))
    alphas = np.atleast_1d(np.asarray(extrapolation, dtype=np.float64))
    return f"{name}_alpha-" + "-".join(map(_decimals, alphas)) if alphas.any() else name


def _decimals(value: float) -> str:
    """Write a share with at least two decimals and at most six.

    >>> _decimals(0.7), _decimals(0.125)
    ('0.70', '0.125')
    """
    whole, decimals = f"{value:.6f}".split(".")
    return f"{whole}.{decimals.rstrip('0'):0<2}"


def _fingerprint(source: SoupSource) -> str:
    """Return a hash that changes when a file of a backbone is replaced (by size or time) or the base is another."""
    base = source.manifest.base_model
    parts = [source.base_override or f"{base.id}@{base.revision}"]
    for folder in source.backbones():
        for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
            status = file.stat()
            parts.append(f"{folder.name}/{file.name}:{status.st_size}:{status.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
