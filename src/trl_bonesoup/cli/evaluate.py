"""`bonesoup evaluate`: measure the front of a soup."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trl_bonesoup.cli import options
from trl_bonesoup.errors import ConfigurationError

_EPILOG = """\
Every preference answers the same prompts with the same random numbers. Without --reward, the
rewards that soup.json records are used where they are the built-in scorers; others are code, which
is run only when it is named here.
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = options.new_parser(
        subparsers, "evaluate", run, "Measure the rewards of a soup over a grid of preferences.", _EPILOG
    )
    options.add_soup(parser)
    options.add_prompts(parser, required=True)
    options.add_rewards(parser, required=False)
    options.add_grid(parser)
    parser.add_argument("--out", metavar="FILE", default="front.json", help="where to write the front (front.json)")
    parser.add_argument("--plot", metavar="FILE", help="also draw it: .png, .svg or .pdf")
    parser.add_argument("--samples", metavar="FILE", help="also write every answer: .jsonl or .parquet")
    parser.add_argument("--samples-per-prompt", type=int, metavar="N", default=1, help="answers per prompt (1)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", default=128, help="longest answer (128)")
    parser.add_argument("--temperature", type=float, metavar="T", default=1.0, help="0 is greedy (1.0)")
    parser.add_argument("--batch-size", type=int, metavar="N", default=32, help="answers at a time (32)")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the random numbers (0)")


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, then print the table and the metrics."""
    from trl_bonesoup.soup.source import open_soup

    source = open_soup(arguments.soup, base_model=arguments.base_model)
    preferences = options.parse_grid(arguments, source.manifest)
    rewards, names = options.parse_rewards(arguments.reward or _recorded_rewards(source.manifest))
    data = options.prompts_from(arguments)

    from trl_bonesoup.front.evaluate import evaluate_front
    from trl_bonesoup.soup.lora import BoneSoup

    front = evaluate_front(
        BoneSoup.from_source(source),
        data,
        rewards,
        preferences,
        extrapolation=options.parse_extrapolation(arguments.extrapolation),
        samples_per_prompt=arguments.samples_per_prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        objective_names=names,
        samples_path=arguments.samples,
    )
    front.to_json(arguments.out)
    print(front.table())
    if len(front) > 1:
        print(metrics_text(front))
    if arguments.plot:
        front.plot(arguments.plot)
    print(f"Wrote {', '.join(str(Path(p)) for p in (arguments.out, arguments.plot, arguments.samples) if p)}.")


def metrics_text(front: Any) -> str:
    """Return the six metrics in one line each, with the reference point that the hypervolume is above."""
    reference = front.default_reference()
    lines = [f"{name.replace('_', ' '):>16}  {value:.4g}" for name, value in front.metrics(reference).items()]
    point = ", ".join(f"{name} {value:.4g}" for name, value in zip(front.objectives, reference, strict=True))
    return "\n".join([*lines, f"(hypervolume above {point}; compare fronts only over one shared reference point)"])


def _recorded_rewards(manifest: Any) -> list[str]:
    from trl_bonesoup.rewards.spec import BUILT_IN, PUBLIC

    own = {*BUILT_IN, *(f"trl_bonesoup.rewards.public:{name}" for name in PUBLIC)}
    foreign = [objective.reward for objective in manifest.objectives if objective.reward not in own]
    if foreign:
        raise ConfigurationError(
            f"soup.json names the rewards {', '.join(foreign)}, which are code of its author. Name what to run with "
            "--reward, once per objective: --reward name=module:attribute."
        )
    return [f"{objective.name}={objective.reward}" for objective in manifest.objectives]
