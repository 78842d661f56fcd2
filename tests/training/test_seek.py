"""seek: all backbones from one base, one scale of scores, and a second call that continues the first."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import count_word, tiny_llama
from transformers import TrainerCallback

from trl_bonesoup import MultiRewardPPOTrainer, SoupManifest, circulant_weights, seek
from trl_bonesoup.errors import ConfigurationError, DependencyError, RewardError, WeightsError
from trl_bonesoup.rewards.spec import reward_spec

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
REWARDS = [count_word("w5"), count_word("w7")]
B = circulant_weights(2, beta=0.7)


def begin(base: str, args: Any, prompts: Dataset, **options: Any) -> None:
    """Begin a run that has kept something, so that other settings must not replace it."""
    seek(base, REWARDS, B, args, prompts, **{"peft_config": LORA, **options, "backbones": []})
    (Path(args.output_dir) / ".training-says_w5" / "checkpoint-2").mkdir(parents=True)


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
    """The second backbone starts from the base again, both share one scale, and measuring that leaves no trace."""
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


def test_an_objective_without_a_scale_is_named(
    base: str, prompts: Dataset, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def constant(completions: list[str], **columns: Any) -> list[float]:
        return [0.1] * len(completions)

    def silent(completions: list[str], **columns: Any) -> list[float | None]:
        return [None] * len(completions)

    rewards = [REWARDS[0], constant, silent]
    seek(base, rewards, circulant_weights(3, 0.6), settings(max_steps=2), prompts, peft_config=LORA, backbones=[0])
    named = [record.getMessage() for record in caplog.records if "no two different scores" in record.getMessage()]
    assert [message.split("'")[1] for message in named] == ["constant", "silent"]
    record = json.loads((Path(settings().output_dir) / "seek.json").read_text())
    assert [entry["std"] for entry in record["statistics"][1:]] == [1.0, 1.0]


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


class Killed(BaseException):
    """What no error handler catches, as a signal would be."""


class KillAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize(("peft_config", "steps"), [(LORA, {2: 4, 7: 2, 8: 2}), (None, {7: 2})], ids=["lora", "full"])
def test_a_killed_backbone_continues_from_its_checkpoint(
    base: str, prompts: Dataset, settings: Any, tmp_path: Path, peft_config: LoraConfig | None, steps: dict[int, int]
) -> None:
    """Killed before the checkpoint of step 4, after it, or before that of step 8 (with 4, 2, 2 rollouts to do).

    The result is that of an uninterrupted run, bit by bit, and no rollout before a checkpoint is repeated.
    """
    rollouts: list[int] = []

    def counted(completions: list[str], **columns: Any) -> list[float]:
        rollouts.append(len(completions))
        return REWARDS[0](completions)

    def run(name: str, *callbacks: TrainerCallback) -> dict[str, torch.Tensor]:
        args = settings(output_dir=str(tmp_path / name), max_steps=8, save_strategy="steps", save_steps=4)
        seek(
            base, [counted, REWARDS[1]], B, args, prompts, peft_config=peft_config, backbones=[0],
            calibration_samples=8, callbacks=list(callbacks),
        )  # fmt: skip
        return load_file(next((tmp_path / name / "counted").glob("*.safetensors")))

    expected = run("whole")
    for step, left in steps.items():
        with pytest.raises(Killed):
            run(f"killed at {step}", KillAt(step))
        rollouts.clear()
        for name, value in run(f"killed at {step}").items():
            assert torch.equal(value, expected[name]), (step, name)
        assert len(rollouts) == left, step


def test_a_backbone_killed_while_it_was_saved_is_not_trained_again(
    base: str, prompts: Dataset, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl_bonesoup.training import backbone as module

    args = settings(save_strategy="steps", save_steps=4)

    def killed(*given: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "_save_backbone", killed)
        with pytest.raises(Killed):
            seek(base, REWARDS, B, args, prompts, peft_config=LORA, backbones=[0])

    def refuse(completions: list[str], **columns: Any) -> list[float]:
        raise AssertionError("rolled out again")

    refuse.__name__ = refuse.__qualname__ = "says_w5"
    spoiled = [refuse, REWARDS[1]]
    record = Path(args.output_dir) / "seek.json"
    recorded = json.loads(record.read_text())
    recorded["request"]["rewards"] = [reward_spec(func) for func in spoiled]
    record.write_text(json.dumps(recorded))
    seek(base, spoiled, B, args, prompts, peft_config=LORA, backbones=[0])
    assert (Path(args.output_dir) / "says_w5" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("schedule", "peft_config"),
    [("constant", LORA), ("cosine", LORA), ("linear", None)],
    ids=["constant", "cosine", "linear-full"],
)
def test_a_run_that_paused_ends_as_one_that_did_not(
    base: str, prompts: Dataset, settings: Any, tmp_path: Path, schedule: str, peft_config: LoraConfig | None
) -> None:
    """Bit by bit and with any schedule, since it spans the whole training from the start."""

    def run(name: str, **kwargs: Any) -> SoupManifest | None:
        args = settings(output_dir=str(tmp_path / name), max_steps=8, lr_scheduler_type=schedule)
        return seek(base, REWARDS, B, args, prompts, peft_config=peft_config, calibration_samples=8, **kwargs)

    whole = run("whole")
    assert run("paused", stop_after=2) is None
    paused = tmp_path / "paused"
    assert not (paused / "soup.json").exists()
    for slug in ("says_w5", "says_w7"):
        assert [path.name for path in (paused / f".training-{slug}").glob("checkpoint-*")] == ["checkpoint-2"]
    assert run("paused") == whole
    for slug in ("says_w5", "says_w7"):
        (file,) = (tmp_path / "whole" / slug).glob("*.safetensors")
        found = load_file(paused / slug / file.name)
        assert all(torch.equal(found[name], value) for name, value in load_file(file).items()), slug


def test_a_pause_is_not_repeated_and_comes_at_the_end_of_a_rollout(
    base: str, prompts: Dataset, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = settings(max_steps=8)
    for wrong in (3, 0, True, 2.0):
        with pytest.raises(ConfigurationError, match="multiple of the 2 optimizer steps of one rollout"):
            seek(base, REWARDS, B, args, prompts, peft_config=LORA, stop_after=wrong)
    with pytest.raises(ConfigurationError, match="below max_steps=8; got 8"):
        seek(base, REWARDS, B, args, prompts, peft_config=LORA, stop_after=8)
    with pytest.raises(ConfigurationError, match="save_only_model"):
        seek(base, REWARDS, B, settings(max_steps=8, save_only_model=True), prompts, peft_config=LORA, stop_after=2)
    assert not Path(args.output_dir).exists()
    seek(base, REWARDS, B, args, prompts, peft_config=LORA, stop_after=4)
    monkeypatch.setattr(MultiRewardPPOTrainer, "train", None)  # what has come so far already is not trained
    assert seek(base, REWARDS, B, args, prompts, peft_config=LORA, stop_after=4) is None
    assert seek(base, REWARDS, B, args, prompts, peft_config=LORA, stop_after=2) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_dataset": Dataset.from_dict({"prompt": ["w1 w2"] * 16})}, r"\(prompts.digest: "),
        ({"train_dataset": Dataset.from_dict({"prompt": ["w1"] * 17})}, r"prompts.rows: 16 there, 17 now"),
        ({"peft_config": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM")},
         r"\(adapter.lora_target_modules: 'all-linear' there, 'q_proj' now\)"),
        ({"peft_config": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_dora=True)},
         r"\(adapter.lora_use_dora: None there, True now\)"),
        ({"peft_config": LoraConfig(r=4, lora_alpha=9, target_modules="all-linear")},
         r"\(adapter.lora_alpha: 8 there, 9 now\)"),
        ({"score_normalization": "none"}, r"\(scores.normalization: 'running' there, 'none' now\)"),
        ({"whiten_rewards": True, "lr_scheduler_type": "cosine"},
         r"\(settings.lr_scheduler_type: None there, 'cosine' now; settings.whiten_rewards: None there, True now\)"),
        ({"learning_rate": 2e-2}, r"\(settings.learning_rate: 0.01 there, 0.02 now\)"),
    ],
)  # fmt: skip
def test_everything_that_makes_another_run_is_noticed(
    base: str, prompts: Dataset, settings: Any, change: dict[str, Any], message: str
) -> None:
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    arguments: dict[str, Any] = {"train_dataset": prompts, "peft_config": lora, "backbones": []}
    begin(base, settings(), prompts, peft_config=lora)
    args = settings(**{key: value for key, value in change.items() if key not in arguments})
    with pytest.raises(ConfigurationError, match=message):
        seek(base, REWARDS, B, args, **{**arguments, **{k: v for k, v in change.items() if k in arguments}})


def test_the_same_prompts_from_elsewhere_continue_a_run(base: str, prompts: Dataset, settings: Any) -> None:
    seek(base, REWARDS, B, settings(), prompts, peft_config=LORA, backbones=[])
    again = prompts.map(lambda row: row)
    assert again._fingerprint != prompts._fingerprint
    assert seek(base, REWARDS, B, settings(), again, peft_config=LORA, backbones=[]) is None


def test_a_base_at_another_path_continues_a_run_and_a_changed_one_does_not(
    base: str, prompts: Dataset, settings: Any, tmp_path: Path
) -> None:
    begin(base, settings(), prompts)
    copied = shutil.copytree(base, tmp_path / "copied")
    assert seek(str(copied), REWARDS, B, settings(), prompts, peft_config=LORA, backbones=[]) is None
    config = copied / "config.json"
    config.write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'))
    with pytest.raises(ConfigurationError, match=r"base_files: "):
        seek(str(copied), REWARDS, B, settings(), prompts, peft_config=LORA, backbones=[])


def test_the_callers_adapter_configuration_is_left_alone(base: str, prompts: Dataset, settings: Any) -> None:
    """PEFT replaces "all-linear" by the modules it found; a second call has to see what the first saw."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    manifest = seek(base, REWARDS, B, settings(max_steps=2), prompts, peft_config=config)
    assert config.target_modules == manifest.training["lora_target_modules"] == "all-linear"


