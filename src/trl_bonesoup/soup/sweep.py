"""Writing the soups of many preferences in one go: resumable, and each folder complete or absent."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_bonesoup.errors import SoupError
from trl_bonesoup.manifest import Preference
from trl_bonesoup.soup.compress import CompressedAdapters, check_rank
from trl_bonesoup.soup.dtypes import check_dtype, record_dtype
from trl_bonesoup.soup.export import one_soup
from trl_bonesoup.soup.folders import check_target, complete_folder, room_for, size_text, tidy_up
from trl_bonesoup.soup.lora import BoneSoup
from trl_bonesoup.soup.parts import copy_companions, open_ingredients, stacked, write_merged
from trl_bonesoup.soup.rounding import warn_about_rounding
from trl_bonesoup.soup.source import SoupSource, open_soup
from trl_bonesoup.soup.unfinished import remove_finished_pass, unfinished_bytes, unfinished_pass
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    import torch

POINT_FILE = "sweep_point.json"
"""Says in each folder which preference and which backbones it was made from, and what saving lost."""

_EQUAL = 1e-9
"""Preferences that differ by less are one, written in two ways."""

_MAY_BE_MISSING = ("preset", "rank", "dtype")
"""What the record of a soup says only where it was asked for."""

_LONGEST_NAME = 80
_NO_FOLDER = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices."""

__all__ = ["sweep"]


@dataclass(frozen=True)
class _Point:
    folder: Path
    preference_N: FloatArray
    coefficients_N: FloatArray
    record: dict[str, Any]

    @property
    def asked_for(self) -> str:
        """The preference as it is told in a message: the name of a preset, or its shares."""
        return repr(self.record.get("preset") or self.preference_N.tolist())

    def is_done(self) -> bool:
        try:
            found = json.loads((self.folder / POINT_FILE).read_text(encoding="utf-8"))
            return all(found.get(key) == self.record.get(key) for key in (*self.record, *_MAY_BE_MISSING))
        except (OSError, ValueError, AttributeError):
            return False

    def sign(self, folder: Path, rounding_loss: float | None, compression_error: float | None = None) -> None:
        compressed = {} if "rank" not in self.record else {"compression_error": compression_error}
        record = {**self.record, "rounding_loss": rounding_loss, **compressed}
        text = json.dumps(record, indent=2, ensure_ascii=False)
        (folder / POINT_FILE).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Options:
    full: bool
    extrapolation: float | Sequence[float]
    rank: int | None
    dtype: torch.dtype | None
    overwrite: bool
    allow_nan: bool
    show_progress: bool

    def record(self) -> dict[str, Any]:
        """Return what a soup's record says of them, if they are not the usual ones."""
        rank = {} if self.rank is None else {"rank": self.rank}
        return rank if self.dtype is None else {**rank, "dtype": str(self.dtype).removeprefix("torch.")}


