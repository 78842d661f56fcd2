"""Where a soup's parts are looked for, and which paths are not followed."""

import shutil
from pathlib import Path

import pytest
from hub_soups import downloaded, publish
from loopback_hub import LoopbackHub
from tiny_soups import write_manifest

from trl_bonesoup.errors import HubError, ManifestError, SoupError
from trl_bonesoup.front.fingerprint import fingerprint
from trl_bonesoup.soup.source import SoupSource, open_soup


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in ("run/base", "run/helpful", "run/harmless", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    return write_manifest(tmp_path / "run", ["helpful", "harmless"])


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


def on_hub(hub: LoopbackHub, run: Path, backbones: list[str], base: str = "base") -> SoupSource:
    """Put a soup with two backbones of its own, one in a repository, and a base model on the Hub and open it."""
    marks = ("helpful/adapter_config.json", "harmless/adapter_config.json", "base/config.json")
    hub.put("org/other", {"adapter_config.json": b"other", "config.json": b"other"})
    publish(hub, write_manifest(run, backbones, base=base), more={path: path.encode() for path in marks})
    return open_soup("org/soup")


def marks_of(folders: list[Path]) -> list[str]:
    return [(folder / "adapter_config.json").read_text() for folder in folders]


def test_backbones_from_the_hub(hub: LoopbackHub, run: Path) -> None:
    source = on_hub(hub, run, ["helpful", "./harmless/"])
    assert marks_of(source.backbones()) == ["helpful/adapter_config.json", "harmless/adapter_config.json"]


def test_backbones_may_be_repositories_of_their_own(hub: LoopbackHub, run: Path) -> None:
    source = on_hub(hub, run, ["helpful", "org/other"], base="org/other")
    assert marks_of(source.backbones()) == ["helpful/adapter_config.json", "other"]
    assert source.base_model().id == "org/other"
    assert (source.base_model().folder() / "config.json").read_text() == "other"


def test_the_fingerprint_of_a_base_in_the_repository_is_its_commit(hub: LoopbackHub, run: Path) -> None:
    source = on_hub(hub, run, ["helpful", "harmless"])
    assert source.snapshot is not None
    assert fingerprint(source.base_model()) == f"commit:{source.snapshot.commit}/base"
    assert downloaded(hub) == ["soup.json"]


def test_a_branch_that_moves_does_not_change_an_opened_soup(hub: LoopbackHub, run: Path) -> None:
    source = on_hub(hub, run, ["helpful", "org/other"])
    source.backbones()
    hub.put("org/other", {"adapter_config.json": b"moved"})
    assert marks_of(source.backbones()) == ["helpful/adapter_config.json", "other"]


def test_a_preset_does_not_change_which_commits_were_opened(hub: LoopbackHub, run: Path) -> None:
    source = on_hub(hub, run, ["helpful", "org/other"])
    source.backbones()
    hub.put("org/other", {"adapter_config.json": b"moved"})
    changed = source.with_preset("cautious", [0.2, 0.8])
    assert marks_of(changed.backbones()) == ["helpful/adapter_config.json", "other"]
    assert (list(changed.manifest.presets), list(source.manifest.presets)) == (["cautious"], [])


@pytest.mark.parametrize(
    "outside", ["../elsewhere", "helpful/../../elsewhere", "/etc", "helpful\\..\\..", "..", "helpful/..", "//etc"]
)
def test_a_soup_from_the_hub_may_not_leave_its_folder(hub: LoopbackHub, run: Path, outside: str) -> None:
    source = on_hub(hub, run, ["helpful", outside])
    with pytest.raises(SoupError, match=r"outside the soup's own folder"):
        source.backbones()


@pytest.mark.parametrize("missing", ["humour", "helpful/deeper", "hf://org/x", "org/x/y", "~", "有" * 200])
def test_what_is_no_folder_of_the_repository_and_no_id(hub: LoopbackHub, run: Path, missing: str) -> None:
    source = on_hub(hub, run, ["helpful", missing])
    with pytest.raises(
        (SoupError, HubError), match=r"neither a folder of org/soup at commit \w+ nor a Hub id|no such repository"
    ):
        source.backbones()


def test_nor_name_an_absolute_path(hub: LoopbackHub, run: Path) -> None:
    base = str(run.parent / "elsewhere")
    with pytest.raises(SoupError, match=r"outside the soup's own folder.*base_model="):
        on_hub(hub, run, ["helpful", "harmless"], base=base).base_model()
    assert open_soup("org/soup", base_model=base).base_model().is_local


@pytest.mark.parametrize("place", ["file", "folder"])
def test_links_that_somebody_put_into_the_cache_are_not_followed(hub: LoopbackHub, run: Path, place: str) -> None:
    source = on_hub(hub, run, ["helpful", "harmless"])
    helpful = source.backbones()[0]
    if place == "file":
        (helpful / "adapter_model.safetensors").symlink_to(run / "soup.json")
    else:
        shutil.rmtree(helpful)
        helpful.symlink_to(run / "helpful")
        (run / "helpful" / "adapter_config.json").touch()
    with pytest.raises(SoupError, match=r"is a link to .*run/.*outside what the Hub's client keeps of org/soup"):
        open_soup("org/soup").backbones()


@pytest.mark.parametrize("name", ["有" * 200, "x" * 200])
def test_names_that_are_too_long_for_a_folder(run: Path, name: str) -> None:
    write_manifest(run, ["helpful", name], base=name)
    with pytest.raises(SoupError, match=r"backbone 1 of soup\.json is .* nor a Hub id"):
        open_soup(run).backbones()
    with pytest.raises((SoupError, HubError), match=r"There is no folder|could not be fetched"):
        open_soup(name)


def test_a_missing_base_says_how_to_name_it(run: Path) -> None:
    write_manifest(run, ["helpful", "harmless"], base="/no/such/model")
    with pytest.raises(SoupError, match=r"'/no/such/model'.*Pass base_model="):
        open_soup(run).base_model()


def test_a_path_from_the_working_directory_is_told_from_one_of_soup_json(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run/helpful` in run/soup.json means run/run/helpful, and looks like an id on the Hub."""
    monkeypatch.chdir(run.parent)
    write_manifest(run, ["helpful", "run/harmless"], base="run/base")
    looked = rf"no folder {run / 'run'}/harmless.*Paths in soup\.json count from its folder: write 'harmless'"
    with pytest.raises(HubError, match=looked):
        open_soup("run").backbones()
    with pytest.raises(HubError, match=r"no folder .*run/run/base.*write 'base'"):
        open_soup("run").base_model().folder()
    (run.parent / "my adapters").mkdir()
    write_manifest(run, ["helpful", "my adapters"])
    with pytest.raises(SoupError, match=r"neither a folder .*run/my adapters.*write '\.\./my adapters'"):
        open_soup("run").backbones()


def test_an_id_that_is_not_on_the_hub_is_no_folder_either(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    write_manifest(run, ["helpful", "adapters/harmless"])
    with pytest.raises(HubError, match=rf"could not be fetched.*no folder {run}/adapters/harmless") as caught:
        open_soup("run").backbones()
    assert "count from" not in str(caught.value)
    with pytest.raises(HubError, match=rf"could not be fetched.*no folder {run.parent}/adapters/nope"):
        open_soup("adapters/nope")


def test_what_is_neither_folder_nor_repository(run: Path, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="could not be fetched"):
        open_soup("org/does-not-exist-anywhere")
    with pytest.raises(SoupError, match="There is no folder"):
        open_soup(tmp_path / "nothing" / "here")
    shutil.rmtree(run / "helpful")
    (run / "soup.json").unlink()
    with pytest.raises(ManifestError, match="seek"):
        open_soup(run)
