"""`bonesoup plot`: draw measured fronts, or the training of their backbones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_bonesoup.cli import options
from trl_bonesoup.errors import ConfigurationError

_EPILOG = """\
kinds:
  front            rewards against each other, with intervals
  preference       each reward against its weight in the preference
  controllability  which pairs of preferences are ordered as asked
  3d, ternary      the front of three objectives in space, or each reward over their preferences
  training         reward, KL and objectives while the backbones were trained

examples:
  bonesoup plot front.json front.png
  bonesoup plot "Bone Soup=a.json" "Rewarded Soups=b.json" fronts.pdf --width 3.3
  bonesoup plot run curves.svg --kind training
"""
_KINDS = ("front", "preference", "controllability", "3d", "ternary", "training")


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = options.new_parser(
        subparsers, "plot", run, "Draw fronts that `bonesoup evaluate` measured, or training curves.", _EPILOG
    )
    parser.add_argument(
        "inputs",
        metavar="[NAME=]FRONT",
        nargs="+",
        help="front.json, of one method or of several by name; for training, folders of `bonesoup seek`",
    )
    parser.add_argument("out", metavar="OUT", help="picture to write: .png, .svg or .pdf")
    parser.add_argument("--kind", choices=_KINDS, default="front", help="what to draw (front)")
    parser.add_argument("--width", type=float, metavar="INCHES", help="3.3 for a column of a paper")


def run(arguments: argparse.Namespace) -> None:
    """Draw."""
    from trl_bonesoup.front import plots
    from trl_bonesoup.front.front import Front

    inputs = arguments.inputs if isinstance(arguments.inputs, list) else [arguments.inputs]
    named = _by_name(inputs)
    single = named[""] if list(named) == [""] else None
    if arguments.kind == "training":
        plots.plot_training(named if single is None else single, arguments.out, width=arguments.width)
    else:
        fronts = {name: Front.from_json(file) for name, file in named.items()}
        shown = fronts if single is None else fronts[""]
        plots.plot(shown, arguments.out, kind=arguments.kind, width=arguments.width)
    print(f"Wrote {arguments.out}.")


def _by_name(inputs: Sequence[str]) -> dict[str, str]:
    """Return files by the names before their last "="; without one, several are called as their files are."""
    pairs = []
    for text in inputs:
        name, separator, file = str(text).rpartition("=")
        if not separator or Path(text).exists():
            name, file = ("" if len(inputs) == 1 else _called(Path(text))), text
        pairs.append((name, file))
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ConfigurationError(f"Every front needs a name of its own, as in NAME=front.json; got {names}.")
    return dict(pairs)


def _called(file: Path) -> str:
    """Return the name of a file, or of its folder where that says more than "front.json" does."""
    return file.parent.name or file.stem if file.name == "front.json" else file.stem
