"""The recipes: their settings as the commands read them, and every command of their READMEs in small."""

import argparse
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback_hub import LoopbackHub

from trl_bonesoup import Front, MultiRewardPPOConfig, SoupManifest
from trl_bonesoup import cli as commands
from trl_bonesoup.cli import main, seek
from trl_bonesoup.cli.settings_file import apply_config
from trl_bonesoup.cli.text_forms import parse_rewards

EXAMPLES = Path(__file__).parents[1] / "examples"
SMOKE = runpy.run_path(str(EXAMPLES / "smoke.py"))
RECIPES = SMOKE["RECIPES"]
PAPER = tuple(name for name in RECIPES if name != "small_instruct")


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    seek.add_parser(subparsers)
    return apply_config(parser, subparsers.choices, ["seek", *argv])


def recipe(name: str, *argv: str) -> argparse.Namespace:
    return parsed("--config", str(EXAMPLES / name / "seek.yml"), *argv)


def config(arguments: argparse.Namespace, tmp_path: Path) -> MultiRewardPPOConfig:
    settings = seek.training_settings(arguments.set)
    assert set(settings) <= set(MultiRewardPPOConfig.__dataclass_fields__)
    return MultiRewardPPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize(
    ("name", "rewards", "tokens"),
    [
        ("helpful_assistant", {"helpful": "helpful", "harmless": "harmless"}, 128),
        ("reddit_summary", {"faithful": "faithful_summary", "preference": "summary_quality"}, 48),
    ],
)
def test_the_tasks_of_the_published_code(name: str, rewards: dict[str, str], tokens: int, tmp_path: Path) -> None:
    arguments = recipe(name)
    adapter = seek.adapter_config(arguments)
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (64, 128, 0.05)
    assert adapter.target_modules == {"q_proj", "v_proj"}
    args = config(arguments, tmp_path)
    assert args.generation_batch_size == 64
    assert args.steps_per_rollout == 4 * 64
    assert (args.learning_rate, args.temperature, args.kl_coef, args.kl_target) == (1e-5, 0.7, 0.2, 3.0)
    assert args.max_completion_length == tokens
    functions, names = parse_rewards(arguments.reward)
    assert dict(zip(names, (function.__name__ for function in functions), strict=True)) == rewards


def test_long_form_qa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = recipe("long_form_qa")
    assert seek.adapter_config(arguments) is None
    args = config(arguments, tmp_path)
    assert args.generation_batch_size == 32  # per process: 8 prompts, 4 answers each
    assert args.steps_per_rollout == 4
    assert args.max_steps * args.generation_batch_size * 2 / args.steps_per_rollout == 80_000
    monkeypatch.syspath_prepend(str(EXAMPLES / "long_form_qa"))
    rewards, names = parse_rewards(arguments.reward)
    assert names == ["factuality", "relevance", "completeness"]
    assert [reward.__name__ for reward in rewards] == names


def test_a_small_instruct_model(tmp_path: Path) -> None:
    arguments = recipe("small_instruct")
    args = config(arguments, tmp_path)
    assert arguments.chat
    assert (args.use_vllm, args.vllm_mode) == (True, "colocate")
    assert [reward.__name__ for reward in parse_rewards(arguments.reward)[0]] == ["helpful", "plainness"]
    # The budget: rollouts of 64, gone through 4 times in steps of 16
    assert (args.generation_batch_size, args.steps_per_rollout, args.max_steps) == (64, 16, 1600)
    assert args.vllm_max_model_length > 512 + 256
    readme = (EXAMPLES / "small_instruct" / "README.md").read_text()
    for number in ("| 200 |", f"| {2 * 100 * 64:,} |", "| 3.3 million |", f"| {2 * 1600:,} |", f"| {14 * 500:,} |"):
        assert number in readme
    # Hours on an A100, from the pace that others measured: LoRA on 8 * 512 tokens in 1.5 s for 7.72e9 parameters,
    # and 28.2 ms a generated token.
    trained_a_second = 8 * 512 / 1.5 * 7_721_324_544 / 4_022_468_096
    tokens = 2 * 100 * 64 * (512 + args.max_completion_length)
    hours = [
        4 * tokens / trained_a_second / 3600,
        2 * tokens / (2 * trained_a_second) / 3600,
        200 * 256 * 0.0282 / 3600,
    ]
    assert f"{trained_a_second:,.0f}".startswith("5,24")
    assert [f"{hour:.1f} |\n" in readme for hour in [*hours, sum(hours)]] == [True] * 4
    assert f"At 2 dollars an hour, {2 * sum(hours):.0f} dollars" in readme


