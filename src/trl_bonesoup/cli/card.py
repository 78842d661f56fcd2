"""`bonesoup card`: write the model card of a saved soup."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trl_bonesoup.cli import options
from trl_bonesoup.errors import ConfigurationError, SoupError


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = options.new_parser(subparsers, "card", run, "Write the model card of a soup that was saved.")
    options.add_soup(parser)
    parser.add_argument("model", metavar="MODEL", help="folder of the saved soup; its README.md is replaced")
    options.add_preference(parser, required=True)
    parser.add_argument("--front", metavar="FILE", help="front.json with measured rewards")
    parser.add_argument("--name", metavar="NAME", help="title, or the id it will have on the Hub")
    parser.add_argument("--license", metavar="ID", help="as the Hub names it, such as apache-2.0")


def run(arguments: argparse.Namespace) -> None:
    """Describe what is there."""
    from trl_bonesoup.soup.source import open_soup

    model = Path(arguments.model)
    adapter = (model / "adapter_config.json").is_file()
    if not adapter and not (model / "config.json").is_file():
        raise ConfigurationError(f"{model} holds no saved soup: neither adapter_config.json nor config.json is there.")
    source = open_soup(arguments.soup, base_model=arguments.base_model)
    path = describe(
        source,
        model,
        options.parse_preference(arguments.preference, source.manifest),
        options.parse_extrapolation(arguments.extrapolation),
        full=not adapter,
        front_path=arguments.front,
        name=arguments.name,
        license=arguments.license,
        base_model=arguments.base_model,
    )
    print(f"Wrote {path}.")


def describe(
    source: Any,
    folder: Path,
    preference: Any,
    extrapolation: Any,
    *,
    full: bool,
    front_path: str | Path | None = None,
    name: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
) -> Path:
    """Write the card of a soup at one preference into its folder, with the picture of the front if there is one."""
    from trl_bonesoup.front.front import Front
    from trl_bonesoup.hub.card import soup_card, write_card
    from trl_bonesoup.soup.recipe import mergekit_yaml
    from trl_bonesoup.soup.record import SavedSoup

    front = Front.from_json(front_path) if front_path else None
    picture = folder / "front.png" if front else None
    if front and picture:
        front.plot(picture)
    try:
        recipe = mergekit_yaml(source.manifest, None, preference, extrapolation)
    except SoupError:  # a path that mergekit cannot express
        recipe = None
    card = soup_card(
        source.manifest,
        preference,
        kind="full" if full else "adapter",
        extrapolation=extrapolation,
        saved=SavedSoup.read(folder),
        front=front,
        plot_path=picture,
        mergekit_yaml=recipe,
        name=name,
        license=license,
        base_model=base_model,
        folder=source.folder,
    )
    return write_card(folder, card, picture)
