"""The paper's quadratic example end to end: λ, θ(μ), and where Bone Soup beats Rewarded Soups and where it does not.

r_i(θ) = -k_i ‖θ - θ_i‖² with N = 2, k = (1, 4), β = .6. On the segment θ₁ + t(θ₂ - θ₁) a mixture
w·r is maximised at t = k₂w₂ / (k₁w₁ + k₂w₂), so everything below is a closed form.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_soups import write_manifest

from trl_bonesoup import circulant_weights, merging_coefficients
from trl_bonesoup.soup.export import merge

CURVATURE = np.array([1.0, 4.0])
BETA = 0.6
FIRST, SECOND = np.array([1.0, -2.0, 0.5]), np.array([3.0, 2.0, -1.5])


def optimum(mixture: np.ndarray) -> float:
    """Return the exact t for a mixture w of the two rewards."""
    weighted = CURVATURE * mixture
    return weighted[1] / weighted.sum()


def point(t: float) -> np.ndarray:
    return FIRST + t * (SECOND - FIRST)


@pytest.fixture(scope="module")
def soups(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """A soup.json for β = .6 and one for β = 1 (Rewarded Soups), whose backbones are the exact optima."""
    folders = {}
    for beta in (BETA, 1.0):
        folder = tmp_path_factory.mktemp("quadratic")
        thetas = [point(optimum(column)) for column in circulant_weights(2, beta).T]
        for name, theta in zip(("base", "backbone0", "backbone1"), (np.zeros(3), *thetas), strict=True):
            (folder / name).mkdir()
            save_file({"theta": torch.tensor(theta)}, folder / name / "model.safetensors")
            (folder / name / "config.json").write_text(json.dumps({"model_type": "quadratic"}))
        folders[beta] = write_manifest(folder, ["backbone0", "backbone1"], kind="full", beta=beta)
    return folders


def soup_t(folder: Path, preference: list[float], out: Path) -> float:
    """Merge the files and return where on the segment the result lies."""
    theta = load_file(merge(folder, out, preference).path / "model.safetensors")["theta"].numpy()
    t = float((theta - FIRST) @ (SECOND - FIRST) / ((SECOND - FIRST) @ (SECOND - FIRST)))
    np.testing.assert_allclose(theta, point(t), atol=1e-12)
    return t


def closed_t(beta: float, first: float) -> float:
    mu = np.array([first, 1.0 - first])
    weights = circulant_weights(2, beta)
    backbones = np.array([optimum(column) for column in weights.T])
    return float(merging_coefficients(weights, mu) @ backbones)


def test_coefficients_and_backbones() -> None:
    # t of the backbones: 4·.4/(.6 + 1.6) = 8/11 and 4·.6/(.4 + 2.4) = 6/7.
    assert optimum(np.array([0.6, 0.4])) == pytest.approx(8 / 11)
    assert optimum(np.array([0.4, 0.6])) == pytest.approx(6 / 7)
    np.testing.assert_allclose(merging_coefficients(circulant_weights(2, BETA), [1.0, 0.0]), [3.0, -2.0])


def test_the_middle(soups, tmp_path) -> None:
    assert optimum(np.array([0.5, 0.5])) == pytest.approx(0.8)
    assert soup_t(soups[1.0], [0.5, 0.5], tmp_path / "rewarded") == pytest.approx(0.5)
    assert soup_t(soups[BETA], [0.5, 0.5], tmp_path / "bone") == pytest.approx(0.792208, abs=1e-6)


def test_bone_soup_loses_at_the_vertices(soups, tmp_path) -> None:
    # 3·8/11 - 2·6/7 = .467532 instead of 0, and -2·8/11 + 3·6/7 = 1.116883 instead of 1.
    for preference, exact, bone in (([1.0, 0.0], 0.0, 0.467532), ([0.0, 1.0], 1.0, 1.116883)):
        out = tmp_path / f"bone{exact}"
        assert soup_t(soups[BETA], preference, out) == pytest.approx(bone, abs=1e-6)
        assert soup_t(soups[1.0], preference, tmp_path / f"rewarded{exact}") == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("first", [0.12, 0.3, 0.5, 0.7, 0.88])
def test_bone_soup_is_nearer_inside_the_interval(soups, tmp_path, first) -> None:
    exact = optimum(np.array([first, 1.0 - first]))
    bone = soup_t(soups[BETA], [first, 1.0 - first], tmp_path / "bone")
    rewarded = soup_t(soups[1.0], [first, 1.0 - first], tmp_path / "rewarded")
    assert bone == pytest.approx(closed_t(BETA, first), abs=1e-12)
    assert abs(bone - exact) < abs(rewarded - exact)


def test_the_interval_ends_where_the_paper_says() -> None:
    """Bone Soup's reward is higher for μ₁ in (.105650, .894350), and only there."""
    grid = np.linspace(0.0005, 0.9995, 2000)
    wins = []
    for first in grid:
        exact = optimum(np.array([first, 1.0 - first]))
        wins.append(abs(closed_t(BETA, first) - exact) < abs(closed_t(1.0, first) - exact))
    inside = grid[np.array(wins)]
    assert inside.min() == pytest.approx(0.105650, abs=5e-4)
    assert inside.max() == pytest.approx(0.894350, abs=5e-4)
    assert np.diff(np.flatnonzero(wins)).max() == 1
