"""Text that came from users, made safe to show in a card: no markup, no local paths; numbers and tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

MAX_SHOWN = 200
"""Characters of a value that a card shows; names in soup.json have at most as many."""

_BIDI_CONTROLS = dict.fromkeys([0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF])
_CODE_SPAN_LOOKALIKES = str.maketrans({"`": "ˋ", "|": "¦"})
_HOMES = ("home", "Users")
_LOCAL_PATH = re.compile(
    r"""(?<![^\s"'`=(\[{,;:+])      # at the start of a word, so not inside of a URL or a fraction
        (?:file://)?
        (?:~[\w.-]*[/\\]|[A-Za-z]:[/\\]|\\\\|/(?!/))
        [^\s"'`)\]},;+]+""",
    re.VERBOSE,
)

__all__ = ["code", "fenced", "hide_local_paths", "is_local_path", "last_folder", "number", "one_line", "table"]


def one_line(text: str) -> str:
    """Return `text` on one line, without local paths, control characters or marks that reorder what follows."""
    return " ".join(_visible(hide_local_paths(text)).split())


def code(text: str) -> str:
    """Return `text` as a Markdown code span on one line, in which nothing is a link, HTML or a template.

    The two characters that could end the span or a table's cell are shown as look-alikes; more than
    `MAX_SHOWN` characters end in an ellipsis.

    >>> code("[x](javascript:y) | `z`")
    '`[x](javascript:y) ¦ ˋzˋ`'
    """
    line = one_line(text).translate(_CODE_SPAN_LOOKALIKES)
    if len(line) > MAX_SHOWN:
        line = line[: MAX_SHOWN - 1] + "…"
    return f"`{line or '(empty)'}`"


def fenced(text: str, language: str) -> str:
    """Return `text` as a fenced code block, with a fence longer than any row of backticks inside."""
    lines = [_visible(line) for line in text.strip("\r\n").splitlines()]
    inside = max((len(row) for row in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, inside + 1)
    return "\n".join([fence + language, *lines, fence])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; every cell is Markdown already, with user text only from `code`."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def number(value: float) -> str:
    """Return a number in four digits.

    >>> number(0.123456), number(-0.0)
    ('0.1235', '0')
    """
    return f"{float(value) + 0.0:.4g}"


def is_local_path(text: str) -> bool:
    """Return whether `text` as a whole is an absolute path, or one from the home or the current folder."""
    text = text.removeprefix("file://")
    return (
        PurePosixPath(text).is_absolute()
        or PureWindowsPath(text).is_absolute()
        or text.startswith(("~", "./", "../", ".\\", "..\\", "\\\\"))
        or text in {".", ".."}
    )


def last_folder(path: str) -> str:
    """Return the last part of a path of any system: what may be shown of where a model lies.

    A home folder is called "home", since its name is a person's.

    >>> last_folder("/home/ann/models/sft/"), last_folder("C:\\\\models\\\\sft"), last_folder("/home/ann")
    ('sft', 'sft', 'home')
    """
    parts = [part for part in re.split(r"[/\\]", path) if part not in {"", ".", "..", "~"}]
    if not parts:
        return "local-model"
    is_home = parts[-1].startswith("~") or (len(parts) > 1 and parts[-2] in _HOMES)
    return "home" if is_home else parts[-1]


def hide_local_paths(value: Any) -> Any:
    """Return `value` with every local path in its strings cut down to its last part.

    Lists and dicts are gone through; keys, numbers and everything else stay as they are.

    >>> hide_local_paths({"model": "/home/ann/sft+/home/ann/run/helpful", "weight": 1.5})
    {'model': 'sft+helpful', 'weight': 1.5}
    """
    if isinstance(value, dict):
        return {key: hide_local_paths(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [hide_local_paths(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if "+" not in value and is_local_path(value):
        return last_folder(value)
    return _LOCAL_PATH.sub(lambda match: last_folder(match.group()), value)


def _visible(text: str) -> str:
    """Return `text` with a space for each control character and without marks of direction and lone surrogates."""
    shown = text.translate(_BIDI_CONTROLS).encode("utf-8", "replace").decode("utf-8")
    return "".join(" " if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in shown)
