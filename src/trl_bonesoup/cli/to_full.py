"""`bonesoup to-full`: merge the adapter of each backbone into a full checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from trl_bonesoup.cli import options
from trl_bonesoup.cli.settings_file import new_parser

_EPILOG = """\
For adapters that cannot be mixed as they are (DoRA, trained biases, modules_to_save, trainable tokens, PiSSA, ...).
Soups of the checkpoints are exact; they have no preference per row.

examples:
  bonesoup to-full run run-full
  bonesoup to-full run run-full --dtype float32       when rounding to the base model's dtype loses too much
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(
        subparsers, "to-full", run, "Merge the adapter of each backbone into a full checkpoint.", _EPILOG
    )
    options.add_soup(parser)
    parser.add_argument("out", metavar="OUT", help="folder to write; it appears complete or not at all")
    options.add_dtype(parser, "float32, bfloat16 or float16; by default the base model's")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="of their files: 5GB; by default transformers' own")


def run(arguments: argparse.Namespace) -> None:
    """Merge them."""
    from trl_bonesoup.soup.to_full import to_full

    options.show_warnings_plainly()
    done = to_full(
        arguments.soup,
        arguments.out,
        base_model=arguments.base_model,
        revision=arguments.revision,
        dtype=arguments.dtype,
        max_shard_size=arguments.max_shard_size,
    )
    for name, loss in done.rounding_losses.items():
        print(f"{name}: rounding to its dtype loses {loss:.2%} of what training changed.")
    print(f"Wrote {len(done.rounding_losses)} full checkpoints and their soup.json to {done.path}.")
