"""Output folders: complete or absent, never a mixture, and never over something else."""

import os
import shutil
from pathlib import Path

import pytest

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.folders import complete_folder, require_space


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


def test_clears_away_what_a_killed_process_left(tmp_path: Path) -> None:
    with complete_folder(tmp_path / "model") as folder:
        mine = folder.name
    gone = 2**22 + 1
    abandoned = tmp_path / mine.replace(f"-{os.getpid()}-", f"-{gone}-")
    running = tmp_path / mine.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    abandoned.mkdir()
    running.mkdir()
    shutil.rmtree(tmp_path / "model")
    with complete_folder(tmp_path / "model"):
        pass
    assert not abandoned.exists()
    assert running.exists()


def test_says_how_much_space_is_needed(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(SoupError, match=r"needs 1000000000\.000 GB"):
        require_space(tmp_path / "not" / "yet", 10**18)
