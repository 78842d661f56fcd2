"""Output folders: complete or absent, never a mixture, and never over something else."""

import errno
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.folders import complete_folder, room_for, tidy_up


def write_model(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)


def fail_halfway(folder: Path, error: type[BaseException]) -> None:
    write_model(folder, "half")
    raise error


def listing(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def test_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with complete_folder(target) as folder:
        write_model(folder, "new")
        assert not target.exists()
        assert folder.parent == target.parent
    assert listing(tmp_path / "deep") == ["model", "model/config.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), complete_folder(tmp_path / "model") as folder:
        fail_halfway(folder, error)
    assert listing(tmp_path) == []


def test_a_failure_keeps_the_older_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model", "old")
    with pytest.raises(RuntimeError), complete_folder(tmp_path / "model", overwrite=True) as folder:
        fail_halfway(folder, RuntimeError)
    assert listing(tmp_path) == ["model", "model/config.json"]
    assert (tmp_path / "model" / "config.json").read_text() == "old"


def test_a_failing_swap_puts_the_older_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model", "old")
    rename = Path.rename

    def fail_for_partial(self: Path, target: Path) -> Path:
        if ".partial-" in self.name and not self.name.endswith("-replaced"):
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_partial)
    with pytest.raises(OSError, match="disk gone"), complete_folder(tmp_path / "model", overwrite=True) as folder:
        write_model(folder, "new")
    assert listing(tmp_path) == ["model", "model/config.json"]
    assert (tmp_path / "model" / "config.json").read_text() == "old"


def test_overwriting_leaves_no_file_of_the_older_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model", "old")
    (tmp_path / "model" / "model-00002-of-00002.safetensors").touch()
    with complete_folder(tmp_path / "model", overwrite=True) as folder:
        write_model(folder, "new")
    assert listing(tmp_path) == ["model", "model/config.json"]
    assert (tmp_path / "model" / "config.json").read_text() == "new"


def test_refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model", "old")
    with pytest.raises(SoupError, match="overwrite=True"), complete_folder(tmp_path / "model"):
        pytest.fail("the block must not run")


def test_never_overwrites_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(SoupError, match="never overwritten"), complete_folder(tmp_path / "thesis", overwrite=True):
        pytest.fail("the block must not run")


def test_never_overwrites_its_own_inputs(tmp_path: Path) -> None:
    (tmp_path / "run" / "helpful").mkdir(parents=True)
    write_model(tmp_path / "run", "a model among its backbones")
    inputs = [tmp_path / "run" / "helpful"]
    with pytest.raises(SoupError, match="made from"), complete_folder(tmp_path / "run", overwrite=True, inputs=inputs):
        pytest.fail("the block must not run")


def test_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    with pytest.raises(SoupError, match="is a file"), complete_folder(tmp_path / "model", overwrite=True):
        pytest.fail("the block must not run")


def abandoned_by_a_killed_process(target: Path, ending: str = "") -> Path:
    """Make the folder that a process which is gone would have left beside `target`."""
    with complete_folder(target) as folder:
        mine = folder.name
    shutil.rmtree(target)
    left = target.with_name(mine.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-") + ending)
    left.mkdir()
    return left


def test_clears_away_what_a_killed_process_left(tmp_path: Path) -> None:
    abandoned = abandoned_by_a_killed_process(tmp_path / "model")
    running = tmp_path / abandoned.name.replace(f"-{2**22 + 1}-", f"-{os.getppid()}-")
    running.mkdir()
    with complete_folder(tmp_path / "model"):
        pass
    assert not abandoned.exists()
    assert running.exists()


def test_a_process_killed_between_the_two_moves_loses_no_model(tmp_path: Path) -> None:
    """The older model is put back, so that it is there again for whoever asks next, with or without `overwrite`."""
    aside = abandoned_by_a_killed_process(tmp_path / "model", "-replaced")
    write_model(aside, "old")
    with pytest.raises(SoupError, match="overwrite=True"), complete_folder(tmp_path / "model"):
        pytest.fail("the block must not run")
    assert listing(tmp_path) == ["model", "model/config.json"]
    (tmp_path / "model").rename(aside)
    with complete_folder(tmp_path / "model", overwrite=True) as folder:
        write_model(folder, "new")
    assert listing(tmp_path) == ["model", "model/config.json"]
    assert (tmp_path / "model" / "config.json").read_text() == "new"


def test_a_model_that_was_replaced_is_not_put_back(tmp_path: Path) -> None:
    aside = abandoned_by_a_killed_process(tmp_path / "model", "-replaced")
    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model", "new")
    tidy_up(tmp_path / "model")
    assert not aside.exists()
    assert (tmp_path / "model" / "config.json").read_text() == "new"


def test_two_processes_with_one_target_do_not_replace_each_other(tmp_path: Path) -> None:
    def write(text: str) -> None:
        with complete_folder(tmp_path / "model") as folder:
            write_model(folder, text)
            if text == "second":
                write("first")

    with pytest.raises(SoupError, match="overwrite=True"):
        write("second")
    assert (tmp_path / "model" / "config.json").read_text() == "first"
    assert listing(tmp_path) == ["model", "model/config.json"]


@pytest.mark.parametrize("other", ["thesis.tex", "src", ".git"])
def test_never_overwrites_a_model_with_something_else_beside_it(tmp_path: Path, other: str) -> None:
    (tmp_path / "project" / other).mkdir(parents=True)
    write_model(tmp_path / "project", "a config of another kind")
    with (
        pytest.raises(SoupError, match=rf"holds \['{other}'\] besides a model"),
        complete_folder(tmp_path / "project", overwrite=True),
    ):
        pytest.fail("the block must not run")


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(SoupError, match=r"Nothing can be written to .*file"),
        complete_folder(tmp_path / "file" / "out"),
    ):
        pytest.fail("the block must not run")


def test_says_how_much_space_is_needed(tmp_path: Path) -> None:
    with room_for(tmp_path / "not" / "yet", 1):
        pass
    with pytest.raises(SoupError, match=r"needs 1000000\.0 TB"), room_for(tmp_path / "not" / "yet", 10**18):
        pytest.fail("the block must not run")


def raise_in_room(folder: Path, error: Exception) -> None:
    with room_for(folder, 3_000_000):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_or_quota_that_turns_out_to_be_full_is_told_with_what_is_needed(
    tmp_path: Path, error: Exception
) -> None:
    with pytest.raises(SoupError, match=r"needs 3\.0 MB .*quota"):
        raise_in_room(tmp_path, error)


def test_another_error_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        raise_in_room(tmp_path, PermissionError(errno.EACCES, "Permission denied"))


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_may_be_read_by_whom_the_umask_allows(tmp_path: Path, mask: int, mode: int) -> None:
    """The writers of safetensors open their files for their owner alone."""
    before = os.umask(mask)
    try:
        with complete_folder(tmp_path / "model") as folder:
            (folder / "backbone").mkdir()
            for name in ("model.safetensors", "backbone/model.safetensors"):
                save_file({"a": np.zeros(2)}, folder / name)
            (folder / "config.json").write_text("{}")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {mode}
