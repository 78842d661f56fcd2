"""The parser of one command: what it says of options that it does not have."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["CommandParser"]


class CommandParser(argparse.ArgumentParser):
    """A parser that reports what a command does not take, before anything that is missing and under its own usage."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and leave nothing over: ends the program with status 2 if something is not known."""
        given = list(sys.argv[1:] if args is None else args)
        self._check_options(given)
        parsed, others = super().parse_known_args(given, namespace)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return parsed, others

    def _check_options(self, given: Sequence[str]) -> None:
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        options = given[: given.index("--")] if "--" in given else given
        for word in options:
            name = word.partition("=")[0]
            if not word.startswith("--") or " " in name or any(option.startswith(name) for option in known):
                continue
            near = difflib.get_close_matches(name, known, n=1)
            command = self.prog.rpartition(" ")[2]
            self.error(f"{command} has no option {name}" + (f"; did you mean {near[0]}?" if near else ""))
