"""Several methods in one figure, and the pairs that controllability counts."""

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from trl_bonesoup.front.front import Front, Marker
from trl_bonesoup.front.plots import plot_controllability, plot_front, plot_rewards_by_preference
from trl_bonesoup.front.plots.style import COLOURS
from trl_bonesoup.weights import simplex_grid

ARRAYS = ("preferences_KN", "coefficients_KN", "rewards_KN", "intervals_KN2", "n_samples_KN")


def three_objectives(shift: float = 0.0) -> Front:
    mu_KN = simplex_grid(3, 0.25)
    rewards_KN = mu_KN**0.7 + shift
    return Front(
        objectives=("a", "b", "c"), preferences_KN=mu_KN, coefficients_KN=mu_KN, rewards_KN=rewards_KN,
        intervals_KN2=np.stack([rewards_KN - 0.02, rewards_KN + 0.02], axis=-1),
        n_samples_KN=np.ones(mu_KN.shape, dtype=int), markers={"base": [0.1, 0.1, 0.1]},
    )  # fmt: skip


@pytest.fixture
def methods(front) -> dict[str, Front]:
    """Two fronts of one base, the second with every reward a tenth lower and its rows shuffled."""
    order = np.random.default_rng(0).permutation(11)
    worse = {name: getattr(front, name)[order] for name in ARRAYS}
    worse["rewards_KN"] = worse["rewards_KN"] - 0.1
    worse["intervals_KN2"] = worse["intervals_KN2"] - 0.1
    return {"Bone Soup": front, "Rewarded Soups": dataclasses.replace(front, **worse)}


def lines_of(axes, colour: str):
    return [line for line in axes.lines if line.get_color() == colour and len(line.get_xdata()) > 1]


def points_of(axes, colour: str):
    scattered = [c for c in axes.collections if len(c.get_offsets()) > 1]
    (points,) = [c for c in scattered if to_rgb(colour) == tuple(c.get_edgecolor()[0][:3])]
    return points


def test_every_method_is_drawn_where_it_was_measured_in_preference_order(methods):
    (axes,) = plot_front(methods).axes
    for colour, front in zip(COLOURS, methods.values(), strict=False):
        order = np.argsort(-front.preferences_KN[:, 0])
        (line,) = lines_of(axes, colour)
        np.testing.assert_allclose(line.get_xydata(), front.rewards_KN[order])
        np.testing.assert_allclose(points_of(axes, colour).get_offsets(), front.rewards_KN[order])


def test_darker_points_weigh_the_first_objective_more(methods):
    (axes,) = plot_front(methods).axes
    for colour in COLOURS[:2]:
        fills = points_of(axes, colour).get_facecolor()[:, :3]
        np.testing.assert_allclose(fills[0], to_rgb(colour))  # (1, 0)
        np.testing.assert_allclose(fills[-1], 1.0)  # (0, 1) is white
        assert (np.diff(fills.sum(axis=1)) > 0).all()
    assert plot_front(methods).legends[0].get_title().get_text() == "darker: more weight on positivity"


def test_intervals_of_every_method_reach_from_end_to_end(methods):
    (axes,) = plot_front(methods).axes
    for bars, front in zip(axes.containers, methods.values(), strict=True):
        order = np.argsort(-front.preferences_KN[:, 0])
        for i, collection in enumerate(bars.lines[2]):
            ends = np.array([segment[:, i] for segment in collection.get_segments()])
            np.testing.assert_allclose(ends, front.intervals_KN2[order, i])


def test_one_legend_names_every_method_and_the_base_they_share(methods):
    figure = plot_front(methods)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["Bone Soup", "Rewarded Soups", "base"]
    handles = figure.legends[0].legend_handles
    assert [h.get_color() for h in handles[:2]] == list(COLOURS[:2])
    assert [h.get_marker() for h in handles] == ["o", "s", "x"]
    (base,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    np.testing.assert_allclose(base.get_xydata(), [[0.332, -0.942]])
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "D"]  # no backbones


def test_bases_that_differ_are_drawn_in_the_colours_of_their_methods(methods):
    other = dataclasses.replace(methods["Rewarded Soups"], markers={"base": Marker(np.array([0.2, -0.8]))})
    axes = plot_front({**methods, "Rewarded Soups": other}).axes[0]
    crosses = {line.get_label(): line for line in axes.lines if line.get_marker() == "x"}
    assert crosses["base (Bone Soup)"].get_color() == COLOURS[0]
    assert crosses["base (Rewarded Soups)"].get_color() == COLOURS[1]
    np.testing.assert_allclose(crosses["base (Rewarded Soups)"].get_xydata(), [[0.2, -0.8]])


def test_a_single_named_method_is_drawn_as_a_method(front):
    (axes,) = plot_front({"Bone Soup": front}).axes
    assert len(lines_of(axes, COLOURS[0])) == 1


def test_methods_may_have_other_preferences(methods):
    few = dataclasses.replace(
        methods["Bone Soup"], **{name: getattr(methods["Bone Soup"], name)[[0, 5, 10]] for name in ARRAYS}
    )
    (axes,) = plot_front({"Bone Soup": methods["Bone Soup"], "MORLHF": few}).axes
    (line,) = lines_of(axes, COLOURS[1])
    np.testing.assert_allclose(line.get_xydata(), few.rewards_KN)


