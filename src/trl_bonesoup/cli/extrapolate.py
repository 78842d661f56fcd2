"""`bonesoup extrapolate`: choose how far to move away from the base model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trl_bonesoup.cli import options
from trl_bonesoup.cli.evaluate import recorded_rewards
from trl_bonesoup.cli.settings_file import new_parser
from trl_bonesoup.cli.text_forms import parse_extrapolation, parse_rewards

_EPILOG = """\
Extrapolation merges λ = B⁻¹(k∘μ) with k = 1/(1-α), so that the soup goes on in the direction that
training took from the base model. Nothing is trained. For each objective, the soup with all weight
on it answers the validation prompts at each α, and the α with the highest reward is chosen. With
--test-prompts, the front is then measured with and without it on prompts that were not chosen by.

  bonesoup extrapolate run alpha --prompts validation.jsonl --test-prompts test.jsonl
  bonesoup merge run out --preference 0.7,0.3 --extrapolation 0.3,0.1

OUT then holds extrapolation.json, and with --test-prompts the two fronts with their figure. Run the
same command again to continue after an interruption.
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(
        subparsers, "extrapolate", run, "Choose the extrapolation α of a soup on validation prompts.", _EPILOG
    )
    options.add_soup(parser)
    parser.add_argument("out", metavar="OUT", help="folder for the answers, the choice and the fronts")
    options.add_prompts(parser, required=True)
    parser.add_argument(
        "--test-prompts", metavar="SOURCE", help="other prompts in the same form, for the front before and after"
    )
    options.add_rewards(parser, required=False)
    parser.add_argument(
        "--alphas", metavar="A,A,...", default="0,0.1,0.2,0.3,0.4,0.5", help="candidates (0,0.1,0.2,0.3,0.4,0.5)"
    )
    parser.add_argument("--joint", action="store_true", help="one α for all objectives instead of one for each")
    parser.add_argument("--grid", type=float, metavar="STEP", help="preferences of the two fronts (0.1)")
    options.add_answers(parser)


def run(arguments: argparse.Namespace) -> None:
    """Search, then print what was found."""
    source = options.soup_of(arguments)
    rewards, names = parse_rewards(
        arguments.reward or recorded_rewards(source.manifest), source.manifest.objective_names
    )
    validation = options.prompts_from(arguments)
    test = None
    if arguments.test_prompts:
        test = options.prompts_from(argparse.Namespace(**{**vars(arguments), "prompts": arguments.test_prompts}))
    alphas = parse_extrapolation(arguments.alphas)

    from trl_bonesoup.front.extrapolation import RECORD, search_extrapolation
    from trl_bonesoup.soup.lora import BoneSoup
    from trl_bonesoup.weights import simplex_grid

    options.show_warnings_plainly()
    out = Path(arguments.out)
    found = search_extrapolation(
        BoneSoup.from_source(source, dtype=arguments.dtype, device=arguments.device),
        validation,
        rewards,
        alphas=alphas if isinstance(alphas, list) else [alphas],
        per_objective=not arguments.joint,
        test_prompts=test,
        preferences=None if arguments.grid is None else simplex_grid(len(names), arguments.grid),
        settings=options.answer_settings(arguments, source.manifest.training),
        objective_names=names,
        folder=out,
    )
    print(found.text())
    written = [out / RECORD]
    if found.fronts:
        for ending in ("png", "svg"):
            found.plot(out / f"front.{ending}")
            written.append(out / f"front.{ending}")
    print(f"Wrote {', '.join(map(str, written))}.")
