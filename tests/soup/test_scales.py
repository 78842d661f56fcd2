"""RankScale: which rows and positions get which scale, in which dtype, and what is refused."""

import pytest
import torch

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.scales import RankScale


def ranks(*coefficients: object) -> RankScale:
    """Adapter 0 of rank 2 and scale 2 beside adapter 1 of rank 1 and scale 0.5, at the given λ."""
    scale = RankScale(torch.tensor([0, 0, 1]), torch.tensor([2.0, 2.0, 0.5], dtype=torch.float64))
    scale.set(torch.tensor(coefficients, dtype=torch.float64))
    return scale


def scaled(scale: RankScale, *shape: int) -> torch.Tensor:
    return scale(torch.ones(*shape, 3), shape)


def test_every_position_has_the_coefficient_and_the_scale_of_its_adapter() -> None:
    assert scaled(ranks(1.5, -3.0), 1, 2).tolist() == [[[3.0, 3.0, -1.5]] * 2]


def test_each_row_has_its_own_coefficients() -> None:
    rows = scaled(ranks([1.0, 0.0], [-0.5, 4.0]), 2, 1)
    assert rows.tolist() == [[[2.0, 2.0, 0.0]], [[-1.0, -1.0, 2.0]]]


def test_neighbouring_rows_share_their_coefficients() -> None:
    rows = scaled(ranks([1.0, 0.0], [2.0, 0.0]), 6, 1)
    assert rows[:, 0, 0].tolist() == [2.0, 2.0, 2.0, 4.0, 4.0, 4.0]


def test_one_preference_takes_any_shape() -> None:
    for shape in ((5,), (2, 3), (2, 3, 4)):
        assert scaled(ranks(1.0, 1.0), *shape).shape == (*shape, 3)


def test_what_was_set_before_is_gone() -> None:
    scale = ranks([1.0, 0.0], [2.0, 0.0])
    scaled(scale, 2, 1)
    scale.set(torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=torch.float64))
    assert scaled(scale, 2, 1)[:, 0].tolist() == [[0.0, 0.0, 0.5], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_row_has_the_bits_and_the_dtype_that_it_has_alone(dtype: torch.dtype) -> None:
    values = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    together = ranks([1.7300000001, 0.1], [0.3, 0.7])(values, values.shape)
    alone = ranks(0.3, 0.7)(values[1:], values.shape)
    assert together.dtype == alone.dtype == dtype
    assert torch.equal(together[1:], alone)


@pytest.mark.parametrize("shape", [(3, 4), (2,), (4,), (2, 1, 3)])
def test_a_batch_of_another_form_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SoupError, match="2 preferences were given"):
        scaled(ranks([1.0, 0.0], [0.0, 1.0]), *shape)


def test_works_inside_a_default_device() -> None:
    with torch.device("cpu"):
        assert scaled(ranks(1.0, 1.0), 1, 1).tolist() == [[[2.0, 2.0, 0.5]]]
