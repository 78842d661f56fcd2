"""`bonesoup sweep`: write the soups of many preferences in one pass."""

from __future__ import annotations

import argparse
from typing import Any

from trl_bonesoup.cli import options
from trl_bonesoup.cli.settings_file import new_parser
from trl_bonesoup.cli.text_forms import parse_extrapolation

_EPILOG = """\
examples:
  bonesoup sweep run soups --grid 0.1                               every preference in steps of 0.1
  bonesoup sweep run soups --preference 0.7,0.3 --preference 0.5,0.5
  bonesoup sweep run soups --preference cautious --preference equal   folders of these names, from presets of soup.json
  bonesoup sweep run soups --grid 0.1 --rank 16                     smaller adapters, for a server's max_lora_rank
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(subparsers, "sweep", run, "Write the soups of many preferences in one pass.", _EPILOG)
    options.add_soup(parser)
    parser.add_argument("out", metavar="OUT", help="folder for the soups, one folder each; finished ones are kept")
    options.add_grid(parser)
    parser.add_argument("--full", action="store_true", help="full checkpoints instead of adapters")
    parser.add_argument(
        "--rank", type=int, metavar="R", help="compress the adapters to this rank; by default they are exact"
    )
    options.add_dtype(parser, "of full checkpoints: float32, bfloat16 or float16")
    options.add_allow_nan(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace folders that hold another model")


def run(arguments: argparse.Namespace) -> None:
    """Write what is missing."""
    from trl_bonesoup.soup.sweep import sweep

    options.show_warnings_plainly()
    source = options.soup_of(arguments)
    folders = sweep(
        arguments.soup,
        arguments.out,
        options.read_grid(arguments, source.manifest),
        full=arguments.full,
        extrapolation=parse_extrapolation(arguments.extrapolation),
        rank=arguments.rank,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
        base_model=arguments.base_model,
        revision=arguments.revision,
        allow_nan=arguments.allow_nan,
    )
    names = list(dict.fromkeys(folder.name for folder in folders))
    if len(names) == 1:
        print(f"1 soup in {arguments.out}: {names[0]}.")
    else:
        print(f"{len(names)} soups in {arguments.out}, from {names[0]} to {names[-1]}.")