def sweep(
    path: str | Path,
    out: str | Path,
    preferences: FloatArray | Sequence[Preference],
    *,
    full: bool = False,
    extrapolation: float | Sequence[float] = 0.0,
    rank: int | None = None,
    dtype: torch.dtype | str | None = None,
    overwrite: bool = False,
    base_model: str | Path | None = None,
    revision: str | None = None,
    allow_nan: bool = False,
    show_progress: bool = True,
) -> list[Path]:
    """Write the soups of K preferences into `out`, one folder each: `mu-0.70-0.30`, or the name of a preset.

    A preference that is given by the name of a preset has a folder of that name, whatever its shares.
    Characters that file systems may not take are replaced, and a hash of the name is then added. Equal
    preferences without a name are written once.

    Adapter soups become K adapters, made from the adapter files alone, or with `full` K full
    checkpoints. For full backbones every input is read once and all K checkpoints are written in
    that one pass. An interrupted sweep is resumed by calling it again: a folder that is already there
    from the same preference, extrapolation and backbones is kept, and a pass goes on where it was.

    Args:
        path: folder of soup.json, or Hub id.
        out: the folder for the K folders.
        preferences: μ, shape (K, N), or K dicts by objective name or names of presets.
        full: write full checkpoints. Soups of full checkpoints always do.
        extrapolation: α, the same for every preference.
        rank: compress the adapters to this rank; by default they are exact, see `merge`.
        dtype: of full checkpoints; by default that of the base model or backbones.
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
        ConfigurationError: for a rank below 1, or one for full checkpoints; for a dtype that no
            checkpoint has, or one for adapters.

    Warns:
        RoundingWarning: for each full checkpoint whose dtype loses more than 1 % of the soup's effect.
    """
    source = open_soup(path, base_model=base_model, revision=revision)
    full = full or source.kind == "full"
    check_rank(rank, full=full)
    dtype = check_dtype(dtype, full=full)
    options = _Options(full, extrapolation, rank, dtype, overwrite, allow_nan, show_progress)
    asked = _points(source, Path(out), preferences, options)
    points = list({point.folder: point for point in asked}.values())
    for point in points:
        tidy_up(point.folder)
    pending = [point for point in points if not point.is_done()]
    for point in pending:
        check_target(point.folder, overwrite=overwrite, inputs=source.inputs())
    if pending:
        write = _write_full_backbones if source.kind == "full" else _write_merged if full else _write_adapters
        write(source, pending, options)
    else:
        remove_finished_pass(Path(out))
    return [point.folder for point in asked]


def _points(
    source: SoupSource, out: Path, preferences: FloatArray | Sequence[Preference], options: _Options
) -> list[_Point]:
    """Return what is to be written, in the order of the preferences; equal ones are one and the same.

    Raises:
        SoupError: if there is none, or two that are not equal would have one folder.
    """
    names = source.manifest.objective_names
    preferences = list(preferences)
    soups = [one_soup(source.manifest, preference, options.extrapolation) for preference in preferences]
    origin = _fingerprint(source)  # looks at the backbones, which may have to be fetched
    asked: list[_Point] = []
    points: dict[str, _Point] = {}
    for preference, (mu_N, lambda_N) in zip(preferences, soups, strict=True):
        preset = str(preference) if isinstance(preference, str) else None
        record = {
            **({} if preset is None else {"preset": preset}),
            "preference": dict(zip(names, mu_N.tolist(), strict=True)),
            "coefficients": lambda_N.tolist(),
            "full": options.full,
            "backbones": origin,
            **options.record(),
        }
        name = _folder_name(mu_N if preset is None else preset, options.extrapolation)
        point = _Point(out / name, mu_N, lambda_N, record)
        there = points.setdefault(name.casefold(), point)  # which on some file systems is the same folder
        _check_equal(there, point)
        asked.append(there)
    if not asked:
        raise SoupError("A sweep needs at least one preference; got none. `simplex_grid(n)` makes a grid.")
    return asked


def _check_equal(first: _Point, second: _Point) -> None:
    """Check that two preferences with one folder are the same preference."""
    if first.record.get("preset") == second.record.get("preset"):
        if np.abs(first.preference_N - second.preference_N).max() < _EQUAL:
            return
        raise SoupError(
            f"The preferences {first.asked_for} and {second.asked_for} differ by less than 1e-6, so that their "
            f"folder is the same, {first.folder}. Leave one out, or give each a name with `SoupManifest.with_preset`."
        )
    raise SoupError(
        f"The preferences {first.asked_for} and {second.asked_for} would both be written to {first.folder}. "
        "Rename one of the presets, or sweep them into different folders."
    )


