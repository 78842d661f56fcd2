"""A pass over full checkpoints that is interrupted continues where it was, to the same files."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_soups import full_soup

from trl_bonesoup import simplex_grid, sweep
from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup import streaming, unfinished
from trl_bonesoup.soup.tensorfile import TensorFile

GRID = simplex_grid(2, step=0.5)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(streaming, "PIECE", 100)
    monkeypatch.setattr(unfinished, "_SECONDS", 0.0)
    return full_soup(tmp_path / "run", 2)


@pytest.fixture
def interrupt(monkeypatch):
    """Return a function that makes the n-th write from now on raise; the count goes on, one element."""
    writes, write = [0], TensorFile.write

    def after(n: int, error: type[BaseException]) -> list[int]:
        writes[0] = 0

        def counted(self, *args):
            writes[0] += 1
            if writes[0] == n:
                raise error
            return write(self, *args)

        monkeypatch.setattr(TensorFile, "write", counted)
        return writes

    return after


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_continues_to_the_same_files(tmp_path, run, interrupt) -> None:
    writes = interrupt(10**9, KeyboardInterrupt)
    sweep(run, tmp_path / "whole", GRID, show_progress=False)
    everything = writes[0]
    interrupt(everything * 2 // 3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep(run, tmp_path / "out", GRID, show_progress=False)
    assert names(tmp_path / "out") == [unfinished.FOLDER]
    interrupt(10**9, KeyboardInterrupt)
    sweep(run, tmp_path / "out", GRID, show_progress=False)
    assert everything / 4 < writes[0] < everything / 2, "only what was missing is written"
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_after_an_error_nothing_is_left(tmp_path, run, interrupt) -> None:
    interrupt(50, MemoryError)
    with pytest.raises(MemoryError):
        sweep(run, tmp_path / "out", GRID, show_progress=False)
    assert names(tmp_path / "out") == []


def test_other_soups_are_a_new_pass(tmp_path, run, interrupt) -> None:
    interrupt(50, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep(run, tmp_path / "out", GRID, show_progress=False)
    interrupt(10**9, KeyboardInterrupt)
    other = [[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]]
    sweep(run, tmp_path / "out", other, show_progress=False)
    sweep(run, tmp_path / "whole", other, show_progress=False)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_pieces_of_another_size_are_a_new_pass(tmp_path, run, interrupt, monkeypatch) -> None:
    """As after an upgrade between the two: a count of pieces means another place then."""
    interrupt(150, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep(run, tmp_path / "out", GRID, show_progress=False)
    interrupt(10**9, KeyboardInterrupt)
    monkeypatch.setattr(streaming, "PIECE", 200)
    sweep(run, tmp_path / "out", GRID, show_progress=False)
    sweep(run, tmp_path / "whole", GRID, show_progress=False)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_after_a_restart_of_the_machine_it_starts_over(tmp_path, run, interrupt, monkeypatch) -> None:
    writes = interrupt(10**9, KeyboardInterrupt)
    sweep(run, tmp_path / "whole", GRID, show_progress=False)
    everything = writes[0]
    interrupt(everything // 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep(run, tmp_path / "out", GRID, show_progress=False)
    (tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr(unfinished, "_BOOT_ID", tmp_path / "boot_id")
    interrupt(10**9, KeyboardInterrupt)
    sweep(run, tmp_path / "out", GRID, show_progress=False)
    assert writes[0] == everything
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_two_at_once_are_refused(tmp_path, run) -> None:
    root = tmp_path / "out" / unfinished.FOLDER
    root.mkdir(parents=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SoupError, match="Another process is writing soups into"):
            sweep(run, tmp_path / "out", GRID, show_progress=False)
    sweep(run, tmp_path / "out", GRID, show_progress=False)


def test_a_killed_process_is_continued(tmp_path, run) -> None:
    code = (
        "import sys, time, trl_bonesoup; from trl_bonesoup.soup import streaming, threads, unfinished\n"
        "streaming.PIECE, unfinished._SECONDS, threads.MAX_THREADS = 100, 0.0, 1\n"
        "def slow(self, *args, write=unfinished.UnfinishedPass.advance): write(self, *args); time.sleep(0.02)\n"
        "unfinished.UnfinishedPass.advance = slow\n"
        f"trl_bonesoup.sweep(sys.argv[1], sys.argv[2], {GRID.tolist()}, show_progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run), str(tmp_path / "out")])
    record = tmp_path / "out" / unfinished.FOLDER / "progress.json"
    deadline = time.monotonic() + 60
    while not record.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert names(tmp_path / "out") == [unfinished.FOLDER]
    sweep(run, tmp_path / "out", GRID, show_progress=False)
    sweep(run, tmp_path / "whole", GRID, show_progress=False)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