def test_another_run_in_the_folder_is_refused(base: str, prompts: Dataset, settings: Any) -> None:
    args = settings()
    begin(base, args, prompts)
    with pytest.raises(ConfigurationError, match=r"other settings \(combination_weights: .*0\.7.* there, .*0\.8.* now"):
        seek(base, REWARDS, circulant_weights(2, 0.8), args, prompts, peft_config=LORA)


def test_a_run_that_failed_before_it_had_anything_gives_way_to_other_settings(
    base: str, prompts: Dataset, settings: Any
) -> None:
    def fails(completions: list[str], **columns: Any) -> list[float]:
        raise ValueError("no")

    rewards = [REWARDS[0], fails]
    with pytest.raises(RewardError, match="raised ValueError: no"):
        seek(base, rewards, B, settings(), prompts, peft_config=LORA)
    assert (Path(settings().output_dir) / "seek.json").exists()
    seek(base, REWARDS, B, settings(max_steps=2), prompts, peft_config=LORA, backbones=[0])
    record = json.loads((Path(settings().output_dir) / "seek.json").read_text())
    assert record["request"]["objectives"] == ["says_w5", "says_w7"]
    with pytest.raises(ConfigurationError, match=r"other settings \(settings.max_steps: 2 there, 4 now"):
        seek(base, REWARDS, B, settings(), prompts, peft_config=LORA)


