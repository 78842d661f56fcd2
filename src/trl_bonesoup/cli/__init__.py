"""The `bonesoup` command: one thin file per subcommand, all over the public functions.

Nothing heavy is imported before a subcommand runs, so that `bonesoup --help` is instant.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trl_bonesoup import __version__
from trl_bonesoup.cli import (
    card,
    compare,
    demo,
    evaluate,
    extrapolate,
    manifest,
    merge,
    plot,
    prepare,
    push,
    seek,
    select_dominance,
    sweep,
    to_full,
)
from trl_bonesoup.cli.parsing import CommandParser
from trl_bonesoup.cli.settings_file import apply_config
from trl_bonesoup.errors import BoneSoupError

_COMMANDS = (
    *(demo, prepare, seek, select_dominance, manifest, merge, sweep, to_full),
    *(evaluate, extrapolate, compare, plot, card, push),
)

_DESCRIPTION = """\
Train a few backbones once, then serve every balance of competing rewards.

  bonesoup demo                                        the whole method on a small real model
  bonesoup prepare --config data.yml                   prompts out of a public data set
  bonesoup seek --config seek.yml                      train the backbones, write soup.json
  bonesoup select-dominance --config select.yml        the same, with the best of several β
  bonesoup manifest soup --backbone a=lora-a --backbone b=lora-b    soup.json of models that you have; presets
  bonesoup merge run out --preference helpful=0.7,harmless=0.3
  bonesoup sweep run soups --grid 0.1                  all preferences of a grid in one pass
  bonesoup to-full run run-full                        full backbones, of adapters that cannot be mixed
  bonesoup evaluate run --prompts prompts.txt --out front.json
  bonesoup extrapolate run alpha --prompts validation.jsonl
  bonesoup compare --config comparison.yml             Bone Soup and other methods, trained and measured alike
  bonesoup plot front.json front.png
  bonesoup card run out --preference helpful=0.7,harmless=0.3 --front front.json
  bonesoup push run --repo me/soup --dry-run           what would be published on the Hub, and without it: publish
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for an error that the user can mend, 130 if interrupted.

    SIGTERM ends it like Ctrl-C, with status 143: what is half written is removed, what is finished is kept.
    """
    parser = argparse.ArgumentParser(
        prog="bonesoup", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"trl-bonesoup {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=CommandParser)
    for command in _COMMANDS:
        command.add_parser(subparsers)
    try:
        arguments = apply_config(parser, subparsers.choices, sys.argv[1:] if argv is None else list(argv))
        with _terminated_by_an_exception(), _modules_of_this_folder():
            return arguments.run(arguments) or 0
    except BoneSoupError as error:
        print(f"bonesoup: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbonesoup: interrupted. Finished parts are kept; run the same command to continue.", file=sys.stderr)
        return 130


@contextmanager
def _terminated_by_an_exception() -> Iterator[None]:
    """Let SIGTERM, at which a process ends on the spot, run through the blocks that clean up."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set what a signal does
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _modules_of_this_folder() -> Iterator[None]:
    """Let a reward be the function of a file in the folder that the command was started in, as for `python -m`.

    An installed script has its own folder on Python's path instead. This one comes last, so that no file in it
    stands in for a package.
    """
    folder = str(Path.cwd())
    added = folder not in sys.path and not sys.flags.safe_path
    if added:
        sys.path.append(folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)
