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

    # The base class has overloads, by the type of the namespace; here it is anything.
    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and leave nothing over: ends the program with status 2 if something is not known."""
        given = list(sys.argv[1:] if args is None else args)
        self._check_options(given)
        parsed, others = super().parse_known_args(given, namespace)
        self._take_late_folder(parsed, others)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return parsed, others

    def _take_late_folder(self, parsed: Any, others: list[str]) -> None:
        """Fill an optional positional argument that follows an option, which argparse before 3.12.7 leaves over."""
        for action in self._actions:
            free = not action.option_strings and action.nargs == "?" and getattr(parsed, action.dest) is action.default
            if free and others and not others[0].startswith("-"):
                setattr(parsed, action.dest, others.pop(0))

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