@pytest.mark.parametrize("name", PAPER)
def test_every_value_says_where_it_is_from(name: str) -> None:
    lines = (EXAMPLES / name / "seek.yml").read_text().splitlines()
    values = [line for line in lines if re.match(r"  \w+: ", line) and not line.strip().startswith("save_strategy")]
    assert len(values) >= 20
    own = {"save_steps: 500"}  # ours; the published code of this task saves by evaluation
    assert [line for line in values if not re.search(r"# \[\w+\]", line) and line.strip() not in own] == []


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_stay_in_their_folder(name: str) -> None:
    """A copy of a recipe that still writes into another one's folder would mix two tasks."""
    for file in (EXAMPLES / name).glob("*.yml"):
        others = "|".join(set(RECIPES) - {name})
        assert re.findall(rf"(?:runs|examples)/(?:{others})", file.read_text()) == [], file


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_refers_to_is_there(name: str) -> None:
    texts = [file.read_text() for file in (EXAMPLES / name).iterdir() if file.is_file()]
    paths = re.findall(r"examples/[\w/]+\.\w+", "".join(texts))
    assert len(set(paths)) >= 4
    assert [path for path in paths if not (EXAMPLES.parent / path).is_file()] == []


def test_flags_override_single_settings_of_a_recipe() -> None:
    given = recipe("helpful_assistant", "--set", "max_steps=4", "--set", "temperature=1.0", "--lora-alpha", "32")
    settings = seek.training_settings(given.set)
    assert (settings["max_steps"], settings["temperature"], settings["lam"]) == (4, 1.0, 0.95)
    assert seek.adapter_config(given).lora_alpha == 32


@pytest.mark.parametrize(("flags", "alpha"), [((), 32), (("--lora-r", "8"), 16), (("--lora-alpha", "5"), 5)])
def test_alpha_is_twice_the_rank_unless_given(flags: tuple[str, ...], alpha: int) -> None:
    adapter = seek.adapter_config(parsed("--output-dir", "out", *flags))
    assert (adapter.lora_alpha, adapter.lora_dropout, adapter.target_modules) == (alpha, 0.0, "all-linear")


def test_settings_are_read_as_numbers_from_yaml_and_from_flags() -> None:
    given: list[Any] = [yaml.safe_load("{learning_rate: 1e-5, save_strategy: 'no'}"), "kl_coef=2e-1"]
    assert seek.training_settings(given) == {"learning_rate": 1e-5, "save_strategy": "no", "kl_coef": 0.2}


def billions(parameters: int, bytes_each: int) -> str:
    return f"{parameters * bytes_each / 1e9:.1f} GB"


