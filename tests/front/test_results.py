"""Results of a comparison: every hypervolume over one reference point, and each number beside its own method."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from trl_bonesoup import Front
from trl_bonesoup.front.methods import read_methods
from trl_bonesoup.front.report import comparison_csv, comparison_record
from trl_bonesoup.front.results import ComparisonResult, MethodResult
from trl_bonesoup.manifest import ScoreStatistics

GRID = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
NOISE_P1 = np.array([-0.1, 0.0, 0.1, 0.0])[:, None]


def measured(slug: str, by_seed: list[list[list[float]]], preferences: Any = GRID) -> MethodResult:
    """A method whose mean rewards are given, with four prompts of which one is better and one worse than the mean."""
    methods = read_methods(
        ["base", "rewarded-soups", {"bone-soup": {"dominance": 0.7}}, {"morlhf": {"preferences": [[1, 0], [0, 1]]}}], 2
    )
    fronts, scores = [], []
    for rewards in by_seed:
        rewards_KN = np.array(rewards)
        fronts.append(
            Front(
                objectives=("a", "b"), preferences_KN=preferences, coefficients_KN=None, rewards_KN=rewards_KN,
                intervals_KN2=np.stack([rewards_KN, rewards_KN], axis=-1), n_samples_KN=np.full(rewards_KN.shape, 4),
            )
        )  # fmt: skip
        scores.append((rewards_KN[:, None] + NOISE_P1[None])[:, :, None])
    return MethodResult(next(method for method in methods if method.slug == slug), fronts, scores)


def compared(
    *methods: MethodResult, seeds: int = 1, reference: Any = None, scale: Any = None, normalization: str = "running"
) -> ComparisonResult:
    request = {
        "answers": {"samples_per_prompt": 1},
        "test_prompts": {"rows": 4},
        "scores": {"normalization": normalization},
    }
    return ComparisonResult(
        folder=Path("nowhere"), objectives=("a", "b"), measured=methods, seeds=list(range(seeds)), steps_per_policy=10,
        against="rewarded-soups", given_reference=reference, cost={}, request=request, scale=scale or {},
    )  # fmt: skip


WIDE = [[10.0, 0.0], [2.0, 2.0], [0.0, 10.0]]
HIGH = [[6.0, 5.0], [5.5, 5.5], [5.0, 6.0]]


def test_every_method_is_measured_above_the_same_point() -> None:
    """The worst is 0, the range 10: the reference is (-1, -1).

    WIDE dominates [-1,10]x[-1,0], [-1,2]x[0,2] and [-1,0]x[2,10] above it: 11 + 6 + 8 = 25. HIGH dominates
    6x7 + .5x6.5 + .5x6 = 48.25. Over references of their own WIDE would be ahead.
    """
    result = compared(measured("rewarded-soups", [WIDE]), measured("bone-soup-0.7", [HIGH]))
    assert result.reference_N.tolist() == [-1.0, -1.0]
    volumes = {each.method.slug: result.metrics(each)[0]["hypervolume"] for each in result.methods}
    assert volumes == pytest.approx({"rewarded-soups": 25.0, "bone-soup-0.7": 48.25})
    rows = {row.split("|")[1].strip(): row for row in result.table().split("\n\n")[0].splitlines()}
    assert re.search(r"\| +3 \| +2 \| +20 \| +48\.25 \(", rows["Bone Soup, β = 0.7"])  # μ, policies, steps
    assert re.search(r"\| +25 \(", rows["Rewarded Soups"])
    assert "above a -1, b -1 for every method" in result.table()


def test_a_seed_that_is_worse_moves_the_reference_of_all() -> None:
    worse = [[6.0, -10.0], [5.5, 5.5], [5.0, 6.0]]
    result = compared(measured("rewarded-soups", [WIDE, WIDE]), measured("bone-soup-0.7", [HIGH, worse]), seeds=2)
    assert result.reference_N.tolist() == [-1.0, -12.0]  # 10 % of 20 below -10


def test_a_given_reference_holds_for_all() -> None:
    result = compared(measured("rewarded-soups", [WIDE]), measured("bone-soup-0.7", [HIGH]), reference=[0.0, 0.0])
    assert [result.metrics(each)[0]["hypervolume"] for each in result.methods] == pytest.approx([4.0, 35.25])


def test_no_hypervolume_of_the_table_goes_below_0() -> None:
    low = [[0.01, 0.0], [0.005, 0.005], [0.0, 0.01]]
    result = compared(measured("rewarded-soups", [low]), reference=[0.0, 0.0])
    estimate = result.estimates(result.methods[0])["hypervolume"]
    assert estimate.lower == 0.0 < estimate.value
    assert "(0 to " in result.table().splitlines()[2]


def test_means_are_over_seeds_and_differences_are_paired() -> None:
    """Both methods gain 1 per objective with the second seed: their difference keeps no noise of it."""
    plus = [[a + 1.0, b + 1.0] for a, b in WIDE]
    high = [[a + 1.0, b + 1.0] for a, b in HIGH]
    result = compared(measured("rewarded-soups", [WIDE, plus]), measured("bone-soup-0.7", [HIGH, high]), seeds=2)
    soup = result.methods[1]
    estimates = result.estimates(soup)
    # mean of <mu, r>: (6 + 5.5 + 6)/3, and 1 more with the second seed
    assert estimates["inner_product"].value == pytest.approx(17.5 / 3 + 0.5)
    assert estimates["inner_product"].lower < 17.5 / 3 + 0.4 < 17.5 / 3 + 0.6 < estimates["inner_product"].upper
    ahead = result.ahead(soup)["inner_product"]
    expected = 17.5 / 3 - 22 / 3
    assert [ahead.value, ahead.lower, ahead.upper] == pytest.approx([expected] * 3)
    assert result.ahead(result.methods[0]) == {}
    assert estimates["controllability"].value == 1.0


def test_the_share_of_the_oracle_is_at_its_own_preferences() -> None:
    """Over (-1, -1): at the vertices alone, WIDE dominates 11 + 11 - 1 = 21 and the oracle's (10, 4), (4, 10) 85."""
    oracle = measured("morlhf", [[[10.0, 4.0], [4.0, 10.0]]], GRID[[0, 2]])
    result = compared(measured("rewarded-soups", [WIDE]), measured("bone-soup-0.7", [HIGH]), oracle)
    share = result.share_of_oracle(result.methods[0])
    assert share is not None
    assert share.value == pytest.approx(21 / 85)
    assert share.lower < share.value < share.upper
    assert result.share_of_oracle(oracle) is None
    assert result.ahead(oracle) == {}  # measured at fewer preferences
    assert compared(measured("rewarded-soups", [WIDE])).share_of_oracle(result.methods[0]) is None
    assert f"{21 / 85:.4g} (" in result.table()


