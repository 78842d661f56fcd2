"""`bonesoup plot`: draw measured fronts, or the training of their backbones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_bonesoup.cli.settings_file import new_parser
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
    parser = new_parser(
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
        fronts = {name: Front.from_json(_file(file)) for name, file in named.items()}
        shown = fronts if single is None else fronts[""]
        plots.plot(shown, arguments.out, kind=arguments.kind, width=arguments.width)
    print(f"Wrote {arguments.out}.")


def _by_name(inputs: Sequence[str]) -> dict[str, str]:
    """Return files by the names before their last "="; without one, several are called as their files are."""
    names, files = [], []
    for text in inputs:
        name, separator, file = str(text).rpartition("=")
        given = bool(separator) and not Path(text).exists()
        names.append(name if given else None)
        files.append(file if given else str(text))
    called = [""] if names == [None] else _distinct(names, files)
    if len(set(called)) != len(called):
        raise ConfigurationError(f"Every front needs a name of its own, as in NAME=front.json; got {called}.")
    return dict(zip(called, files, strict=True))


def _distinct(names: Sequence[str | None], files: Sequence[str]) -> list[str]:
    """Return names of files, those that have none after the file, with as many folders before it as tell them apart."""
    parts = [_parts(Path(file)) for file in files]
    taken = [1] * len(files)
    while True:
        called = [
            "/".join(path[-count:]) if name is None else name
            for name, path, count in zip(names, parts, taken, strict=True)
        ]
        alike = [
            k for k, name in enumerate(called)
            if names[k] is None and called.count(name) > 1 and taken[k] < len(parts[k])
        ]  # fmt: skip
        if not alike:
            return called
        taken = [count + (k in alike) for k, count in enumerate(taken)]


def _parts(file: Path) -> list[str]:
    """Return the folders of a file, and the file's own name where that says more than "front.json" does."""
    folders = [part for part in file.parent.parts if part != file.anchor]
    return folders if file.name == "front.json" and folders else [*folders, file.stem]


def _file(text: str) -> str:
    """Return the path of a front.

    Raises:
        ConfigurationError: for a folder, saying what can be drawn of it.
    """
    folder = Path(text)
    if not folder.is_dir():
        return text
    fronts = sorted(folder.glob("*/seed-*/front.json"))
    if (folder / "compare.json").is_file() and fronts:
        raise ConfigurationError(
            f"{text} is the folder of a comparison; its figures are {folder / 'front.png'} and "
            f"{folder / 'preference.png'}. To draw fronts of it anew, give them one by one, such as {fronts[0]}."
        )
    if (folder / "front.json").is_file():
        raise ConfigurationError(f"{text} is a folder; give its {folder / 'front.json'}.")
    raise ConfigurationError(
        f"{text} is a folder without a front.json. `bonesoup evaluate {text}` measures the front of a soup; --kind "
        "training draws how its backbones were trained."
    )
