"""`bonesoup card`: write the model card of a saved soup, or of the whole family."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trl_bonesoup.cli import options
from trl_bonesoup.cli.settings_file import Repeat, new_parser
from trl_bonesoup.cli.text_forms import parse_extrapolation, parse_preference
from trl_bonesoup.errors import ConfigurationError

_EPILOG = """\
examples:
  bonesoup card run --front front.json --name org/family --license apache-2.0      of all backbones, into run
  bonesoup card run out --preference helpful=0.7,harmless=0.3 --family org/family  of one soup, into out
  bonesoup card run out --preference 0.7,0.3 --front front.json --compare "Rewarded Soups=rs/front.json"
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(
        subparsers, "card", run, "Write the model card of a soup that was saved, or of its whole family.", _EPILOG
    )
    options.add_soup(parser)
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="folder of the saved soup; without it, the card of SOUP is written"
    )
    options.add_preference(parser, required=False)
    parser.add_argument("--front", metavar="FILE", help="front.json with measured rewards")
    parser.add_argument(
        "--compare",
        action=Repeat,
        metavar="NAME=FILE",
        help="front.json of another method, measured on the same prompts with the same settings; may be repeated",
    )
    parser.add_argument("--name", metavar="NAME", help="title, or the id it will have on the Hub")
    parser.add_argument("--family", metavar="ID", help="id that the backbones have on the Hub, for the card of a soup")
    options.add_card_metadata(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a README.md that is not a card of ours")


def run(arguments: argparse.Namespace) -> None:
    """Describe what is there."""
    from trl_bonesoup.front.front import Front
    from trl_bonesoup.hub.card import check_replaceable
    from trl_bonesoup.hub.describe import CardMetadata, describe_family, describe_soup

    _check(arguments)
    source = options.soup_of(arguments)
    if arguments.model is None and source.from_hub:
        raise ConfigurationError(
            f"{arguments.soup} is on the Hub; the card of a family is written into a local folder."
        )
    folder = source.folder if arguments.model is None else Path(arguments.model)
    if not arguments.overwrite:
        check_replaceable(folder)
    front = Front.from_json(arguments.front) if arguments.front else None
    compared = {name: Front.from_json(file) for name, file in map(_named, arguments.compare or [])}
    metadata: CardMetadata = {
        "license": arguments.license,
        "language": arguments.language,
        "datasets": arguments.dataset,
        "base_model": arguments.base_model,
    }
    if arguments.model is None:
        path = describe_family(source, folder, front=front, compared=compared, repo_id=arguments.name, **metadata)
    else:
        path = describe_soup(
            source,
            folder,
            parse_preference(arguments.preference, source.manifest),
            parse_extrapolation(arguments.extrapolation),
            full=not (folder / "adapter_config.json").is_file(),
            front=front,
            compared=compared,
            name=arguments.name,
            family=arguments.family,
            **metadata,
        )
    print(f"Wrote {path}.")


def _check(arguments: argparse.Namespace) -> None:
    """Check that the arguments are those of one soup or of a family."""
    if arguments.model is None:
        given = [name for name in ("preference", "family") if getattr(arguments, name) is not None]
        if given:
            raise ConfigurationError(
                f"--{given[0]} belongs to the card of one soup: say in which folder MODEL it was saved. Without MODEL "
                "the card is that of all backbones, and --name is their id on the Hub."
            )
        return
    model = Path(arguments.model)
    if not any((model / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise ConfigurationError(f"{model} holds no saved soup: neither adapter_config.json nor config.json is there.")
    if arguments.preference is None:
        raise ConfigurationError(f"--preference is missing: say which preference the soup in {model} was merged for.")


def _named(text: str) -> tuple[str, str]:
    name, separator, file = str(text).partition("=")
    if not (name and separator and file):
        raise ConfigurationError(
            f'--compare takes the name of a method and its front, "NAME=front.json"; got {text!r}.'
        )
    return name, file
