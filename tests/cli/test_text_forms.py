"""Whatever is typed or written as a preference, a reward or a settings file: a value, or an error of ours."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trl_bonesoup.cli import sweep
from trl_bonesoup.cli.settings_file import apply_config
from trl_bonesoup.cli.text_forms import parse_extrapolation, parse_preference
from trl_bonesoup.errors import BoneSoupError, ConfigurationError, WeightsError
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.rewards.spec import load_reward

MANIFEST = SoupManifest.model_validate(
    {
        "base_model": {"id": "org/sft"},
        "objectives": [{"name": name, "reward": name} for name in ("helpful", "harmless", "a=b")],
        "combination_weights": [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]],
        "backbones": [{"path": f"b{j}", "kind": "adapter"} for j in range(3)],
        "presets": {"cautious": {"harmless": 1.0}},
    }
)
PIECES = ["helpful", "harmless", "a=b", "equal", "cautious", "=", ",", " ", "1", "0.5", "-1", "nan", "1e999", ".", "_"]
TEXTS = st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=9).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS | st.integers(), children, max_size=4),
    max_leaves=8,
)


@settings(max_examples=120)
@given(VALUES)
@example("helpful=0.7,harmless=0.3")
@example("a=b=0.5,helpful=.5")
@example([1, 0, 10**400])
@example({"helpful": "1"})
@example({None: 1.0})
@example([[1, 0, 0], [0, 1, 0]])
def test_a_preference_is_a_point_of_the_simplex_or_an_error_of_ours(value: Any) -> None:
    try:
        mu_N = parse_preference(value, MANIFEST)
    except (WeightsError, ConfigurationError):
        return
    assert mu_N.shape[-1:] == (3,)
    assert np.isfinite(mu_N).all()
    np.testing.assert_allclose(mu_N.sum(axis=-1), 1.0, atol=1e-6)
    assert (mu_N >= 0).all()


@settings(max_examples=80)
@given(VALUES)
@example("0.1,,0.2")
@example([])
@example({"a": 1})
def test_an_extrapolation_is_numbers_or_an_error_of_ours(value: Any) -> None:
    try:
        alphas = parse_extrapolation(value)
        MANIFEST.coefficients([0.5, 0.25, 0.25], alphas)
    except (WeightsError, ConfigurationError):
        return


@settings(max_examples=80)
@given(st.text(max_size=20) | st.text("ab.:_/\0 ", max_size=12))
@example(".:x")
@example("..a:b")
@example("." * 3000 + "a:b")
@example("a." * 3000 + "a:b")
@example(":")
@example("\0:x")
@example("a..b:x")
@example("os.path:join.")
@example("os:..")
@example("__main__:x")
@example("a" * 300 + ":x")
@example("\ud800:x")
def test_a_reward_is_a_callable_or_an_error_of_ours(spec: str) -> None:
    try:
        assert callable(load_reward(spec))
    except ConfigurationError:
        return


@pytest.fixture
def command() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    sweep.add_parser(subparsers)
    return parser, subparsers.choices


SETTINGS = st.dictionaries(
    st.sampled_from(["soup", "out", "grid", "sample", "preference", "full", "extrapolation", "overwrite", "odd"]),
    VALUES,
    max_size=3,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")) | SETTINGS)
@example(b"\xff")
@example(b"? [a]\n: 1")
@example(b"!!python/object/apply:os.abort []")
@example(b"&a [*a]")
@example(b"grid: 0x_")
@example(b"grid: 2001-99-99")
@example(b'out: "\\x00"')
@example(b"[" * 5000)
@example({"grid": 10**400})
def test_settings_are_arguments_or_an_error_of_ours(command: Any, tmp_path: Path, content: Any) -> None:
    import yaml

    file = tmp_path / "settings.yml"
    file.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    try:
        apply_config(*command, ["sweep", "SOUP", "OUT", "--config", str(file)])
    except BoneSoupError:
        return