def test_the_record_holds_each_method_with_its_numbers_and_budget() -> None:
    base = measured("base", [[[1.0, 2.0]] * 3])
    record = comparison_record(compared(base, measured("rewarded-soups", [WIDE]), measured("bone-soup-0.7", [HIGH])))
    by_folder = {method["folder"]: method for method in record["methods"]}
    assert {name: (m["policies"], m["steps"]) for name, m in by_folder.items()} == {
        "base": (0, 0),
        "rewarded-soups": (2, 20),
        "bone-soup-0.7": (2, 20),
    }
    assert by_folder["bone-soup-0.7"]["over_seeds"]["hypervolume"]["value"] == pytest.approx(48.25)
    assert by_folder["bone-soup-0.7"]["ahead"]["hypervolume"]["value"] == pytest.approx(48.25 - 25.0)
    assert by_folder["base"]["over_seeds"]["hypervolume"]["value"] == pytest.approx(2.0 * 3.0)
    assert by_folder["base"]["over_seeds"]["controllability"]["value"] == 0.0
    assert by_folder["bone-soup-0.7"]["condition"] == pytest.approx(1 / 0.4)
    assert record["reference"] == {"a": -1.0, "b": -1.0}


def test_the_csv_has_a_row_for_each_method_and_pandas_reads_it(tmp_path: Path) -> None:
    oracle = measured("morlhf", [[[10.0, 4.0], [4.0, 10.0]]], GRID[[0, 2]])
    result = compared(measured("rewarded-soups", [WIDE]), measured("bone-soup-0.7", [HIGH]), oracle)
    (tmp_path / "compare.csv").write_text(comparison_csv(result), encoding="utf-8")
    table = pandas.read_csv(tmp_path / "compare.csv")
    assert table["method"].tolist() == ["Rewarded Soups", "Bone Soup, β = 0.7", "MORLHF"]
    assert table["preferences"].tolist() == [3, 3, 2]
    assert table["hypervolume"].tolist()[:2] == pytest.approx([25.0, 48.25])
    assert table["hypervolume_ahead"][1] == pytest.approx(48.25 - 25.0)
    assert table["hypervolume_ahead"].isna().tolist() == [True, False, True]
    assert table["share_of_oracle"][0] == pytest.approx(21 / 85)
    assert table["length_of_front"].tolist() == [3, 3, 2]
    for each, row in zip(result.methods, table.to_dict("records"), strict=True):
        for name, estimate in result.estimates(each).items():
            assert [row[name], row[f"{name}_low"], row[f"{name}_high"]] == [
                estimate.value, estimate.lower, estimate.upper
            ]  # fmt: skip
    latex = table[["method", "hypervolume", "controllability"]].to_latex(index=False, float_format="%.3f")
    assert r"Bone Soup, β = 0.7 & 48.250 & 1.000 \\" in latex


