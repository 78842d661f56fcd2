import dataclasses

import numpy as np
import pytest

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front.front import Front
from trl_bonesoup.front.plots import plot_front_3d, plot_ternary
from trl_bonesoup.front.plots.style import COLOURS
from trl_bonesoup.weights import simplex_grid

ARRAYS = ("preferences_KN", "coefficients_KN", "rewards_KN", "intervals_KN2", "n_samples_KN")


def front_of(mu_KN, rewards_KN) -> Front:
    return Front(
        objectives=("warm", "brief", "true"), preferences_KN=mu_KN, coefficients_KN=None, rewards_KN=rewards_KN,
        intervals_KN2=np.stack([rewards_KN, rewards_KN], axis=-1), n_samples_KN=np.ones(mu_KN.shape, dtype=int),
        markers={"base": [-1.0, -2.0, -3.0]},
    )  # fmt: skip


@pytest.fixture
def wide() -> Front:
    mu_KN = simplex_grid(3)
    return front_of(mu_KN, np.array([1.0, 10.0, -5.0]) + mu_KN**0.7)


def dots(axes):
    (points,) = [c for c in axes.collections if len(getattr(c, "get_offsets", list)()) > 1]
    return points


def test_each_reward_lies_over_its_preferences_with_its_corner_at_the_top_left_or_right(wide):
    panels = plot_ternary(wide).axes[:3]
    height = 3**0.5 / 2
    corners = {0: (0.5, height), 1: (0.0, 0.0), 2: (1.0, 0.0)}
    for i, axes in enumerate(panels):
        points = dots(axes)
        np.testing.assert_allclose(points.get_array(), wide.rewards_KN[:, i])
        for j, corner in corners.items():
            (row,) = np.flatnonzero(wide.preferences_KN[:, j] == 1.0)
            np.testing.assert_allclose(points.get_offsets()[row], corner, atol=1e-12)
        middle = np.flatnonzero((wide.preferences_KN == [0.0, 0.5, 0.5]).all(axis=1))[0]
        np.testing.assert_allclose(points.get_offsets()[middle], (0.5, 0.0), atol=1e-12)
        assert {t.get_text(): t.xy for t in axes.texts} == {
            "warm": pytest.approx(corners[0]), "brief": pytest.approx(corners[1]), "true": pytest.approx(corners[2])
        }  # fmt: skip


def test_the_star_is_where_the_reward_is_highest(wide):
    rewards_KN = wide.rewards_KN.copy()
    rewards_KN[7, 1] = 99.0
    panels = plot_ternary(
        dataclasses.replace(wide, rewards_KN=rewards_KN, intervals_KN2=np.stack([rewards_KN] * 2, axis=-1))
    ).axes
    for axes, row in zip(panels[:3], [0, 7, 65], strict=True):
        (star,) = [line for line in axes.lines if line.get_marker() == "*"]
        np.testing.assert_allclose(star.get_xydata()[0], dots(axes).get_offsets()[row])


def test_methods_share_the_colours_of_an_objective_and_not_those_of_another(wide):
    lower = dataclasses.replace(wide, rewards_KN=wide.rewards_KN - 3.0, intervals_KN2=wide.intervals_KN2 - 3.0)
    figure = plot_ternary({"a": wide, "b": lower})
    panels = np.array(figure.axes[:6]).reshape(2, 3)
    for i in range(3):
        limits = np.array([dots(axes).get_clim() for axes in panels[:, i]])
        np.testing.assert_allclose(limits, [[lower.rewards_KN[:, i].min(), wide.rewards_KN[:, i].max()]] * 2)
    assert [bar.get_xlabel() for bar in figure.axes[6:]] == ["mean warm", "mean brief", "mean true"]
    assert [{"a", "b"} & {t.get_text() for t in axes.texts} for axes in panels[:, 0]] == [{"a"}, {"b"}]


def test_in_a_column_of_a_paper_objectives_are_rows(wide):
    figure = plot_ternary({"a": wide, "b": wide}, width=3.3)
    panels = np.array(figure.axes[:6]).reshape(3, 2)
    for i in range(3):
        for axes in panels[i]:
            np.testing.assert_allclose(dots(axes).get_array(), wide.rewards_KN[:, i])


def test_preferences_on_a_line_are_drawn_without_a_surface(wide):
    rows = np.flatnonzero(wide.preferences_KN[:, 2] == 0.0)
    line = dataclasses.replace(wide, **{n: getattr(wide, n)[rows] for n in ARRAYS if getattr(wide, n) is not None})
    axes = plot_ternary(line).axes[0]
    assert len(axes.collections) == 1
    assert len(plot_ternary(wide).axes[0].collections) == 2
    plot_front_3d(line)


def test_equal_rewards_can_be_drawn(wide):
    flat = dataclasses.replace(wide, rewards_KN=np.zeros((66, 3)), intervals_KN2=np.zeros((66, 3, 2)))
    figure = plot_ternary(flat)
    figure.draw_without_rendering()
    np.testing.assert_array_equal(dots(figure.axes[0]).get_array(), np.zeros(66))


def positions(scatter) -> np.ndarray:
    return np.stack(scatter._offsets3d, axis=1)


def test_three_dimensions_have_the_rewards_on_their_axes(wide):
    axes = plot_front_3d(wide).axes[0]
    points = next(c for c in axes.collections if c.get_array() is not None and len(c.get_array()) == 66)
    np.testing.assert_allclose(positions(points), wide.rewards_KN)
    np.testing.assert_allclose(points.get_array(), wide.preferences_KN[:, 0])
    labels = [axes.get_xlabel(), axes.get_ylabel(), axes.get_zlabel()]
    assert labels == ["mean warm", "mean brief", "mean true"]
    (base,) = [line for line in axes.lines if line.get_label() == "base"]
    np.testing.assert_allclose(np.array(base.get_data_3d())[:, 0], [-1, -2, -3])


def test_methods_in_three_dimensions_have_colours_and_a_legend(wide):
    lower = dataclasses.replace(wide, rewards_KN=wide.rewards_KN - 3.0, intervals_KN2=wide.intervals_KN2 - 3.0)
    figure = plot_front_3d({"a": wide, "b": lower})
    scatters = [c for c in figure.axes[0].collections if hasattr(c, "_offsets3d")]
    for scatter, front in zip(scatters, (wide, lower), strict=True):
        np.testing.assert_allclose(positions(scatter), front.rewards_KN)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]
    assert [h.get_color() for h in figure.legends[0].legend_handles] == list(COLOURS[:2])


@pytest.mark.parametrize("draw", [plot_ternary, plot_front_3d])
def test_other_numbers_of_objectives_are_refused(draw, front):
    with pytest.raises(FrontError, match=r"three objectives; the front has 2: \['positivity', 'brevity'\]"):
        draw(front)
