"""`bonesoup demo`: the whole method on a real language model, offline, in minutes on a laptop."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trl_bonesoup.cli.demo_model import EMBEDDED, embedded_model
from trl_bonesoup.cli.demo_prompts import TEST_TOPICS, TRAINING_TOPICS, conversations
from trl_bonesoup.cli.settings_file import Repeat, new_parser
from trl_bonesoup.cli.text_forms import parse_rewards
from trl_bonesoup.errors import BoneSoupError, ConfigurationError

_EPILOG = """\
What it does: loads SmolLM2-135M-Instruct, trains one LoRA backbone per objective with PPO on a mixture
of the objectives (seek), merges them for 11 preferences and measures the mean rewards on other
prompts (evaluate), draws the front, merges one preference into a full checkpoint with the stock
mergekit-yaml, and writes its model card. Interrupted, it continues when called again.

Longer runs give wider fronts:   bonesoup demo --rollouts 40 --out bonesoup-demo-long
Three objectives (66 soups):     bonesoup demo --objective positivity --objective plainness --objective neutrality
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(subparsers, "demo", run, "The whole method on a small real model, offline.", _EPILOG)
    parser.add_argument("--out", metavar="DIR", default="bonesoup-demo", help="folder of the run (bonesoup-demo)")
    parser.add_argument(
        "--objective",
        action=Repeat,
        metavar="SPEC",
        help="reward function, once per objective (default: positivity and plainness); see `bonesoup seek --help`",
    )
    parser.add_argument("--dominance", type=float, metavar="BETA", default=0.7, help="β of the weights (default 0.7)")
    parser.add_argument("--rollouts", type=int, metavar="N", default=8, help="rollout batches per backbone (8)")
    parser.add_argument("--rollout-size", type=int, metavar="N", default=16, help="answers in a rollout batch (16)")
    parser.add_argument("--answer-tokens", type=int, metavar="N", default=24, help="longest answer (24)")
    parser.add_argument(
        "--test-prompts", type=int, metavar="N", default=20, help="prompts to measure on, up to 24 (20)"
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the training and the measurement (0)")
    parser.add_argument("--model", metavar="MODEL", help=f"another chat model (default: {EMBEDDED}, embedded)")


def run(arguments: argparse.Namespace) -> None:
    """Run every stage that is not finished yet."""
    started = time.monotonic()
    rewards, names = parse_rewards(arguments.objective or ["positivity", "plainness"])
    if len(names) < 2:
        raise ConfigurationError(f"The demo needs at least two --objective; got {names}.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    out = Path(arguments.out)
    _step(1, "Loading the language model")
    quiet()
    out.mkdir(parents=True, exist_ok=True)
    model = arguments.model or str(embedded_model(out / "base"))

    _step(2, f"Seek: training {len(names)} backbones, one per objective ({', '.join(names)}), with PPO")
    manifest = _seek(arguments, model, rewards, names)
    _say_correlation(out, names)

    _step(3, "Soup: measuring every preference of a grid on prompts that were not trained on")
    front = _evaluate(arguments, out, rewards, names)
    print("\n" + front.table() + "\n")
    from trl_bonesoup.cli.evaluate import metrics_text

    print(metrics_text(front) + "\n")
    print(steering_text(front))

    _step(4, "Merging one preference into a full checkpoint with the stock mergekit-yaml")
    preference = [1.0 / len(names)] * len(names)
    _mergekit(out, manifest, preference)
    _step(5, "Writing its model card")
    from trl_bonesoup.hub.describe import describe_soup
    from trl_bonesoup.soup.source import open_soup

    describe_soup(
        open_soup(out),
        out / "merged",
        preference,
        full=True,
        front=front,
        license=None if arguments.model else "apache-2.0",
        base_model=arguments.model or EMBEDDED,
    )
    # The embedded model differs from the Hub's by its quantisation, so it is published along and not only named.
    _finish(out, names, "" if arguments.model else " --license apache-2.0", time.monotonic() - started)


def quiet() -> None:
    """Keep the libraries' own progress bars and advice out of the way of the demo's."""
    import warnings

    import transformers
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)


def _seek(arguments: argparse.Namespace, model: str, rewards: list[Any], names: list[str]) -> Any:
    from datasets import Dataset
    from peft import LoraConfig

    from trl_bonesoup.training.config import MultiRewardPPOConfig
    from trl_bonesoup.training.seek import seek
    from trl_bonesoup.weights import circulant_weights

    epochs = 2
    settings = MultiRewardPPOConfig(
        output_dir=arguments.out,
        per_device_train_batch_size=arguments.rollout_size,
        max_steps=arguments.rollouts * epochs,
        num_iterations=epochs,
        max_completion_length=arguments.answer_tokens,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        lam=0.8,  # the default objectives pay word by word
        kl_coef=0.05,
        seed=arguments.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=False,
        dataloader_pin_memory=False,
        activation_checkpointing=False,
    )
    manifest = seek(
        model,
        rewards,
        circulant_weights(len(names), arguments.dominance),
        settings,
        Dataset.from_dict({"prompt": conversations(TRAINING_TOPICS)}),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        objective_names=names,
        calibration_samples=2 * arguments.rollout_size,
    )
    assert manifest is not None
    return manifest


def _evaluate(arguments: argparse.Namespace, out: Path, rewards: list[Any], names: list[str]) -> Any:
    from trl_bonesoup.front.evaluate import evaluate_front
    from trl_bonesoup.front.front import Front
    from trl_bonesoup.soup.lora import BoneSoup
    from trl_bonesoup.weights import simplex_grid

    prompts = conversations(TEST_TOPICS)[: arguments.test_prompts]
    front = Front.from_json(out / "front.json") if (out / "front.json").exists() else None
    if front is None or front.provenance["prompts"] != len(prompts):
        front = evaluate_front(
            BoneSoup.from_pretrained(out),
            prompts,
            rewards,
            simplex_grid(len(names)),
            max_new_tokens=arguments.answer_tokens,
            objective_names=names,
            seed=arguments.seed,
            front_path=out / "front.json",
            samples_path=out / "samples.jsonl",
            overwrite=True,
        )
    front.plot(out / "front.png")
    front.plot(out / "steering.png", kind="preference")
    return front


def _mergekit(out: Path, manifest: Any, preference: list[float]) -> None:
    """Run the command that a user would run, on the recipe that a user would write."""
    from trl_bonesoup.soup.folders import complete_folder
    from trl_bonesoup.soup.recipe import mergekit_yaml

    recipe = out / "bonesoup.yml"
    recipe.write_text(mergekit_yaml(manifest, out, preference), encoding="utf-8")
    print(recipe.read_text(encoding="utf-8"))
    command = [str(Path(sys.executable).with_name("mergekit-yaml")), str(recipe)]
    with (
        tempfile.TemporaryDirectory(dir=out, prefix=".lora-cache-") as cache,
        complete_folder(out / "merged", overwrite=True) as folder,
    ):
        finished = subprocess.run(
            [*command, str(folder.resolve()), "--lora-merge-cache", cache, "--quiet", "--no-write-model-card"],
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode:
            raise BoneSoupError(f"mergekit-yaml {recipe} failed:\n{finished.stderr.strip()}")


def _say_correlation(out: Path, names: list[str]) -> None:
    record = json.loads((out / "seek.json").read_text(encoding="utf-8"))
    print("On answers of the base model:")
    for name, scale in zip(names, record["statistics"], strict=True):
        print(f"  {name}: mean {scale['mean']:.3g}, standard deviation {scale['std']:.3g}")
    for i, first in enumerate(names):
        for j, second in enumerate(names[:i]):
            print(f"  correlation of {second} and {first}: {record['correlation'][i][j]:+.2f}")


def steering_text(front: Any) -> str:
    """Return, per objective, its mean reward where it is wanted least and where it is wanted most."""
    lines = ["What the preference does, from one end to the other:"]
    for i, name in enumerate(front.objectives):
        least, most = front.preferences_KN[:, i].argmin(), front.preferences_KN[:, i].argmax()
        low, high = front.rewards_KN[least, i], front.rewards_KN[most, i]
        verdict = "moves as asked" if high > low else "does NOT move as asked: train longer (--rollouts)"
        base = front.markers["base"].rewards_N[i]
        lines.append(f"  {name}: {low:.3g} → {high:.3g} (base {base:.3g}), {verdict}")
    return "\n".join(lines)


def _finish(out: Path, names: list[str], published: str, seconds: float) -> None:
    shares = ",".join(f"{name}={share:g}" for name, share in zip(names, _uneven(len(names)), strict=True))
    print(f"\nDone in {seconds / 60:.1f} minutes. In {out}:")
    for file, what in (
        ("front.png", "the front, coloured by preference"),
        ("steering.png", "each reward against its preference"),
        ("front.json", "the numbers, with how they came about"),
        ("samples.jsonl", "every answer with its scores"),
        ("soup.json", "what was trained; everything else starts from it"),
        ("bonesoup.yml", "the recipe for mergekit-yaml"),
        ("merged/", "a full checkpoint with its model card (README.md)"),
    ):
        print(f"  {file:<14} {what}")
    command = "bonesoup" if shutil.which("bonesoup") else os.path.relpath(Path(sys.executable).with_name("bonesoup"))
    print("\nTry next:")
    for rest, what in (
        (f"merge {out} my-soup --preference {shares}", "another balance, in seconds"),
        (f"sweep {out} soups --grid 0.25", "a family of them"),
        (f"demo --rollouts 40 --out {out}-long", "a wider front, in half an hour"),
        (f"push {out} --repo YOU/bonesoup-demo{published} --dry-run", "publish it; --dry-run only shows what is sent"),
    ):
        print(f"  {command} {rest}    # {what}")


def _uneven(n: int) -> list[float]:
    return [round(1.0 - 0.2 * (n - 1), 1), *[0.2] * (n - 1)] if n <= 4 else [1.0 / n] * n


def _step(number: int, text: str) -> None:
    print(f"\n[{number}/5] {text}", flush=True)
