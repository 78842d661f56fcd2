"""What the subcommands share: settings from YAML, and the text forms of preferences, rewards and prompts."""

from __future__ import annotations

import argparse
import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import SoupManifest

if TYPE_CHECKING:
    from trl_bonesoup.soup.source import SoupSource


DEFAULT_GRID = 0.1


class Repeat(argparse.Action):
    """Collects the values of a repeated flag; the first one replaces what a settings file gave."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Add one value."""
        given = getattr(namespace, f"_{self.dest}_given", [])
        given = [*given, values]
        setattr(namespace, f"_{self.dest}_given", given)
        setattr(namespace, self.dest, given)


def new_parser(
    subparsers: Any, name: str, run: Callable[[argparse.Namespace], int | None], help: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """Add a subcommand that takes its settings from flags, or from a YAML file given by --config."""
    parser = subparsers.add_parser(
        name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of settings: the names below without dashes in front; flags override it",
    )
    return parser


def apply_config(
    parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], argv: Sequence[str]
) -> argparse.Namespace:
    """Parse the command line, after making the settings of its --config file the command's defaults."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    file = finder.parse_known_args(argv)[0].config
    command = commands.get(argv[0]) if argv else None
    if file is None or command is None:
        return parser.parse_args(argv)
    actions = {action.dest: action for action in command._actions if action.dest not in ("help", "config")}
    for key, value in _read_yaml(Path(file)).items():
        action = actions.get(key.replace("-", "_"))
        if action is None:
            near = difflib.get_close_matches(key.replace("-", "_"), actions, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigurationError(
                f"{file} has an unknown setting {key!r}{meant} Known: {', '.join(sorted(actions))}."
            )
        command.set_defaults(**{action.dest: _as_typed(action, value, file)})
        action.required = False
        if not action.option_strings:
            action.nargs = "?"
    return parser.parse_args(argv)


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


def add_allow_nan(parser: argparse.ArgumentParser) -> None:
    """Add the option to write soups of models that are not finite."""
    parser.add_argument(
        "--allow-nan", action="store_true", help="write NaN and infinity that the models have, instead of refusing them"
    )


def add_dtype(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the dtype of models, by torch's name or a short one."""
    parser.add_argument("--dtype", type=_dtype_name, metavar="DTYPE", help=help)


