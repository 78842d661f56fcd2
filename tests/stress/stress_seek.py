"""kill -9 at random moments of `seek`, then the same call again: `pytest tests/stress/stress_seek.py -s`.

Runs are killed, once or several times, until there were 40 kills. Every file that a run leaves, the adapters'
bytes among them, is that of the run that was never killed.
"""

import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from killed_seeks import Seeks, everything
from tiny import save_tiny

KILLS = 40


@pytest.fixture(scope="module")
def seeks(tmp_path_factory: pytest.TempPathFactory) -> Seeks:
    return Seeks(str(save_tiny(tmp_path_factory.mktemp("base"))))


def state(folder: Path) -> str:
    """Say how far a killed run was."""
    if not (folder / "seek.json").exists():
        return "nothing written"
    finished = sum((folder / slug).is_dir() for slug in ("says_w5", "says_w7"))
    checkpoints = len(list(folder.glob(".training-*/checkpoint-*/trainer_state.json")))
    unfinished = len(list(folder.glob(".training-*/checkpoint-*"))) - checkpoints
    return f"{finished} backbone(s) finished, {checkpoints} whole and {unfinished} unfinished checkpoint(s)"


def test_killed_runs_end_as_the_whole_one(seeks: Seeks, tmp_path: Path) -> None:
    moments = random.Random(0)
    _, seconds = seeks.run(tmp_path / "whole")
    whole = everything(tmp_path / "whole")
    states: Counter[str] = Counter()
    while states.total() < KILLS:
        folder = tmp_path / f"killed-{states.total()}"
        for _ in range(1 if states.total() % 4 else 3):  # every fourth run is killed up to three times
            code, ran = seeks.run(folder, kill_after=moments.uniform(0.02, 0.9) * seconds)
            if code != -signal.SIGKILL:  # over before the kill: the machine has become faster
                seconds = min(seconds, ran)
                break
            states[state(folder)] += 1
        assert seeks.run(folder)[0] == 0
        assert everything(folder) == whole, folder
        shutil.rmtree(folder)
    print(f"\n{states.total()} kills of runs of {seconds:.1f} s, each at a random moment:")
    for name, count in sorted(states.items()):
        print(f"  {count:3d} x {name}")