def test_the_memory_is_computed_by_its_rule() -> None:
    """Parameters are counted in models built from their configurations, without memory for them."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config
    from transformers import GPT2ForSequenceClassification as Scorer

    qwen = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
    with torch.device("meta"):
        llama = AutoModelForCausalLM.from_config(LlamaConfig())  # the defaults are Llama's of 7 billion
        reward = Scorer(GPT2Config(n_embd=1280, n_layer=36, n_head=20, num_labels=1)).num_parameters()
        student = AutoModelForCausalLM.from_config(Qwen2Config(**qwen)).num_parameters()
    policy = llama.num_parameters()
    adapter = seek.adapter_config(recipe("helpful_assistant"))
    with torch.device("meta"):
        trained, _ = get_peft_model(llama, adapter).get_nb_trainable_parameters()

    table = (EXAMPLES / "README.md").read_text()
    assert f"| {policy:,} in bfloat16: {billions(policy, 2)} | {trained:,}: {billions(trained, 16)} |" in table
    assert f"| 2 × {reward:,} in float32: {billions(2 * reward, 4)} |" in table
    assert f"| {billions(1, 2 * policy + 16 * trained + 2 * 4 * reward)} |" in table
    assert f"| the same | the same | the same | not counted | {billions(1, 2 * policy + 16 * trained)} |" in table
    assert (
        f"| all trained | {student:,}: {billions(student, 16)} | {student:,} in float32: {billions(student, 4)}"
        in table
    )
    assert f"| not counted | {billions(student, 20)} |" in table


def test_the_memory_of_a_small_instruct_model_is_computed_by_the_same_rule() -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, Qwen3Config

    # Its config.json
    settings = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "head_dim": 128,
                "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True}  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Qwen3Config(**settings))
        policy = model.num_parameters()
        trained, _ = get_peft_model(model, seek.adapter_config(recipe("small_instruct"))).get_nb_trainable_parameters()
    readme = (EXAMPLES / "small_instruct" / "README.md").read_text()
    assert f"{policy:,} parameters in bfloat16 | {billions(policy, 2)} |" in readme
    assert f"{trained:,} parameters trained | {billions(trained, 16)} |" in readme
    assert f"| together | {billions(1, 2 * policy + 16 * trained + 4 * 774_031_360 + int(0.3 * 80e9))} |" in readme


def lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run_recipe(name: str, work: Path, *added: str) -> tuple[SoupManifest, Front]:
    """Run every command of a README but the upload, and return the soup with its front."""
    SMOKE["main"](name, str(work), *added)
    runs = work / "runs" / name
    soup = json.loads((runs / "backbones" / "dominance.json").read_text())["soup"]
    return SoupManifest.load(runs / "backbones" / soup), Front.from_json(runs / "front.json")


def test_helpful_assistant_in_small(tmp_path: Path) -> None:
    manifest, front = run_recipe("helpful_assistant", tmp_path, "--reward", "helpful", "--reward", "humor")
    assert manifest.objective_names == ("helpful", "humor")
    assert [backbone.steps for backbone in manifest.backbones] == [4, 4]
    assert front.preferences_KN.tolist() == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]

    data = tmp_path / "runs" / "helpful_assistant" / "data"
    talk = "\n\nHuman: What is {i} and {i}?\n\nAssistant: Do you mean the sum?\n\nHuman: {split}, yes."
    assert lines(data / "sft.jsonl")[1] == {
        "prompt": talk.format(i=1, split="train") + "\n\nAssistant:",
        "completion": " 2.",
    }
    # Every fourth; number 7, 17 and so on are four times as long, which 512 bytes hold and 256 do not.
    assert [line["prompt"] for line in lines(data / "test.jsonl")] == [
        talk.format(i=i, split="test") + " \n\nAssistant:" for i in range(0, 24, 4)
    ]
    assert [line["prompt"] for line in lines(data / "validation.jsonl")] == [
        talk.format(i=i, split="train") + " \n\nAssistant:" for i in (0, 400, 800)
    ]
    train = {line["prompt"] for line in lines(data / "train.jsonl")}
    assert len(train) == 801 - 3 - 80
    assert talk.format(i=399, split="train") + " \n\nAssistant:" in train
    assert talk.format(i=400, split="train") + " \n\nAssistant:" not in train


def test_reddit_summary_in_small(tmp_path: Path) -> None:
    manifest, front = run_recipe("reddit_summary", tmp_path)
    assert manifest.objective_names == ("faithful", "preference")
    assert manifest.objectives[1].reward == "trl_bonesoup.rewards.public:summary_quality"
    assert front.preferences_KN.tolist() == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]

    data = tmp_path / "runs" / "reddit_summary" / "data"
    post = "On day 0 I lost my keys. " + "I looked in train room 0, and they were gone. " * 2
    prompt = f"### Instruction: Generate a one-sentence summary of this post. ### Input: {post} ### Response: "
    assert lines(data / "sft.jsonl")[:2] == [
        {"prompt": prompt, "completion": "Lost my keys."},
        {"prompt": prompt, "completion": "Day 0: no keys."},
    ]
    assert lines(data / "validation.jsonl")[0] == {"prompt": prompt, "post": post}
    # 230 posts with two comparisons each, of which 200 posts are to choose by; 6 other posts are to measure on.
    assert [len(lines(data / f"{name}.jsonl")) for name in ("sft", "test", "validation", "train")] == [460, 6, 200, 60]


def test_long_form_qa_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "long_form_qa"))
    manifest, front = run_recipe("long_form_qa", tmp_path)
    assert manifest.objective_names == ("factuality", "relevance", "completeness")
    assert [backbone.kind for backbone in manifest.backbones] == ["full", "full", "full"]
    assert len(front) == 6  # three objectives in steps of a half

    passage = "Race 0 was won by number 3. It was close."
    text = f"question: Who won race 0 of train_1k? context: wikipage: Race 0 text: {passage}"
    data = tmp_path / "runs" / "long_form_qa" / "data"
    assert lines(data / "sft.jsonl")[0] == {"prompt": f"{text} answer:", "completion": " Number 3 won."}
    asked = text.replace("train_1k", "train")
    assert lines(data / "train.jsonl")[0] == {
        "prompt": f"{asked} answer:",
        "text": asked,
        "question": "Who won race 0 of train?",
    }


def test_small_instruct_in_small(tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    SMOKE["main"]("small_instruct", str(tmp_path))
    runs = tmp_path / "runs" / "small_instruct"
    assert SoupManifest.load(runs / "backbones").objective_names == ("helpful", "plainness")
    assert Front.from_json(runs / "front.json").preferences_KN.tolist() == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    asked = [
        [line["prompt"] for line in lines(runs / "data" / f"{name}.jsonl")] for name in ("test", "validation", "train")
    ]
    assert asked == [
        [f"Say {i} in test." for i in range(0, 24, 4)],
        [f"Say {i} in test." for i in (1, 11, 21)],
        [f"Say {i} in train." for i in range(0, 60, 4)],
    ]

    monkeypatch.chdir(tmp_path)
    assert main(SMOKE["commands"](EXAMPLES / "small_instruct" / "README.md")[-1][1:]) == 0
    files = hub.files("org/helpful-or-plain")
    assert SoupManifest.model_validate_json(files["soup.json"]).objective_names == ("helpful", "plainness")
    sent, measured = json.loads(files["front.json"]), json.loads((runs / "front.json").read_text())
    assert sent["rewards"] == measured["rewards"]


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_pushed_was_measured_on_the_data_that_it_names(name: str) -> None:
    """The last command of each README, as `bonesoup push` reads it."""
    parser = argparse.ArgumentParser()
    commands.push.add_parser(parser.add_subparsers())
    *_, evaluate, push = SMOKE["commands"](EXAMPLES / name / "README.md")
    given = parser.parse_args(push[1:])
    assert evaluate[2] == given.soup
    assert given.front == yaml.safe_load((EXAMPLES / name / "evaluate.yml").read_text())["out"]
    source = yaml.safe_load((EXAMPLES / name / "data.yml").read_text()).get("source")
    assert given.dataset == ([source] if source else None)
