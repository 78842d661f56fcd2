"""The model card of a family: the backbones that a soup for any preference is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_bonesoup.card_metadata import card_data
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.front import Front
from trl_bonesoup.hub import examples, tables, trained
from trl_bonesoup.hub.layout import plot_name, render
from trl_bonesoup.hub.measured import (
    OTHER_RUNS,
    OTHER_TRAINING,
    SAME_COEFFICIENT,
    check_comparable,
    check_family_front,
    how_measured,
)
from trl_bonesoup.hub.metadata import base_model_name
from trl_bonesoup.hub.reward_tables import front_table, metrics_table
from trl_bonesoup.manifest import EQUAL, SoupManifest
from trl_bonesoup.markdown import code, number, table
from trl_bonesoup.weights import FloatArray, circulant_weights

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

TAGS = ["model-merging", "trl", "rlhf", "multi-objective"]
LIBRARY = "trl-bonesoup"
"""A folder of backbones is loaded by neither transformers nor PEFT, so the Hub must not offer their snippets."""

__all__ = ["family_card"]


def family_card(
    manifest: SoupManifest,
    *,
    front: Front | None = None,
    compared: Mapping[str, Front] | None = None,
    plot_path: str | Path | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
    base_model: str | None = None,
    folder: str | Path | None = None,
) -> ModelCard:
    """Return the model card of all backbones together, from which anyone can make the soup of any preference.

    Only numbers of `front` and `compared` are stated as measured. Text from soup.json and from the
    arguments is shown as code, in which no markup works, and local folders by their last part.

    Args:
        manifest: what was trained.
        front: measurements of the soups of this family.
        compared: fronts of other methods by name, measured at the same preferences on the same prompts
            with the same settings, whose metrics are shown beside.
        plot_path: a picture of the front, which `write_card` copies beside the card.
        repo_id: what the family is called on the Hub.
        license: as the Hub names it, such as "apache-2.0". Left out if unknown.
        language: ISO 639 codes of the languages that the models speak.
        datasets: Hub ids of the data sets whose prompts were trained on.
        base_model: Hub id of the base model, for a soup.json that records a local copy of it.
        folder: where soup.json lies, which tells a relative path to the base model from a Hub id.

    Raises:
        FrontError: for a front of other objectives or other training, or one that cannot be compared.
        ConfigurationError: for metadata that the Hub would not know, or a picture that no card can show.
    """
    kinds = {backbone.kind for backbone in manifest.backbones}
    adapters = kinds == {"adapter"}
    base = base_model_name(manifest, base_model, folder)
    data = card_data(
        base.hub_id,
        relation="adapter" if adapters else "finetune",
        library_name=LIBRARY,
        tags=trained.tags(manifest, [*TAGS, "peft"] if adapters else TAGS),
        license=license,
        language=language,
        datasets=datasets,
    )
    even_N = manifest.preference(EQUAL)
    one_each = np.array_equal(manifest.weights, np.eye(len(manifest.backbones)))
    names = list(map(code, manifest.objective_names))
    return render(
        data,
        "family.md",
        title=code(repo_id) if repo_id else f"Bone Soup family of {code(base.shown)}",
        n_backbones=len(manifest.backbones),
        elsewhere=trained.elsewhere(manifest),
        stated="one of the rewards" if one_each else "its own mixture of the rewards",
        backbones="adapters for" if adapters else "models fine-tuned from",
        base=code(base.shown),
        objectives=f"{', '.join(names[:-1])} and {names[-1]}",
        soup_example=examples.soup_example(manifest, base, repo_id),
        preset_table=tables.preset_table(manifest),
        rows_example=examples.rows_example(manifest) if adapters else None,
        **_one_model(manifest, base, repo_id, even_N, adapters),
        **examples.recipe(manifest, examples.portable_recipe(manifest, base, even_N), base, repo_id),
        shares=", here one reward each" if one_each else _circulant(manifest.weights),
        negative=bool((np.linalg.inv(manifest.weights) < -SAME_COEFFICIENT).any()),
        formula="θ_sft + Σ_j λ_j·ΔW_j" if adapters else "Σ_j λ_j·θ_j",
        weights_table=_weights_table(manifest),
        **_measured(front, compared or {}, manifest),
        plot=plot_name(plot_path) if plot_path else None,
        base_source=base.source(manifest.base_model.revision),
        objective_table=tables.objective_table(manifest),
        training_table=tables.training_table(manifest),
        settings_table=tables.settings_table(manifest),
        versions=tables.versions(manifest),
        not_measured=_not_measured(front, bool(compared)),
    )


def _one_model(
    manifest: SoupManifest, base: Any, repo_id: str | None, even_N: FloatArray, adapters: bool
) -> dict[str, str | None]:
    if not adapters:
        return {
            "one_model": "As a full checkpoint, which transformers loads like any model:",
            "merge_command": examples.merge_command(manifest, base, repo_id, even_N),
            "other_command": None,
        }
    return {
        "one_model": "As one exact PEFT adapter, without trl-bonesoup to run it:",
        "merge_command": examples.merge_command(manifest, base, repo_id, even_N),
        "other_command": examples.merge_command(manifest, base, repo_id, even_N, full=True),
    }


def _circulant(weights: FloatArray) -> str:
    n, beta = len(weights), float(weights[0, 0])
    if not 1.0 / n < beta <= 1.0 or not np.allclose(weights, circulant_weights(n, beta), rtol=0.0, atol=1e-12):
        return ""
    return f", here β = {number(beta)} of one reward and equal parts of the others"


def _weights_table(manifest: SoupManifest) -> str:
    rows = [
        [code(name), *map(number, row)] for name, row in zip(manifest.objective_names, manifest.weights, strict=True)
    ]
    return table(["Share of", *(f"backbone {j}" for j in range(len(rows)))], rows)


def _measured(front: Front | None, compared: Mapping[str, Front], manifest: SoupManifest) -> dict[str, Any]:
    if front is None:
        if compared:
            raise ConfigurationError(
                "Other methods are compared with this family's own front; give it as `front`, too."
            )
        return {"front_table": None}
    extrapolation = np.atleast_1d(check_family_front(front, manifest))
    check_comparable(front, compared, same_preferences=True)
    found = metrics_table(front, compared)
    return {
        "front_table": front_table(front),
        "how_measured": how_measured(front, front.n_samples_KN),
        "extrapolated": f", with the extrapolation α = {tables.numbers(extrapolation)}" if extrapolation.any() else "",
        "metrics_table": found[0] if found else None,
        "reference": found[1] if found else None,
        "shared": ", which all methods share" if compared else "",
    }


def _not_measured(front: Front | None, compared: bool) -> list[str]:
    if front is None:
        return ["The rewards of any soup; nothing here says how well a preference is met."]
    return [
        "Preferences between those in the table.",
        OTHER_RUNS,
        *([OTHER_TRAINING] if compared else []),
    ]
