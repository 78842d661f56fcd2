"""Preferences, β and α in every odd form, through each door that takes them: Python, the shell, mergekit's YAML."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from mergekit.config import MergeConfiguration

from mergekit_bonesoup.check import check_configuration
from mergekit_bonesoup.coefficients import MergeRefused
from trl_bonesoup import SoupManifest, circulant_weights
from trl_bonesoup.cli import main
from trl_bonesoup.errors import BoneSoupError, WeightsError
from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.sweep import sweep

NAN, INF = math.nan, math.inf

ACCEPTED = {
    "a list": [0.7, 0.3],
    "a tuple": (0.7, 0.3),
    "an array in float32": np.array([0.7, 0.3], dtype=np.float32),
    "whole numbers": [1, 0],
    "off by 1e-7": [0.7, 0.3000001],
    "zero below zero": [1.0, -0.0],
    "a dict": {"helpful": 0.7, "harmless": 0.3},
    "a dict with one name": {"harmless": 1},
    "a preset": "equal",
}
REFUSED = {
    "off by 1e-3": ([0.7, 0.301], "sum to 1"),
    "off by 1e-5": ([0.7, 0.30001], "sum to 1"),
    "one negative": ([-0.3, 1.3], "negative"),
    "beyond 1": ([1.3, -0.3], "negative"),
    "all zero": ([0.0, 0.0], "sum to 1"),
    "percent": ([70, 30], "sum to 1"),
    "NaN": ([NAN, 1.0], "finite"),
    "infinite": ([INF, -INF], "finite"),
    "null": (None, "numbers"),
    "a null inside": ([0.7, None], "numbers"),
    "text": ("0.7,0.3", "Unknown preset"),
    "texts": (["0.7", "0.3"], "numbers"),
    "a text inside": ([0.7, "0.3"], "numbers"),
    "truth values": ([True, False], "numbers"),
    "a dict of texts": ({"helpful": "0.7", "harmless": "0.3"}, "numbers"),
    "an unknown name": ({"helpful": 0.7, "harmles": 0.3}, "Unknown objective"),
    "an empty dict": ({}, "sum to 1"),
    "nothing": ([], "shape"),
    "one number": (1.0, "shape"),
    "one share": ([1.0], "shape"),
    "three shares": ([0.5, 0.25, 0.25], "shape"),
    "a list in a list": ([[0.7, 0.3]], "one preference|shape"),
    "complex": ([0.7 + 0j, 0.3], "numbers"),
}
ALPHAS = {
    "one": (1.0, r"in \[0, 1\)"),
    "beyond one": (1.5, r"in \[0, 1\)"),
    "negative": (-0.1, r"in \[0, 1\)"),
    "one of two": ([0.1, 1.0], r"in \[0, 1\)"),
    "NaN": (NAN, "finite"),
    "text": ("0.1", "numbers"),
    "null": (None, "numbers"),
    "truth": (True, "numbers"),
    "three": ([0.1, 0.1, 0.1], "one for each of the 2"),
}


def two_objectives() -> SoupManifest:
    """A record whose backbones do not exist, so that reading one of them would be another error."""
    return SoupManifest.model_validate(
        {
            "base_model": {"id": "/no/base"},
            "objectives": [{"name": name, "reward": "r"} for name in ("helpful", "harmless")],
            "combination_weights": circulant_weights(2, 0.7),
            "backbones": [{"path": f"/no/{name}", "kind": "adapter"} for name in ("helpful", "harmless")],
        }
    )


class TestInPython:
    @pytest.mark.parametrize("preference", ACCEPTED.values(), ids=ACCEPTED)
    def test_accepted(self, preference) -> None:
        lambda_N = two_objectives().coefficients(preference)
        assert lambda_N.sum() == pytest.approx(1.0, abs=1e-6)

    @pytest.mark.parametrize(("preference", "message"), REFUSED.values(), ids=REFUSED)
    def test_refused_before_anything_is_read_or_written(self, tmp_path: Path, preference, message) -> None:
        two_objectives().save(tmp_path / "run")
        with pytest.raises(WeightsError, match=message):
            merge(tmp_path / "run", tmp_path / "out", preference)
        with pytest.raises(BoneSoupError, match=message):
            sweep(tmp_path / "run", tmp_path / "out", [preference])
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(("alpha", "message"), ALPHAS.values(), ids=ALPHAS)
    def test_extrapolation(self, tmp_path: Path, alpha, message) -> None:
        two_objectives().save(tmp_path / "run")
        with pytest.raises(WeightsError, match=message):
            merge(tmp_path / "run", tmp_path / "out", [0.7, 0.3], extrapolation=alpha)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("beta", [0.0, 1 / 2, 1 / 3, 1.0000001, -1, NAN, INF, "0.7", None, True, [0.7], [0.7, 0.7]])
    def test_dominance(self, beta) -> None:
        with pytest.raises(WeightsError, match="beta"):
            circulant_weights(2, beta)

    def test_dominance_that_is_one_third_for_three(self) -> None:
        """mergekit's `linear` would write weights of 1e17 with the λ of this B."""
        for beta in (1 / 3, np.nextafter(1 / 3, 1)):
            with pytest.raises(WeightsError, match="beta"):
                circulant_weights(3, beta)

    def test_one_objective(self) -> None:
        with pytest.raises(WeightsError, match="at least 2"):
            circulant_weights(1, 1.0)


