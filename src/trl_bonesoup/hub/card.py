"""The model card of one soup: its metadata for the Hub and a text that claims only what was measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import yaml

from trl_bonesoup.errors import ConfigurationError, FrontError
from trl_bonesoup.front.front import Front, FrontPoint
from trl_bonesoup.manifest import Preference, SoupManifest
from trl_bonesoup.markdown import code, fenced, hide_local_paths, is_local_path, last_folder, one_line, table
from trl_bonesoup.soup.record import SavedSoup
from trl_bonesoup.soup.rounding import LARGE_LOSS
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

FILE_NAME = "README.md"
TAGS = ["bone-soup", "model-merging", "merge", "trl", "rlhf", "multi-objective"]
PLOT_SUFFIXES = (".png", ".svg", ".jpg", ".jpeg", ".webp")

SAME_COEFFICIENT = 1e-6
"""How far the coefficients of a measured soup may be from this one's and still be the same soup."""

__all__ = ["soup_card", "write_card"]


def soup_card(
    manifest: SoupManifest,
    preference: Preference,
    *,
    kind: Literal["adapter", "full"],
    extrapolation: float | Sequence[float] = 0.0,
    saved: SavedSoup | None = None,
    front: Front | None = None,
    plot_path: str | Path | None = None,
    mergekit_yaml: str | None = None,
    name: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    folder: str | Path | None = None,
) -> ModelCard:
    """Return the model card of the soup at one preference.

    Rewards, and what saving the soup lost of it, are stated only if `front` and `saved` measured these
    very coefficients. Text from soup.json and from
    the arguments is shown as code, in which no markup works, and local folders by their last part.

    Args:
        manifest: what was trained.
        preference: μ of the soup, by name or in the order of the objectives.
        kind: what was saved: one "adapter" or a "full" checkpoint.
        extrapolation: α of the soup, see `merging_coefficients`.
        saved: what is known of how it was saved, see `SavedSoup.read`.
        front: measurements of this family of soups.
        plot_path: a picture of the front, which `write_card` copies beside the card.
        mergekit_yaml: the recipe that reproduces the soup.
        name: what to call it; a Hub id also goes into the examples of how to load it.
        license: as the Hub names it, such as "apache-2.0". Left out if unknown.
        base_model: Hub id of the base model, for a soup.json that records a local copy of it.
        folder: where soup.json lies, which tells a relative path to the base model from a Hub id.

    Raises:
        WeightsError: for a preference or extrapolation that the mathematics does not allow.
        FrontError: for a front whose objectives are not those of the soup.
        ConfigurationError: for another kind, a picture that no card can show, or a recipe that is not YAML.
    """
    from huggingface_hub import ModelCard, ModelCardData

    if kind not in ("adapter", "full"):
        raise ConfigurationError(f'kind must be "adapter" or "full"; got {kind!r}.')
    preference_N = manifest.preference(preference)
    if preference_N.ndim != 1:
        raise ConfigurationError(f"A card is about one preference; got {len(preference_N)} of them.")
    coefficients_N = manifest.coefficients(preference_N, extrapolation)
    point = _measured(front, manifest, preference_N, coefficients_N)
    lost = _lost(saved, coefficients_N, kind)
    is_whole = lost is None or lost <= LARGE_LOSS
    hub_base, base = _base_model(manifest, base_model, folder)
    data = ModelCardData(
        license=one_line(license) if license else None,
        base_model=hub_base,
        base_model_relation=("adapter" if kind == "adapter" else "merge") if hub_base else None,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=TAGS,
        model_name=one_line(name or f"Bone Soup of {base}") if point and is_whole else None,
        eval_results=_eval_results(manifest, point) if point and is_whole else None,
    )
    sft_share = 1.0 - float(coefficients_N.sum())
    extrapolated = bool(np.any(np.asarray(extrapolation) != 0.0))
    return ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("card_template.md").read_text(encoding="utf-8"),
        title=code(name) if name else f"Bone Soup of {code(base)}",
        base=code(base),
        base_source=_base_source(base, manifest.base_model.revision, is_local=hub_base is None),
        preference=_mixture(preference_N, manifest.objective_names, ", ", "{name} {share}"),
        n_backbones=len(manifest.backbones),
        preference_table=_preference_table(manifest, preference_N),
        formula="Σ_j λ_j·θ_j" + (" + (1 - Σλ)·θ_sft" if extrapolated else ""),
        right_side=_right_side(extrapolation) if extrapolated else "μ",
        coefficient_table=_coefficient_table(manifest, coefficients_N, sft_share if extrapolated else None),
        negative=bool((coefficients_N.round(4) < 0.0).any()),
        reward_table=_reward_table(front, point) if front and point else None,
        how_measured=_how_measured(front, point) if front and point else None,
        measured_whole="" if is_whole else " They are those of the whole soup, before it was saved as this model.",
        precision=_precision(saved, lost) if saved and lost is not None else None,
        rounding_unknown=kind == "full" and lost is None,
        why_not_measured=" at these coefficients" if front and not point else "",
        plot=_plot_name(plot_path) if plot_path else None,
        load_heading="Load the adapter with its base model" if kind == "adapter" else "Load it like any model",
        load_example=_load_example(kind, name),
        soup_example=_soup_example(manifest),
        objective_table=_objective_table(manifest),
        backbone_table=_backbone_table(manifest),
        settings_table=_settings_table(manifest),
        versions=", ".join(f"{code(package)} {code(version)}" for package, version in manifest.versions.items()),
        **_recipe(mergekit_yaml),
    )


