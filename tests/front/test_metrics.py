import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front import metrics
from trl_bonesoup.front.front import Front
from trl_bonesoup.weights import simplex_grid

GRID = simplex_grid(2)
NUMBERS = st.floats(-8, 8).map(lambda x: round(x, 3))


def rewards(n: int, least: int = 2, most: int = 7):
    return st.integers(least, most).flatmap(lambda k: arrays(np.float64, (k, n), elements=NUMBERS))


def volume_by_inclusion_exclusion(rewards_KN, reference_N) -> float:
    """Σ over non-empty subsets of (-1)^(size+1) · the volume that all of the subset dominate."""
    total = 0.0
    for size in range(1, len(rewards_KN) + 1):
        for subset in itertools.combinations(rewards_KN, size):
            edges = np.clip(np.min(subset, axis=0) - reference_N, 0.0, None)
            total += (-1) ** (size + 1) * float(np.prod(edges))
    return total


def dominated(rewards_KN) -> list[bool]:
    return [any((q >= p).all() and (q > p).any() for q in rewards_KN) for p in rewards_KN]


# hypervolume


@pytest.mark.parametrize(
    ("points", "reference", "volume"),
    [
        ([[3, 1], [1, 2]], [0, 0], 4),  # 3·1 + 1·2 - the shared 1·1
        ([[3, 1], [1, 2], [2, 2]], [0, 0], 5),
        ([[3, 1]], [1, -1], 4),
        ([[3, 1], [3, 1]], [0, 0], 3),
        ([[2, 2], [1, 1]], [0, 0], 4),
        ([[3, -1], [-1, 3]], [0, 0], 0),  # neither is above the reference in both objectives
        ([[3, 0], [1, 2]], [0, 0], 2),  # on the reference adds nothing
        ([[1, 2, 3], [3, 2, 1]], [0, 0, 0], 10),
    ],
)
def test_hypervolume_worked_out_by_hand(points, reference, volume):
    assert metrics.hypervolume(points, reference) == pytest.approx(volume, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4])
@given(data=st.data())
def test_hypervolume_equals_inclusion_exclusion(n, data):
    points = data.draw(rewards(n))
    reference = data.draw(arrays(np.float64, (n,), elements=NUMBERS))
    expected = volume_by_inclusion_exclusion(points, reference)
    assert metrics.hypervolume(points, reference) == pytest.approx(expected, rel=1e-9, abs=1e-8)


@given(rewards(3), st.integers(0, 2), st.floats(0, 3), st.randoms(use_true_random=False))
def test_hypervolume_never_falls_when_a_reward_rises_or_a_solution_is_added(points, objective, gain, random):
    reference = np.full(3, -4.0)
    before = metrics.hypervolume(points, reference)
    better = points.copy()
    better[random.randrange(len(points)), objective] += gain
    assert metrics.hypervolume(better, reference) >= before - 1e-9
    added = np.vstack([points, [random.uniform(-8, 8) for _ in range(3)]])
    assert metrics.hypervolume(added, reference) >= before - 1e-9


# inner product


def test_inner_product_worked_out_by_hand():
    assert metrics.inner_product([[0.9, 0.1], [0.2, 0.8]], [[1.0, 10.0], [2.0, 5.0]]) == pytest.approx(
        (0.9 + 1.0 + 0.4 + 4.0) / 2
    )


@pytest.mark.parametrize("n", [2, 3, 4])
@given(data=st.data())
def test_inner_product_equals_a_slow_loop(n, data):
    preferences_KN = simplex_grid(n, step=0.5)
    rewards_KN = data.draw(arrays(np.float64, preferences_KN.shape, elements=NUMBERS))
    total = 0.0
    for mu_N, r_N in zip(preferences_KN, rewards_KN, strict=True):
        for mu, r in zip(mu_N, r_N, strict=True):
            total += mu * r / len(rewards_KN)
    assert metrics.inner_product(preferences_KN, rewards_KN) == pytest.approx(total, abs=1e-9)


# controllability


