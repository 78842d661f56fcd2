"""Does it help to pay scores word by word? One policy's rewards in training, with four ways to give credit.

python -m benchmarks.fronts.credit --markdown

trains the policy for equal weights of positivity and plainness, with the other settings of
positivity-plainness.yml, and continues where it was interrupted.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from benchmarks.report import machine, spread, table
from peft import LoraConfig

from trl_bonesoup import MultiRewardPPOConfig
from trl_bonesoup.cli.demo_model import embedded_model
from trl_bonesoup.cli.text_forms import read_prompts
from trl_bonesoup.rewards.spec import load_reward
from trl_bonesoup.training.policies import train_policies

FOLDER = Path(__file__).parent
OBJECTIVES = ("positivity", "plainness")
LAST = 2
"""Rollouts whose mean is shown."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fronts/credit"), help="folder of the trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102], help="of the trainings (100 101 102)")
    parser.add_argument("--model", help="another chat model, from its folder (default: the embedded one)")
    parser.add_argument("--rollouts", type=int, help="of a training (as in the plan)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    arguments = parser.parse_args()

    plan = yaml.safe_load((FOLDER / "positivity-plainness.yml").read_text(encoding="utf-8"))
    settings = dict(plan["set"])
    if arguments.rollouts:
        settings["max_steps"] = arguments.rollouts * settings["num_iterations"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = arguments.model or str(embedded_model(arguments.out / "base"))
    prompts = read_prompts(str(FOLDER / "prompts" / "train.jsonl"))
    peft_config = LoraConfig(
        r=plan["lora_r"], lora_alpha=2 * plan["lora_r"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    rows = []
    for paid, change in (("at the end", at_the_end), ("word by word", lambda reward: reward)):
        for lam in (0.95, 0.8):
            rewards_SN = []
            for seed in arguments.seeds:
                folder = arguments.out / f"{paid.replace(' ', '-')}-{lam}" / f"seed-{seed}"
                args = MultiRewardPPOConfig(
                    **{**settings, "lam": lam, "seed": seed, "output_dir": str(folder), "report_to": "none"}
                )
                rewards = [change(load_reward(name)) for name in OBJECTIVES]
                run = train_policies(model, rewards, [[0.5, 0.5]], args, prompts, peft_config=peft_config)
                rewards_SN.append(last_rewards(run.log_file(0)))
            columns = [spread(values, ".3g") for values in zip(*rewards_SN, strict=True)]
            rows.append([paid, str(lam), *columns])
    print(table(["score is paid", "λ of GAE", *OBJECTIVES], rows, arguments.markdown))
    print(
        f"\nMedian over seeds {', '.join(map(str, arguments.seeds))} (and range) of the mean reward of the last {LAST} "
        f"rollouts of {settings['per_device_train_batch_size']} answers."
    )
    print(f"Machine: {machine()}.")


def at_the_end(reward: Callable[..., list[float | None]]) -> Callable[..., list[float | None]]:
    """Return a reward function with the same scores, as numbers that do not know their parts."""

    @functools.wraps(reward)
    def total(*args: Any, **kwargs: Any) -> list[float | None]:
        return [None if score is None else float(score) for score in reward(*args, **kwargs)]

    return total


def last_rewards(log_file: Path) -> list[float]:
    """Return the mean of each objective over the last rollouts of a training."""
    log = json.loads(log_file.read_text(encoding="utf-8"))["log"]
    means = [[entry[f"rewards/{name}/mean"] for entry in log if f"rewards/{name}/mean" in entry] for name in OBJECTIVES]
    return [float(np.mean(values[-LAST:])) for values in means]


if __name__ == "__main__":
    main()
