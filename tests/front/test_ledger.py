"""What work took: added up over pieces and calls, interrupted ones too."""

from pathlib import Path

import pytest

from trl_bonesoup.front import ledger as module
from trl_bonesoup.front.ledger import Ledger


def test_pieces_add_up_and_give_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 130.0, 200.0, 210.0, 300.0, 307.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    ledger, done = Ledger(tmp_path / "new" / "cost.jsonl"), [5]
    assert (ledger.seconds("steps"), ledger.rate("steps")) == (0, None)
    with ledger.piece("steps", lambda: done[0]):
        done[0] = 11

    def interrupted() -> None:
        with ledger.piece("steps", lambda: done[0]):
            done[0] = 13
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with ledger.piece("answers", lambda: 0):
        pass
    with (tmp_path / "new" / "cost.jsonl").open("a") as lines:
        lines.write('{"kind": "steps", "un')  # killed while it wrote
    again = Ledger(tmp_path / "new" / "cost.jsonl")
    assert again.seconds("steps") == 40.0
    assert again.rate("steps") == pytest.approx(40 / (6 + 2))
    assert again.seconds("answers") == 7.0
    assert again.rate("answers") is None
