"""The YAML with which the stock `mergekit-yaml` makes the same soup."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trl_bonesoup.errors import SoupError
from trl_bonesoup.manifest import Preference, SoupManifest
from trl_bonesoup.weights import FloatArray

_ADAPTERS_NEED = "# mergekit-yaml merges each adapter first, into a folder that it needs: --lora-merge-cache DIR\n"

__all__ = ["mergekit_yaml"]


def mergekit_yaml(
    manifest: SoupManifest,
    folder: str | Path | None,
    preference: Preference,
    extrapolation: float | Sequence[float] = 0.0,
    dtype: str | None = None,
) -> str:
    """Return the text of a configuration for `mergekit-yaml` that gives the soup of a preference.

    Args:
        manifest: what was trained.
        folder: where soup.json lies; paths in the text are then absolute. With None they stay relative
            to that folder, for a text that is published with it and run there.
        preference: μ in the order of the objectives, or a dict by objective name.
        extrapolation: α, one number or one per objective.
        dtype: of the merged model, such as "bfloat16"; by default that of the inputs.

    Raises:
        WeightsError: for an invalid preference or extrapolation.
        SoupError: if a path holds `+` or `@`, by which mergekit separates adapters and revisions.

    The base model is always named: it gives config and tokenizer, and its share if there is extrapolation.
    Where a backbone is an adapter, the first line is a comment with the option that mergekit-yaml then needs.
    """
    manifest.coefficients(preference, extrapolation)
    mu_N = manifest.preference(preference)
    alphas = None if np.ndim(extrapolation) == 0 else np.asarray(extrapolation, dtype=np.float64)
    base = _reference(manifest.base_model.id, folder, manifest.base_model.revision)
    models: list[dict[str, Any]] = []
    for j, backbone in enumerate(manifest.backbones):
        path = _reference(backbone.path, folder, backbone.revision)
        parameters = {"preference": float(mu_N[j])}
        if alphas is not None:
            parameters["extrapolation"] = float(alphas[j])
        models.append({"model": f"{base}+{path}" if backbone.kind == "adapter" else path, "parameters": parameters})
    shared = _weights_parameters(manifest.weights)
    if alphas is None:
        shared["extrapolation"] = float(extrapolation)  # type: ignore[arg-type]
    config: dict[str, Any] = {
        "merge_method": "bone_soup",
        "base_model": base,
        "models": models,
        "parameters": shared,
    }
    if dtype in ("bfloat16", "float16"):
        # mergekit casts the inputs to its `dtype`, too, and only after the sum to its `out_dtype`.
        config |= {"dtype": "float32", "out_dtype": dtype}
    elif dtype is not None:
        config["dtype"] = dtype
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    return _ADAPTERS_NEED + text if any(backbone.kind == "adapter" for backbone in manifest.backbones) else text


def _weights_parameters(weights: FloatArray) -> dict[str, Any]:
    """Return the dominance β if B is its circulant, else B itself as the JSON text that the method reads."""
    n, beta = len(weights), float(weights[0, 0])
    circulant = np.where(np.eye(n, dtype=bool), beta, (1.0 - beta) / (n - 1))
    if beta > 1.0 / n and np.allclose(weights, circulant, rtol=0.0, atol=1e-12):
        return {"beta": beta}
    return {"combination_weights": json.dumps(weights.tolist())}


def _reference(name: str, folder: str | Path | None, revision: str | None = None) -> str:
    local = None if folder is None else (Path(folder) / name).resolve()
    path = str(local) if local is not None and local.is_dir() else name
    if "+" in path or "@" in path:
        raise SoupError(
            f"mergekit cannot name {path!r}, because it reads '+' as 'with adapter' and '@' as 'at revision'. "
            "Rename the folder, or use merge(), which has no such limit."
        )
    return f"{path}@{revision}" if revision and path == name else path
