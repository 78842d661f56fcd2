"""One preference can be ringed: the soup that a model card is about."""

import numpy as np
import pytest
from test_plot import grid_front

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front.plots import KINDS, plot, plot_front


def rings(axes):
    return [line.get_xydata()[0] for line in axes.lines if line.get_label() == "this soup"]


def test_the_ring_is_around_the_measured_point_and_named(front):
    axes = front.plot(highlight={"positivity": 0.7, "brevity": 0.3}).axes[0]
    np.testing.assert_allclose(rings(axes), [front.rewards_KN[3]])
    np.testing.assert_allclose([t.xy for t in axes.texts if t.get_text() == "this soup"], [front.rewards_KN[3]])


@pytest.mark.parametrize(("preference", "left"), [([1.0, 0.0], "all brevity"), ([0.0, 1.0], "all positivity")])
def test_a_ringed_end_has_one_name(front, preference, left):
    texts = {text.get_text() for text in front.plot(highlight=preference).axes[0].texts}
    assert {text for text in texts if text.startswith(("all", "this"))} == {left, "this soup"}


def test_its_name_lies_outside_of_the_ring(front):
    figure = front.plot(highlight=[1.0, 0.0])
    axes = figure.axes[0]
    (name,) = [text for text in axes.texts if text.get_text() == "this soup"]
    center, radius = axes.transData.transform(front.rewards_KN[0]), 8.0 * figure.dpi / 72.0
    box = name.get_window_extent()
    nearest = np.clip(center, [box.x0, box.y0], [box.x1, box.y1])
    assert np.linalg.norm(nearest - center) > radius


def test_each_panel_of_three_objectives_has_the_ring_at_its_pair():
    front = grid_front(3)
    row = front.point([0.5, 0.25, 0.25]).index
    panels = [axes for axes in plot_front(front, highlight=row).axes if rings(axes)]
    for axes, pair in zip(panels, [(0, 1), (0, 2), (1, 2)], strict=True):
        np.testing.assert_allclose(rings(axes), [front.rewards_KN[row, pair]])


def test_rewards_by_preference_ring_each_weight_and_explain_it():
    front = grid_front(4)
    figure = front.plot(highlight=[0.5, 0.25, 0.25, 0.0])
    for axes, weight in zip(figure.axes, [0.5, 0.25, 0.25, 0.0], strict=True):
        np.testing.assert_allclose(rings(axes), [[weight, weight**0.7]])
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ["this soup"]


def test_what_cannot_be_ringed_is_refused(front):
    with pytest.raises(FrontError, match=r"was not measured in this front; the nearest .* is \[0\.7, 0\.3"):
        front.plot(highlight=[0.72, 0.28])
    for kind in KINDS:
        if kind in ("front", "preference"):
            with pytest.raises(FrontError, match="compares several methods"):
                plot({"a": front, "b": front}, kind=kind, highlight=0)
        else:
            with pytest.raises(FrontError, match=rf'highlighted in the kinds .* got "{kind}"'):
                front.plot(kind=kind, highlight=[1.0, 0.0])
