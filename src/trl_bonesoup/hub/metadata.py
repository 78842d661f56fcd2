"""What the Hub reads of a card: its metadata, left out where it is not known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.front import FrontPoint
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.markdown import code, is_local_path, last_folder, one_line

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

TAG = "bone-soup"
"""By which every card of ours is known."""

YOUR_BASE_MODEL = "path/to/the/base/model"

PUBLISHED_BASE = "base"
"""Folder of a family's repository in which a push puts a base model that is on no Hub."""

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")

__all__ = ["TAG", "BaseModelName", "base_model_name", "card_data", "eval_results", "hub_id"]


class BaseModelName(NamedTuple):
    """How a card names the model that every backbone started from.

    Attributes:
        hub_id: its id on the Hub; None for a folder.
        shown: what people are shown: the id, or the last part of the folder.
        argument: what a reader has to pass as the base model, because soup.json names a folder of the machine
            that trained; None if soup.json alone is enough.
    """

    hub_id: str | None
    shown: str
    argument: str | None

    def source(self, revision: str | None) -> str:
        """Return the name with what is known of where the model lies, as Markdown."""
        where = ""
        if self.hub_id is None:
            where = (
                ", a folder beside `soup.json`" if self.argument is None else ", a local folder where this was trained"
            )
        return code(self.shown) + where + (f", revision {code(revision)}" if revision else "")


def base_model_name(manifest: SoupManifest, base_model: str | None, folder: str | Path | None) -> BaseModelName:
    """Return the base model's name.

    Args:
        manifest: what was trained.
        base_model: Hub id that stands for the one that soup.json records.
        folder: where soup.json lies; what exists beside it is a folder and not a Hub id.
    """
    recorded = manifest.base_model.id
    name = base_model or recorded
    if base_model is None and not is_local_path(name) and _is_beside(name, folder):
        return BaseModelName(None, last_folder(name), None)
    found = hub_id(name)
    if found is None:
        return BaseModelName(None, last_folder(name), YOUR_BASE_MODEL)
    return BaseModelName(found, found, None if found == recorded else found)


def _is_beside(name: str, folder: str | Path | None) -> bool:
    return name == PUBLISHED_BASE or (folder is not None and (Path(folder) / name).exists())


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


def card_data(
    base: BaseModelName,
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
        base: the base model, named only if it is on the Hub.
        relation: what the model is to its base.
        library_name: of the library that loads it.
        tags: beside `TAG`.
        license: as the Hub names it, such as "apache-2.0".
        language: ISO 639 codes of the languages it speaks, such as "en".
        datasets: Hub ids of the data sets it was trained on.
        results: of the model that the card is about.
        results_of: name of that model.

    Raises:
        ConfigurationError: for a license, a language or a data set that the Hub would not know.
    """
    from huggingface_hub import ModelCardData

    if license is not None and not _LICENSE.fullmatch(license):
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
        base_model=base.hub_id,
        base_model_relation=relation if base.hub_id else None,
        datasets=sets,
        library_name=library_name,
        pipeline_tag="text-generation",
        tags=[TAG, *tags],
        model_name=one_line(results_of or "") if results else None,
        eval_results=results,
    )


def eval_results(manifest: SoupManifest, point: FrontPoint) -> list[EvalResult]:
    """Return each objective's mean reward, with its interval in the name of the metric."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="evaluation-prompts",
            dataset_name="Prompts of the evaluation",
            metric_type=one_line(objective),
            metric_name=f"{one_line(objective)}, mean reward (95% interval {low:.4g} to {high:.4g})",
            metric_value=float(reward),
        )
        for objective, reward, (low, high) in zip(
            manifest.objective_names, point.rewards_N, point.intervals_N2, strict=True
        )
    ]


def _listed(values: str | Sequence[str] | None) -> list[str] | None:
    if values is None:
        return None
    return [values] if isinstance(values, str) else list(values) or None
