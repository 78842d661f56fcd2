"""The model card of one backbone: its metadata for the Hub and a text that claims only what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from trl_bonesoup.card_metadata import YOUR_BASE_MODEL, card_data, hub_id, is_license
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import ScoreStatistics
from trl_bonesoup.markdown import code, fenced, last_folder, number, one_line, table
from trl_bonesoup.training.record import BackboneRecord

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

TAGS = ("trl", "ppo", "rlhf", "multi-objective")
THIS_MODEL = "path/to/this/folder"

__all__ = ["backbone_card", "base_license"]


def backbone_card(
    record: BackboneRecord,
    *,
    name: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
    base_model: str | None = None,
    tags: Sequence[str] = (),
) -> ModelCard:
    """Return the model card of one backbone.

    Rewards are those of the training log, and stated as such. Text from users is shown as code, in which
    no markup works, and local folders by their last part.

    Args:
        record: what was trained, and how.
        name: what to call it.
        repo_id: its id on the Hub, for the examples of how to load it.
        license: as the Hub names it, such as "apache-2.0". Left out if unknown.
        language: ISO 639 codes of the languages that it speaks.
        datasets: Hub ids of the data sets whose prompts were trained on.
        base_model: Hub id of the base model, for a record that names a local copy of it.
        tags: beside those that every backbone has.

    Raises:
        ConfigurationError: for a license, a language, a data set or a base model that the Hub would not know.
    """
    from huggingface_hub import ModelCard

    if base_model and hub_id(base_model) is None:
        raise ConfigurationError(
            f"A card names the base model by its id on the Hub, such as org/name; got {base_model!r}."
        )
    hub_base = base_model or (None if record.is_local else hub_id(record.base_model))
    shown = code(hub_base or last_folder(record.base_model))
    adapter = record.kind == "adapter"
    data = card_data(
        hub_base,
        relation="adapter" if adapter else "finetune",
        library_name="peft" if adapter else "transformers",
        tags=[*TAGS, *map(one_line, tags)],
        license=license,
        language=language,
        datasets=datasets,
    )
    measured = record.training_rewards()
    return ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("card_template.md").read_text(encoding="utf-8"),
        title=code(name) if name else f"Backbone of {shown}",
        base=shown,
        base_source=shown
        + ("" if hub_base else ", a local folder where this was trained")
        + (f", revision {code(record.revision)}" if record.revision else ""),
        mixture=" + ".join(f"{number(o.share)} {code(o.name)}" for o in record.objectives if o.share),
        many=len(record.objectives) > 1,
        column=record.column,
        objective_table=_objective_table(record),
        running=record.running,
        reward_table=_reward_table(record, measured),
        one_entry=len(measured) == 1,
        load_heading="Load the adapter with its base model" if adapter else "Load it like any model",
        load_example=_load_example(repo_id or THIS_MODEL, adapter, hub_base),
        kind="an adapter" if adapter else "the full model",
        steps=record.steps,
        settings_table=_settings_table(record),
        versions=", ".join(f"{code(package)} {code(version)}" for package, version in record.versions.items()),
    )


def base_license(base_model: str, token: str | None = None) -> str | None:
    """Return the license that a model's own card states, None if there is no such card or it cannot be read.

    Args:
        base_model: a folder, or an id on the Hub, whose card is downloaded.
        token: for a base model that is not public.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import HTTPError

    file = Path(base_model) / "README.md"
    if Path(base_model).is_dir() and not file.is_file():
        return None
    try:
        stated = ModelCard.load(file if file.is_file() else base_model, token=token).data.get("license")
    except (OSError, ValueError, HTTPError):
        return None
    return stated if isinstance(stated, str) and is_license(stated) else None


def _objective_table(record: BackboneRecord) -> str:
    rows = [[code(o.name), number(o.share), code(o.reward), _scaling(o.scale)] for o in record.objectives]
    return table(["Objective", "Share", "Reward function", "Normalised score"], rows)


def _scaling(scale: ScoreStatistics | None) -> str:
    return "the score itself" if scale is None else f"(score - {number(scale.mean)}) / {number(scale.std)}"


def _reward_table(record: BackboneRecord, measured: Sequence[tuple[int, dict[str, float]]]) -> str | None:
    if not measured:
        return None
    rows = [
        [code(o.name), *(number(means[o.name]) if o.name in means else "not scored" for _, means in measured)]
        for o in record.objectives
    ]
    return table(["Objective", *(f"Step {step}" for step, _ in measured)], rows)


def _settings_table(record: BackboneRecord) -> str | None:
    rows = [[code(str(key)), code(str(value))] for key, value in record.settings.items()]
    return table(["Setting", "Value"], rows) if rows else None


def _load_example(where: str, adapter: bool, hub_base: str | None) -> str:
    if not adapter:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{where}")',
        ]
    elif hub_base:
        lines = [
            "from peft import AutoPeftModelForCausalLM",
            "from transformers import AutoTokenizer",
            "",
            f'model = AutoPeftModelForCausalLM.from_pretrained("{where}")',
        ]
    else:
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{YOUR_BASE_MODEL}")',
            f'model = PeftModel.from_pretrained(base, "{where}")',
        ]
    return fenced("\n".join([*lines, f'tokenizer = AutoTokenizer.from_pretrained("{where}")']), "python")
