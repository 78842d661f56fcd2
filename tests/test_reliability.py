"""The page of what can go wrong names tests and scripts that exist, each by one name alone."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_test_that_is_named_exists() -> None:
    named = set(re.findall(r"`([\w/.-]+\.py)`", PAGE))
    assert len(named) > 20
    for name in named:
        assert len(list(ROOT.glob(f"tests/**/{Path(name).name}"))) == 1, name
        assert "/" not in name or (ROOT / name).is_file(), name
