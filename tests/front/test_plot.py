import dataclasses
import itertools
import sys

import numpy as np
import pytest

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front.front import Front
from trl_bonesoup.front.plots import KINDS, plot_front, plot_rewards_by_preference
from trl_bonesoup.front.plots.style import by_method, method_styles, wrap
from trl_bonesoup.weights import simplex_grid


def grid_front(n: int, step: float = 0.25, names: tuple[str, ...] = ()) -> Front:
    mu_KN = simplex_grid(n, step)
    names = names or tuple(f"objective {i}" for i in range(n))
    return Front(
        objectives=names, preferences_KN=mu_KN, coefficients_KN=mu_KN, rewards_KN=mu_KN**0.7,
        intervals_KN2=np.stack([mu_KN**0.7 - 0.02, mu_KN**0.7 + 0.02], axis=-1),
        n_samples_KN=np.ones(mu_KN.shape, dtype=int),
        markers={"base": [0.1] * n, **{f"backbone {name}": (0.2 + 0.5 * np.eye(n)[i]) for i, name in enumerate(names)}},
    )  # fmt: skip


def scattered(axes) -> np.ndarray:
    return np.asarray(axes.collections[-1].get_offsets())


def test_two_objectives_are_drawn_where_they_were_measured(front):
    axes, bar = plot_front(front).axes
    points = next(c for c in axes.collections if len(c.get_offsets()) == 11)
    np.testing.assert_allclose(points.get_offsets(), front.rewards_KN)
    np.testing.assert_allclose(points.get_array(), front.preferences_KN[:, 0])
    line = axes.lines[0]
    np.testing.assert_allclose(line.get_xydata(), front.rewards_KN)
    assert axes.get_xlabel() == "mean positivity (higher is better)"
    assert axes.get_ylabel() == "mean brevity (higher is better)"
    assert bar.get_ylabel() == "weight of positivity in the preference"


def test_the_line_follows_preference_order_whatever_the_rows(front):
    order = np.random.default_rng(0).permutation(11)
    names = ("preferences_KN", "coefficients_KN", "rewards_KN", "intervals_KN2", "n_samples_KN")
    shuffled = dataclasses.replace(front, **{name: getattr(front, name)[order] for name in names})
    np.testing.assert_allclose(plot_front(shuffled).axes[0].lines[0].get_xydata(), front.rewards_KN)


def test_ends_base_and_backbones_are_labelled_at_their_places(front):
    axes = plot_front(front).axes[0]
    places = {text.get_text(): text.xy for text in axes.texts}
    assert places == {
        "base": (0.332, -0.942),
        "backbone positivity": (0.47, -0.95),
        "backbone brevity": (0.25, -0.73),
        "all positivity": tuple(front.rewards_KN[0]),
        "all brevity": tuple(front.rewards_KN[10]),
    }
    glyphs = {line.get_label(): line.get_marker() for line in axes.lines}
    assert glyphs["base"] == "x"
    assert glyphs["backbone positivity"] == glyphs["backbone brevity"] == "D"


def test_labels_do_not_overlap_each_other_or_leave_the_axes(front):
    figure = plot_front(front)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    places = axes.transData.transform(front.rewards_KN)
    assert not any(box.contains(x, y) for box in boxes for x, y in places)


def test_an_inner_preference_is_not_called_all_of_an_objective(front):
    names = ("preferences_KN", "coefficients_KN", "rewards_KN", "intervals_KN2", "n_samples_KN")
    inner = dataclasses.replace(front, **{name: getattr(front, name)[1:-1] for name in names})
    assert not [t for t in plot_front(inner).axes[0].texts if t.get_text().startswith("all ")]


def test_error_bars_reach_from_end_to_end(front):
    down_N, up_N = np.array([0.01, 0.02]), np.array([0.03, 0.04])
    lopsided = np.stack([front.rewards_KN - down_N, front.rewards_KN + up_N], axis=-1)
    axes = plot_front(dataclasses.replace(front, intervals_KN2=lopsided)).axes[0]
    horizontal, vertical = (c.get_segments() for c in axes.containers[0].lines[2])
    np.testing.assert_allclose([segment[:, 0] for segment in horizontal], lopsided[:, 0])
    np.testing.assert_allclose([segment[:, 1] for segment in vertical], lopsided[:, 1])


def test_three_objectives_make_a_panel_per_pair_coloured_by_the_hidden_weight():
    front = grid_front(3)
    panels = plot_front(front).axes[:3]
    for axes, (i, j, hidden) in zip(panels, [(0, 1, 2), (0, 2, 1), (1, 2, 0)], strict=True):
        np.testing.assert_allclose(scattered(axes), front.rewards_KN[:, [i, j]])
        np.testing.assert_allclose(axes.collections[-1].get_array(), front.preferences_KN[:, hidden])
        assert axes.get_xlabel() == f"mean objective {i} (higher is better)"
        rim = axes.lines[0].get_xydata()
        np.testing.assert_allclose(rim, front.rewards_KN[front.preferences_KN[:, hidden] == 0][:, [i, j]])


