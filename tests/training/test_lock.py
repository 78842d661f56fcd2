"""One process trains a backbone; another one is refused at once, and a lock that nobody holds is free."""

import errno
import json
import logging
import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from peft import LoraConfig
from tiny import count_word

from trl_bonesoup import SoupManifest, circulant_weights, seek
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.training.lock import locked
from trl_bonesoup.training.run import Run

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
REWARDS = [count_word("w5"), count_word("w7")]
B = circulant_weights(2, 0.7)


def hold(file: Path, ready: Any, release: Any) -> None:
    with locked(file, "Backbone 0"):
        ready.set()
        release.wait(60)


def start_holder(file: Path) -> tuple[Any, Any]:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(file, ready, release))
    process.start()
    assert ready.wait(60)
    return process, release


def test_a_second_holder_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    process, release = start_holder(tmp_path / ".lock-a")
    who = rf"being trained by another process \(process {process.pid} on {socket.gethostname()}, since 20"
    with pytest.raises(ConfigurationError, match=who), locked(tmp_path / ".lock-a", "Backbone 0"):
        pass
    with locked(tmp_path / ".lock-b", "Backbone 1"):
        pass
    release.set()
    process.join()
    with locked(tmp_path / ".lock-a", "Backbone 0"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process, _ = start_holder(tmp_path / ".lock-a")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert json.loads((tmp_path / ".lock-a").read_text())["process"] == process.pid
    with caplog.at_level(logging.INFO), locked(tmp_path / ".lock-a", "Backbone 0"):
        assert f"ended without finishing (process {process.pid} on" in caplog.text
        assert json.loads((tmp_path / ".lock-a").read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "no json", "[]", '{"process": 1}'])
def test_a_lock_file_with_anything_in_it_is_free(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock-a").write_text(content)
    with locked(tmp_path / ".lock-a", "Backbone 0"):
        assert json.loads((tmp_path / ".lock-a").read_text())["process"] == os.getpid()


def test_a_lock_file_removed_between_opening_and_locking_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process leaves between the two steps of the second, which must hold the file that a third finds."""
    import fcntl

    lock = fcntl.flock

    def leaves_first(stream: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        (tmp_path / ".lock-a").unlink()
        lock(stream, how)

    monkeypatch.setattr(fcntl, "flock", leaves_first)
    with locked(tmp_path / ".lock-a", "Backbone 0"):
        process = multiprocessing.get_context("fork").Process(target=hold_and_report, args=(tmp_path / ".lock-a",))
        process.start()
        process.join()
        assert process.exitcode == 7


def hold_and_report(file: Path) -> None:
    try:
        with locked(file, "Backbone 0"):
            os._exit(0)
    except ConfigurationError:
        os._exit(7)


def test_where_nothing_can_be_locked_a_run_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def not_here(stream: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", not_here)
    with locked(tmp_path / ".lock-a", "Backbone 0"):
        assert "cannot be locked" in caplog.text


def test_what_a_killed_process_left_of_a_finished_backbone_is_removed(
    base: str, prompts: Dataset, settings: Any
) -> None:
    args = settings(max_steps=2)
    seek(base, REWARDS, B, args, prompts, peft_config=LORA)
    folder = Path(args.output_dir)
    names = sorted(path.name for path in folder.iterdir())
    (folder / ".lock-says_w5").write_text('{"process": 1, "host": "gone", "since": "2020-01-01"}')
    (folder / ".training-says_w7" / "checkpoint-2").mkdir(parents=True)
    seek(base, REWARDS, B, args, prompts, peft_config=LORA)
    assert sorted(path.name for path in folder.iterdir()) == names


def test_the_scale_that_is_recorded_first_holds_for_both(tmp_path: Path) -> None:
    """Two processes opened the run before either had measured the scale."""
    request = {"objectives": ["a", "b"], "rewards": ["a", "b"], "base_model": {"id": "x"}, "base_files": None,
               "scores": {}, "combination_weights": B.tolist(), "prompts": {}, "kind": "full",
               "settings": {"seed": 3}, "adapter": {}}  # fmt: skip
    first, second = Run.open(tmp_path, request), Run.open(tmp_path, request)
    measured, _ = first.agreed_scale(np.array([[1.0, 10.0], [3.0, 30.0]]))
    assert [(entry.mean, entry.std) for entry in measured] == [(2.0, 1.0), (20.0, 10.0)]
    assert second.agreed_scale(np.array([[5.0, 50.0], [6.0, 60.0]]))[0] == measured
    assert Run.load(tmp_path).statistics == measured


def test_two_seeks_of_one_backbone_are_refused_and_of_two_are_not(base: str, prompts: Dataset, settings: Any) -> None:
    """Asked from inside the first run, while it trains backbone 0 in a process of its own as far as locks can tell."""
    args = settings(max_steps=2)
    refused: list[str] = []
    folders: list[list[str]] = []

    def reward(completions: list[str], **columns: Any) -> list[float]:
        if not refused:
            folders.append(sorted(path.name for path in Path(args.output_dir).iterdir()))
            for backbones in (None, [1, 0]):
                with pytest.raises(ConfigurationError, match=r"Backbone 0 \(reward\) in .* another process") as caught:
                    seek(base, [reward, REWARDS[1]], B, settings(max_steps=2), prompts, peft_config=LORA,
                         backbones=backbones)  # fmt: skip
                refused.append(str(caught.value))
            with pytest.raises(ConfigurationError, match="holds a run with other settings"):  # though nothing is kept
                seek(base, [reward, REWARDS[1]], B, settings(max_steps=4), prompts, peft_config=LORA)
            assert seek(base, [reward, REWARDS[1]], B, settings(max_steps=2), prompts, peft_config=LORA,
                        backbones=[1]) is None  # fmt: skip
        return REWARDS[0](completions)

    seek(base, [reward, REWARDS[1]], B, args, prompts, peft_config=LORA, backbones=[0])
    assert len(refused) == 2
    assert folders == [[".lock-reward", ".training-reward", "seek.json"]]
    names = sorted(path.name for path in Path(args.output_dir).iterdir())
    assert names == ["logs", "reward", "says_w7", "seek.json", "soup.json"]
    manifest = SoupManifest.load(args.output_dir)
    scales = json.loads((Path(args.output_dir) / "seek.json").read_text())["statistics"]
    assert [objective.normalization.model_dump() for objective in manifest.objectives] == scales
