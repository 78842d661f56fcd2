"""A sweep is the soups one by one, resumes where it stopped, and never mixes two sets of backbones."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny_soups import adapter_soup, full_soup, save_adapter, weights_of
from transformers import AutoModelForCausalLM

from trl_bonesoup import BoneSoup, SoupManifest, simplex_grid, sweep
from trl_bonesoup.errors import ConfigurationError, SoupError, WeightsError
from trl_bonesoup.soup import combine
from trl_bonesoup.soup.adapters import WEIGHTS_FILE
from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.record import SavedSoup

GRID = simplex_grid(2, step=0.25)
NAMES = ["mu-1.00-0.00", "mu-0.75-0.25", "mu-0.50-0.50", "mu-0.25-0.75", "mu-0.00-1.00"]


def times(folders: list[Path]) -> list[int]:
    return [folder.stat().st_mtime_ns for folder in folders]


def test_adapters_are_those_of_single_merges(tmp_path, two_adapters, batch) -> None:
    folders = sweep(two_adapters, tmp_path / "out", GRID, show_progress=False)
    assert [folder.name for folder in folders] == NAMES
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(NAMES)
    soup = BoneSoup.from_pretrained(two_adapters)
    for preference, folder in zip(GRID, folders, strict=True):
        soup.set_preference(preference)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(two_adapters / "base"), folder)
        torch.testing.assert_close(model(**batch).logits, soup.model(**batch).logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["two_adapters", "two_full"])
def test_full_checkpoints_are_those_of_single_merges(tmp_path, request, kind) -> None:
    run = request.getfixturevalue(kind)
    folders = sweep(
        run, tmp_path / "out", [{"objective0": 1.0}, [0.25, 0.75]], full=True, extrapolation=0.1, show_progress=False
    )
    assert [folder.name for folder in folders] == ["mu-1.00-0.00_alpha-0.10", "mu-0.25-0.75_alpha-0.10"]
    for k, (preference, folder) in enumerate(zip([[1.0, 0.0], [0.25, 0.75]], folders, strict=True)):
        single = merge(run, tmp_path / f"single{k}", preference, extrapolation=0.1, full=True).path
        assert (folder / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()
        assert {file.name for file in folder.iterdir()} - {file.name for file in single.iterdir()} == {
            "sweep_point.json"
        }
        AutoModelForCausalLM.from_pretrained(folder)


def test_neighbours_differ(tmp_path, two_full) -> None:
    first, second = sweep(two_full, tmp_path / "out", [[0.5, 0.5], [0.501, 0.499]], show_progress=False)
    assert second.name == "mu-0.501-0.499"
    assert all(
        not torch.equal(a, b) for a, b in zip(weights_of(first).values(), weights_of(second).values(), strict=True)
    )


@pytest.mark.parametrize("kind", ["two_adapters", "two_full"])
def test_resumes_with_what_is_missing(tmp_path, request, kind) -> None:
    run = request.getfixturevalue(kind)
    folders = sweep(run, tmp_path / "out", GRID, show_progress=False)
    content = (folders[2] / "sweep_point.json").read_text()
    shutil.rmtree(folders[2])
    before = times([*folders[:2], *folders[3:]])
    assert sweep(run, tmp_path / "out", GRID, show_progress=False) == folders
    assert times([*folders[:2], *folders[3:]]) == before
    assert (folders[2] / "sweep_point.json").read_text() == content


def test_an_interruption_leaves_complete_folders_only(tmp_path, two_adapters, monkeypatch) -> None:
    """Threads work ahead, so that soups after the interrupted one may be there, too."""
    whole = sweep(two_adapters, tmp_path / "whole", GRID, show_progress=False)
    write = combine.StackedAdapters.write

    def interrupted(self, coefficients, folder):
        write(self, coefficients, folder)
        if NAMES[2] in folder.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(combine.StackedAdapters, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(two_adapters, tmp_path / "out", GRID, show_progress=False)
    monkeypatch.setattr(combine.StackedAdapters, "write", write)
    left = sorted((tmp_path / "out").iterdir())
    assert set(NAMES[:2]) <= {path.name for path in left} <= {*NAMES[:2], *NAMES[3:]}
    before = times(left)
    folders = sweep(two_adapters, tmp_path / "out", GRID, show_progress=False)
    assert times(left) == before
    for folder, expected in zip(folders, whole, strict=True):
        assert (folder / WEIGHTS_FILE).read_bytes() == (expected / WEIGHTS_FILE).read_bytes()


def test_a_pass_over_full_backbones_that_fails_leaves_nothing(tmp_path) -> None:
    run = full_soup(tmp_path / "run", 2)
    from safetensors.torch import load_file, save_file

    file = run / "backbone1" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SoupError, match=r"model\.norm\.weight of .*backbone1 contains NaN"):
        sweep(run, tmp_path / "out", GRID, show_progress=False)
    assert list((tmp_path / "out").iterdir()) == []


def test_other_backbones_are_not_mixed_in(tmp_path) -> None:
    run = adapter_soup(tmp_path / "run", [{}, {}])
    folders = sweep(run, tmp_path / "out", GRID[:2], show_progress=False)
    save_adapter(run / "base", run / "backbone1", seed=99)
    with pytest.raises(SoupError, match="overwrite=True"):
        sweep(run, tmp_path / "out", GRID, show_progress=False)
    assert len(list((tmp_path / "out").iterdir())) == 2
    before = weights_of(folders[0])
    sweep(run, tmp_path / "out", GRID[:2], overwrite=True, show_progress=False)
    after = weights_of(folders[0])
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_an_adapter_does_not_pass_for_a_checkpoint(tmp_path, two_adapters) -> None:
    sweep(two_adapters, tmp_path / "out", GRID[:1], show_progress=False)
    with pytest.raises(SoupError, match="overwrite=True"):
        sweep(two_adapters, tmp_path / "out", GRID[:1], full=True, show_progress=False)


def test_says_what_it_will_write(tmp_path, two_adapters, capfd) -> None:
    sweep(two_adapters, tmp_path / "out", GRID[:2])
    bytes_of_one = sum(t.nbytes for t in weights_of(tmp_path / "out" / NAMES[0]).values())
    shown = capfd.readouterr().err
    assert f"Writing 2 soups, {2 * bytes_of_one / 1000:.1f} kB in all" in shown
    sweep(two_adapters, tmp_path / "out", GRID[:3])
    assert "Writing 1 soup, " in capfd.readouterr().err


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, two_full, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(SoupError, match=r"needs \d+\.\d kB and its disk has 1 B left"):
        sweep(two_full, tmp_path / "out", GRID, show_progress=False)
    assert not (tmp_path / "out").exists()


def test_the_record_says_what_each_folder_is(tmp_path, two_adapters) -> None:
    (folder,) = sweep(two_adapters, tmp_path / "out", [[1.0, 0.0]], show_progress=False)
    record = json.loads((folder / "sweep_point.json").read_text())
    assert record["preference"] == {"objective0": 1.0, "objective1": 0.0}
    np.testing.assert_allclose(record["coefficients"], [1.75, -0.75])
    assert record["full"] is False


def test_refuses_no_preference_a_bad_one_and_two_that_hardly_differ(tmp_path, two_adapters) -> None:
    with pytest.raises(SoupError, match="at least one preference"):
        sweep(two_adapters, tmp_path / "out", [])
    with pytest.raises(WeightsError, match="sum to 1"):
        sweep(two_adapters, tmp_path / "out", [[0.5, 0.5], [0.5, 0.6]])
    with pytest.raises(SoupError, match=r"\[0\.5, 0\.5\] and \[0\.5000004, .*differ by less than 1e-6"):
        sweep(two_adapters, tmp_path / "out", [[0.5, 0.5], [0.5000004, 0.4999996]])
    assert not (tmp_path / "out").exists()


def named_presets(run: Path, folder: Path, presets: dict[str, list[float]]) -> Path:
    """A copy of a soup whose soup.json names preferences."""
    shutil.copytree(run, folder)
    manifest = SoupManifest.load(folder)
    for name, preference in presets.items():
        manifest = manifest.with_preset(name, preference)
    manifest.save(folder)
    return folder


def test_equal_preferences_are_written_once(tmp_path, two_adapters) -> None:
    third = 0.1 + 0.2  # 0.30000000000000004
    preferences = [[0.5, 0.5], {"objective0": 0.5, "objective1": 0.5}, [0.3, 0.7], [third, 1 - third]]
    folders = sweep(two_adapters, tmp_path / "out", preferences, show_progress=False)
    assert [folder.name for folder in folders] == ["mu-0.50-0.50"] * 2 + ["mu-0.30-0.70"] * 2
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("kind", ["two_adapters", "two_full"])
def test_a_named_preference_has_a_folder_of_its_name(tmp_path, request, kind) -> None:
    presets = {"ann": [0.2, 0.8], "bob": [0.2, 0.8], "Dr. Eve / Ltd": [0.2, 0.8], "..": [1.0, 0.0], "Åsa": [1.0, 0.0]}
    run = named_presets(request.getfixturevalue(kind), tmp_path / "run", presets)
    asked = [*presets, "objective0", [0.2, 0.8], "ann"]
    folders = sweep(run, tmp_path / "out", asked, show_progress=False)
    names = [folder.name for folder in folders]
    assert (names[0], names[1], names[4:]) == ("ann", "bob", ["Åsa", "objective0", "mu-0.20-0.80", "ann"])
    assert names[2].startswith("Dr.-Eve-Ltd-") and names[3].startswith("preset-")
    assert {folder.parent for folder in folders} == {tmp_path / "out"}
    assert len({path.name for path in (tmp_path / "out").iterdir()}) == 7
    for name, folder in zip(asked, folders, strict=True):
        record = json.loads((folder / "sweep_point.json").read_text())
        assert record.get("preset") == (name if isinstance(name, str) else None)
        assert record["preference"]["objective0"] in (0.2, 1.0)
    before = times(folders)
    assert sweep(run, tmp_path / "out", asked, show_progress=False) == folders
    assert times(folders) == before
    assert sweep(run, tmp_path / "out", ["ann"], extrapolation=0.1, show_progress=False)[0].name == "ann_alpha-0.10"


def test_a_preset_that_was_changed_is_not_taken_for_the_old_one(tmp_path, two_adapters) -> None:
    run = named_presets(two_adapters, tmp_path / "run", {"ann": [0.2, 0.8]})
    sweep(run, tmp_path / "out", ["ann"], show_progress=False)
    SoupManifest.load(run).with_preset("ann", [0.3, 0.7]).save(run)
    with pytest.raises(SoupError, match="not empty"):
        sweep(run, tmp_path / "out", ["ann"], show_progress=False)


def test_presets_whose_folders_would_be_one_are_refused(tmp_path, two_adapters) -> None:
    run = named_presets(two_adapters, tmp_path / "run", {"ann": [0.2, 0.8], "Ann": [0.3, 0.7], "mu-0.25-0.75": [1, 0]})
    with pytest.raises(SoupError, match=r"'ann' and 'Ann' would both be written to .*ann.*Rename one"):
        sweep(run, tmp_path / "out", ["ann", "Ann"], show_progress=False)
    with pytest.raises(SoupError, match=r"'mu-0.25-0.75' and \[0.25, 0.75\] would both be written"):
        sweep(run, tmp_path / "out", ["mu-0.25-0.75", [0.25, 0.75]], show_progress=False)
    assert not (tmp_path / "out").exists()


def test_adapters_are_compressed_to_a_rank(tmp_path, two_adapters) -> None:
    folders = sweep(two_adapters, tmp_path / "out", GRID[1:3], rank=2, show_progress=False)
    for k, folder in enumerate(folders):
        single = merge(two_adapters, tmp_path / f"single{k}", GRID[1 + k], rank=2)
        assert (folder / WEIGHTS_FILE).read_bytes() == (single.path / WEIGHTS_FILE).read_bytes()
        record = json.loads((folder / "sweep_point.json").read_text())
        assert (record["rank"], record["compression_error"]) == (2, single.compression_error)
        assert SavedSoup.read(folder).lost == single.compression_error > 0
    before = times(folders)
    assert sweep(two_adapters, tmp_path / "out", GRID[1:3], rank=2, show_progress=False) == folders
    assert times(folders) == before
    for other in ({}, {"rank": 3}):
        with pytest.raises(SoupError, match="not empty"):
            sweep(two_adapters, tmp_path / "out", GRID[1:3], show_progress=False, **other)


@pytest.mark.parametrize("kind", ["two_adapters", "two_full"])
def test_full_checkpoints_have_the_dtype_that_was_asked_for(tmp_path, request, kind) -> None:
    run = request.getfixturevalue(kind)
    (folder,) = sweep(run, tmp_path / "out", [[0.75, 0.25]], full=True, dtype="bf16", show_progress=False)
    single = merge(run, tmp_path / "single", [0.75, 0.25], full=True, dtype="bfloat16").path
    assert (folder / "model.safetensors").read_bytes() == (single / "model.safetensors").read_bytes()
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((folder / "sweep_point.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(SoupError, match="not empty"):
        sweep(run, tmp_path / "out", [[0.75, 0.25]], full=True, show_progress=False)


def test_a_rank_is_for_adapters_and_a_dtype_for_checkpoints(tmp_path, two_adapters, two_full) -> None:
    for run, options in ((two_adapters, {"full": True}), (two_full, {})):
        with pytest.raises(ConfigurationError, match=r"rank=2 \(--rank\) compresses an adapter"):
            sweep(run, tmp_path / "out", GRID, rank=2, show_progress=False, **options)
    with pytest.raises(ConfigurationError, match="whole number from 1; got 0"):
        sweep(two_adapters, tmp_path / "out", GRID, rank=0, show_progress=False)
    with pytest.raises(ConfigurationError, match=r"dtype=float16 \(--dtype\) is for a full checkpoint"):
        sweep(two_adapters, tmp_path / "out", GRID, dtype="fp16", show_progress=False)
    assert not (tmp_path / "out").exists()
