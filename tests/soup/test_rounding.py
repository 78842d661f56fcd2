"""The share of a soup's effect that rounding loses, by hand, and when it warns."""

import warnings

import pytest
import torch

from trl_bonesoup.soup.rounding import RoundingMeter, RoundingWarning, warn_about_rounding


def test_share_over_all_tensors() -> None:
    meter = RoundingMeter()
    meter.add(rounded=torch.tensor([1.0, 2.0]), exact=torch.tensor([1.0, 2.3]), base=torch.tensor([1.0, 2.0]))
    meter.add(rounded=torch.tensor([[4.0]]), exact=torch.tensor([[4.4]]), base=torch.tensor([[2.4]]))
    assert meter.share == pytest.approx((0.3**2 + 0.4**2) ** 0.5 / (0.3**2 + 2.0**2) ** 0.5)


def test_a_soup_that_changes_nothing_loses_nothing() -> None:
    meter = RoundingMeter()
    meter.add(torch.ones(2), torch.ones(2), torch.ones(2))
    assert meter.share == 0.0


def test_warns_from_one_percent_with_what_to_do() -> None:
    with pytest.warns(RoundingWarning, match=r"loses 1\.1% .* out: .*float32.*full=False"):
        warn_about_rounding(0.011, "out")


@pytest.mark.parametrize("share", [0.009, 0.0, None])
def test_is_silent_below(share: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about_rounding(share, "out")