@pytest.mark.parametrize("n", [2, 3, 5])
def test_rewards_by_preference_has_a_panel_per_objective(n):
    front = grid_front(n, step=0.5)
    panels = plot_rewards_by_preference(front).axes
    assert len(panels) == n
    for i, axes in enumerate(panels):
        np.testing.assert_allclose(
            scattered(axes), np.stack([front.preferences_KN[:, i], front.rewards_KN[:, i]], axis=1)
        )
        assert axes.get_xlabel() == f"weight of objective {i}"
        assert axes.get_ylabel() == f"mean objective {i}"


def test_more_than_three_objectives_are_drawn_by_preference():
    assert len(plot_front(grid_front(4, step=0.5)).axes) == 4


def test_a_single_preference_can_be_drawn(front):
    names = ("preferences_KN", "coefficients_KN", "rewards_KN", "intervals_KN2", "n_samples_KN")
    single = dataclasses.replace(front, **{name: getattr(front, name)[5:6] for name in names})
    assert {t.get_text() for t in plot_front(single).axes[0].texts} == set(front.markers)


@pytest.mark.parametrize(("name", "magic"), [("f.png", b"\x89PNG"), ("f.pdf", b"%PDF"), ("deep/f.svg", b"<?xml")])
def test_the_ending_decides_the_format_and_files_are_reproducible(front, tmp_path, name, magic):
    front.plot(tmp_path / name)
    first = (tmp_path / name).read_bytes()
    assert first.startswith(magic)
    front.plot(tmp_path / name, kind="front")
    assert (tmp_path / name).read_bytes() == first
    assert len(list((tmp_path / name).parent.iterdir())) == 1


def test_a_png_is_wide_enough_for_twice_600_pixels(front, tmp_path):
    front.plot(tmp_path / "f.png")
    assert int.from_bytes((tmp_path / "f.png").read_bytes()[16:20], "big") == 1200


def test_a_narrow_png_has_as_many_pixels(front, tmp_path):
    front.plot(tmp_path / "f.png", width=3.0)
    assert int.from_bytes((tmp_path / "f.png").read_bytes()[16:20], "big") == 1200


def test_other_endings_kinds_and_widths_are_refused(front, tmp_path):
    with pytest.raises(FrontError, match=r"\.pdf, \.png, \.svg; got 'f\.gif'"):
        front.plot(tmp_path / "f.gif")
    with pytest.raises(FrontError, match="'controllability', 'front', 'preference'"):
        front.plot(tmp_path / "f.png", kind="radar")
    with pytest.raises(FrontError, match="inches"):
        front.plot(tmp_path / "f.png", width=1200)
    assert not list(tmp_path.iterdir())


# layout, for every kind

LONG = ("faithfulness_to_the_source_document", "brevity of the whole answer in words", "warmth")


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_leaves_a_column_of_a_paper_however_long_the_names(kind):
    front = grid_front(3 if kind in ("3d", "ternary") else 2, names=LONG[: 3 if kind in ("3d", "ternary") else 2])
    for fronts in (front, {"a method that has a name of more than forty characters": front, "b": front}):
        figure = KINDS[kind](fronts, width=3.3)
        figure.draw_without_rendering()
        page = figure.bbox.padded(2)
        texts = [t for axes in figure.axes for t in (axes.xaxis.label, axes.yaxis.label, axes.title)]
        texts += [t for legend in figure.legends for t in legend.get_texts()]
        for text in texts:
            box = text.get_window_extent()
            assert not text.get_text() or (page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1)), text


@pytest.mark.parametrize(
    ("inches", "broken"),
    [
        (9.0, "weight_of_the_first objective"),
        (0.77, "weight_of_\nthe_first\nobjective"),  # 10 characters at 10 points
        (0.5, "weight\n_of_\nthe_…"),
        (0.6, "weight_\nof_the_\nfirst…"),
    ],
)
def test_labels_are_broken_at_words_or_underscores_and_cut_after_three_lines(inches, broken):
    assert wrap("weight_of_the_first objective", inches, 10) == broken


def test_text_is_smaller_in_a_column_of_a_paper(front):
    sizes = [plot_front(front, width=width).axes[0].xaxis.label.get_size() for width in (3.3, 6.0)]
    assert sizes == [8, 10]


# methods


def luminance(colour) -> float:
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_seven_methods_differ_in_colour_and_shape_and_28_in_colour_or_line():
    styles = list(method_styles([str(i) for i in range(28)]).values())
    assert len({s.colour for s in styles[:7]}) == len({s.shape for s in styles[:7]}) == 7
    assert len({(s.colour, str(s.dashes)) for s in styles}) == 28
    assert all(luminance(s.colour) < 0.45 for s in styles)  # seen on white: at least 2 to 1


def test_a_method_looks_the_same_in_every_figure_whatever_is_left_out_after_it():
    assert method_styles(["a", "b", "c"])["b"] == method_styles(["a", "b"])["b"]


def test_fronts_of_other_objectives_are_not_drawn_together(front):
    with pytest.raises(FrontError, match="same objectives"):
        by_method({"a": front, "b": grid_front(2)})
    with pytest.raises(FrontError, match="at least one front"):
        plot_front({})


def test_pyplot_is_left_alone(front):
    plot_front(front)
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()
