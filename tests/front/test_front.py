import dataclasses
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front import metrics
from trl_bonesoup.front.front import Front, Marker


def rebuilt(front: Front, **changes) -> Front:
    return dataclasses.replace(front, **changes)


def first_rows(front: Front, k: int) -> Front:
    arrays = ("preferences_KN", "coefficients_KN", "rewards_KN", "intervals_KN2", "n_samples_KN")
    return rebuilt(front, **{name: getattr(front, name)[:k] for name in arrays})


def test_metrics_by_name(front):
    values = front.metrics({"brevity": -1.2, "positivity": 0.1})
    assert values == {
        "hypervolume": metrics.hypervolume(front.rewards_KN, [0.1, -1.2]),
        "inner_product": metrics.inner_product(front.preferences_KN, front.rewards_KN),
        "controllability": 1.0,
        "length_of_front": 11,
        "sparsity": metrics.sparsity(front.preferences_KN, front.rewards_KN),
        "spacing": metrics.spacing(front.rewards_KN),
    }
    assert values == front.metrics([0.1, -1.2])
    assert values["hypervolume"] != front.metrics([-1.2, 0.1])["hypervolume"]


@pytest.mark.parametrize("reference", [{"positivity": 0.0}, {"positivity": 0, "brevity": 0, "x": 0}, [0.0], 0.0])
def test_a_reference_must_cover_the_objectives(front, reference):
    with pytest.raises(FrontError, match=r"positivity.*brevity"):
        front.metrics(reference)


def test_the_default_reference_lies_a_tenth_of_the_range_below_the_worst(front):
    # positivity from .151 (μ = 0) to .558; brevity from -1.017 to -.605
    np.testing.assert_allclose(front.default_reference(), [0.151 - 0.0407, -1.017 - 0.0412])
    lower = rebuilt(front, markers={"base": [-0.442, -0.7]})
    np.testing.assert_allclose(lower.default_reference(), [-0.442 - 0.1, -1.017 - 0.0412])


def test_the_default_reference_of_a_single_point_still_encloses_volume(front):
    single = rebuilt(first_rows(front, 1), markers={})
    np.testing.assert_allclose(single.default_reference(), [0.558 - 0.1, -1.017 - 0.1])


def test_a_single_preference_has_a_table_and_a_point_but_no_metrics(front, tmp_path):
    single = first_rows(front, 1)
    assert "| soup" in single.table()
    assert single.point([1, 0]).index == 0
    assert Front.from_json(single.to_json(tmp_path / "front.json")) == single
    with pytest.raises(FrontError, match="has 1 preference"):
        single.metrics([0, 0])


def test_point_finds_a_preference_up_to_rounding(front):
    point = front.point([0.3 + 4e-10, 0.7 - 4e-10])
    assert point.index == 7
    np.testing.assert_array_equal(point.rewards_N, front.rewards_KN[7])
    np.testing.assert_array_equal(point.coefficients_N, front.coefficients_KN[7])
    np.testing.assert_array_equal(point.intervals_N2, front.intervals_KN2[7])
    assert front.point({"brevity": 1.0}).index == 10
    with pytest.raises(FrontError, match=r"nearest of its 11 is \[0\.3, 0\.7\]"):
        front.point([0.31, 0.69])


def test_nearest(front):
    assert front.nearest([0.31, 0.69]).index == 7
    assert front.nearest({"positivity": 0.96, "brevity": 0.04}).index == 0


@pytest.mark.parametrize("preference", [[1.0], {"speed": 1.0}, [[1.0, 0.0]], [np.nan, 1.0]])
def test_a_preference_that_does_not_fit_is_refused(front, preference):
    with pytest.raises(FrontError, match="preference"):
        front.nearest(preference)


def test_the_table_shows_signs_means_and_markers(front):
    lines = front.table().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["", "μ positivity", "μ brevity", "λ positivity", "λ brevity", "positivity", "brevity"]
    assert cells[2] == ["soup", "1", "0", "+1.750", "-0.750", "0.558 ± 0.050", "-1.017 ± 0.040"]
    assert cells[5][1:5] == ["0.7", "0.3", "+1.000", "+0.000"]
    assert cells[13] == ["base", "", "", "", "", "0.332 ± 0.030", "-0.942 ± 0.050"]
    assert cells[14] == ["backbone positivity", "", "", "", "", "0.470", "-0.950"]
    assert len(lines) == 2 + 11 + 3
    assert len({len(line) for line in lines}) == 1


