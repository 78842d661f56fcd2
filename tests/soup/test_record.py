"""The record beside a saved soup: what is read back, and what of a broken one is believed."""

import json

import numpy as np
import pytest

from trl_bonesoup.soup.record import SavedSoup


@pytest.mark.parametrize(
    "saved",
    [
        SavedSoup(np.array([1.75, -0.75]), True, 0.024),
        SavedSoup(np.array([1.75, -0.75]), True, None),
        SavedSoup(np.array([0.2, 0.3, 0.5]), False, 0.0, 16, 0.13),
    ],
)
def test_comes_back_as_it_was_written(tmp_path, saved) -> None:
    saved.write(tmp_path)
    again = SavedSoup.read(tmp_path)
    np.testing.assert_array_equal(again.coefficients, saved.coefficients)
    assert (again.full, again.rounding_loss, again.rank) == (saved.full, saved.rounding_loss, saved.rank)
    assert (again.compression_error, again.lost) == (saved.compression_error, saved.lost)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"coefficients": "x", "full": true}', '{"coefficients": [[1], 2]}']
)
def test_what_cannot_be_read_is_no_record(tmp_path, text) -> None:
    assert SavedSoup.read(tmp_path) is None
    (tmp_path / "soup_export.json").write_text(text)
    assert SavedSoup.read(tmp_path) is None


@pytest.mark.parametrize("loss", ["a lot", True, [0.1], -0.1, float("nan"), float("inf"), None])
def test_a_loss_that_is_no_number_was_not_measured(tmp_path, loss) -> None:
    record = {"coefficients": [1.0, 0.0], "full": True, "rounding_loss": loss}
    (tmp_path / "sweep_point.json").write_text(json.dumps(record))
    assert SavedSoup.read(tmp_path).lost is None