SHELL = {
    "off by 1e-3": ("0.7,0.301", "sum to 1"),
    "negative": ("1.3,-0.3", "negative"),
    "words": ("seventy,thirty", "'seventy' is not a number"),
    "a comma for a point": ("0,7,0,3", "shape"),
    "a semicolon": ("0.7;0.3", "Unknown preset"),
    "nothing": ("", "shape"),
    "commas": (",,", "shape"),
    "NaN": ("nan,1", "not a number"),
    "one share": ("0.7", "shape"),
    "an unknown name": ("helpful=0.7,kind=0.3", "Unknown objective"),
    "a name without a number": ("helpful=,harmless=1", "not a number"),
    "a name twice": ("helpful=1,helpful=1", "twice"),
    "JSON": ("[0.7, 0.3]", "not a number"),
}


@pytest.mark.parametrize(("text", "message"), SHELL.values(), ids=SHELL)
def test_in_the_shell(tmp_path: Path, capsys, text, message) -> None:
    two_objectives().save(tmp_path / "run")
    assert main(["merge", str(tmp_path / "run"), str(tmp_path / "out"), f"--preference={text}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("alpha", ["1", "1.5", "-0.1", "nan", "much", "0.1,0.2,0.3", ""])
def test_extrapolation_in_the_shell(tmp_path: Path, capsys, alpha) -> None:
    two_objectives().save(tmp_path / "run")
    arguments = ["merge", str(tmp_path / "run"), str(tmp_path / "out"), "--preference=1,0", f"--extrapolation={alpha}"]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "extrapolation" in line
    assert not (tmp_path / "out").exists()


def settings_file(folder: Path, **settings) -> Path:
    two_objectives().save(folder / "run")
    file = folder / "merge.yml"
    file.write_text(json.dumps({"soup": str(folder / "run"), "out": str(folder / "out"), **settings}))
    return file


@pytest.mark.parametrize("preference", [[0.7, 0.301], ["0.7", "0.3"], {"helpful": "0.7"}, None, True, 0.7, [[1, 0]]])
def test_in_a_settings_file(tmp_path: Path, capsys, preference) -> None:
    assert main(["merge", "--config", str(settings_file(tmp_path, preference=preference))]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


YAML = {
    "list": ([0.7, 0.3], "must be one value"),
    "text": ("0.7", "plain number"),
    "truth": (True, "plain number"),
    "negative": (-0.7, r"in \[0, 1\]"),
    "beyond 1": (1.7, r"in \[0, 1\]"),
    "NaN": (NAN, "plain number"),
    "infinite": (INF, "plain number"),
    "off by 1e-3": (0.701, "sum to 1"),
    "off by 1e-5": (0.70001, "sum to 1"),
    "missing": (..., "is missing"),
}


def configuration(preference=0.7, n=2, **parameters) -> MergeConfiguration:
    shares = [preference, *[0.3 / (n - 1)] * (n - 1)] if n > 1 else [preference]
    models = [
        {"model": f"/no/{j}", "parameters": {} if share is ... else {"preference": share}}
        for j, share in enumerate(shares)
    ]
    extrapolation = {"base_model": "/no/base"} if parameters.pop("with_base", False) else {}
    return MergeConfiguration.model_validate(
        {"merge_method": "bone_soup", "models": models, "parameters": parameters, **extrapolation}
    )


class TestInYaml:
    @pytest.mark.parametrize(("preference", "message"), YAML.values(), ids=YAML)
    def test_preference(self, preference, message) -> None:
        with pytest.raises(MergeRefused, match=message):
            check_configuration(configuration(preference, beta=0.7))

    def test_a_sum_off_by_1e_7_is_accepted(self) -> None:
        check_configuration(configuration(0.7000001, beta=0.7))

    def test_null_is_refused_by_mergekit(self) -> None:
        with pytest.raises(ValueError, match="preference"):
            configuration(None, beta=0.7)

    @pytest.mark.parametrize("beta", [0.5, 1 / 3, 0.0, -1.0, 1.0000001, NAN, INF, "0.7", [0.7, 0.7], True])
    def test_dominance(self, beta) -> None:
        with pytest.raises(MergeRefused, match="beta"):
            check_configuration(configuration(beta=beta))

    def test_dominance_that_is_missing(self) -> None:
        with pytest.raises(MergeRefused, match=r"exactly one of beta and combination_weights.*neither"):
            check_configuration(configuration())

    def test_dominance_of_one_is_rewarded_soups(self) -> None:
        check_configuration(configuration(beta=1))

    def test_dominance_that_is_one_third_for_three(self) -> None:
        with pytest.raises(MergeRefused, match="beta"):
            check_configuration(configuration(n=3, beta=1 / 3))

    @pytest.mark.parametrize("alpha", [1.0, 1.5, -0.1, NAN, "0.1", [0.1, 0.2], True])
    def test_extrapolation(self, alpha) -> None:
        with pytest.raises(MergeRefused, match="extrapolation"):
            check_configuration(configuration(beta=0.7, extrapolation=alpha, with_base=True))

    def test_extrapolation_without_a_base(self) -> None:
        with pytest.raises(MergeRefused, match="give base_model"):
            check_configuration(configuration(beta=0.7, extrapolation=0.3))

    def test_one_model(self) -> None:
        with pytest.raises(MergeRefused, match="at least 2 models"):
            check_configuration(configuration(1.0, n=1, beta=0.7))

    def test_a_matrix_of_texts(self) -> None:
        with pytest.raises(MergeRefused, match="combination_weights"):
            check_configuration(configuration(combination_weights='[["0.7", "0.3"], ["0.3", "0.7"]]'))
