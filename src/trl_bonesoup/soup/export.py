"""Writing one soup as a model of its own: one adapter, one full checkpoint, or the YAML for mergekit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trl_bonesoup.errors import ConfigurationError, WeightsError
from trl_bonesoup.manifest import Preference, SoupManifest
from trl_bonesoup.soup.compress import CompressedAdapters, check_rank
from trl_bonesoup.soup.dtypes import check_dtype, record_dtype
from trl_bonesoup.soup.folders import check_target, complete_folder, room_for
from trl_bonesoup.soup.lora import BoneSoup
from trl_bonesoup.soup.parts import copy_companions, open_ingredients, stacked, write_merged
from trl_bonesoup.soup.recipe import mergekit_yaml
from trl_bonesoup.soup.record import SavedSoup
from trl_bonesoup.soup.rounding import warn_about_rounding
from trl_bonesoup.soup.source import SoupSource, open_soup
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    import torch

__all__ = ["Export", "merge", "mergekit_yaml", "save_soup"]


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: the folder.
        coefficients: λ of the soup, shape (N,).
        full: a full checkpoint rather than an adapter.
        rounding_loss: the share of the soup's effect, ‖rounded - exact‖ / ‖exact - base‖, that the
            output dtype loses. 0 for an adapter; None if there was no base model to compare with.
        rank: to which the adapter was compressed; None if it is exact.
        compression_error: the share of the soup's effect, ‖ΔW_r - ΔW‖ / ‖ΔW‖, that compressing it
            lost; 0 if it is exact, None for a full checkpoint.
    """

    path: Path
    coefficients: FloatArray
    full: bool
    rounding_loss: float | None
    rank: int | None = None
    compression_error: float | None = None


Finish = Callable[[Export], object]


def _nothing_more(export: Export) -> None:
    """Add nothing to an export."""


def merge(
    path: str | Path,
    out: str | Path,
    preference: Preference,
    *,
    extrapolation: float | Sequence[float] = 0.0,
    full: bool = False,
    rank: int | None = None,
    overwrite: bool = False,
    base_model: str | Path | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str | None = None,
    allow_nan: bool = False,
    finish: Finish = _nothing_more,
) -> Export:
    """Write the soup of one preference, loading no more than that takes.

    An adapter is made from the adapter files alone; full backbones are streamed; only a full
    checkpoint of an adapter soup loads the base model.

    Args:
        path: folder of soup.json, or Hub id.
        out: the folder to write, which appears complete or not at all.
        preference: μ in the order of the objectives, or a dict by objective name.
        extrapolation: α, see `trl_bonesoup.merging_coefficients`.
        full: write a full checkpoint. Soups of full checkpoints always do.
        rank: compress the adapter to this rank, the best approximation of each layer; by default it
            is exact, with the sum of the backbones' ranks.
        overwrite: replace a model that is already in `out`.
        base_model: Hub id or folder to use in place of the recorded base model.
        revision: of the soup on the Hub.
        dtype: of a full checkpoint; by default that of the base model or backbones.
        max_shard_size: of the files of a full checkpoint made from adapters, in bytes or like "5GB"; by
            default that of transformers. A soup of full checkpoints has the files of its first backbone.
        allow_nan: write NaN and infinity that the models have already, where they come out.
        finish: called with the export before its folder takes its place, to add a card to it; `path`
            is then the folder beside it.

    Raises:
        SoupError: if the backbones cannot be merged exactly or `out` must not be written.
        ConfigurationError: for a rank below 1, or one for a full checkpoint; for a dtype that no
            checkpoint has, or one for an adapter; for a size of shards that are not cut.

    Warns:
        RoundingWarning: if the dtype of a full checkpoint loses more than 1 % of the soup's effect.
    """
    source = open_soup(path, base_model=base_model, revision=revision)
    check_rank(rank, full=full or source.kind == "full")
    _check_shards(max_shard_size, cut=full and source.kind == "adapter")
    dtype = check_dtype(dtype, full=full or source.kind == "full")
    _, coefficients = one_soup(source.manifest, preference, extrapolation)
    check_target(out, overwrite=overwrite, inputs=source.inputs())
    options = _Options(overwrite, allow_nan, finish)
    if source.kind == "adapter" and full:
        soup = BoneSoup.from_source(source, allow_nan=allow_nan)
        return _save_merged(soup, coefficients, out, dtype, max_shard_size, options)
    if source.kind == "adapter":
        return _save_adapter(source, coefficients, out, rank, options)
    return _save_streamed(source, coefficients, out, dtype, options)


