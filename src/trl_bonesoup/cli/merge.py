"""`bonesoup merge`: write the soup of one preference."""

from __future__ import annotations

import argparse
from typing import Any

from trl_bonesoup.cli import options
from trl_bonesoup.cli.settings_file import new_parser
from trl_bonesoup.cli.text_forms import parse_extrapolation, parse_preference

_EPILOG = """\
examples:
  bonesoup merge run out --preference helpful=0.7,harmless=0.3           one PEFT adapter, exact
  bonesoup merge run out --preference helpful=0.7,harmless=0.3 --full    a full checkpoint
  bonesoup merge run out --preference helpful=0.7,harmless=0.3 --rank 16 a smaller adapter, and what that loses
  bonesoup merge run --preference 0.7,0.3 --print-yaml > bonesoup.yml    for: mergekit-yaml bonesoup.yml out
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(subparsers, "merge", run, "Write the soup of one preference, with its card.", _EPILOG)
    options.add_soup(parser)
    parser.add_argument("out", metavar="OUT", nargs="?", help="folder to write; it appears complete or not at all")
    options.add_preference(parser, required=True)
    parser.add_argument("--full", action="store_true", help="a full checkpoint instead of an adapter")
    parser.add_argument(
        "--rank", type=int, metavar="R", help="compress the adapter to this rank; by default it is exact, of all ranks"
    )
    options.add_dtype(parser, "of a full checkpoint: float32, bfloat16 or float16")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="of the files of a full checkpoint of adapters: 5GB")
    parser.add_argument("--front", metavar="FILE", help="front.json whose measured rewards go into the card")
    options.add_allow_nan(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is already there")
    parser.add_argument("--print-yaml", action="store_true", help="print the mergekit-yaml recipe and write nothing")


def run(arguments: argparse.Namespace) -> None:
    """Merge and describe."""
    from trl_bonesoup.errors import ConfigurationError
    from trl_bonesoup.soup.recipe import mergekit_yaml

    source = options.soup_of(arguments)
    preference = parse_preference(arguments.preference, source.manifest)
    extrapolation = parse_extrapolation(arguments.extrapolation)
    if arguments.print_yaml:
        source.fetch()
        print(mergekit_yaml(source.manifest, source.folder, preference, extrapolation, arguments.dtype), end="")
        return
    if arguments.out is None:
        raise ConfigurationError("OUT is missing: say which folder to write, or give --print-yaml.")
    from trl_bonesoup.front.front import Front
    from trl_bonesoup.hub.describe import describe_soup
    from trl_bonesoup.hub.measured import check_front
    from trl_bonesoup.soup.export import merge

    front = Front.from_json(arguments.front) if arguments.front else None
    if front is not None:
        check_front(front, source.manifest)

    def write_card(export: Any) -> None:
        describe_soup(source, export.path, preference, extrapolation, full=export.full, front=front)

    options.show_warnings_plainly()
    export = merge(
        arguments.soup,
        arguments.out,
        preference,
        extrapolation=extrapolation,
        full=arguments.full,
        rank=arguments.rank,
        overwrite=arguments.overwrite,
        base_model=arguments.base_model,
        revision=arguments.revision,
        dtype=arguments.dtype,
        max_shard_size=arguments.max_shard_size,
        allow_nan=arguments.allow_nan,
        finish=write_card,
    )
    shares = ", ".join(
        f"{name} {share:g} (λ {round(coefficient, 9) + 0.0:+.4g})"
        for name, share, coefficient in zip(
            source.manifest.objective_names, preference, export.coefficients, strict=True
        )
    )
    print(f"Wrote {'a full checkpoint' if export.full else 'an adapter'} to {export.path}: {shares}.")
    if export.rounding_loss:
        print(f"Rounding to its dtype loses {export.rounding_loss:.2%} of the soup's effect.")
    if export.rank is not None:
        print(f"Compressing it to rank {export.rank} loses {export.compression_error:.2%} of the soup's effect.")
