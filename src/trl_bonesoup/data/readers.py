"""What a row of a public data set holds: the texts that prompts and answers are put together from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Reader = Callable[[Mapping[str, Any]], dict[str, Any] | None]
"""Takes a row and returns its fields by name, or `None` for a row of another kind."""

_ANSWER = "\n\nAssistant:"


def columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row as it is: its columns are its fields."""
    return dict(row)


def hh_rlhf(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read a dialogue that people preferred, from Anthropic's HH-RLHF.

    Fields: `dialogue`, all of it; `before`, up to the assistant's last turn; `answer`, that turn
    without outer white space. A dialogue in which the assistant says nothing is of another kind.

    >>> hh_rlhf({"chosen": "\\n\\nHuman: Hi!\\n\\nAssistant: Hello."})["before"]
    '\\n\\nHuman: Hi!'
    """
    before, turn, answer = row["chosen"].rpartition(_ANSWER)
    return {"dialogue": row["chosen"], "before": before, "answer": answer.strip()} if turn else None


def summarize_from_feedback(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read a comparison of two summaries of a Reddit post, from OpenAI's data set.

    Fields: `id` and `post`, as they are; `line`, the post with its line breaks made spaces;
    `summary`, the one that people preferred, likewise and without outer white space. A comparison
    of summaries of news articles, which has no post, is of another kind.
    """
    info = row["info"]
    if info["post"] is None:
        return None
    summary = row["summaries"][row["choice"]]["text"]
    return {"id": info["id"], "post": info["post"], "line": _line(info["post"]), "summary": _line(summary).strip()}


def _line(text: str) -> str:
    return text.replace("\n", " ")


READERS: dict[str, Reader] = {reader.__name__: reader for reader in (columns, hh_rlhf, summarize_from_feedback)}
"""By the name that a plan calls them."""
