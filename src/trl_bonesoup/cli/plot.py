"""`bonesoup plot`: draw a measured front."""

from __future__ import annotations

import argparse
from typing import Any

from trl_bonesoup.cli import options


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = options.new_parser(subparsers, "plot", run, "Draw a front that `bonesoup evaluate` measured.")
    parser.add_argument("front", metavar="FRONT", help="front.json")
    parser.add_argument("out", metavar="OUT", help="picture to write: .png, .svg or .pdf")
    parser.add_argument(
        "--kind",
        choices=["front", "preference"],
        default="front",
        help="rewards against each other, or each reward against its preference",
    )


def run(arguments: argparse.Namespace) -> None:
    """Draw."""
    from trl_bonesoup.front.front import Front

    Front.from_json(arguments.front).plot(arguments.out, kind=arguments.kind)
    print(f"Wrote {arguments.out}.")
