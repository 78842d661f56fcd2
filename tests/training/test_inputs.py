"""Which numbers of B a backbone is trained on; every circulant is symmetric and could not tell rows from columns."""

import pytest

from trl_bonesoup.training.inputs import training_column

B = [[0.8, 0.3], [0.2, 0.7]]


@pytest.mark.parametrize(("backbone", "column"), [(0, [0.8, 0.2]), (1, [0.3, 0.7])])
def test_backbone_j_is_trained_on_column_j(backbone: int, column: list[float]) -> None:
    assert training_column(B, backbone, 2).tolist() == column


def test_one_column_stays_as_it_is_and_none_weighs_alike() -> None:
    assert training_column([0.3, 0.7], None, 2).tolist() == [0.3, 0.7]
    assert training_column(None, None, 4).tolist() == [0.25] * 4
