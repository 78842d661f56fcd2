"""Killed before one of its file operations, a command leaves a soup that is whole or none, and finishes next time.

`make stress` does it before every operation, and at random moments with three signals.
"""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import EVERYWHERE, contents, count_operations, forked, killed_before, moments
from tiny_soups import full_soup

from trl_bonesoup import BoneSoup, sweep
from trl_bonesoup.cli import main
from trl_bonesoup.soup import export
from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.to_full import to_full

GRID = [[1.0, 0.0], [0.5, 0.5]]


def command(run: Path, *arguments: str) -> Callable[[Path], Any]:
    return lambda out: main(["merge", str(run), str(out), "--preference", "0.7,0.3", *arguments])


def saved(run: Path) -> Callable[[Path], Any]:
    soup = BoneSoup.from_pretrained(run)
    return lambda out: soup.save_pretrained(out, [0.7, 0.3])


WRITERS: dict[str, tuple[str, Callable[[Path], Callable[[Path], Any]]]] = {
    "merge to an adapter, with its card": ("two_adapters", command),
    "merge to a checkpoint": ("two_adapters", lambda run: lambda out: merge(run, out, [0.7, 0.3], full=True)),
    "merge of full backbones": ("two_full", lambda run: lambda out: merge(run, out, [0.7, 0.3])),
    "save_pretrained": ("two_adapters", saved),
    "to-full": ("two_adapters", lambda run: lambda out: to_full(run, out)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_is_whole_or_absent_and_the_next_run_finishes(tmp_path, request, writer) -> None:
    fixture, make = WRITERS[writer]
    run = Path(shutil.copytree(request.getfixturevalue(fixture), tmp_path / "run"))
    inputs, write, out = contents(run), make(run), tmp_path / "out" / "soup"
    write(tmp_path / "reference" / "soup")
    expected = contents(tmp_path / "reference")
    operations = count_operations(lambda: write(out), tmp_path / "out")
    assert operations > 5
    assert contents(tmp_path / "out") == expected
    for operation in moments(operations):
        shutil.rmtree(tmp_path / "out")
        assert killed_before(lambda: write(out), tmp_path / "out", operation) == -9
        if out.exists():
            assert contents(out) == contents(tmp_path / "reference" / "soup"), operation
        else:
            assert forked(lambda: write(out)) == 0, operation
        assert contents(tmp_path / "out") == expected, operation
    assert contents(run) == inputs


def test_an_older_model_is_replaced_or_still_there(tmp_path, two_adapters) -> None:
    def write(preference: list[float], out: Path) -> None:
        merge(two_adapters, out, preference, overwrite=True)

    old, new, out = tmp_path / "old", tmp_path / "new", tmp_path / "out" / "soup"
    write([1.0, 0.0], old)
    write([0.0, 1.0], new)
    shutil.copytree(old, out)
    operations = count_operations(lambda: write([0.0, 1.0], out), tmp_path / "out")
    seen = set()
    for operation in moments(operations):
        shutil.rmtree(tmp_path / "out")
        shutil.copytree(old, out)
        assert killed_before(lambda: write([0.0, 1.0], out), tmp_path / "out", operation) == -9
        kept = contents(out) if out.exists() else {}
        seen.add("old" if kept == contents(old) else "new" if kept == contents(new) else str(sorted(kept)))
        write([0.0, 1.0], out)
        assert contents(tmp_path / "out") == {f"soup/{name}": value for name, value in contents(new).items()}, operation
    assert seen <= {"old", "new", "[]"}
    assert not EVERYWHERE or seen == {"old", "new", "[]"}, "the last one is between the two renames"


@pytest.mark.parametrize("kind", ["two_adapters", "two_full"])
def test_a_sweep_has_whole_soups_only_and_goes_on(tmp_path, request, kind) -> None:
    run = Path(shutil.copytree(request.getfixturevalue(kind), tmp_path / "run"))
    inputs, out = contents(run), tmp_path / "out"

    def write(out: Path) -> None:
        sweep(run, out, GRID, show_progress=False)

    write(tmp_path / "reference")
    expected = contents(tmp_path / "reference")
    for operation in moments(count_operations(lambda: write(out), out)):
        shutil.rmtree(out)
        killed_before(lambda: write(out), out, operation)
        for soup in out.glob("mu-*"):
            found = {f"{soup.name}/{name}": value for name, value in contents(soup).items()}
            assert found.items() <= expected.items()
            assert len(found) == sum(name.startswith(soup.name) for name in expected)
        assert forked(lambda: write(out)) == 0, operation
        assert contents(out) == expected, operation
    assert contents(run) == inputs


def test_a_sweep_over_older_soups_loses_none(tmp_path) -> None:
    """Killed while a pass over full backbones moves its soups to their places."""
    run, other = full_soup(tmp_path / "run", 2), full_soup(tmp_path / "other", 2, beta=0.9)
    out = tmp_path / "out"

    def write(run: Path, out: Path) -> None:
        sweep(run, out, GRID, overwrite=True, show_progress=False)

    write(other, tmp_path / "old")
    write(run, tmp_path / "new")
    old, new = contents(tmp_path / "old"), contents(tmp_path / "new")
    shutil.copytree(tmp_path / "old", out)
    for operation in moments(count_operations(lambda: write(run, out), out)):
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "old", out)
        killed_before(lambda: write(run, out), out, operation)
        for soup in out.glob("mu-*"):
            found = {f"{soup.name}/{name}": value for name, value in contents(soup).items()}
            assert found.items() <= old.items() or found.items() <= new.items()
        assert forked(lambda: write(run, out)) == 0, operation
        assert contents(out) == new, operation


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_can_be_caught_leaves_nothing(tmp_path, two_adapters, number, status) -> None:
    def write() -> int:
        export.copy_companions = lambda *args, **kwargs: os.kill(os.getpid(), number)  # in the child alone
        return main(["merge", str(two_adapters), str(tmp_path / "soup"), "--preference", "1,0"])

    assert forked(write) == status
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
