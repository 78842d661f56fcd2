"""What a soup's card tells the Hub: how it names the base model, and what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trl_bonesoup.card_metadata import YOUR_BASE_MODEL, hub_id
from trl_bonesoup.front.front import FrontPoint
from trl_bonesoup.hub.plan import BASE
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.markdown import code, is_local_path, last_folder, one_line

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

__all__ = ["BaseModelName", "base_model_name", "eval_results"]


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
            where = ", a folder beside `soup.json`" if self.argument is None else ", a local folder where this was made"
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
    return name == BASE or (folder is not None and (Path(folder) / name).exists())


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