def write_card(folder: str | Path, card: ModelCard, plot_path: str | Path | None = None) -> Path:
    """Save a card as README.md into the folder of its soup, with the picture beside it, and return its path.

    Args:
        folder: where the adapter or checkpoint was saved; an older README.md there is replaced.
        card: from `soup_card`.
        plot_path: the same as given to `soup_card`.

    Raises:
        ConfigurationError: for a picture that no card can show or that does not exist.
    """
    target = Path(folder) / FILE_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    if plot_path is not None:
        source, copy = Path(plot_path), target.with_name(_plot_name(plot_path))
        if not source.is_file():
            raise ConfigurationError(f"There is no picture at {source}. Draw it first, with `front.plot(path)`.")
        if not (copy.exists() and copy.samefile(source)):
            shutil.copyfile(source, copy)
    card.save(target)
    return target


def _measured(
    front: Front | None, manifest: SoupManifest, preference_N: FloatArray, coefficients_N: FloatArray
) -> FrontPoint | None:
    """Return the point of the front that is this very soup, if it was measured."""
    if front is None:
        return None
    if tuple(front.objectives) != manifest.objective_names:
        raise FrontError(
            f"The front is over the objectives {list(front.objectives)}, the soup over "
            f"{list(manifest.objective_names)}: give the front that was measured with this soup."
        )
    point = front.nearest(preference_N)
    if point.coefficients_N is None:
        return None
    apart = max(np.abs(point.preference_N - preference_N).max(), np.abs(point.coefficients_N - coefficients_N).max())
    return point if apart <= SAME_COEFFICIENT else None


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


def _neighbours(front: Front, point: FrontPoint) -> list[int]:
    """Return the rows nearest to a point in preference, all that are equally near, in the front's order."""
    distances = np.linalg.norm(front.preferences_KN - point.preference_N, axis=1)
    distances[point.index] = np.inf
    return np.flatnonzero(np.isfinite(distances) & (distances <= distances.min() + 1e-6)).tolist()


