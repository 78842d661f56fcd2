"""Which numbers of B a backbone is trained on; every circulant is symmetric and could not tell rows from columns."""

from typing import Any

import pytest
from datasets import Dataset
from tiny import count_word

from trl_bonesoup import MultiRewardPPOTrainer
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.training.inputs import planned_steps, training_column

B = [[0.8, 0.3], [0.2, 0.7]]


@pytest.mark.parametrize(("backbone", "column"), [(0, [0.8, 0.2]), (1, [0.3, 0.7])])
def test_backbone_j_is_trained_on_column_j(backbone: int, column: list[float]) -> None:
    assert training_column(B, backbone, 2).tolist() == column


def test_one_column_stays_as_it_is_and_none_weighs_alike() -> None:
    assert training_column([0.3, 0.7], None, 2).tolist() == [0.3, 0.7]
    assert training_column(None, None, 4).tolist() == [0.25] * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": 7},
        {"max_steps": -1, "num_train_epochs": 3},
        {"max_steps": -1, "num_train_epochs": 1.5, "num_generations": 2},
        {"max_steps": -1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"max_steps": -1, "per_device_train_batch_size": 4, "num_mini_batches": 2, "num_iterations": 3},
    ],
)
def test_the_steps_that_are_planned_are_those_of_the_trainer(
    base: str, prompts: Dataset, settings: Any, changes: dict[str, Any]
) -> None:
    args = settings(**changes)
    trainer = MultiRewardPPOTrainer(base, [count_word("w5")], args=args, train_dataset=prompts)
    expected = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    assert planned_steps(prompts, args) == expected > 0


def test_epochs_of_a_stream_cannot_be_planned(settings: Any) -> None:
    with pytest.raises(ConfigurationError, match="needs max_steps"):
        planned_steps(iter([]), settings(max_steps=-1))
