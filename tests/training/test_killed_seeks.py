"""kill -9 in the middle of `seek`, again and again in one folder; tests/stress/stress_seek.py does it at random."""

import signal
from pathlib import Path

from killed_seeks import Seeks, everything


def test_a_seek_that_was_killed_again_and_again_ends_as_one_that_was_not(base: str, tmp_path: Path) -> None:
    """In the rollouts' epochs, accumulating, with dropout: every file is that of the uninterrupted run."""
    seeks = Seeks(base)
    assert seeks.run(tmp_path / "whole")[0] == 0
    for moment in (".training-says_w5/checkpoint-4", ".training-says_w7/checkpoint-2"):
        assert seeks.run(tmp_path / "killed", kill_at=moment)[0] == -signal.SIGKILL
        assert not (tmp_path / "killed" / "soup.json").exists()
    assert seeks.run(tmp_path / "killed")[0] == 0
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")