def controllability_slowly(preferences_KN, rewards_KN) -> float:
    good = pairs = 0
    for p in range(len(rewards_KN)):
        for q in range(p):
            pairs += 1
            verdicts = []
            for i in range(rewards_KN.shape[1]):
                if preferences_KN[p, i] > preferences_KN[q, i]:
                    verdicts.append(rewards_KN[p, i] > rewards_KN[q, i])
                elif preferences_KN[p, i] < preferences_KN[q, i]:
                    verdicts.append(rewards_KN[p, i] < rewards_KN[q, i])
            good += all(verdicts)
    return good / pairs


@given(arrays(np.float64, (11, 2), elements=NUMBERS))
def test_controllability_of_eleven_preferences_is_a_multiple_of_one_in_55(rewards_KN):
    value = metrics.controllability(GRID, rewards_KN)
    assert value == pytest.approx(controllability_slowly(GRID, rewards_KN))
    assert 55 * value == pytest.approx(round(55 * value))


def test_the_papers_982_is_one_neighbouring_pair_out_of_order():
    rewards_KN = np.stack([GRID[:, 0], -GRID[:, 0]], axis=1)
    assert metrics.controllability(GRID, rewards_KN) == 1.0
    rewards_KN[[4, 5]] = rewards_KN[[5, 4]]
    assert metrics.controllability(GRID, rewards_KN) == pytest.approx(54 / 55)
    assert round(metrics.controllability(GRID, rewards_KN), 3) == 0.982


@pytest.mark.parametrize(("middle", "thirds"), [([0.5, 0.5], 3), ([1.5, 0.5], 2), ([1.5, 1.5], 1)])
def test_controllability_of_three_preferences_comes_in_thirds(middle, thirds):
    value = metrics.controllability([[1, 0], [0.5, 0.5], [0, 1]], [[1, 0], middle, [0, 1]])
    assert value == pytest.approx(thirds / 3)


def test_equal_weights_ask_for_nothing():
    grid = simplex_grid(3)
    first, second = np.triu_indices(66, k=1)
    every_weight_differs = ((grid[first] - grid[second]).round(9) != 0).all(axis=1).mean()
    assert every_weight_differs == pytest.approx(
        9 / 13
    )  # .69: all that could be scored if equal weights were not skipped
    assert metrics.controllability(grid, 2.0 * grid - 1.0) == 1.0


def test_weights_that_differ_by_rounding_are_equal():
    tenth = 0.1 + 0.2  # a hair above 0.3
    assert metrics.controllability([[0.3, 0.7, 0.0], [tenth, 0.0, 0.7]], [[9, 1, 0], [1, 0, 1]]) == 1.0


def test_what_happens_to_objectives_of_equal_weight_does_not_matter():
    """Each reward follows its own weight, and moves with the others by less than one step of the grid."""
    grid = simplex_grid(3)
    moved = grid + 0.04 * np.cos(7.0 * np.roll(grid, 1, axis=1))
    first, second = np.triu_indices(66, k=1)
    equal = np.isclose(grid[first], grid[second])
    assert (moved[first] - moved[second])[equal].any()
    assert metrics.controllability(grid, moved) == 1.0


def test_one_swap_in_the_grid_of_66_counted_by_hand():
    """The rewards of (1, 0, 0) and (.9, .1, 0) change places: 21 of the 2145 pairs are lost.

    The pair itself; (1, 0, 0), which now ties in objective 0 with (.9, 0, .1) and in objective 1 with the
    9 others that have .1 there; and (.9, .1, 0), which ties in objective 1 with the 10 others that have 0.
    """
    grid = simplex_grid(3)
    rewards_KN = grid.copy()
    rewards_KN[[0, 1]] = grid[[1, 0]]
    assert metrics.controllability(grid, rewards_KN) == pytest.approx(2124 / 2145)
    assert controllability_slowly(grid, rewards_KN) == pytest.approx(2124 / 2145)


def test_equal_rewards_are_no_control_on_any_grid():
    assert metrics.controllability(GRID, np.zeros((11, 2))) == 0.0
    assert metrics.controllability(simplex_grid(3), np.zeros((66, 3))) == 0.0


