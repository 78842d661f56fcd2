"""Tables of what soup.json records, and how numbers look in a card."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trl_bonesoup.hub.trained import elsewhere
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.markdown import code, is_local_path, last_folder, number, table
from trl_bonesoup.weights import FloatArray

__all__ = [
    "coefficient_table",
    "mixture",
    "numbers",
    "objective_table",
    "preference_table",
    "preset_table",
    "right_side",
    "settings_table",
    "signed",
    "training_table",
    "versions",
]


def numbers(values: FloatArray) -> str:
    """Return several numbers in four digits each."""
    return ", ".join(map(number, values))


def signed(value: float) -> str:
    """Return a merging coefficient in four decimals, with its sign."""
    return f"{round(float(value), 4) + 0.0:+.4f}"


def mixture(shares: FloatArray, names: Sequence[str], separator: str, form: str) -> str:
    """Return the shares that are not zero with their names, each as `form` says."""
    parts = [
        form.format(share=number(share), name=code(name)) for share, name in zip(shares, names, strict=True) if share
    ]
    return separator.join(parts)


def preference_table(manifest: SoupManifest, preference_N: FloatArray) -> str:
    """Return μ, an objective a row."""
    rows = [[code(name), number(share)] for name, share in zip(manifest.objective_names, preference_N, strict=True)]
    return table(["Objective", "Preference μ"], rows)


def preset_table(manifest: SoupManifest) -> str | None:
    """Return the preferences that soup.json names; None if it names none."""
    names = manifest.objective_names
    rows = [[code(preset), *map(number, manifest.preference(preset))] for preset in manifest.presets]
    return table(["Preset", *map(code, names)], rows) if rows else None


def coefficient_table(manifest: SoupManifest, coefficients_N: FloatArray, sft_share: float | None) -> str:
    """Return λ with its signs, a backbone a row, and the share of the SFT model if it has one."""
    rows = [
        [code(_backbone_name(backbone.path)), _trained_on(column, manifest), signed(coefficient)]
        for backbone, column, coefficient in zip(manifest.backbones, manifest.weights.T, coefficients_N, strict=True)
    ]
    if sft_share is not None:
        rows.append(["the SFT model", "", signed(sft_share)])
    return table(["Backbone", "Trained on", "Coefficient λ"], rows)


def right_side(extrapolation: float | Sequence[float]) -> str:
    """Return what B·λ is with extrapolation, in words."""
    alphas = np.atleast_1d(np.asarray(extrapolation, dtype=np.float64))
    return f"k∘μ with k = 1/(1 - α) and the extrapolation α = {numbers(alphas)}"


def objective_table(manifest: SoupManifest) -> str:
    """Return the rewards and, as far as it is known, how training normalised their scores."""
    if elsewhere(manifest) and not any(objective.normalization for objective in manifest.objectives):
        rows = [[code(objective.name), code(objective.reward)] for objective in manifest.objectives]
        return table(["Objective", "Reward function"], rows)
    rows = []
    for objective in manifest.objectives:
        statistics = objective.normalization
        scaling = f"(score - {number(statistics.mean)}) / {number(statistics.std)}" if statistics else "none"
        rows.append([code(objective.name), code(objective.reward), scaling])
    return table(["Objective", "Reward function", "Normalisation in training"], rows)


def training_table(manifest: SoupManifest) -> str:
    """Return the backbones: the column of B that each was trained on, and how long and with which seed if recorded."""
    columns = {
        "Backbone": [code(_backbone_name(backbone.path)) for backbone in manifest.backbones],
        "Trained on": [_trained_on(column, manifest) for column in manifest.weights.T],
        "Kind": [backbone.kind for backbone in manifest.backbones],
    }
    if any(backbone.steps for backbone in manifest.backbones):
        columns["Optimizer steps"] = [str(backbone.steps) for backbone in manifest.backbones]
    if any(backbone.seed is not None for backbone in manifest.backbones):
        columns["Seed"] = ["" if backbone.seed is None else str(backbone.seed) for backbone in manifest.backbones]
    return table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)])


def settings_table(manifest: SoupManifest) -> str | None:
    """Return the trainer's settings; None if soup.json records none."""
    rows = [[code(key), code(str(value))] for key, value in manifest.training.items()]
    return table(["Setting", "Value"], rows) if rows else None


def versions(manifest: SoupManifest) -> str:
    """Return the libraries that trained it."""
    return ", ".join(f"{code(package)} {code(version)}" for package, version in manifest.versions.items())


def _trained_on(column: FloatArray, manifest: SoupManifest) -> str:
    return mixture(column, manifest.objective_names, " + ", "{share} {name}")


def _backbone_name(path: str) -> str:
    return last_folder(path) if is_local_path(path) else path
