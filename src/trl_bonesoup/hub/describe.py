"""Writing the card of a soup or of a family into a folder, with the recipe and the picture that go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from trl_bonesoup.front.front import Front
from trl_bonesoup.hub.card import family_card, soup_card, write_card
from trl_bonesoup.hub.examples import portable_recipe
from trl_bonesoup.hub.measured import measured_point
from trl_bonesoup.hub.metadata import base_model_name
from trl_bonesoup.manifest import Preference
from trl_bonesoup.soup.record import SavedSoup
from trl_bonesoup.soup.source import SoupSource
from trl_bonesoup.soup.tokenizers import has_tokenizer

PICTURE = "front.png"

__all__ = ["CardMetadata", "describe_family", "describe_soup"]


class CardMetadata(TypedDict, total=False):
    """What only people know of a model; see `soup_card`."""

    license: str | None
    language: str | Sequence[str] | None
    datasets: str | Sequence[str] | None
    base_model: str | None


def describe_soup(
    source: SoupSource,
    folder: str | Path,
    preference: Preference,
    extrapolation: float | Sequence[float] = 0.0,
    *,
    full: bool,
    front: Front | None = None,
    compared: Mapping[str, Front] | None = None,
    name: str | None = None,
    family: str | None = None,
    **metadata: Unpack[CardMetadata],
) -> Path:
    """Write the card of a soup at one preference into its folder and return its path.

    The picture of the front rings the soup, if it was measured. Arguments are those of `soup_card`, and
    so is what raises; nothing is written then.

    Args:
        source: where soup.json lies.
        folder: of the soup; what `merge` or `sweep` noted there goes into the card.
        full: a full checkpoint rather than an adapter.
    """
    folder, manifest = Path(folder), source.manifest
    picture = None if front is None else folder / PICTURE
    base = base_model_name(manifest, metadata.get("base_model"), source.folder)
    card = soup_card(
        manifest,
        preference,
        kind="full" if full else "adapter",
        extrapolation=extrapolation,
        saved=SavedSoup.read(folder),
        front=front,
        compared=compared,
        plot_path=picture,
        mergekit_yaml=portable_recipe(manifest, base, preference, extrapolation),
        name=name,
        family=family,
        folder=source.folder,
        has_tokenizer=has_tokenizer(folder),
        **metadata,
    )
    if front is not None and picture is not None:
        mu_N = manifest.preference(preference)
        point = measured_point(front, manifest, mu_N, manifest.coefficients(mu_N, extrapolation))
        front.plot(picture, highlight=point.preference_N if point else None)
    return write_card(folder, card, picture)


def describe_family(
    source: SoupSource,
    folder: str | Path,
    *,
    front: Front | None = None,
    compared: Mapping[str, Front] | None = None,
    repo_id: str | None = None,
    **metadata: Unpack[CardMetadata],
) -> Path:
    """Write the card of all backbones into a folder, which need not be the source's own, and return its path.

    Arguments are those of `family_card`, and so is what raises; nothing is written then.
    """
    folder = Path(folder)
    picture = None if front is None else folder / PICTURE
    card = family_card(
        source.manifest,
        front=front,
        compared=compared,
        plot_path=picture,
        repo_id=repo_id,
        folder=source.folder,
        **metadata,
    )
    if front is not None and picture is not None:
        front.plot(picture)
    return write_card(folder, card, picture)