def test_rewards_that_run_against_the_preferences_are_no_control():
    assert metrics.controllability(GRID, -GRID) == 0.0


def test_pair_order_says_which_pairs_and_how_much_of_each():
    preferences_KN = [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    rewards_KN = [[1, 3, 0], [9, 2, 1], [0, 2, 2]]
    # 0-1 differ in objectives 1 and 2: both right. 0-2 in 0 and 2: both right. 1-2 in 0 and 1: 9 > 0, but 2 = 2.
    expected = [[1, 1, 1], [1, 1, 0.5], [1, 0.5, 1]]
    np.testing.assert_array_equal(metrics.pair_order(preferences_KN, rewards_KN), expected)
    assert metrics.controllability(preferences_KN, rewards_KN) == pytest.approx(2 / 3)


def test_a_tie_in_reward_is_not_control():
    assert metrics.controllability([[1, 0], [0, 1]], [[0.5, 0.0], [0.5, 1.0]]) == 0.0


@given(rewards(3, least=6, most=6), st.permutations(range(6)))
def test_controllability_ignores_the_order_of_solutions_and_the_scale_of_rewards(rewards_KN, order):
    preferences_KN = simplex_grid(3, step=0.5)
    value = metrics.controllability(preferences_KN, rewards_KN)
    assert value == pytest.approx(controllability_slowly(preferences_KN, rewards_KN))
    assert metrics.controllability(preferences_KN[order], rewards_KN[order]) == pytest.approx(value)
    assert metrics.controllability(preferences_KN, 3.0 * rewards_KN - 7.0) == pytest.approx(value)


# length of front


@given(rewards(3))
def test_length_counts_distinct_solutions_that_none_dominates(rewards_KN):
    kept = {tuple(p) for p, worse in zip(rewards_KN, dominated(rewards_KN), strict=True) if not worse}
    assert metrics.length_of_front(rewards_KN) == len(kept)


@pytest.mark.parametrize("n", [2, 3])
def test_copies_of_a_solution_change_neither_volume_nor_length(n):
    rewards_KN = np.random.default_rng(n).normal(size=(9, n))
    twice = np.vstack([rewards_KN, rewards_KN[::-1]])
    assert metrics.hypervolume(twice, [-3.0] * n) == pytest.approx(metrics.hypervolume(rewards_KN, [-3.0] * n))
    assert metrics.length_of_front(twice) == metrics.length_of_front(rewards_KN)
    assert metrics.spacing(twice) == 0.0  # every solution has another at distance 0


def test_length_maximises():
    assert metrics.length_of_front([[1, 1], [2, 2], [0, 3], [2, 2]]) == 2


# sparsity


def test_sparsity_follows_the_preferences_not_the_rows():
    preferences_KN = [[0, 1], [1, 0], [0.5, 0.5]]
    rewards_KN = [[0, 0], [3, 4], [3, 0]]  # in preference order: (3,4) → (3,0) → (0,0), squared 16 and 9
    assert metrics.sparsity(preferences_KN, rewards_KN) == pytest.approx(12.5)


def test_sparsity_of_three_objectives_sorts_each_by_itself():
    rewards_KN = [[0, 5, 1], [2, 1, 1], [1, 2, 4]]  # gaps 1,1 · 1,3 · 0,3 → (2 + 10 + 9) / 2
    assert metrics.sparsity(np.eye(3), rewards_KN) == pytest.approx(10.5)


@given(st.permutations(range(11)), arrays(np.float64, (11, 2), elements=NUMBERS))
def test_sparsity_equals_a_slow_walk_from_one_end_to_the_other(order, rewards_KN):
    walk = sorted(range(11), key=lambda k: GRID[order][k, 0])
    steps = [sum((rewards_KN[b] - rewards_KN[a]) ** 2) for a, b in itertools.pairwise(walk)]
    assert metrics.sparsity(GRID[order], rewards_KN) == pytest.approx(sum(steps) / 10, abs=1e-9)


@pytest.mark.parametrize("n", [3, 4])
@given(data=st.data())
def test_sparsity_of_more_objectives_equals_a_slow_loop(n, data):
    preferences_KN = simplex_grid(n, step=0.5)
    rewards_KN = data.draw(arrays(np.float64, preferences_KN.shape, elements=NUMBERS))
    total = 0.0
    for i in range(n):
        column = sorted(row[i] for row in rewards_KN.tolist())
        total += sum((b - a) ** 2 for a, b in itertools.pairwise(column))
    expected = total / (len(preferences_KN) - 1)
    assert metrics.sparsity(preferences_KN, rewards_KN) == pytest.approx(expected, abs=1e-9)


# spacing


@pytest.mark.parametrize("n", [2, 3, 4])
@given(data=st.data())
def test_spacing_equals_a_slow_loop(n, data):
    rewards_KN = data.draw(rewards(n))
    nearest = [min(math.dist(p, q) for j, q in enumerate(rewards_KN) if j != i) for i, p in enumerate(rewards_KN)]
    mean = sum(nearest) / len(nearest)
    expected = (sum((d - mean) ** 2 for d in nearest) / len(nearest)) ** 0.5
    assert metrics.spacing(rewards_KN) == pytest.approx(expected, abs=1e-9)


def test_spacing_of_an_even_front_is_zero():
    assert metrics.spacing(np.stack([GRID[:, 0], 1 - GRID[:, 0]], axis=1)) == pytest.approx(0.0, abs=1e-12)


@given(rewards(2, least=11, most=11), st.permutations(range(11)))
def test_no_metric_depends_on_the_order_of_solutions(rewards_KN, order):
    def every(preferences_KN, rewards_KN):
        return [
            metrics.hypervolume(rewards_KN, [-9.0, -9.0]),
            metrics.inner_product(preferences_KN, rewards_KN),
            metrics.length_of_front(rewards_KN),
            metrics.sparsity(preferences_KN, rewards_KN),
            metrics.spacing(rewards_KN),
        ]

    assert every(GRID[order], rewards_KN[order]) == pytest.approx(every(GRID, rewards_KN))


# a shared reference


def front_of(rewards_KN, names=("a", "b"), **markers):
    preferences_KN = simplex_grid(2, step=1 / (len(rewards_KN) - 1))
    return Front(
        objectives=names, preferences_KN=preferences_KN, coefficients_KN=preferences_KN, rewards_KN=rewards_KN,
        intervals_KN2=np.repeat(np.asarray(rewards_KN, dtype=float)[..., None], 2, axis=-1),
        n_samples_KN=np.ones((len(rewards_KN), 2), dtype=int), markers=markers,
    )  # fmt: skip


def test_the_shared_reference_is_below_everything_that_is_compared():
    first = front_of([[4.0, 1.0], [3.0, 2.0]], base=[0.0, 1.5])  # worst (0, 1)
    second = front_of([[10.0, -4.0], [5.0, 6.0]])  # worst (5, -4); over both: (0, -4), ranges 10 and 10
    for fronts in ([first, second], {"one": first, "two": second}, [second, first]):
        np.testing.assert_allclose(metrics.shared_reference(fronts), [-1.0, -5.0])
    np.testing.assert_allclose(metrics.shared_reference([first, second], margin=0.0), [0.0, -4.0])


def test_hypervolumes_over_the_shared_reference_can_be_compared():
    """A front that is better by 1 in both objectives has more volume, but not over references of their own."""
    worse, better = front_of([[1.0, 0.0], [0.0, 1.0]]), front_of([[2.0, 1.0], [1.0, 2.0]])
    shared = metrics.shared_reference([worse, better])
    assert better.metrics(shared)["hypervolume"] > worse.metrics(shared)["hypervolume"]
    own = [f.metrics(metrics.shared_reference([f]))["hypervolume"] for f in (worse, better)]
    assert own[0] == pytest.approx(own[1])


def test_the_shared_reference_of_equal_rewards_still_encloses_volume():
    np.testing.assert_allclose(metrics.shared_reference([front_of([[2.0, 3.0], [2.0, 4.0]])]), [1.9, 2.9])


def test_fronts_of_other_objectives_or_none_have_no_shared_reference():
    with pytest.raises(FrontError, match=r"\[\['a', 'b'\], \['b', 'a'\]\]"):
        metrics.shared_reference([front_of([[1, 0], [0, 1]]), front_of([[1, 0], [0, 1]], names=("b", "a"))])
    with pytest.raises(FrontError, match="at least one front"):
        metrics.shared_reference({})


# errors

WITH_PREFERENCES = [metrics.inner_product, metrics.controllability, metrics.sparsity]
ALONE = [lambda r: metrics.hypervolume(r, [0.0, 0.0]), metrics.length_of_front, metrics.spacing]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", [*ALONE, *(lambda r, m=m: m([[1, 0], [0, 1]], r) for m in WITH_PREFERENCES)])
def test_nan_is_an_error_and_never_a_skipped_solution(metric, bad):
    with pytest.raises(FrontError, match=r"entry \[1, 0\]"):
        metric([[1.0, 2.0], [bad, 1.0]])


def test_nan_in_the_reference_is_an_error():
    with pytest.raises(FrontError, match="reference point must be finite"):
        metrics.hypervolume([[1.0, 2.0]], [np.nan, 0.0])


@pytest.mark.parametrize("reference", [[0.0], [0.0, 0.0, 0.0], 0.0])
def test_a_reference_of_another_length_is_refused(reference):
    with pytest.raises(FrontError, match="each of the 2 objectives"):
        metrics.hypervolume([[1.0, 2.0]], reference)


@pytest.mark.parametrize("bad", [[1.0, 2.0], [[1.0], [2.0]], [[[1.0, 2.0]]], np.empty((3, 0))])
@pytest.mark.parametrize("metric", ALONE)
def test_one_objective_is_no_front(metric, bad):
    with pytest.raises(FrontError, match="at least 2 objectives"):
        metric(bad)


@pytest.mark.parametrize("metric", [metrics.controllability, metrics.sparsity])
def test_one_solution_cannot_be_compared(metric):
    with pytest.raises(FrontError, match="at least 2 solutions"):
        metric([[1, 0]], [[1.0, 2.0]])


@pytest.mark.parametrize("metric", WITH_PREFERENCES)
@pytest.mark.parametrize(
    ("preferences", "message"),
    [
        ([[1, 0], [1, 0]], "rows 0 and 1 are both"),
        ([[1, 0], [0.4, 0.4]], "sum to 1"),
        ([[1, 0], [np.nan, 1]], "finite"),
        ([[1, 0], [0.5, 0.5], [0, 1]], "one preference for each row"),
        ([[1, 0, 0], [0, 1, 0]], "2 objectives"),
    ],
)
def test_preferences_must_fit(metric, preferences, message):
    with pytest.raises(FrontError, match=message):
        metric(preferences, [[1.0, 2.0], [2.0, 1.0]])


@pytest.mark.parametrize("at_once", [1, 40, 60, 10**6])
@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 10), (3, 9), (9, 10)])
def test_equal_preferences_are_found_in_whatever_pieces(monkeypatch, at_once, first, second):
    monkeypatch.setattr(metrics, "_AT_ONCE", at_once)
    preferences_KN = np.stack([np.linspace(0, 1, 11), np.linspace(1, 0, 11)], axis=1)
    assert len(metrics.check_preferences(preferences_KN, preferences_KN)) == 11
    preferences_KN[second] = preferences_KN[first]
    with pytest.raises(FrontError, match=f"rows {first} and {second} are both"):
        metrics.check_preferences(preferences_KN, preferences_KN)


def test_no_input_is_changed():
    preferences_KN, rewards_KN = GRID.copy(), np.stack([GRID[:, 0], 1 - GRID[:, 0] ** 2], axis=1)
    before = rewards_KN.copy()
    metrics.sparsity(preferences_KN, rewards_KN)
    metrics.hypervolume(rewards_KN, [-1.0, -1.0])
    metrics.length_of_front(rewards_KN)
    np.testing.assert_array_equal(rewards_KN, before)
    np.testing.assert_array_equal(preferences_KN, GRID)