def test_three_objectives_join_the_preferences_of_each_pair():
    fronts = {"x": three_objectives(), "y": three_objectives(-0.2)}
    figure = plot_front(fronts)
    assert len(figure.axes) == 3
    assert len(figure.legends) == 1
    for axes, (i, j, hidden) in zip(figure.axes, [(0, 1, 2), (0, 2, 1), (1, 2, 0)], strict=True):
        for colour, front in zip(COLOURS, fronts.values(), strict=False):
            rim = front.preferences_KN[:, hidden] == 0.0
            (line,) = lines_of(axes, colour)
            np.testing.assert_allclose(line.get_xydata(), front.rewards_KN[rim][:, [i, j]])
            scattered = [c for c in axes.collections if len(c.get_offsets()) == (~rim).sum()]
            assert any(np.allclose(c.get_offsets(), front.rewards_KN[~rim][:, [i, j]]) for c in scattered)


# rewards by preference


def test_steering_of_methods_has_a_line_each_beside_each_other(methods):
    figure = plot_rewards_by_preference(methods)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(methods)
    for i, axes in enumerate(figure.axes):
        for colour, front in zip(COLOURS, methods.values(), strict=False):
            (line,) = lines_of(axes, colour)
            order = np.argsort(front.preferences_KN[:, i])
            np.testing.assert_allclose(line.get_ydata(), front.rewards_KN[order, i])
            np.testing.assert_allclose(line.get_xdata(), front.preferences_KN[order, i], atol=0.01)
        for bars, front in zip(axes.containers, methods.values(), strict=True):
            order = np.argsort(front.preferences_KN[:, i])
            ends = np.array([segment[:, 1] for segment in bars.lines[2][0].get_segments()])
            np.testing.assert_allclose(ends, front.intervals_KN2[order, i])
        assert len({float(lines_of(axes, c)[0].get_xdata()[0]) for c in COLOURS[:2]}) == 2


def test_steering_of_three_objectives_joins_means_over_equal_weights():
    front = three_objectives()
    axes = plot_rewards_by_preference({"x": front, "y": three_objectives(-0.2)}).axes[1]
    (line,) = lines_of(axes, COLOURS[0])
    for weight, mean, ends in zip(
        [0, 0.25, 0.5, 0.75, 1.0], line.get_ydata(), axes.containers[0].lines[2][0].get_segments(), strict=True
    ):
        rewards = front.rewards_KN[np.isclose(front.preferences_KN[:, 1], weight), 1]
        assert mean == pytest.approx(rewards.mean())
        np.testing.assert_allclose(ends[:, 1], [rewards.min(), rewards.max()])


def test_the_base_is_one_dashed_line_or_one_for_each_method(methods):
    axes = plot_rewards_by_preference(methods).axes[0]
    assert [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1] == [0.332]
    other = dataclasses.replace(methods["Rewarded Soups"], markers={"base": [0.2, -0.8]})
    axes = plot_rewards_by_preference({**methods, "Rewarded Soups": other}).axes[0]
    bases = {line.get_color(): line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert bases == {COLOURS[0]: 0.332, COLOURS[1]: 0.2}


# controllability


def outcomes(axes) -> np.ndarray:
    """Return the cells (row, column) as an array of 0, 1, 2, and -1 where nothing is drawn."""
    mesh = axes.collections[0].get_array()
    return np.ma.filled(np.ma.masked_array(mesh), -1).reshape(mesh.shape)


def test_the_map_shows_the_pairs_that_are_out_of_order(front):
    rewards_KN = front.rewards_KN.copy()
    rewards_KN[[2, 5], 0] = rewards_KN[[5, 2], 0]  # positivity of .8 and .5 change places; brevity stays right
    rewards_KN[10] = [9.0, -9.0]  # the last, all brevity, is best in positivity and worst in brevity
    ends = np.stack([rewards_KN, rewards_KN], axis=-1)
    shuffled = np.random.default_rng(1).permutation(11)
    arrays = {**{name: getattr(front, name) for name in ARRAYS}, "rewards_KN": rewards_KN, "intervals_KN2": ends}
    mixed = dataclasses.replace(front, **{name: array[shuffled] for name, array in arrays.items()})
    (axes,) = plot_controllability(mixed).axes
    cells = outcomes(axes)
    assert (cells[np.triu_indices(11)] == -1).all()
    expected = np.zeros((11, 11), dtype=int)
    for p, q in [(5, 2), (3, 2), (4, 2), (5, 3), (5, 4)]:
        expected[p, q] = 1
    expected[10, :10] = 2
    below = np.tril_indices(11, k=-1)
    np.testing.assert_array_equal(cells[below], expected[below])
    assert axes.get_title() == f"40 of 55 pairs: {40 / 55:.3f}"
    assert axes.yaxis_inverted()


def test_the_map_reads_from_the_most_weight_on_the_first_objective(front):
    (axes,) = plot_controllability(front).axes
    labels = {tick: label.get_text() for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)}
    assert labels[0.5] == "1"
    assert labels[10.5] == "0"
    assert axes.get_xlabel() == "weight of positivity"


def test_maps_of_methods_have_their_names_and_one_legend(methods):
    figure = plot_controllability(methods)
    assert [axes.get_title().splitlines() for axes in figure.axes] == [
        ["Bone Soup", "55 of 55 pairs: 1.000"],
        ["Rewarded Soups", "55 of 55 pairs: 1.000"],
    ]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "ordered as asked", "in some objectives only", "in no objective"
    ]  # fmt: skip


def test_the_map_of_three_objectives_names_the_first_of_each_weight_where_there_is_room():
    (axes,) = plot_controllability(three_objectives()).axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "0.5", "0.25", "0"]  # 0.75 would touch 1
    np.testing.assert_allclose(axes.get_xticks(), np.array([0, 3, 6, 10]) + 0.5)
    assert axes.get_title() == "105 of 105 pairs: 1.000"
