"""A limit on the size of files, as a quota sets one: said in words with what is needed, and nothing half written."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import contents, forked
from tiny_soups import full_soup

from trl_bonesoup import sweep
from trl_bonesoup.cli import main
from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.to_full import to_full

MU = [0.7, 0.3]
GRID = [[1.0, 0.0], MU]
WRITERS: dict[str, tuple[str, Callable[[Path, Path], Any]]] = {
    "an adapter": ("two_adapters", lambda run, out: merge(run, out, MU)),
    "a small adapter": ("two_adapters", lambda run, out: merge(run, out, MU, rank=3)),
    "a checkpoint of adapters": ("two_adapters", lambda run, out: merge(run, out, MU, full=True)),
    "a checkpoint of full backbones": ("two_full", lambda run, out: merge(run, out, MU)),
    "a sweep of adapters": ("two_adapters", lambda run, out: sweep(run, out, GRID, show_progress=False)),
    "a sweep of checkpoints": ("two_adapters", lambda run, out: sweep(run, out, GRID, full=True, show_progress=False)),
    "a sweep of full backbones": ("two_full", lambda run, out: sweep(run, out, GRID, show_progress=False)),
    "full backbones": ("two_adapters", lambda run, out: to_full(run, out)),
}


def limited(action: Callable[[], Any], limit: int, told: Path) -> str:
    """Run an action in a child that may write no file beyond `limit` bytes; return the message of its SoupError."""

    def run() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            action()
        except SoupError as error:
            told.write_text(str(error))
            return 2
        return 0

    assert forked(run) == 2
    return told.read_text()


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("limit", [1200, 4000])
def test_a_quota_that_is_hit_half_way(tmp_path, request, writer, limit) -> None:
    fixture, write = WRITERS[writer]
    run, out = request.getfixturevalue(fixture), tmp_path / "place" / "out"
    before = contents(run)
    message = limited(lambda: write(run, out), limit, tmp_path / "told")
    assert "B and its disk has" in message
    assert "a quota may allow less" in message
    assert not list((tmp_path / "place").rglob("*config.json"))
    assert not list((tmp_path / "place").rglob("*.safetensors"))
    write(run, out)
    assert contents(run) == before


def test_an_older_model_stays(tmp_path, two_full) -> None:
    merge(two_full, tmp_path / "out", [1.0, 0.0])
    before = contents(tmp_path / "out")
    limited(lambda: merge(two_full, tmp_path / "out", MU, overwrite=True), 4000, tmp_path / "told")
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "told"]


def test_a_tokenizer_that_no_longer_fits(tmp_path) -> None:
    """mergekit leaves half a tokenizer here, and says that all went well."""
    run = full_soup(tmp_path / "run", 2)
    tokenizer = run / "backbone0" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " " * 100_000)
    limit = (run / "backbone0" / "model.safetensors").stat().st_size + 1000
    assert limit < tokenizer.stat().st_size
    limited(lambda: merge(run, tmp_path / "out", MU), limit, tmp_path / "told")
    assert not (tmp_path / "out").exists()


def test_mergekit_with_a_tokenizer_that_no_longer_fits(tmp_path) -> None:
    import yaml
    from mergekit.scripts.run_yaml import main as run_yaml

    import mergekit_bonesoup
    from mergekit_bonesoup.coefficients import MergeRefused

    mergekit_bonesoup.register()
    run = full_soup(tmp_path / "run", 2)
    tokenizer = run / "base" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " " * 100_000)
    models = [{"model": str(run / f"backbone{j}"), "parameters": {"preference": share}} for j, share in enumerate(MU)]
    config = {
        "merge_method": "bone_soup",
        "base_model": str(run / "base"),
        "models": models,
        "parameters": {"beta": 0.7},
    }
    (tmp_path / "bonesoup.yml").write_text(yaml.safe_dump(config))

    def write() -> None:
        try:
            run_yaml([str(tmp_path / "bonesoup.yml"), str(tmp_path / "out"), "--quiet"], standalone_mode=False)
        except MergeRefused as error:
            raise SoupError(error.message) from error

    limit = (run / "base" / "model.safetensors").stat().st_size + 1000
    assert "there is no room for the soup in" in limited(write, limit, tmp_path / "told")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bonesoup.yml", "run", "told"]


def test_the_command_says_it_in_one_line(tmp_path, two_adapters, capfd, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    assert main(["sweep", str(two_adapters), str(tmp_path / "out"), "--grid", "0.5"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("bonesoup: Writing to")
    assert "choose fewer preferences" in line
    assert not (tmp_path / "out").exists()
