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

from trl_bonesoup import BoneSoup, simplex_grid, sweep
from trl_bonesoup.errors import SoupError, WeightsError
from trl_bonesoup.soup import combine
from trl_bonesoup.soup.adapters import WEIGHTS_FILE
from trl_bonesoup.soup.export import merge

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
    assert "Writing 2 soups, 0.000 GB in all" in capfd.readouterr().err


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, two_full, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(SoupError, match=r"needs 0\.000 GB and its disk has 0\.000 GB left"):
        sweep(two_full, tmp_path / "out", GRID, show_progress=False)
    assert not (tmp_path / "out").exists()


def test_the_record_says_what_each_folder_is(tmp_path, two_adapters) -> None:
    (folder,) = sweep(two_adapters, tmp_path / "out", [[1.0, 0.0]], show_progress=False)
    record = json.loads((folder / "sweep_point.json").read_text())
    assert record["preference"] == {"objective0": 1.0, "objective1": 0.0}
    np.testing.assert_allclose(record["coefficients"], [1.75, -0.75])
    assert record["full"] is False


def test_refuses_no_preference_a_bad_one_and_one_twice(tmp_path, two_adapters) -> None:
    with pytest.raises(SoupError, match="at least one preference"):
        sweep(two_adapters, tmp_path / "out", [])
    with pytest.raises(WeightsError, match="sum to 1"):
        sweep(two_adapters, tmp_path / "out", [[0.5, 0.5], [0.5, 0.6]])
    with pytest.raises(SoupError, match="must differ"):
        sweep(two_adapters, tmp_path / "out", [[0.5, 0.5], {"objective0": 0.5, "objective1": 0.5}])
    assert not (tmp_path / "out").exists()
