"""`bonesoup select-dominance`: choose β after a part of the training, and finish the training of the best one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_bonesoup.cli import options, seek
from trl_bonesoup.cli.demo_model import model_or_embedded
from trl_bonesoup.cli.progress import show_progress_in_words
from trl_bonesoup.cli.settings_file import new_parser
from trl_bonesoup.errors import ConfigurationError

if TYPE_CHECKING:
    from trl_bonesoup.front.dominance import DominanceTrial

_EPILOG = """\
β says how much of its own reward a backbone learns: with two objectives and β = 0.7, one backbone
learns .7 of the first reward and .3 of the second, and the other the reverse. The closer β is to
1/N, the more the backbones know of each other's rewards, and the more their differences (and their
noise) are amplified when they are merged. Which β is best depends on the rewards; this command
does what the paper does to find out:

  1. train the backbones of every β (.6, .7, .8) for a fifth of the steps;
  2. measure the front of each on validation prompts, which should not be trained on;
  3. take the β with the largest hypervolume above one reference point, the same for all;
  4. train its backbones to the end, from where they paused. They end up as `bonesoup seek` would
     have trained them from the start; other β stay where they are.

Three β take 1.4 times the training of one, where training each to the end takes 3 times. With
--dry-run the command says what it would train, and how long that takes.

Settings are those of `bonesoup seek`, and its YAML file works here if it names no `dominance`:
  model: org/sft
  reward: [helpful=my_rewards:helpful, harmless=my_rewards:harmless]
  prompts: prompts.jsonl
  validation_prompts: validation.jsonl
  dominances: [0.6, 0.7, 0.8]
  output_dir: run
  set: {learning_rate: 1.0e-5, max_steps: 400}

Run the same command again to continue after an interruption; add a β to --dominances to try one more.
--output-dir then holds dominance.json, and a folder such as beta-0.7 with the chosen soup.
"""

_NEEDED = ("model", "reward", "prompts", "validation_prompts")


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(
        subparsers, "select-dominance", run, "Choose β by short trainings, then train the best to the end.", _EPILOG
    )
    seek.add_training(parser)
    parser.add_argument(
        "--validation-prompts", metavar="SOURCE", help="prompts to choose by, in the same form as --prompts"
    )
    parser.add_argument(
        "--dominances", type=_numbers, metavar="B,B,...", default="0.6,0.7,0.8", help="the β to try (0.6,0.7,0.8)"
    )
    parser.add_argument(
        "--fraction", type=float, metavar="F", default=0.2, help="share of the steps before the choice (0.2)"
    )
    parser.add_argument(
        "--grid", type=float, metavar="STEP", default=0.1, help="measure all preferences in steps of this (0.1)"
    )
    parser.add_argument("--samples-per-prompt", type=int, metavar="N", default=1, help="answers per prompt (1)")
    parser.add_argument("--batch-size", type=int, metavar="N", default=32, help="answers at a time (32)")
    parser.add_argument("--dry-run", action="store_true", help="train nothing; say what would be done, and estimate it")


def run(arguments: argparse.Namespace) -> None:
    """Select, or say what selecting would take."""
    missing = [f"--{name.replace('_', '-')}" for name in _NEEDED if not getattr(arguments, name)]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} missing: give it as a flag or in the --config file.")
    rewards, names = seek.rewards_of(arguments)
    train = options.prompts_from(arguments)
    validation = options.prompts_from(
        argparse.Namespace(**{**vars(arguments), "prompts": arguments.validation_prompts})
    )
    args = seek.training_args(arguments)

    from trl_bonesoup.front.dominance import DominanceTrial
    from trl_bonesoup.front.settings import EvaluationSettings
    from trl_bonesoup.weights import simplex_grid

    options.show_warnings_plainly()
    trial = DominanceTrial(
        model_or_embedded(arguments.model, Path(arguments.output_dir)),
        rewards,
        args,
        train,
        validation,
        dominances=arguments.dominances,
        fraction=arguments.fraction,
        preferences=simplex_grid(len(names), arguments.grid),
        settings=EvaluationSettings(
            samples_per_prompt=arguments.samples_per_prompt,
            max_new_tokens=args.max_completion_length,
            temperature=args.temperature,
            batch_size=arguments.batch_size,
            seed=args.seed,
        ),
        objective_names=names,
        peft_config=seek.adapter_config(arguments),
    )
    print(_plan(trial))
    if arguments.dry_run:
        print(trial.pace().estimate(trial.steps_left(), trial.answers_left()))
        return
    show_progress_in_words()
    selection = trial.run()
    print(f"\n{selection.table()}\n\n{selection.cost.text()}")
    print(f"Wrote {selection.folder}/dominance.json. Next: bonesoup evaluate {selection.soup_folder} --prompts ...")


def _plan(trial: DominanceTrial) -> str:
    """Say what a selection trains and measures, and what of it is left."""
    betas = ", ".join(f"{candidate.dominance:g}" for candidate in trial.candidates)
    m, n = len(trial.candidates), trial.backbones
    return (
        f"{m} candidates (β = {betas}), each with {n} backbones for {trial.stop_after} of {trial.total_steps} "
        f"optimizer steps; then the {n} backbones of the best one to the end: "
        f"{m * n * trial.stop_after + n * (trial.total_steps - trial.stop_after)} steps, where training all to the end "
        f"takes {m * n * trial.total_steps}. {m * trial.answers} answers to validation prompts.\n"
        f"Still to do: {trial.steps_left()} steps, {trial.answers_left()} answers."
    )


def _numbers(given: Any) -> list[float]:
    """Return numbers from "0.6,0.7" or from a YAML list."""
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
    return [float(part) for part in parts]