def _base_model(manifest: SoupManifest, base_model: str | None, folder: str | Path | None) -> tuple[str | None, str]:
    """Return the base model's Hub id, None for a local folder, and the name to show."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    recorded = base_model or manifest.base_model.id
    beside = base_model is None and folder is not None and (Path(folder) / recorded).exists()
    if beside or is_local_path(recorded):
        return None, last_folder(recorded)
    try:
        validate_repo_id(recorded)
    except HFValidationError:
        return None, last_folder(recorded)
    return recorded, recorded


def _base_source(base: str, revision: str | None, *, is_local: bool) -> str:
    source = code(base) + (", a local folder where this was trained" if is_local else "")
    return source + (f", revision {code(revision)}" if revision else "")


def _eval_results(manifest: SoupManifest, point: FrontPoint) -> list[EvalResult]:
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


def _mixture(shares: FloatArray, names: Sequence[str], separator: str, form: str) -> str:
    parts = [
        form.format(share=_number(share), name=code(name)) for share, name in zip(shares, names, strict=True) if share
    ]
    return separator.join(parts)


def _preference_table(manifest: SoupManifest, preference_N: FloatArray) -> str:
    rows = [[code(name), _number(share)] for name, share in zip(manifest.objective_names, preference_N, strict=True)]
    return table(["Objective", "Preference μ"], rows)


def _coefficient_table(manifest: SoupManifest, coefficients_N: FloatArray, sft_share: float | None) -> str:
    rows = [
        [code(_backbone_name(backbone.path)), _mixture(column, manifest.objective_names, " + ", "{share} {name}"), sign]
        for backbone, column, sign in zip(
            manifest.backbones, manifest.weights.T, map(_signed, coefficients_N), strict=True
        )
    ]
    if sft_share is not None:
        rows.append(["the SFT model", "", _signed(sft_share)])
    return table(["Backbone", "Trained on", "Coefficient λ"], rows)


def _right_side(extrapolation: float | Sequence[float]) -> str:
    alphas = ", ".join(map(_number, np.atleast_1d(np.asarray(extrapolation, dtype=np.float64))))
    return f"k∘μ with k = 1/(1 - α) and the extrapolation α = {alphas}"


def _reward_table(front: Front, point: FrontPoint) -> str:
    rows = []
    for k in sorted([point.index, *_neighbours(front, point)]):
        weights = ", ".join(map(_number, front.preferences_KN[k]))
        cells = [
            "this soup" if k == point.index else "soup",
            weights,
            *map(_reward, front.rewards_KN[k], front.intervals_KN2[k]),
        ]
        rows.append([f"**{cell}**" for cell in cells] if k == point.index else cells)
    for label, marker in front.markers.items():
        intervals = [None] * len(front.objectives) if marker.intervals_N2 is None else marker.intervals_N2
        rows.append([code(label), "", *map(_reward, marker.rewards_N, intervals)])
    return table(["Model", "Preference μ", *map(code, front.objectives)], rows)


def _how_measured(front: Front, point: FrontPoint) -> str:
    """Return over what the means are, and how the answers were generated as far as the front records it."""
    fewest, most = point.n_samples_N.min(), point.n_samples_N.max()
    answers = f"{fewest} answers" if fewest == most else f"{fewest} to {most} answers"
    prompts, decoding = front.provenance.get("prompts"), front.provenance.get("decoding")
    details = f" to {prompts} prompts" if isinstance(prompts, int) else ""
    if isinstance(decoding, dict):
        settings = (f"{code(str(key))} {code(str(value))}" for key, value in decoding.items())
        details += f" ({', '.join(settings)})"
    return f"each over {answers}{details}"


def _objective_table(manifest: SoupManifest) -> str:
    rows = []
    for objective in manifest.objectives:
        statistics = objective.normalization
        scaling = f"(score - {_number(statistics.mean)}) / {_number(statistics.std)}" if statistics else "none"
        rows.append([code(objective.name), code(objective.reward), scaling])
    return table(["Objective", "Reward function", "Normalisation in training"], rows)


def _backbone_table(manifest: SoupManifest) -> str:
    rows = [
        [
            code(_backbone_name(backbone.path)),
            backbone.kind,
            str(backbone.steps),
            "" if backbone.seed is None else str(backbone.seed),
        ]
        for backbone in manifest.backbones
    ]
    return table(["Backbone", "Kind", "Optimizer steps", "Seed"], rows)


def _settings_table(manifest: SoupManifest) -> str | None:
    rows = [[code(key), code(str(value))] for key, value in manifest.training.items()]
    return table(["Setting", "Value"], rows) if rows else None


def _backbone_name(path: str) -> str:
    return last_folder(path) if is_local_path(path) else path


def _recipe(mergekit_yaml: str | None) -> dict[str, str]:
    if not mergekit_yaml:
        return {"recipe": "", "recipe_note": ""}
    try:
        recipe = yaml.safe_load(mergekit_yaml)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"mergekit_yaml must be the text of a mergekit recipe in YAML; {error}.") from error
    portable = hide_local_paths(recipe)
    if portable == recipe and hide_local_paths(mergekit_yaml) == mergekit_yaml:
        return {"recipe": fenced(mergekit_yaml, "yaml"), "recipe_note": ""}
    text = yaml.safe_dump(portable, sort_keys=False, allow_unicode=True)
    return {"recipe": fenced(text, "yaml"), "recipe_note": ", after replacing its folders by yours"}


def _load_example(kind: str, name: str | None) -> str:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    where = "path/to/this/folder"
    if name and "/" in name and not is_local_path(name):
        try:
            validate_repo_id(name)
            where = name
        except HFValidationError:
            pass
    loader = "AutoPeftModelForCausalLM" if kind == "adapter" else "AutoModelForCausalLM"
    imports = (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
        if kind == "adapter"
        else "from transformers import AutoModelForCausalLM, AutoTokenizer"
    )
    return fenced(
        f'{imports}\n\nmodel = {loader}.from_pretrained("{where}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{where}")',
        "python",
    )


def _soup_example(manifest: SoupManifest) -> str:
    share = 1.0 / len(manifest.objectives)
    even = ", ".join(f"{_literal(name)}: {share:.7g}" for name in manifest.objective_names)
    return fenced(
        "from trl_bonesoup import BoneSoup\n\n"
        'soup = BoneSoup.from_pretrained("path/to/the/folder/with/soup.json")\n'
        f"soup.set_preference({{{even}}})\n"
        "model, tokenizer = soup.model, soup.tokenizer",
        "python",
    )


def _literal(name: str) -> str:
    shown = hide_local_paths(name)
    return json.dumps(shown, ensure_ascii=False) if shown.isprintable() else repr(shown)


def _plot_name(plot_path: str | Path) -> str:
    suffix = Path(plot_path).suffix.lower()
    if suffix not in PLOT_SUFFIXES:
        raise ConfigurationError(f'A card shows pictures of {", ".join(PLOT_SUFFIXES)}; got "{suffix}".')
    return f"front{suffix}"


def _reward(mean: float, interval: FloatArray | None) -> str:
    return _number(mean) if interval is None else f"{_number(mean)} ({_number(interval[0])} to {_number(interval[1])})"


def _number(value: float) -> str:
    return f"{float(value) + 0.0:.4g}"


def _signed(value: float) -> str:
    return f"{round(float(value), 4) + 0.0:+.4f}"