def save_soup(
    soup: BoneSoup,
    coefficients_N: FloatArray,
    out: str | Path,
    *,
    full: bool = False,
    rank: int | None = None,
    overwrite: bool = False,
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str | None = None,
    allow_nan: bool = False,
) -> Export:
    """Write a loaded soup at the given λ, whatever is set in it now; see `merge` for the arguments."""
    check_rank(rank, full=full or soup.source.kind == "full")
    _check_shards(max_shard_size, cut=full and soup.source.kind == "adapter")
    dtype = check_dtype(dtype, full=full or soup.source.kind == "full")
    options = _Options(overwrite, allow_nan)
    if soup.source.kind == "full":
        return _save_streamed(soup.source, coefficients_N, out, dtype, options)
    if not full:
        return _save_adapter(soup.source, coefficients_N, out, rank, options)
    return _save_merged(soup, coefficients_N, out, dtype, max_shard_size, options)


def one_soup(
    manifest: SoupManifest, preference: Preference, extrapolation: float | Sequence[float]
) -> tuple[FloatArray, FloatArray]:
    """Return μ and λ of one soup, both of shape (N,).

    Raises:
        WeightsError: for an invalid preference or extrapolation, or for several preferences.
    """
    mu_N = manifest.preference(preference)
    if mu_N.ndim != 1:
        raise WeightsError(f"A soup has one preference, of shape ({mu_N.shape[-1]},); got shape {mu_N.shape}.")
    return mu_N, manifest.coefficients(mu_N, extrapolation)


def _check_shards(max_shard_size: int | str | None, *, cut: bool) -> None:
    if max_shard_size is not None and not cut:
        raise ConfigurationError(
            f"max_shard_size={max_shard_size!r} (--max-shard-size) is for a full checkpoint made from adapters. An "
            "adapter is one file, and a soup of full checkpoints has the files of its first backbone."
        )


def _save_adapter(
    source: SoupSource, coefficients_N: FloatArray, out: str | Path, rank: int | None, options: _Options
) -> Export:
    exact = stacked(source, allow_nan=options.allow_nan)
    adapters = exact if rank is None else CompressedAdapters(exact, rank)
    with room_for(out, adapters.nbytes_at(coefficients_N)), options.folder(out, source) as folder:
        error = adapters.write(coefficients_N, folder)
        copy_companions(source.backbones()[0], folder, with_config=False)
        return options.signed(Export(folder, coefficients_N, False, 0.0, rank, error), out)


def _save_merged(
    soup: BoneSoup,
    coefficients_N: FloatArray,
    out: str | Path,
    dtype: torch.dtype | None,
    max_shard_size: int | str | None,
    options: _Options,
) -> Export:
    with options.folder(out, soup.source) as folder:
        loss = write_merged(soup, coefficients_N, folder, dtype, max_shard_size, options.allow_nan)
        export = options.signed(Export(folder, coefficients_N, True, loss), out)
    warn_about_rounding(loss, out)
    return export


def _save_streamed(
    source: SoupSource, coefficients_N: FloatArray, out: str | Path, dtype: torch.dtype | None, options: _Options
) -> Export:
    from trl_bonesoup.soup.streaming import write_soups

    ingredients = open_ingredients(source, coefficients_N)
    with room_for(out, ingredients.soup_bytes(dtype)), options.folder(out, source) as folder:
        copy_companions(source.backbones()[0], folder, with_config=True)
        (loss,) = write_soups(ingredients, coefficients_N[None], [folder], dtype=dtype, allow_nan=options.allow_nan)
        record_dtype(folder, dtype)
        export = options.signed(Export(folder, coefficients_N, True, loss), out)
    warn_about_rounding(loss, out)
    return export


@dataclass(frozen=True)
class _Options:
    """What is done alike whichever way a soup is written."""

    overwrite: bool
    allow_nan: bool
    finish: Finish = _nothing_more

    def folder(self, out: str | Path, source: SoupSource) -> AbstractContextManager[Path]:
        return complete_folder(out, overwrite=self.overwrite, inputs=source.inputs())

    def signed(self, export: Export, out: str | Path) -> Export:
        """Write the record of an export, and what the caller adds; return it with the place that it will have."""
        SavedSoup(export.coefficients, export.full, export.rounding_loss, export.rank, export.compression_error).write(
            export.path
        )
        self.finish(export)
        return replace(export, path=Path(out))
