"""kill -9 in the middle of `seek`, again and again in one folder; tests/stress/stress_seek.py does it at random."""

import signal
from pathlib import Path

from killed_seeks import Seeks, everything


def test_a_seek_that_was_killed_again_and_again_ends_as_one_that_was_not(base: str, tmp_path: Path) -> None:
    """In the rollouts' epochs, accumulating, with dropout: every file is that of the uninterrupted run."""
    seeks = Seeks(base)
    code, seconds = seeks.run(tmp_path / "whole")
    assert code == 0
    codes = [seeks.run(tmp_path / "killed", kill_after=share * seconds)[0] for share in (0.3, 0.45, 0.6)]
    assert codes[0] == -signal.SIGKILL
    assert not (tmp_path / "killed" / "soup.json").exists() or codes[-1] == 0
    assert seeks.run(tmp_path / "killed")[0] == 0
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")
