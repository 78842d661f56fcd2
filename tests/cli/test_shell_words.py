"""Errors of what commands share with Python name the option of the shell beside the argument of Python."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import trl_bonesoup

PACKAGE = Path(trl_bonesoup.__file__).parent
FILES = sorted([*(PACKAGE / "soup").glob("*.py"), PACKAGE / "manifest.py", PACKAGE / "front" / "checkpoints.py"])
OPTIONS = {"overwrite": "--overwrite", "base_model": "--base-model", "full": "--full", "dtype": "--dtype",
           "rank": "--rank", "max_shard_size": "--max-shard-size", "allow_nan": "--allow-nan"}  # fmt: skip


def texts(file: Path) -> Iterator[str]:
    """Yield the strings of a file that are no docstrings, with … for what is filled in."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstrings = {node.body[0].value for node in ast.walk(tree) if getattr(node, "body", None)
                  and isinstance(node.body, list) and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings | parts:
            yield node.value


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_argument_is_named_with_its_option(file: Path) -> None:
    for text in texts(file):
        for name in re.findall(rf"\b({'|'.join(OPTIONS)})=(?=True|False|torch|…|[ .,;)]|$)", text):
            assert OPTIONS[name] in text, text


def test_the_search_finds_what_it_should(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""full=True."""\nx = f"{1} give " "full=True."\ny = "rank=" f"{2}"\n')
    assert list(texts(tmp_path / "a.py")) == ["… give full=True.", "rank=…"]
