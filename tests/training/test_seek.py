"""seek: all backbones from one base, one scale of scores, and a second call that continues the first."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import count_word

from trl_bonesoup import MultiRewardPPOTrainer, SoupManifest, circulant_weights, seek
from trl_bonesoup.errors import ConfigurationError, WeightsError

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
REWARDS = [count_word("w5"), count_word("w7")]
B = circulant_weights(2, beta=0.7)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_seek_writes_a_soup(base: str, prompts: Dataset, settings: Any) -> None:
    args = settings()
    manifest = seek(base, REWARDS, B, args, prompts, peft_config=LORA)
    folder = Path(args.output_dir)
    assert manifest == SoupManifest.load(folder)
    assert manifest.objective_names == ("says_w5", "says_w7")
    assert manifest.weights.tolist() == B.tolist()
    assert [backbone.path for backbone in manifest.backbones] == ["says_w5", "says_w7"]
    assert [(backbone.kind, backbone.steps, backbone.seed) for backbone in manifest.backbones] == [
        ("adapter", 4, 3)
    ] * 2
    assert manifest.base_model.id == base
    assert manifest.training["lora_r"] == 4
    assert sorted(path.name for path in folder.iterdir()) == ["logs", "says_w5", "says_w7", "seek.json", "soup.json"]
    assert sorted(path.name for path in (folder / "says_w5").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    log = json.loads((folder / "logs" / "says_w5.json").read_text())
    assert log["steps"] == 4
    assert any("objective/says_w7" in entry for entry in log["log"])


@pytest.mark.parametrize("peft_config", [LORA, None], ids=["lora", "full"])
def test_each_backbone_is_what_a_trainer_alone_would_give(
    base: str, prompts: Dataset, settings: Any, tmp_path: Path, peft_config: LoraConfig | None
) -> None:
    """The second backbone starts from the base again, and both share one scale of scores."""
    manifest = seek(base, REWARDS, B, settings(), prompts, peft_config=peft_config)
    scales = [objective.normalization for objective in manifest.objectives]
    for j in (0, 1):
        alone = MultiRewardPPOTrainer(
            base,
            REWARDS,
            B,
            j,
            args=settings(
                output_dir=str(tmp_path / "alone"),
                score_normalization="fixed",
                score_mean=[scale.mean for scale in scales],
                score_std=[scale.std for scale in scales],
            ),
            train_dataset=prompts,
            peft_config=peft_config,
        )
        if j == 0:
            alone.measure_scores(64)  # seek sampled the base before it trained the first backbone
        alone.train()
        alone.save_model(str(tmp_path / "saved"))
        file = "model.safetensors" if peft_config is None else "adapter_model.safetensors"
        expected = load_file(tmp_path / "saved" / file)
        found = load_file(Path(settings().output_dir) / manifest.backbones[j].path / file)
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert torch.equal(found[name], value), (j, name)


def test_the_scale_is_that_of_the_base(base: str, prompts: Dataset, settings: Any) -> None:
    def length(completions: list[str], **columns: Any) -> list[float]:
        return [10.0 + len(text.split()) for text in completions]

    def constant(completions: list[str], **columns: Any) -> list[float]:
        return [4.0] * len(completions)

    manifest = seek(base, [length, constant], B, settings(max_steps=2), prompts, peft_config=LORA)
    first, second = (objective.normalization for objective in manifest.objectives)
    assert 10.0 < first.mean <= 16.0
    assert 0.0 < first.std < 3.0
    assert (second.mean, second.std) == (4.0, 1.0)


def test_a_second_call_continues(base: str, prompts: Dataset, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    args = settings()
    assert seek(base, REWARDS, B, args, prompts, peft_config=LORA, backbones=[1]) is None
    folder = Path(args.output_dir)
    assert not (folder / "soup.json").exists()
    first = adapter(folder / "says_w7")
    manifest = seek(base, REWARDS, B, args, prompts, peft_config=LORA)
    assert manifest is not None
    assert all(torch.equal(value, first[name]) for name, value in adapter(folder / "says_w7").items())

    monkeypatch.setattr(MultiRewardPPOTrainer, "train", None)  # nothing is trained a third time
    assert seek(base, REWARDS, B, args, prompts, peft_config=LORA) == manifest


def test_an_interrupted_backbone_is_not_taken_for_a_finished_one(
    base: str, prompts: Dataset, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = settings()

    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MultiRewardPPOTrainer, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            seek(base, REWARDS, B, args, prompts, peft_config=LORA)
    assert not (Path(args.output_dir) / "says_w5").exists()
    scale = json.loads((Path(args.output_dir) / "seek.json").read_text())["statistics"]
    manifest = seek(base, REWARDS, B, args, prompts, peft_config=LORA)
    assert [objective.normalization.model_dump() for objective in manifest.objectives] == scale


def test_another_run_in_the_folder_is_refused(base: str, prompts: Dataset, settings: Any) -> None:
    args = settings()
    seek(base, REWARDS, B, args, prompts, peft_config=LORA, backbones=[])
    with pytest.raises(ConfigurationError, match=r"other settings \(combination_weights: .*0\.7.* there, .*0\.8.* now"):
        seek(base, REWARDS, circulant_weights(2, 0.8), args, prompts, peft_config=LORA)


def test_a_base_inside_the_run_is_named_relative_to_it(base: str, prompts: Dataset, settings: Any) -> None:
    import shutil

    args = settings()
    inside = Path(args.output_dir) / "base"
    shutil.copytree(base, inside)
    manifest = seek(str(inside), REWARDS, B, args, prompts, peft_config=LORA)
    assert manifest.base_model.id == "base"


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"combination_weights": [[0.5, 0.5], [0.5, 0.5]]}, WeightsError, "invertible"),
        ({"combination_weights": circulant_weights(3, 0.7)}, ConfigurationError, "3 rows for 2"),
        ({"backbones": [2]}, ConfigurationError, "indices from 0 to 1"),
        ({"objective_names": ["a", "a"]}, ConfigurationError, "distinct"),
    ],
)
def test_refused_before_anything_is_written(
    prompts: Dataset, settings: Any, kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    args = settings()
    with pytest.raises(error, match=message):
        seek(
            "no/such-model",
            REWARDS,
            **{"combination_weights": B, "args": args, "train_dataset": prompts, "peft_config": LORA, **kwargs},
        )
    assert not Path(args.output_dir).exists()


def test_folder_names_are_safe_and_distinct() -> None:
    from trl_bonesoup.training.seek import _slugs

    assert _slugs(["../../etc/passwd", "a b", "a/b", "帮助", "base"]) == [
        "etc-passwd",
        "a-b",
        "a-b-2",
        "backbone-3",
        "base-4",
    ]
