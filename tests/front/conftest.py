"""Tiny soups, and a realistic front."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_models import make_model, make_tokenizer, write_soup
from tiny import save_tiny

from trl_bonesoup.front.front import Front, Marker
from trl_bonesoup.weights import simplex_grid


@pytest.fixture(scope="session")
def soup_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folders: dict[tuple, Path] = {}

    def get(**options) -> Path:
        key = tuple(sorted(options.items()))
        if key not in folders:
            folders[key] = write_soup(tmp_path_factory.mktemp("soup"), **options)
        return folders[key]

    return get


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny base model to train from."""
    return str(save_tiny(tmp_path_factory.mktemp("base")))


@pytest.fixture
def soup(soup_folder):
    from trl_bonesoup.soup.lora import BoneSoup

    return BoneSoup.from_pretrained(soup_folder())


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model():
    return make_model(0)


@pytest.fixture
def front() -> Front:
    """Eleven preferences along a convex front, in the numbers of a real first prototype."""
    preferences_KN = simplex_grid(2)
    weights_K = preferences_KN[:, 0]
    rewards_KN = np.stack(
        [
            np.interp(weights_K, [0, 0.25, 0.5, 0.75, 1], [0.151, 0.254, 0.340, 0.485, 0.558]),
            np.interp(weights_K, [0, 0.25, 0.5, 0.75, 1], [-0.605, -0.745, -0.838, -0.975, -1.017]),
        ],
        axis=1,
    )
    half_N = np.array([0.05, 0.04])
    return Front(
        objectives=("positivity", "brevity"),
        preferences_KN=preferences_KN,
        coefficients_KN=np.stack([2.5 * weights_K - 0.75, 1.75 - 2.5 * weights_K], axis=1),
        rewards_KN=rewards_KN,
        intervals_KN2=np.stack([rewards_KN - half_N, rewards_KN + half_N], axis=-1),
        n_samples_KN=np.full((11, 2), 64),
        markers={
            "base": Marker(np.array([0.332, -0.942]), np.array([[0.3, 0.36], [-1.0, -0.9]])),
            "backbone positivity": [0.47, -0.95],  # type: ignore[dict-item]
            "backbone brevity": [0.25, -0.73],  # type: ignore[dict-item]
        },
        provenance={"seed": 0, "decoding": {"temperature": 1.0}},
    )
