"""What the Hub reads of a card: its metadata, left out where it is not known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.markdown import is_local_path, one_line

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

TAG = "bone-soup"
"""By which every card of ours is known."""

YOUR_BASE_MODEL = "path/to/the/base/model"

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")

__all__ = ["TAG", "YOUR_BASE_MODEL", "card_data", "hub_id", "is_license"]


def hub_id(name: str | None) -> str | None:
    """Return `name` if it can be an id on the Hub, else None."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not name or is_local_path(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def is_license(name: str) -> bool:
    """Return whether `name` has the form of an identifier that the Hub knows licenses by."""
    return _LICENSE.fullmatch(name) is not None


def card_data(
    base_model: str | None,
    *,
    relation: Literal["adapter", "merge", "finetune"],
    library_name: str,
    tags: Sequence[str],
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
    results: list[EvalResult] | None = None,
    results_of: str | None = None,
) -> ModelCardData:
    """Return the metadata of a card.

    Args:
        base_model: Hub id of the base model; None for one that is not on the Hub.
        relation: what the model is to its base.
        library_name: of the library that loads it.
        tags: beside `TAG`; each is named once.
        license: as the Hub names it, such as "apache-2.0".
        language: ISO 639 codes of the languages it speaks, such as "en".
        datasets: Hub ids of the data sets it was trained on.
        results: of the model that the card is about.
        results_of: name of that model.

    Raises:
        ConfigurationError: for a license, a language or a data set that the Hub would not know.
    """
    from huggingface_hub import ModelCardData

    if license is not None and not is_license(license):
        raise ConfigurationError(
            f"license must be an identifier as the Hub names them, such as apache-2.0, mit or other; got {license!r}."
        )
    languages, sets = _listed(language), _listed(datasets)
    for entry in languages or []:
        if not _LANGUAGE.fullmatch(entry):
            raise ConfigurationError(
                f'A language is an ISO 639 code such as en or zh, or "multilingual"; got {entry!r}.'
            )
    for entry in sets or []:
        if hub_id(entry) is None:
            raise ConfigurationError(f"A card names data sets by their id on the Hub, such as org/name; got {entry!r}.")
    return ModelCardData(
        license=license,
        language=languages,
        base_model=base_model,
        base_model_relation=relation if base_model else None,
        datasets=sets,
        library_name=library_name,
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys([TAG, *tags])),
        model_name=one_line(results_of or "") if results else None,
        eval_results=results,
    )


def _listed(values: str | Sequence[str] | None) -> list[str] | None:
    if values is None:
        return None
    return [values] if isinstance(values, str) else list(values) or None
