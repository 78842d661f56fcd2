"""Options that several subcommands have, and what they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_bonesoup.cli.settings_file import Repeat
from trl_bonesoup.cli.text_forms import read_preference, read_prompts
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import SoupManifest

if TYPE_CHECKING:
    from trl_bonesoup.soup.source import SoupSource


DEFAULT_GRID = 0.1


def add_soup(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the soup that a command starts from."""
    nargs = None if required else "?"
    parser.add_argument("soup", metavar="SOUP", nargs=nargs, help="folder of soup.json, or id of a soup on the Hub")
    parser.add_argument(
        "--revision", metavar="REV", help="commit, tag or branch of a soup on the Hub (its main branch)"
    )
    parser.add_argument("--base-model", metavar="MODEL", help="use this base model instead of the recorded one")


def soup_of(arguments: argparse.Namespace) -> SoupSource:
    """Open the soup that `add_soup`'s options name."""
    from trl_bonesoup.soup.source import open_soup

    return open_soup(arguments.soup, base_model=arguments.base_model, revision=arguments.revision)


def add_preference(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add one preference with its extrapolation."""
    parser.add_argument(
        "--preference",
        metavar="MU",
        required=required,
        help="helpful=0.7,harmless=0.3, or 0.7,0.3 in the order of the objectives, which sum to 1; or a preset: "
        "the name of an objective (all weight on it), equal, or one that soup.json names",
    )
    add_extrapolation(parser)


def add_extrapolation(parser: argparse.ArgumentParser) -> None:
    """Add the extrapolation α."""
    parser.add_argument(
        "--extrapolation",
        metavar="ALPHA",
        default="0",
        help="α in [0, 1): move away from the base model; one number, or one per objective: 0.1,0.3 (default 0)",
    )


def add_grid(parser: argparse.ArgumentParser) -> None:
    """Add the preferences of a sweep or an evaluation."""
    parser.add_argument(
        "--grid", type=float, metavar="STEP", help=f"all preferences in steps of this (default {DEFAULT_GRID})"
    )
    parser.add_argument(
        "--sample",
        type=int,
        metavar="K",
        help="K preferences instead of a grid: all weight on each objective, and others drawn at random",
    )
    parser.add_argument(
        "--preference", action=Repeat, metavar="MU", help="this preference instead of a grid; may be repeated"
    )
    add_extrapolation(parser)


def parse_grid(arguments: argparse.Namespace, manifest: SoupManifest) -> np.ndarray:
    """Return the preferences (K, N) that `add_grid`'s options ask for; see `read_grid`."""
    return np.stack([manifest.preference(preference) for preference in read_grid(arguments, manifest)])


def read_grid(arguments: argparse.Namespace, manifest: SoupManifest) -> Sequence[Any]:
    """Return the preferences that `add_grid`'s options ask for, those that are given as names by their names.

    Raises:
        ConfigurationError: if they ask in more than one way.
    """
    from trl_bonesoup.weights import simplex_grid, simplex_sample

    given = [f"--{name}" for name in ("grid", "sample", "preference") if getattr(arguments, name) not in (None, [])]
    if len(given) > 1:
        raise ConfigurationError(f"{' and '.join(given)} each say which preferences; give one of them.")
    if arguments.preference:
        return [read_preference(text) for text in arguments.preference]
    if arguments.sample is not None:
        return list(simplex_sample(len(manifest.objectives), arguments.sample))
    return list(simplex_grid(len(manifest.objectives), DEFAULT_GRID if arguments.grid is None else arguments.grid))


def add_prompts(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the prompts of training or evaluation."""
    parser.add_argument(
        "--prompts",
        metavar="SOURCE",
        required=required,
        help=".txt (one per line), .jsonl, .json, .csv or .parquet file, or a data set on the Hub (org/name:split)",
    )
    parser.add_argument("--prompt-column", metavar="NAME", default="prompt", help='column of the prompts ("prompt")')
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N prompts")
    parser.add_argument("--chat", action="store_true", help="send plain prompts as user messages of a conversation")


def prompts_from(arguments: argparse.Namespace) -> Any:
    """Return the data set that `add_prompts`'s options ask for."""
    data = read_prompts(arguments.prompts, column=arguments.prompt_column, limit=arguments.limit)
    if arguments.chat:
        if len(data) and not isinstance(data[0]["prompt"], str):
            raise ConfigurationError(
                f"--chat makes conversations of plain prompts; {arguments.prompts} has them already."
            )
        data = data.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    return data


def add_rewards(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the reward functions."""
    parser.add_argument(
        "--reward",
        action=Repeat,
        metavar="SPEC",
        required=required,
        help="a reward function, once per objective: [name=]module:attribute, a scorer (positivity, neutrality, "
        "plainness, brevity) or a model from the Hub (helpful, harmless, humor, faithful_summary, summary_quality)",
    )


def add_answers(parser: argparse.ArgumentParser) -> None:
    """Add how prompts are answered."""
    parser.add_argument("--samples-per-prompt", type=int, metavar="N", default=1, help="answers per prompt (1)")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="longest answer (as in the training; 128 where unknown)"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="0 is greedy (as in the training; 1 where unknown)"
    )
    parser.add_argument("--batch-size", type=int, metavar="N", default=32, help="answers at a time (32)")
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="of the random numbers (0)")
    parser.add_argument("--device", metavar="DEVICE", help="where to put the models, such as cuda")
    add_dtype(parser, "of the models, such as bfloat16 or bf16 (that of the checkpoint)")


def answer_settings(arguments: argparse.Namespace, training: Mapping[str, Any]) -> Any:
    """Return the `EvaluationSettings` that `add_answers`'s options ask for, and print those that they leave open.

    Args:
        arguments: of the command.
        training: settings of the training, which soup.json records; empty where there is none.
    """
    from trl_bonesoup.front.settings import EvaluationSettings, recorded_decoding

    decoding = {name: getattr(arguments, name) for name in ("max_new_tokens", "temperature")}
    settings = EvaluationSettings.of_training(
        training,
        samples_per_prompt=arguments.samples_per_prompt,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        **decoding,
    )
    recorded = recorded_decoding(training)
    left = {name: f"{name} {getattr(settings, name)}" for name, value in decoding.items() if value is None}
    if taken := [text for name, text in left.items() if name in recorded]:
        print(f"Answers are given with {' and '.join(taken)}, as in the training (soup.json).")
    if others := [text for name, text in left.items() if name not in recorded]:
        print(f"Answers are given with {' and '.join(others)} by default.")
    return settings


def add_dtype(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the dtype of models, by torch's name or a short one."""
    parser.add_argument("--dtype", type=_dtype_name, metavar="DTYPE", help=help)


def add_allow_nan(parser: argparse.ArgumentParser) -> None:
    """Add the option to write soups of models that are not finite."""
    parser.add_argument(
        "--allow-nan", action="store_true", help="write NaN and infinity that the models have, instead of refusing them"
    )


def add_card_metadata(parser: argparse.ArgumentParser) -> None:
    """Add what only people know of a model that gets a card."""
    parser.add_argument("--license", metavar="ID", help="as the Hub names it, such as apache-2.0")
    parser.add_argument("--language", action=Repeat, metavar="CODE", help="such as en; may be repeated")
    parser.add_argument(
        "--dataset", action=Repeat, metavar="ID", help="data set on the Hub of the training; may be repeated"
    )


def show_warnings_plainly() -> None:
    """Print a warning as one line, without the source line that raised it; those meant for developers not at all."""
    import warnings

    warnings.simplefilter("ignore", FutureWarning)
    warnings.formatwarning = lambda message, category, *_args, **_kwargs: f"bonesoup: warning: {message}\n"


def _dtype_name(text: str) -> str:
    from trl_bonesoup.soup.dtypes import dtype_name

    return dtype_name(str(text))
