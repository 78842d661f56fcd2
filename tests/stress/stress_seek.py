"""kill -9 at random moments of `seek`, then the same call again: `pytest tests/stress/stress_seek.py -s`.

Each of 24 runs is killed once in a folder of its own, and 6 further folders are killed until they finish.
Every file that a run leaves, the adapters' bytes among them, is that of the run that was never killed.
"""

import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from killed_seeks import Seeks, everything
from tiny import save_tiny


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
    kills = 0
    for trial in range(24):
        folder = tmp_path / f"once-{trial}"
        code, _ = seeks.run(folder, kill_after=moments.uniform(0.0, 0.95) * seconds)
        kills += code == -signal.SIGKILL
        states[state(folder) if code else "over before the kill"] += 1
        assert seeks.run(folder)[0] == 0
        assert everything(folder) == whole, folder
    for trial in range(6):
        folder = tmp_path / f"often-{trial}"
        for _ in range(50):
            code, _ = seeks.run(folder, kill_after=moments.uniform(0.1, 0.6) * seconds)
            kills += code == -signal.SIGKILL
            if code == 0:
                break
            states[state(folder)] += 1
        else:
            assert seeks.run(folder)[0] == 0
        assert everything(folder) == whole, folder
    print(f"\n{kills} kills of runs of {seconds:.1f} s:")
    for name, count in sorted(states.items()):
        print(f"  {count:3d} x {name}")
    assert kills >= 20
