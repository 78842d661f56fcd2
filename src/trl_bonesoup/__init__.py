"""Bone Soup for TRL, PEFT and mergekit: train a few backbones once, then serve every preference.

The public names are loaded on first use, so that `import trl_bonesoup` loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "BoneSoup": "trl_bonesoup.soup.lora",
    "BoneSoupError": "trl_bonesoup.errors",
    "Front": "trl_bonesoup.front.front",
    "MultiRewardPPOConfig": "trl_bonesoup.training.config",
    "MultiRewardPPOTrainer": "trl_bonesoup.training.trainer",
    "SoupManifest": "trl_bonesoup.manifest",
    "assemble": "trl_bonesoup.soup.assemble",
    "circulant_weights": "trl_bonesoup.weights",
    "evaluate_front": "trl_bonesoup.front.evaluate",
    "evaluate_policies": "trl_bonesoup.front.evaluate",
    "gather": "trl_bonesoup.training.gather",
    "merge": "trl_bonesoup.soup.export",
    "merging_coefficients": "trl_bonesoup.weights",
    "push": "trl_bonesoup.hub.push",
    "search_extrapolation": "trl_bonesoup.front.extrapolation",
    "seek": "trl_bonesoup.training.seek",
    "select_dominance": "trl_bonesoup.front.dominance",
    "simplex_grid": "trl_bonesoup.weights",
    "simplex_sample": "trl_bonesoup.weights",
    "sweep": "trl_bonesoup.soup.sweep",
    "to_full": "trl_bonesoup.soup.to_full",
}

__all__ = [  # noqa: RUF022  (the order of the names in the documentation)
    "circulant_weights",
    "merging_coefficients",
    "simplex_grid",
    "simplex_sample",
    "MultiRewardPPOConfig",
    "MultiRewardPPOTrainer",
    "seek",
    "gather",
    "select_dominance",
    "SoupManifest",
    "assemble",
    "BoneSoup",
    "merge",
    "sweep",
    "to_full",
    "Front",
    "evaluate_front",
    "evaluate_policies",
    "search_extrapolation",
    "push",
    "BoneSoupError",
]

if TYPE_CHECKING:
    from trl_bonesoup.errors import BoneSoupError
    from trl_bonesoup.front.dominance import select_dominance
    from trl_bonesoup.front.evaluate import evaluate_front, evaluate_policies
    from trl_bonesoup.front.extrapolation import search_extrapolation
    from trl_bonesoup.front.front import Front
    from trl_bonesoup.hub.push import push
    from trl_bonesoup.manifest import SoupManifest
    from trl_bonesoup.soup.assemble import assemble
    from trl_bonesoup.soup.export import merge
    from trl_bonesoup.soup.lora import BoneSoup
    from trl_bonesoup.soup.sweep import sweep
    from trl_bonesoup.soup.to_full import to_full
    from trl_bonesoup.training.config import MultiRewardPPOConfig
    from trl_bonesoup.training.gather import gather
    from trl_bonesoup.training.seek import seek
    from trl_bonesoup.training.trainer import MultiRewardPPOTrainer
    from trl_bonesoup.weights import circulant_weights, merging_coefficients, simplex_grid, simplex_sample


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
