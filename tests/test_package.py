"""The package from the outside: what importing it loads, and that every public name has a home."""

import importlib
import subprocess
import sys

import pytest

import trl_bonesoup

HEAVY = ["torch", "transformers", "trl", "peft", "mergekit", "datasets", "accelerate", "matplotlib"]


def loaded_by(statement):
    """The heavy modules that a fresh interpreter has loaded after a statement."""
    script = f"{statement}\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import trl_bonesoup",
        "from trl_bonesoup import circulant_weights, merging_coefficients, simplex_grid, SoupManifest, BoneSoupError",
        "import trl_bonesoup; dir(trl_bonesoup); trl_bonesoup.__version__",
        "import trl_bonesoup.front.front, trl_bonesoup.hub.card, trl_bonesoup.cli",
        "import mergekit_bonesoup",
    ],
)
def test_loads_nothing_heavy(statement):
    assert loaded_by(statement) == []


@pytest.mark.parametrize("name", trl_bonesoup.__all__)
def test_every_public_name_is_the_one_its_module_defines(name):
    value = getattr(trl_bonesoup, name)
    assert value.__name__ == name
    assert value.__doc__
    assert getattr(importlib.import_module(value.__module__), name) is value
    assert value.__module__.startswith("trl_bonesoup.")


def test_public_names_are_listed_once_and_found_by_dir():
    assert len(set(trl_bonesoup.__all__)) == len(trl_bonesoup.__all__)
    assert set(trl_bonesoup.__all__) <= set(dir(trl_bonesoup))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'boil'"):
        trl_bonesoup.boil  # noqa: B018
