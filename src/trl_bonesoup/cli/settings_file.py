"""Subcommands whose settings come from flags, or from a YAML file given by --config."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_bonesoup.errors import ConfigurationError


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
