"""Contract tests: what the trainer relies on in TRL, so that an upstream change fails here and not in a run."""

import inspect

import pytest
from trl import GRPOConfig, GRPOTrainer

from trl_bonesoup.errors import DependencyError
from trl_bonesoup.training import upstream
from trl_bonesoup.training.config import _WITHOUT_EFFECT


@pytest.mark.parametrize("name", upstream.PRIVATE_METHODS)
def test_private_methods_keep_their_parameters(name: str) -> None:
    parameters = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)[1:]
    expected = list(upstream.PRIVATE_METHODS[name])
    assert parameters[: len(expected)] == expected


def test_settings_without_effect_still_exist_upstream() -> None:
    assert set(_WITHOUT_EFFECT) <= {field.name for field in GRPOConfig.__dataclass_fields__.values()}


def test_upstream_still_refuses_groups_of_one() -> None:
    """The reason for `_GroupSize`; when this fails, it can go."""
    with pytest.raises(ValueError, match="at least 2 generations"):
        GRPOConfig(output_dir="unused", num_generations=1, use_cpu=True, report_to="none")


@pytest.mark.parametrize("installed", ["1.15.3", "1.17.0", "2.0.0", "0.29.1"])
def test_an_untested_version_is_refused(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "version", lambda name: installed)
    with pytest.raises(DependencyError, match=rf"{installed} is installed.*pip install 'trl>=1.16,<1.17'"):
        upstream.require_tested_trl()


@pytest.mark.parametrize("installed", ["1.16.0", "1.16.4.dev0"])
def test_a_tested_version_is_accepted(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "version", lambda name: installed)
    upstream.require_tested_trl()
