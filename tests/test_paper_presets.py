"""The paper's settings, read as `bonesoup seek` reads them: nothing is loaded or trained."""

import argparse
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from trl_bonesoup import MultiRewardPPOConfig
from trl_bonesoup.cli import options, seek

FOLDER = Path(__file__).parents[1] / "examples" / "paper"
PRESETS = ("helpful_assistant", "long_form_qa")


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    seek.add_parser(subparsers)
    return options.apply_config(parser, subparsers.choices, ["seek", *argv])


def preset(name: str, *argv: str) -> argparse.Namespace:
    return parsed("--config", str(FOLDER / f"{name}.yml"), *argv)


def config(arguments: argparse.Namespace, tmp_path: Path) -> MultiRewardPPOConfig:
    settings = seek.training_settings(arguments.set)
    assert set(settings) <= set(MultiRewardPPOConfig.__dataclass_fields__)
    return MultiRewardPPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)


def test_helpful_assistant(tmp_path: Path) -> None:
    arguments = preset("helpful_assistant")
    adapter = seek.adapter_config(arguments)
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (64, 128, 0.05)
    args = config(arguments, tmp_path)
    assert args.generation_batch_size == 64
    assert args.steps_per_rollout == 4 * 64
    assert (args.learning_rate, args.temperature, args.kl_coef, args.kl_target) == (1e-5, 0.7, 0.2, 3.0)
    assert [reward.__name__ for reward in options.parse_rewards(arguments.reward)[0]] == ["helpful", "harmless"]


def test_long_form_qa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = preset("long_form_qa")
    assert seek.adapter_config(arguments) is None
    args = config(arguments, tmp_path)
    assert args.generation_batch_size == 32  # per process: 8 prompts, 4 answers each
    assert args.steps_per_rollout == 4
    assert args.max_steps * args.generation_batch_size * 2 / args.steps_per_rollout == 80_000
    monkeypatch.syspath_prepend(str(FOLDER))
    rewards, names = options.parse_rewards(arguments.reward)
    assert names == ["factuality", "relevance", "completeness"]
    assert [reward.__name__ for reward in rewards] == names


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_says_where_it_is_from(name: str) -> None:
    lines = (FOLDER / f"{name}.yml").read_text().splitlines()
    values = [line for line in lines if re.match(r"  \w+: ", line) and not line.strip().startswith("save_strategy")]
    assert len(values) >= 20
    own = {"save_steps: 500"}  # ours; the published code of this task saves by evaluation
    assert [line for line in values if not re.search(r"# \[\w+\]", line) and line.strip() not in own] == []


def test_flags_override_single_settings_of_a_preset() -> None:
    given = preset("helpful_assistant", "--set", "max_steps=4", "--set", "temperature=1.0", "--lora-alpha", "32")
    settings = seek.training_settings(given.set)
    assert (settings["max_steps"], settings["temperature"], settings["lam"]) == (4, 1.0, 0.95)
    assert seek.adapter_config(given).lora_alpha == 32


@pytest.mark.parametrize(("flags", "alpha"), [((), 32), (("--lora-r", "8"), 16), (("--lora-alpha", "5"), 5)])
def test_alpha_is_twice_the_rank_unless_given(flags: tuple[str, ...], alpha: int) -> None:
    adapter = seek.adapter_config(parsed("--output-dir", "out", *flags))
    assert (adapter.lora_alpha, adapter.lora_dropout) == (alpha, 0.0)


def test_settings_are_read_as_numbers_from_yaml_and_from_flags() -> None:
    given: list[Any] = [yaml.safe_load("{learning_rate: 1e-5, save_strategy: 'no'}"), "kl_coef=2e-1"]
    assert seek.training_settings(given) == {"learning_rate": 1e-5, "save_strategy": "no", "kl_coef": 0.2}


def test_prompts_of_hh_end_where_the_answer_begins() -> None:
    prompt_of = runpy.run_path(str(FOLDER / "hh_prompts.py"))["prompt_of"]
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Why?\n\nAssistant: Because."
    assert prompt_of(dialogue) == "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Why? \n\nAssistant:"
    with pytest.raises(ValueError, match="no turn of the assistant"):
        prompt_of("Hi")