@pytest.mark.parametrize("kept", ["logs/says_w5.json", "soup.json", "says_w7/adapter_config.json", "statistics"])
def test_whatever_a_run_has_kept_stays_its_own(base: str, prompts: Dataset, settings: Any, kept: str) -> None:
    seek(base, REWARDS, B, settings(), prompts, peft_config=LORA, backbones=[])
    folder = Path(settings().output_dir)
    if kept == "statistics":
        record = json.loads((folder / "seek.json").read_text())
        record["statistics"] = [{"mean": 0.0, "std": 1.0}] * 2
        (folder / "seek.json").write_text(json.dumps(record))
    else:
        (folder / kept).parent.mkdir(exist_ok=True)
        (folder / kept).write_text("{}")
    before = (folder / "seek.json").read_bytes()
    with pytest.raises(ConfigurationError, match=r"other settings \(settings.max_steps: 4 there, 2 now"):
        seek(base, REWARDS, B, settings(max_steps=2), prompts, peft_config=LORA)
    assert (folder / "seek.json").read_bytes() == before


def test_a_base_inside_the_run_is_named_relative_to_it(base: str, prompts: Dataset, settings: Any) -> None:
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
        ({"value_model": tiny_llama()}, ConfigurationError, "value model's id or path, not a LlamaForCausalLM"),
        ({"model": get_peft_model(tiny_llama(), LORA)}, ConfigurationError, "Merge the adapter into it first"),
        ({"train_dataset": Dataset.from_dict({"prompt": ["w1"] * 7})}, ConfigurationError, "7 prompts, fewer"),
        ({}, ConfigurationError, "The base model 'no/such-model' was not found.*Check the path or the id"),
    ],
    ids=["singular", "other size", "index", "names", "value model", "adapter", "few prompts", "missing"],
)
def test_refused_before_anything_is_written(
    prompts: Dataset, settings: Any, kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    args = settings()
    with pytest.raises(error, match=message):
        seek(
            reward_funcs=REWARDS,
            **{"model": "no/such-model", "combination_weights": B, "args": args, "train_dataset": prompts,
               "peft_config": LORA, **kwargs},
        )  # fmt: skip
    assert not Path(args.output_dir).exists()


def test_an_evaluation_without_data_is_refused_before_anything_is_written(prompts: Dataset, settings: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"eval_strategy='steps' needs an eval_dataset.*bonesoup evaluate"):
        seek("no/such-model", REWARDS, B, settings(eval_strategy="steps", eval_steps=2), prompts, peft_config=LORA)
    assert not Path(settings().output_dir).exists()


def test_a_logger_that_is_not_installed_is_named_before_anything_is_written(
    prompts: Dataset, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["wandb"])
    args = settings(report_to=["wandb", "trackio", "tensorboard"])
    with pytest.raises(DependencyError, match=r"names tensorboard, trackio, which .* pip install tensorboard trackio"):
        seek("no/such-model", REWARDS, B, args, prompts, peft_config=LORA)
    with pytest.raises(DependencyError, match="report_to"):
        MultiRewardPPOTrainer("no/such-model", REWARDS, args=args, train_dataset=prompts)
    assert not Path(args.output_dir).exists()


def test_files_of_tensorboard_outlive_the_folder_of_the_training(base: str, prompts: Dataset, settings: Any) -> None:
    class Writes(TrainerCallback):
        def on_train_begin(self, args: Any, *others: Any, **kwargs: Any) -> None:
            events = Path(args.output_dir) / "runs" / "today" / "events"
            events.parent.mkdir(parents=True)
            events.write_text(args.output_dir)

    seek(base, REWARDS, B, settings(max_steps=2), prompts, peft_config=LORA, callbacks=[Writes()], backbones=[1])
    run = Path(settings().output_dir)
    assert (run / "logs" / "says_w7" / "today" / "events").read_text() == str(run / ".training-says_w7")
    assert (run / "logs" / "says_w7.json").is_file()


def test_every_backbone_starts_with_the_same_critic(base: str, prompts: Dataset, settings: Any) -> None:
    manifest = seek(base, REWARDS, B, settings(max_steps=2), prompts, peft_config=LORA, value_model=LORA)
    assert "r 4" in str(manifest.training["value_model"])
    with pytest.raises(ConfigurationError, match=r"settings.value_model: 'lora_.*' there, None now"):
        seek(base, REWARDS, B, settings(max_steps=2), prompts, peft_config=LORA)


def test_the_curves_that_the_documentation_reads_are_in_the_log(base: str, prompts: Dataset, settings: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([a-z_/<>]+)` \|", page.split("## Reading the curves")[1].split("\n## ")[0], re.MULTILINE)
    seek(base, REWARDS, B, settings(max_steps=2), prompts, peft_config=LORA, backbones=[0])
    entries = json.loads((Path(settings().output_dir) / "logs" / "says_w5.json").read_text())["log"]
    logged = {name for entry in entries for name in entry}
    assert len(named) == 8
    assert {name.replace("<name>", "says_w7") for name in named} < logged


def test_folder_names_are_safe_and_distinct() -> None:
    from trl_bonesoup.training.run import folder_names

    assert folder_names(["../../etc/passwd", "a b", "a/b", "帮助", "base"]) == [
        "etc-passwd",
        "a-b",
        "a-b-2",
        "backbone-3",
        "base-4",
    ]