def test_the_mean_front_is_over_seeds_and_keeps_its_order() -> None:
    plus = [[a + 1.0, b + 3.0] for a, b in WIDE]
    front = measured("rewarded-soups", [WIDE, plus]).mean_front()
    assert front.rewards_KN == pytest.approx(np.add(WIDE, [0.5, 1.5]))
    assert front.n_samples_KN.tolist() == [[8, 8]] * 3
    assert (front.intervals_KN2[..., 0] < front.rewards_KN).all()


def test_metrics_count_rewards_in_deviations_of_the_base() -> None:
    """a counts in halves from 1, b in tens from 0: volumes are divided by 2 x 10, whatever the reference."""
    scale = {"a": ScoreStatistics(mean=1.0, std=2.0), "b": ScoreStatistics(mean=0.0, std=10.0)}
    methods = [measured("rewarded-soups", [WIDE]), measured("bone-soup-0.7", [HIGH])]
    for reference, volumes in ((None, [25.0, 48.25]), ([0.0, 0.0], [4.0, 35.25])):
        result = compared(*methods, reference=reference, scale=scale)
        found = [result.metrics(each)[0] for each in result.methods]
        assert [metrics["hypervolume"] for metrics in found] == pytest.approx([volume / 20 for volume in volumes])
    # <mu, r> of HIGH at (1, 0), (.5, .5), (0, 1): a is (6 - 1)/2 and (5.5 - 1)/2, b is 5.5/10 and 6/10
    assert found[1]["inner_product"] == pytest.approx((2.5 + 0.5 * 2.25 + 0.5 * 0.55 + 0.6) / 3)
    estimates = result.estimates(result.methods[1])
    assert estimates["inner_product"].value == pytest.approx(found[1]["inner_product"])
    assert comparison_record(compared(*methods, scale=scale))["reference"] == {"a": -1.0, "b": -1.0}  # as rewards are
    assert "deviations from the mean of the base's answers (a 1 ± 2, b 0 ± 10). Hypervolumes are above a 0, b 0" in (
        result.table()
    )
    fixed = compared(*methods, scale=scale, normalization="fixed")
    assert "in the mean and units that its settings gave (a 1 ± 2, b 0 ± 10)." in fixed.table()
    assert result.measured[1].mean_front().rewards_KN == pytest.approx(np.array(HIGH))  # figures, too
