"""Which checkpoints can be merged: shards, tied weights, buffers, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.checkpoints import Checkpoint, check_mergeable


def checkpoint(folder: Path, **tensors: torch.Tensor) -> Checkpoint:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint(folder)


def test_shapes_that_differ_are_refused_showing_both(tmp_path) -> None:
    models = [checkpoint(tmp_path / "a", w=torch.zeros(2, 3)), checkpoint(tmp_path / "b", w=torch.zeros(2, 4))]
    with pytest.raises(SoupError, match=r"w is F32 of shape \(2, 3\) in .*a but F32 of shape \(2, 4\) in .*b"):
        check_mergeable(models)


def test_dtypes_that_differ_are_refused_showing_both(tmp_path) -> None:
    models = [checkpoint(tmp_path / "a", w=torch.zeros(2)), checkpoint(tmp_path / "b", w=torch.zeros(2).bfloat16())]
    with pytest.raises(SoupError, match=r"w is F32.*but BF16"):
        check_mergeable(models)


def test_the_base_may_have_another_dtype_but_not_another_shape(tmp_path) -> None:
    models = [checkpoint(tmp_path / name, w=torch.zeros(2)) for name in "ab"]
    assert check_mergeable(models, checkpoint(tmp_path / "c", w=torch.zeros(2).bfloat16())) == ["w"]
    with pytest.raises(SoupError, match=r"\(3,\) in the base model"):
        check_mergeable(models, checkpoint(tmp_path / "d", w=torch.zeros(3)))


def test_integers_are_copied_only_when_equal(tmp_path) -> None:
    models = [checkpoint(tmp_path / name, w=torch.ones(1), n=torch.tensor([1, 2])) for name in "ab"]
    assert sorted(check_mergeable(models)) == ["n", "w"]
    with pytest.raises(SoupError, match=r"n \(I64, not a float to merge\) differs"):
        check_mergeable([*models, checkpoint(tmp_path / "c", w=torch.ones(1), n=torch.tensor([1, 3]))])


def test_a_tied_copy_that_one_backbone_stores_is_left_out(tmp_path) -> None:
    embedding = torch.rand(5, 2)
    tied = checkpoint(tmp_path / "tied", embed=embedding, norm=torch.ones(2))
    stored = checkpoint(tmp_path / "stored", embed=embedding + 1, norm=torch.ones(2), head=embedding + 1)
    assert sorted(check_mergeable([tied, stored])) == ["embed", "norm"]
    assert sorted(check_mergeable([stored, tied])) == ["embed", "norm"]


def test_a_tensor_of_its_own_is_not_left_out(tmp_path) -> None:
    embedding = torch.rand(5, 2)
    tied = checkpoint(tmp_path / "tied", embed=embedding)
    untied = checkpoint(tmp_path / "untied", embed=embedding, head=embedding + 0.5)
    with pytest.raises(SoupError, match=r"head is in .*untied but not in .*tied"):
        check_mergeable([tied, untied])


@pytest.mark.parametrize(
    "escape", ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "weights.bin"]
)
def test_an_index_may_only_name_files_of_its_folder(tmp_path, escape) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": escape}}))
    with pytest.raises(SoupError, match="not a safetensors file in its own folder"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_broken_index_is_refused(tmp_path, text) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SoupError, match="not a valid index"):
        Checkpoint(tmp_path)


def test_a_file_cut_short_is_refused(tmp_path) -> None:
    checkpoint(tmp_path / "a", w=torch.zeros(20))
    file = tmp_path / "a" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(SoupError, match="not a complete safetensors file"):
        Checkpoint(tmp_path / "a")


def test_pickled_checkpoints_are_refused(tmp_path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SoupError, match="only safetensors checkpoints are read"):
        Checkpoint(tmp_path)
