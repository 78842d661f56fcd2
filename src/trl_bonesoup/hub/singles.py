"""Soups of single preferences as repositories: what they are called and what is in them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack

import numpy as np

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.front import Front
from trl_bonesoup.hub.describe import PICTURE, CardMetadata, describe_soup
from trl_bonesoup.hub.family import PublishedBase, model_files, safe_name
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.privacy import Content
from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.parts import copy_companions
from trl_bonesoup.soup.record import FILE_NAME as RECORD
from trl_bonesoup.soup.source import SoupSource
from trl_bonesoup.soup.tokenizers import has_tokenizer
from trl_bonesoup.weights import FloatArray

LONGEST_NAME = 96
"""Characters of a repository's name on the Hub, without its namespace."""
_HASH = 8

__all__ = ["SingleSoup", "single_soups"]


@dataclass(frozen=True)
class SingleSoup:
    """One preference of a family, as a repository of its own.

    Attributes:
        repo_id: its id.
        preference_N: μ.
        extrapolation: α.
        full: a full checkpoint rather than an adapter.
    """

    repo_id: str
    preference_N: FloatArray
    extrapolation: float | Sequence[float]
    full: bool

    @contextmanager
    def files(
        self,
        source: SoupSource,
        published: SoupSource,
        base: PublishedBase,
        *,
        front: Front | None,
        family: str,
        **metadata: Unpack[CardMetadata],
    ) -> Iterator[dict[str, Content]]:
        """Make the soup in a temporary folder and give its files, with its card, for as long as the block lasts.

        Args:
            source: the soup on this machine.
            published: the same as others will find it.
            base: where they will find the base model.
            front: measurements of the family.
            family: Hub id of the family.
            **metadata: for the card.
        """
        with TemporaryDirectory(prefix="bonesoup-push-") as temporary:
            out = Path(temporary) / "soup"
            where = (source.snapshot.repo, source.snapshot.commit) if source.snapshot else (source.folder, None)
            merge(
                where[0],
                out,
                self.preference_N,
                revision=where[1],
                extrapolation=self.extrapolation,
                full=self.full,
                base_model=source.base_override,
            )
            if base.folder is not None and not has_tokenizer(out):
                copy_companions(base.folder, out, with_config=False)
            describe_soup(
                published,
                out,
                self.preference_N,
                self.extrapolation,
                full=self.full,
                front=front,
                name=self.repo_id,
                family=family,
                **metadata,
            )
            files = model_files(out, "full" if self.full else "adapter", base)
            yield {**files, **{name: out / name for name in ("README.md", PICTURE, RECORD) if (out / name).is_file()}}


def single_soups(
    repo_id: str,
    manifest: SoupManifest,
    preferences: Sequence[FloatArray],
    extrapolation: float | Sequence[float],
    *,
    full: bool,
) -> list[SingleSoup]:
    """Return the repositories of K preferences, called after the family: `org/name-helpful-0.7-harmless-0.3`.

    Shares have up to four digits. A name that is too long or that two preferences would have gets the beginning of
    a hash of its preference.

    Raises:
        WeightsError: for an extrapolation that the mathematics does not allow.
        ConfigurationError: for the same preference twice, or a family whose name leaves no room.
    """
    if not preferences:
        return []
    preferences_KN = np.stack(preferences)
    manifest.coefficients(preferences_KN, extrapolation)
    is_full = full or any(backbone.kind == "full" for backbone in manifest.backbones)
    ending = _ending(extrapolation) + ("-full" if full and manifest.backbones[0].kind == "adapter" else "")
    if len(np.unique(preferences_KN, axis=0)) < len(preferences_KN):
        raise ConfigurationError("The same preference was given twice; each gets one repository.")
    namespace, _, family = repo_id.rpartition("/")
    plain = [
        f"{family}-{'-'.join(f'{safe_name(name)}-{_number(share)}' for name, share in _shares(manifest, mu_N))}{ending}"
        for mu_N in preferences_KN
    ]
    shared = Counter(plain)
    names = [
        _hashed(name, mu_N, ending) if shared[name] > 1 or len(name) > LONGEST_NAME else name
        for name, mu_N in zip(plain, preferences_KN, strict=True)
    ]
    if len(family) + len(ending) + _HASH + 2 > LONGEST_NAME:
        raise ConfigurationError(
            f"The name {family!r} is too long for repositories that are called after it: with their preference they "
            f"may have {LONGEST_NAME} characters."
        )
    return [
        SingleSoup(f"{namespace}/{name}", mu_N, extrapolation, is_full)
        for name, mu_N in zip(names, preferences_KN, strict=True)
    ]


def _shares(manifest: SoupManifest, mu_N: FloatArray) -> Iterator[tuple[str, float]]:
    return zip(manifest.objective_names, mu_N.tolist(), strict=True)


def _hashed(name: str, mu_N: FloatArray, ending: str) -> str:
    digest = hashlib.sha256(np.asarray(mu_N, dtype="<f8").tobytes()).hexdigest()[:_HASH]
    kept = name.removesuffix(ending)[: LONGEST_NAME - len(ending) - _HASH - 1]
    return f"{kept.strip('-._')}-{digest}{ending}"


def _ending(extrapolation: float | Sequence[float]) -> str:
    alphas = np.atleast_1d(np.asarray(extrapolation, dtype=np.float64))
    return f"-alpha-{'-'.join(map(_number, alphas))}" if alphas.any() else ""


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")
