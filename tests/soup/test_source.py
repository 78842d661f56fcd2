"""Where a soup's parts are looked for, and which paths are not followed."""

import shutil
from pathlib import Path

import pytest
from tiny_soups import write_manifest

from trl_bonesoup.errors import ManifestError, SoupError
from trl_bonesoup.soup.source import open_soup


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in ("run/base", "run/helpful", "run/harmless", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    return write_manifest(tmp_path / "run", ["helpful", "harmless"])


@pytest.fixture
def hub(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `snapshot_download` return the folder of the soup for org/soup and one more for any other id."""

    def snapshot_download(repo: str, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        assert allow_patterns is not None
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
        return str(run if repo == "org/soup" else run.parent / "elsewhere")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return run


def test_paths_start_at_the_folder_of_the_manifest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    for path in ("run", run, run / "soup.json"):
        source = open_soup(path)
        assert source.backbones() == [run / "helpful", run / "harmless"]
        assert source.base_model().id == str(run / "base")
        assert not source.from_hub


def test_base_model_overrides(run: Path) -> None:
    assert open_soup(run, base_model=run.parent / "elsewhere").base_model().id == str(run.parent / "elsewhere")
    assert open_soup(run, base_model="org/sft").base_model().id == "org/sft"


def test_a_local_soup_may_point_beside_its_folder(run: Path) -> None:
    write_manifest(run, ["helpful", "../elsewhere"])
    assert open_soup(run).backbones()[1] == run.parent / "elsewhere"


def test_from_the_hub(hub: Path) -> None:
    source = open_soup("org/soup")
    assert source.from_hub
    assert source.backbones() == [hub / "helpful", hub / "harmless"]


def test_backbones_may_be_repositories_of_their_own(hub: Path) -> None:
    write_manifest(hub, ["helpful", "org/harmless"], base="org/sft")
    source = open_soup("org/soup")
    assert source.backbones() == [hub / "helpful", hub.parent / "elsewhere"]
    assert source.base_model().id == "org/sft"


@pytest.mark.parametrize("outside", ["../elsewhere", "helpful/../../elsewhere"])
def test_a_soup_from_the_hub_may_not_leave_its_folder(hub: Path, outside: str) -> None:
    write_manifest(hub, ["helpful", outside])
    with pytest.raises(SoupError, match=r"outside the soup's own folder"):
        open_soup("org/soup").backbones()


def test_nor_name_an_absolute_path(hub: Path) -> None:
    write_manifest(hub, ["helpful", "harmless"], base=str(hub.parent / "elsewhere"))
    with pytest.raises(SoupError, match=r"outside the soup's own folder.*base_model="):
        open_soup("org/soup").base_model()
    assert open_soup("org/soup", base_model=hub.parent / "elsewhere").base_model().is_local


def test_a_missing_base_says_how_to_name_it(run: Path) -> None:
    write_manifest(run, ["helpful", "harmless"], base="/no/such/model")
    with pytest.raises(SoupError, match=r"'/no/such/model'.*Pass base_model="):
        open_soup(run).base_model()


def test_what_is_neither_folder_nor_repository(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SoupError, match=r"neither a folder|could not be fetched"):
        open_soup("org/does-not-exist-anywhere")
    with pytest.raises(SoupError, match="There is no folder"):
        open_soup(tmp_path / "nothing" / "here")
    shutil.rmtree(run / "helpful")
    (run / "soup.json").unlink()
    with pytest.raises(ManifestError, match="seek"):
        open_soup(run)
