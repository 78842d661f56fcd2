"""Policies for mixtures of the rewards: what `seek` would train, without a soup, and added to one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import count_word

from trl_bonesoup import MultiRewardPPOTrainer, seek
from trl_bonesoup.errors import ConfigurationError, WeightsError
from trl_bonesoup.training.policies import train_policies

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
REWARDS = [count_word("w5"), count_word("w7")]
B = np.array([[0.8, 0.3], [0.2, 0.7]])


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_the_policies_of_the_columns_of_b_are_its_backbones(
    base: str, prompts: Dataset, settings: Any, tmp_path: Path
) -> None:
    manifest = seek(base, REWARDS, B, settings(), prompts, peft_config=LORA)
    args = settings(output_dir=str(tmp_path / "policies"))
    run = train_policies(base, REWARDS, [[0.5, 0.5], [0.3, 0.7], [0.8, 0.2]], args, prompts, peft_config=LORA)
    assert run.slugs == ["0.5-0.5", "0.3-0.7", "0.8-0.2"]
    assert not (run.folder / "soup.json").exists()
    for slug, backbone in (("0.8-0.2", "says_w5"), ("0.3-0.7", "says_w7")):
        found, expected = adapter(run.folder / slug), adapter(tmp_path / "run" / backbone)
        assert all(torch.equal(found[name], value) for name, value in expected.items()), slug

    soup = run.soup(B)
    assert [backbone.path for backbone in soup.backbones] == ["0.8-0.2", "0.3-0.7"]
    assert soup.objectives == manifest.objectives  # one scale of the scores
    assert soup.weights.tolist() == B.tolist()
    assert [backbone.steps for backbone in soup.backbones] == [4, 4]


def test_policies_are_added_to_the_ones_that_are_there(
    base: str, prompts: Dataset, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = settings(max_steps=2)
    run = train_policies(base, REWARDS, [[1.0, 0.0], [1.0, 0.0]], args, prompts, peft_config=LORA)
    assert run.slugs == ["1-0"]
    first = adapter(run.folder / "1-0")
    trained = []
    monkeypatch.setattr(
        MultiRewardPPOTrainer,
        "train",
        lambda self, **kwargs: trained.append(self.scoring.column_N.tolist()),  # of what is trained a second time
    )
    again = train_policies(base, REWARDS, [[0.25, 0.75], [1.0, 0.0]], args, prompts, peft_config=LORA)
    assert trained == [[0.25, 0.75]]
    assert again.statistics == run.statistics
    assert again.slugs == ["0.25-0.75", "1-0"]
    assert all(torch.equal(value, first[name]) for name, value in adapter(run.folder / "1-0").items())


def test_refused_before_anything_is_written(prompts: Dataset, settings: Any) -> None:
    args = settings()
    for mixtures, error, message in (
        ([[0.5, 0.6]], WeightsError, "must sum to 1"),
        ([[1.0]], WeightsError, "one entry for each of the 2 objectives"),
        ([], ConfigurationError, "at least 2 reward functions and 1 mixture"),
    ):
        with pytest.raises(error, match=message):
            train_policies("no/such-model", REWARDS, mixtures, args, prompts, peft_config=LORA)
    assert not Path(args.output_dir).exists()


def test_a_folder_of_policies_is_no_folder_of_backbones(base: str, prompts: Dataset, settings: Any) -> None:
    train_policies(base, REWARDS, [[0.5, 0.5]], settings(max_steps=2), prompts, peft_config=LORA)
    with pytest.raises(ConfigurationError, match="combination_weights: None there"):
        seek(base, REWARDS, B, settings(max_steps=2), prompts, peft_config=LORA)