def add_card_metadata(parser: argparse.ArgumentParser) -> None:
    """Add what only people know of a model that gets a card."""
    parser.add_argument("--license", metavar="ID", help="as the Hub names it, such as apache-2.0")
    parser.add_argument("--language", action=Repeat, metavar="CODE", help="such as en; may be repeated")
    parser.add_argument(
        "--dataset", action=Repeat, metavar="ID", help="data set on the Hub of the training; may be repeated"
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


def parse_preference(text: Any, manifest: SoupManifest) -> Any:
    """Return μ, shape (N,), from "name=share,…", "share,…", the name of a preset, or a YAML mapping or list."""
    return manifest.preference(read_preference(text))


def read_preference(text: Any) -> Any:
    """Return what a preference says, unchecked: shares by name, shares in order, or a name."""
    if isinstance(text, (dict, list)):
        return text
    parts = [part.strip() for part in str(text).split(",") if part.strip()]
    if any("=" in part for part in parts):
        named: dict[str, float] = {}
        for part in parts:
            name, _, share = part.rpartition("=")
            if name.strip() in named:
                raise ConfigurationError(f"--preference {text} names {name.strip()!r} twice.")
            named[name.strip()] = _number(share, f"--preference {text}")
        return named
    if len(parts) == 1 and not _is_number(parts[0]):
        return parts[0]
    return [_number(part, f"--preference {text}") for part in parts]


def parse_extrapolation(text: Any) -> float | list[float]:
    """Return α from "0.2" or "0.1,0.3", or from what YAML made of them."""
    values = text if isinstance(text, list) else str(text).split(",")
    numbers = [_number(value, f"--extrapolation {text}") for value in values]
    return numbers[0] if len(numbers) == 1 else numbers


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


def parse_rewards(specs: Sequence[str], order: Sequence[str] = ()) -> tuple[list[Any], list[str]]:
    """Return reward functions and objective names from specs as `load_reward` takes, each after an optional "name=".

    Args:
        specs: once for each objective.
        order: the objectives of a soup. If the names are these in another order, both are put into this one.
    """
    from trl_bonesoup.rewards.protocol import objective_names, reward_name
    from trl_bonesoup.rewards.spec import load_reward

    functions, names = [], []
    for spec in specs:
        name, separator, source = str(spec).partition("=")
        function = load_reward(source if separator else name)
        functions.append(function)
        names.append(name if separator else reward_name(function))
    names = list(objective_names(functions, names))
    if set(names) == set(order):
        functions, names = [functions[names.index(name)] for name in order], list(order)
    return functions, names


def read_prompts(source: str, *, column: str = "prompt", limit: int | None = None) -> Any:
    """Return a data set with a column "prompt".

    Args:
        source: a .txt file with one prompt per line; a .jsonl, .json, .csv or .parquet file; or a
            data set on the Hub, as `org/name` or `org/name:split`.
        column: the column that holds the prompts.
        limit: use the first so many.

    Raises:
        ConfigurationError: if there is no such file, column or data set.
    """
    from datasets import Dataset, load_dataset

    path = Path(source)
    if path.suffix == ".txt":
        if not path.is_file():
            raise ConfigurationError(f"There is no file of prompts at {source}.")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        data = Dataset.from_dict({column: [line for line in lines if line]})
    elif path.suffix in (".jsonl", ".json", ".csv", ".parquet"):
        if not path.is_file():
            raise ConfigurationError(f"There is no file of prompts at {source}.")
        kind = "json" if path.suffix == ".jsonl" else path.suffix[1:]
        data = load_dataset(kind, data_files=str(path), split="train")
    else:
        name, _, split = source.partition(":")
        try:
            data = load_dataset(name, split=split or "train")
        except Exception as error:
            raise ConfigurationError(
                f"{source} is neither a .txt, .jsonl, .json, .csv or .parquet file nor a data set on the Hub: {error}"
            ) from error
    if column not in data.column_names:
        raise ConfigurationError(f"{source} has no column {column!r}; it has {data.column_names}.")
    if column != "prompt":
        data = data.rename_column(column, "prompt")
    return data if limit is None else data.select(range(min(limit, len(data))))


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
        help="a reward function, once per objective: [name=]module:attribute, a scorer (positivity, brevity, "
        "plainness) or a model from the Hub (helpful, harmless, humor, faithful_summary, summary_quality)",
    )


def show_warnings_plainly() -> None:
    """Print a warning as one line, without the source line that raised it; those meant for developers not at all."""
    import warnings

    warnings.simplefilter("ignore", FutureWarning)
    warnings.formatwarning = lambda message, category, *_args, **_kwargs: f"bonesoup: warning: {message}\n"


def _dtype_name(text: str) -> str:
    from trl_bonesoup.soup.dtypes import dtype_name

    return dtype_name(str(text))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: Any, where: str) -> float:
    try:
        number = float(text)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigurationError(f"{where}: {text!r} is not a number.")
    return number


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"The settings {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two: dates that are none, deep nesting
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigurationError(f"{path} must hold settings as `name: value` lines.")
    return {str(key): value for key, value in settings.items()}


def _as_typed(action: argparse.Action, value: Any, where: str) -> Any:
    if isinstance(action, Repeat):
        return value if isinstance(value, list) else [value]
    if action.type is not None and value is not None:
        try:
            return action.type(value)  # type: ignore[operator]
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigurationError(f"{where}: {action.dest} cannot be {value!r}.") from error
    if action.nargs == 0 and not isinstance(value, bool):
        raise ConfigurationError(f"{where}: {action.dest} must be true or false; got {json.dumps(value)}.")
    return value