def test_the_table_never_shows_a_negative_zero(front):
    tiny = front.coefficients_KN.copy()
    tiny[0] = [-1e-9, 1.0]
    assert "-0.000" not in rebuilt(front, coefficients_KN=tiny).table()


def test_where_nothing_was_merged_there_are_no_coefficients(front, tmp_path):
    unmerged = rebuilt(front, coefficients_KN=None)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in unmerged.table().splitlines()]
    assert cells[0] == ["", "μ positivity", "μ brevity", "positivity", "brevity"]
    assert cells[2] == ["policy", "1", "0", "0.558 ± 0.050", "-1.017 ± 0.040"]
    assert cells[13] == ["base", "", "", "0.332 ± 0.030", "-0.942 ± 0.050"]
    assert unmerged.point([0.3, 0.7]).coefficients_N is None
    assert Front.from_json(unmerged.to_json(tmp_path / "front.json")) == unmerged != front


def test_decimals_follow_the_range(front):
    large = rebuilt(front, rewards_KN=1000 * front.rewards_KN, intervals_KN2=1000 * front.intervals_KN2, markers={})
    assert "558 ± 50 |" in large.table()


def test_a_bar_in_a_name_does_not_break_the_table(front):
    assert "a\\|b" in rebuilt(front, objectives=("a|b", "c")).table()


def test_json_round_trip_is_exact(front, tmp_path):
    awkward = rebuilt(front, rewards_KN=front.rewards_KN / 3.0 + 1e-17, provenance={"note": "µ → λ", "n": [1, None]})
    path = awkward.to_json(tmp_path / "new" / "front.json")
    loaded = Front.from_json(path)
    assert loaded == awkward
    assert loaded != front
    np.testing.assert_array_equal(loaded.rewards_KN, awkward.rewards_KN)
    assert loaded.objectives == ("positivity", "brevity")
    assert loaded.markers["backbone brevity"].intervals_N2 is None
    assert loaded.provenance == {"note": "µ → λ", "n": [1, None]}
    assert [file.name for file in path.parent.iterdir()] == ["front.json"]


def test_a_failed_write_leaves_the_old_file(front, tmp_path, monkeypatch):
    path = front.to_json(tmp_path / "front.json")
    before = path.read_text(encoding="utf-8")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        rebuilt(front, markers={}).to_json(path)
    assert path.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"surprise": 1}, "surprise"),
        ({"rewards": None}, "rewards"),
        ({"rewards": [[1.0, "2.0"]] * 11}, "rewards"),
        ({"rewards": [[1.0, 2.0]]}, r"shape \(1, 2\)"),
        ({"rewards": [[1.0]] + [[1.0, 2.0]] * 10}, "equal length"),
        ({"n_samples": [[1.5, 2]] * 11}, "n_samples"),
        ({"n_samples": [[1]] + [[1, 2]] * 10}, r"front\.json is not a valid front"),
        ({"markers": {"base": {"rewards": [1.0], "intervals": None}}}, "base"),
        ({"markers": {"base": {"rewards": [1.0, 2.0]}}}, "intervals"),
        ({"preferences": [[1.0, 0.0]] * 11}, "rows 0 and 1"),
        ({"format_version": True}, "format version True"),
        ({"format_version": 1.0}, "format version 1.0"),
        ({"n_samples": [[10**30, 2]] * 11}, "n_samples"),
        ({"objectives": [f"objective {i}" for i in range(65)]}, "objectives: List should have at most 64 items"),
        ({"markers": {str(i): {"rewards": [1.0, 2.0], "intervals": None} for i in range(1001)}}, "at most 1000 items"),
        ({"preferences": [[1.0, 0.0]] * 10_001}, "preferences: List should have at most 10000 items"),
        ({"\x1b[2J": 1}, r"\\x1b\[2J: Extra inputs"),
    ],
)
def test_a_damaged_file_is_refused(front, tmp_path, change, message):
    path = front.to_json(tmp_path / "front.json")
    data = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(FrontError, match=message):
        Front.from_json(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "valid JSON"),
        ("[]", "format version None"),
        ('{"rewards": NaN}', "NaN"),
        ("{", "valid JSON"),
        ('{"format_version": 1, "format_version": 1}', "given twice"),
        ('{"rewards": [[1e999, 0]]}', "1e999 is not a finite number"),
        ("[" * 100_000, "valid JSON"),
        ('"\\ud800"', "valid JSON"),
    ],
)
def test_what_is_no_front_is_refused(tmp_path, text, message):
    path = tmp_path / "front.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FrontError, match=message):
        Front.from_json(path)