def _write_adapters(source: SoupSource, points: Sequence[_Point], options: _Options) -> None:
    from trl_bonesoup.soup.threads import in_order

    exact, backbone = stacked(source, allow_nan=options.allow_nan), source.backbones()[0]
    adapters = exact if options.rank is None else CompressedAdapters(exact, options.rank)

    def write(point: _Point) -> None:
        with complete_folder(point.folder, overwrite=options.overwrite) as folder:
            error = adapters.write(point.coefficients_N, folder)
            copy_companions(backbone, folder, with_config=False)
            point.sign(folder, 0.0, error)

    sizes = [adapters.nbytes_at(point.coefficients_N) for point in points]
    with room_for(points[0].folder.parent, sum(sizes)), _progress(points, sum(sizes), options.show_progress) as bar:
        # Where adapters are compressed, the layers of one are divided among threads already.
        written = in_order(write, points) if options.rank is None else map(write, points)
        for size, _ in zip(sizes, written, strict=True):
            bar.update(size)


def _write_merged(source: SoupSource, points: Sequence[_Point], options: _Options) -> None:
    soup = BoneSoup.from_source(source, allow_nan=options.allow_nan)
    size, out = soup.scales.base_bytes(options.dtype), points[0].folder.parent
    with room_for(out, size * len(points)), _progress(points, size * len(points), options.show_progress) as bar:
        for point in points:
            with complete_folder(point.folder, overwrite=options.overwrite) as folder:
                loss = write_merged(soup, point.coefficients_N, folder, options.dtype, allow_nan=options.allow_nan)
                point.sign(folder, loss)
            warn_about_rounding(loss, point.folder)
            bar.update(size)


def _write_full_backbones(source: SoupSource, points: Sequence[_Point], options: _Options) -> None:
    from trl_bonesoup.soup.streaming import piece_layout, write_soups

    out, records, names = points[0].folder.parent, [p.record for p in points], [p.folder.name for p in points]
    coefficients_KN = np.array([point.coefficients_N for point in points])
    ingredients = open_ingredients(source, coefficients_KN)
    size = ingredients.soup_bytes(options.dtype)
    needed = size * len(points) - unfinished_bytes(out)
    with room_for(out, needed), unfinished_pass(out, records, names, piece_layout()) as unfinished:
        with _progress(points, size * len(points), options.show_progress) as bar:
            losses = write_soups(
                ingredients,
                coefficients_KN,
                unfinished.folders,
                dtype=options.dtype,
                allow_nan=options.allow_nan,
                report=bar.update,
                progress=unfinished,
            )
        for point, folder, loss in zip(points, unfinished.folders, losses, strict=True):
            copy_companions(source.backbones()[0], folder, with_config=True)
            record_dtype(folder, options.dtype)
            point.sign(folder, loss)
        unfinished.finish([point.folder for point in points])
    for point, loss in zip(points, losses, strict=True):
        warn_about_rounding(loss, point.folder)


def _progress(points: Sequence[_Point], needed: int, show: bool) -> Any:
    """Say that so many bytes will be written in all, and return a progress bar."""
    from tqdm import tqdm

    if show:
        soups = "1 soup" if len(points) == 1 else f"{len(points)} soups"
        print(f"Writing {soups}, {size_text(needed)} in all, to {points[0].folder.parent}", file=sys.stderr)
    return tqdm(total=needed, unit="B", unit_scale=True, desc="sweep", disable=not show)


def _folder_name(preference: FloatArray | str, extrapolation: float | Sequence[float]) -> str:
    name = _safe_name(preference) if isinstance(preference, str) else "mu-" + "-".join(map(_decimals, preference))
    alphas = np.atleast_1d(np.asarray(extrapolation, dtype=np.float64))
    return f"{name}_alpha-" + "-".join(map(_decimals, alphas)) if alphas.any() else name


def _safe_name(preset: str) -> str:
    """Return the name of a preset as a folder may have it: itself, or made safe and with a hash of what it was.

    >>> _safe_name("cautious"), _safe_name("Dr. Eve / Ltd")
    ('cautious', 'Dr.-Eve-Ltd-5e4dadfd')
    """
    safe = re.sub(r"[^\w.-]+", "-", preset)[:_LONGEST_NAME].strip("-._")
    if safe == preset and not _NO_FOLDER.fullmatch(safe):
        return safe
    return f"{safe or 'preset'}-{hashlib.sha256(preset.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


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
