"""RowScale: which rows get which scale, in which dtype, and what is refused."""

import pytest
import torch

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.scales import RowScale


def test_each_row_has_its_scale() -> None:
    scaled = torch.ones(2, 3, 1) * RowScale(torch.tensor([2.0, -0.5], dtype=torch.float64))
    assert scaled.tolist() == [[[2.0]] * 3, [[-0.5]] * 3]


def test_neighbouring_rows_share_a_scale() -> None:
    scaled = torch.ones(6, 1, 1) * RowScale(torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert scaled.flatten().tolist() == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_bits_and_dtype_are_those_of_a_plain_number(dtype: torch.dtype) -> None:
    values = torch.randn(1, 50, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    scaled = values * RowScale(torch.tensor([1.7300000001], dtype=torch.float64))
    assert scaled.dtype == dtype
    assert torch.equal(scaled, values * 1.7300000001)


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 5), (4, 5), (2, 1, 3, 3)])
def test_a_batch_of_another_form_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SoupError, match="2 preferences were given"):
        torch.ones(shape) * RowScale(torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_works_inside_a_default_device() -> None:
    with torch.device("cpu"):
        assert (torch.ones(1, 1, 1) * RowScale(torch.tensor([3.0], dtype=torch.float64))).item() == 3.0