def test_what_is_too_deep_or_no_text_is_refused(front, tmp_path):
    path = front.to_json(tmp_path / "front.json")
    deep: list = []
    for _ in range(900):
        deep = [deep]
    data = json.loads(path.read_text(encoding="utf-8")) | {"provenance": {"deep": deep}}
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(FrontError, match="inside one another"):
        Front.from_json(path)
    path.write_bytes(b"\xff")
    with pytest.raises(FrontError, match="valid JSON"):
        Front.from_json(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.sampled_from(["format_version", "objectives", "preferences", "coefficients", "rewards", "intervals"])
    | st.sampled_from(["n_samples", "markers", "provenance", "surplus"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda children: st.lists(children, max_size=11) | st.dictionaries(st.text(max_size=5), children, max_size=3),
        max_leaves=12,
    ),
)
@example("n_samples", [[2**63, 1]] * 11)
@example("coefficients", [[10**400, 0]] * 11)
@example("preferences", [[]] * 11)
@example("rewards", [])
@example("markers", {"": {"rewards": [], "intervals": []}})
def test_a_replaced_entry_loads_or_is_a_front_error(front, tmp_path, entry, value):
    path = front.to_json(tmp_path / "front.json")
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {entry: value}), encoding="utf-8")
    try:
        loaded = Front.from_json(path)
    except FrontError as error:
        outcome = str(error)
    else:
        outcome = ""
        assert Front.from_json(loaded.to_json(path)) == loaded
    assert len(outcome) < 5000


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FrontError, match=r"nowhere\.json cannot be read"):
        Front.from_json(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("one",)}, "at least 2 objectives"),
        ({"objectives": ("same", "same")}, "different names"),
        ({"objectives": ("a", "b", "c")}, r"shape \(11, 2\)"),
        ({"rewards_KN": [[np.nan, 1.0]] * 11}, "finite"),
        ({"coefficients_KN": [[1.0, 0.0]]}, "Coefficients"),
        ({"intervals_KN2": np.zeros((11, 2))}, "lower and an upper"),
        ({"intervals_KN2": np.tile([1.0, -1.0], (11, 2, 1))}, "lower end first"),
        ({"n_samples_KN": np.zeros((11, 2), dtype=int)}, "at least 1"),
        ({"n_samples_KN": np.ones((11, 2))}, "whole numbers"),
        ({"markers": {"base": [1.0, 2.0, 3.0]}}, '"base"'),
        ({"markers": {"base": [np.inf, 2.0]}}, "finite"),
        ({"provenance": {"when": object()}}, "JSON"),
        ({"provenance": {"loss": float("nan")}}, "JSON"),
    ],
)
def test_a_front_checks_its_parts(front, changes, message):
    with pytest.raises(FrontError, match=message):
        rebuilt(front, **changes)


def test_a_marker_checks_its_intervals():
    with pytest.raises(FrontError, match="lower and an upper"):
        Marker(np.array([1.0, 2.0]), np.array([[0.0, 1.0]]))


def test_a_front_keeps_its_own_read_only_copy(front):
    mine = np.array(front.rewards_KN)
    copy = rebuilt(front, rewards_KN=mine)
    mine[0, 0] = 9.0
    assert copy.rewards_KN[0, 0] == 0.558
    with pytest.raises(ValueError, match="read-only"):
        copy.rewards_KN[0, 0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        copy.rewards_KN = mine
