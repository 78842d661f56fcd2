"""The model card of one soup: its metadata for the Hub and a text that claims only what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trl_bonesoup.card_metadata import YOUR_BASE_MODEL, card_data
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.front import Front, FrontPoint
from trl_bonesoup.hub import examples, tables, trained
from trl_bonesoup.hub.layout import plot_name, render
from trl_bonesoup.hub.measured import (
    OTHER_RUNS,
    OTHER_TRAINING,
    SAME_COEFFICIENT,
    check_comparable,
    has_row,
    how_measured,
    measured_point,
)
from trl_bonesoup.hub.metadata import BaseModelName, base_model_name, eval_results
from trl_bonesoup.hub.reward_tables import reward_table
from trl_bonesoup.manifest import Preference, SoupManifest
from trl_bonesoup.markdown import code
from trl_bonesoup.soup.record import SavedSoup
from trl_bonesoup.soup.rounding import LARGE_LOSS
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

TAGS = ["model-merging", "merge", "trl", "rlhf", "multi-objective"]

__all__ = ["soup_card"]


def soup_card(
    manifest: SoupManifest,
    preference: Preference,
    *,
    kind: Literal["adapter", "full"],
    extrapolation: float | Sequence[float] = 0.0,
    saved: SavedSoup | None = None,
    front: Front | None = None,
    compared: Mapping[str, Front] | None = None,
    plot_path: str | Path | None = None,
    mergekit_yaml: str | None = None,
    name: str | None = None,
    family: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    datasets: str | Sequence[str] | None = None,
    base_model: str | None = None,
    folder: str | Path | None = None,
    has_tokenizer: bool = True,
) -> ModelCard:
    """Return the model card of the soup at one preference.

    Rewards, and what saving the soup lost of it, are stated only if `front` and `saved` measured these
    very coefficients. Text from soup.json and from the arguments is shown as code, in which no markup
    works, and local folders by their last part.

    Args:
        manifest: what was trained.
        preference: μ of the soup, by name or in the order of the objectives.
        kind: what was saved: one "adapter" or a "full" checkpoint.
        extrapolation: α of the soup, see `merging_coefficients`.
        saved: what is known of how it was saved, see `SavedSoup.read`.
        front: measurements of this family of soups.
        compared: fronts of other methods by name, such as Rewarded Soups, measured on the same prompts with
            the same settings; shown beside this soup where they measured its preference.
        plot_path: a picture of the front, which `write_card` copies beside the card.
        mergekit_yaml: the recipe that reproduces the soup.
        name: what to call it; a Hub id also goes into the examples of how to load it.
        family: Hub id of all backbones together, for the examples of other preferences.
        license: as the Hub names it, such as "apache-2.0". Left out if unknown.
        language: ISO 639 codes of the languages that the model speaks.
        datasets: Hub ids of the data sets whose prompts were trained on.
        base_model: Hub id of the base model, for a soup.json that records a local copy of it.
        folder: where soup.json lies, which tells a relative path to the base model from a Hub id.
        has_tokenizer: whether the tokenizer was saved with the soup; else that of the base model is loaded.

    Raises:
        WeightsError: for a preference or extrapolation that the mathematics does not allow.
        FrontError: for a front of other objectives or other training, or one that cannot be compared.
        ConfigurationError: for another kind, metadata that the Hub would not know, a picture that no card
            can show, or a recipe that is not YAML.
    """
    if kind not in ("adapter", "full"):
        raise ConfigurationError(f'kind must be "adapter" or "full"; got {kind!r}.')
    preference_N = manifest.preference(preference)
    if preference_N.ndim != 1:
        raise ConfigurationError(f"A card is about one preference; got {len(preference_N)} of them.")
    coefficients_N = manifest.coefficients(preference_N, extrapolation)
    point = measured_point(front, manifest, preference_N, coefficients_N)
    if compared and front is None:
        raise ConfigurationError("Other methods are compared with this soup's own front; give it as `front`, too.")
    if front is not None:
        check_comparable(front, compared or {})
    lost = _lost(saved, coefficients_N, kind)
    is_whole = lost is None or lost <= LARGE_LOSS
    base = base_model_name(manifest, base_model, folder)
    title = name or f"Bone Soup of {base.shown}"
    data = card_data(
        base.hub_id,
        relation="adapter" if kind == "adapter" else "merge",
        library_name="peft" if kind == "adapter" else "transformers",
        tags=trained.tags(manifest, TAGS),
        license=license,
        language=language,
        datasets=datasets,
        results=eval_results(manifest, point) if point and is_whole else None,
        results_of=title,
    )
    sft_share = 1.0 - float(coefficients_N.sum())
    extrapolated = bool(np.any(np.asarray(extrapolation) != 0.0))
    return render(
        data,
        "soup.md",
        title=code(name) if name else f"Bone Soup of {code(base.shown)}",
        what="an adapter for" if kind == "adapter" else "a model made from",
        base=code(base.shown),
        preference=tables.mixture(preference_N, manifest.objective_names, ", ", "{name} {share}"),
        n_backbones=len(manifest.backbones),
        elsewhere=trained.elsewhere(manifest),
        preference_table=tables.preference_table(manifest, preference_N),
        formula="Σ_j λ_j·θ_j" + (" + (1 - Σλ)·θ_sft" if extrapolated else ""),
        right_side=tables.right_side(extrapolation) if extrapolated else "μ",
        coefficient_table=tables.coefficient_table(manifest, coefficients_N, sft_share if extrapolated else None),
        negative=bool((coefficients_N.round(4) < 0.0).any()),
        precision=_precision(saved, lost) if saved and lost is not None else None,
        **_measured(front, point, compared or {}),
        measured_whole="" if is_whole else " They are those of the whole soup, before it was saved as this model.",
        plot=plot_name(plot_path) if plot_path else None,
        plot_says="Mean rewards of the soups over a grid of preferences" + (", this soup ringed" if point else ""),
        **_examples(manifest, kind, base, name, family, has_tokenizer),
        merge_command=examples.merge_command(
            manifest,
            base,
            family,
            preference_N,
            extrapolation,
            full=kind == "full" and _of_adapters(manifest),
            rank=saved.rank if saved and lost is not None else None,
        ),
        **examples.recipe(manifest, mergekit_yaml, base, family),
        base_source=base.source(manifest.base_model.revision),
        objective_table=tables.objective_table(manifest),
        training_table=tables.training_table(manifest),
        settings_table=tables.settings_table(manifest),
        versions=tables.versions(manifest),
        not_measured=_not_measured(point, compared or {}, rounding=kind == "full" and lost is None),
    )


def _lost(saved: SavedSoup | None, coefficients_N: FloatArray, kind: str) -> float | None:
    """Return what saving this very soup lost; None if that was not measured."""
    if saved is None or saved.full != (kind == "full") or saved.coefficients.shape != coefficients_N.shape:
        return None
    return saved.lost if np.abs(saved.coefficients - coefficients_N).max() <= SAME_COEFFICIENT else None


def _precision(saved: SavedSoup, lost: float) -> str | None:
    share = f"{lost:.2%}" if lost >= 5e-5 else "less than 0.01%"
    if saved.rank is not None:
        text = (
            f"This adapter was compressed to rank {saved.rank}, layer by layer to the nearest of that rank. It loses "
            f"{share} of the soup's effect, ‖ΔW_r - ΔW‖ / ‖ΔW‖ over all layers."
        )
        remedy = "A higher rank loses less, and the adapter that is not compressed (without `rank`) loses nothing."
    elif saved.full:
        text = (
            f"Rounding the weights to their dtype loses {share} of the soup's effect, ‖rounded - exact‖ / "
            "‖exact - base‖ over all weights."
        )
        remedy = "Saved in float32, or as an adapter if its backbones are adapters, the soup keeps its whole effect."
    else:
        return None
    return f"{text} {remedy}" if lost > LARGE_LOSS else text


def _measured(front: Front | None, point: FrontPoint | None, compared: Mapping[str, Front]) -> dict[str, Any]:
    if front is None or point is None:
        return {
            "reward_table": None,
            "why_not_measured": " at these coefficients" if front is not None else "",
            "others": "",
        }
    beside = [code(name) for name, other in compared.items() if has_row(other, point.preference_N)]
    return {
        "reward_table": reward_table(front, point, compared),
        "how_measured": how_measured(front, point.n_samples_N),
        "others": f", and {' and '.join(beside)} at the same preference, on the same prompts with the same settings"
        if beside
        else "",
    }


def _examples(
    manifest: SoupManifest, kind: str, base: BaseModelName, name: str | None, family: str | None, has_tokenizer: bool
) -> dict[str, Any]:
    where = examples.place(name, examples.THIS_FOLDER)
    tokenizer = where if has_tokenizer else base.hub_id or YOUR_BASE_MODEL
    soup_example = examples.soup_example(manifest, base, family)
    if kind == "full":
        says = "With PEFT, after writing the soup as an adapter (`bonesoup merge`, below, without `--full`)"
        adapter = examples.adapter_example("out", base, tokenizer) if _of_adapters(manifest) else None
        return {
            "transformers_example": examples.transformers_example(where, tokenizer),
            "adapter_says": says,
            "adapter_example": adapter,
            "soup_example": soup_example,
        }
    return {
        "transformers_example": examples.transformers_example(where, tokenizer, base.argument),
        "needs_peft": ", and PEFT installed",
        "adapter_says": "With PEFT",
        "adapter_example": examples.adapter_example(where, base, tokenizer),
        "soup_example": soup_example,
    }


def _of_adapters(manifest: SoupManifest) -> bool:
    return all(backbone.kind == "adapter" for backbone in manifest.backbones)


def _not_measured(point: FrontPoint | None, compared: Mapping[str, Front], *, rounding: bool) -> list[str]:
    gaps = ["The rewards of this soup; nothing here says how well it meets the preference."]
    if point is not None:
        missing = [name for name, other in compared.items() if not has_row(other, point.preference_N)]
        gaps = [OTHER_RUNS, *(f"{code(name)} at this preference." for name in missing)]
        gaps += [OTHER_TRAINING] if len(missing) < len(compared) else []
    return gaps + (["What rounding the weights to their dtype loses of the soup's effect."] if rounding else [])
