"""Which checkpoints can be merged: shards, tied weights, buffers, and what is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}", '{"weight_map": {}}', '{"weight_map": ["w"]}'])
def test_a_broken_index_is_refused(tmp_path, text) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SoupError, match=r"not valid JSON|not a valid index"):
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


def shards(folder: Path, *parts: dict[str, torch.Tensor]) -> Path:
    """Write a checkpoint of several shards with its index."""
    folder.mkdir()
    weight_map = {}
    for i, part in enumerate(parts):
        name = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint whose two shards hold tensors of the same shape, as the layers of a model do."""
    return shards(tmp_path / "sharded", {"a": torch.zeros(4)}, {"b": torch.ones(4)})


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SECOND).unlink()
    with pytest.raises(SoupError, match=rf"lacks {SECOND}, which its model.safetensors.index.json names"):
        Checkpoint(sharded)


def test_shards_that_changed_their_names_are_noticed(sharded: Path) -> None:
    (sharded / FIRST).rename(sharded / "aside")
    (sharded / SECOND).rename(sharded / FIRST)
    (sharded / "aside").rename(sharded / SECOND)
    with pytest.raises(SoupError, match=rf"renamed.* a should be in {FIRST} and is in {SECOND} \(2 such tensors\)"):
        Checkpoint(sharded)


def test_a_tensor_that_the_index_promises_and_no_shard_holds(sharded: Path) -> None:
    """Else it would be left out of the soup, and transformers would draw it at random."""
    save_file({"other": torch.ones(4)}, sharded / SECOND)
    with pytest.raises(SoupError, match=rf"b should be in {SECOND} and is in none"):
        Checkpoint(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, sharded / SECOND)
    with pytest.raises(SoupError, match=rf"Tensor a is in two files of .*{FIRST} and {SECOND}"):
        Checkpoint(sharded)


def test_a_single_file_beside_shards_is_ambiguous(sharded: Path) -> None:
    """transformers loads model.safetensors, mergekit what the index names."""
    save_file({"a": torch.full((4,), 7.0), "b": torch.full((4,), 7.0)}, sharded / "model.safetensors")
    with pytest.raises(SoupError, match=r"holds two checkpoints, model\.safetensors and the shards of"):
        Checkpoint(sharded)


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


LIES = {
    "a larger shape": lambda header: header["w"].update(shape=[21]),
    "a smaller shape": lambda header: header["w"].update(shape=[19]),
    "a negative shape": lambda header: header["w"].update(shape=[-20]),
    "a shape whose product overflows": lambda header: header["w"].update(shape=[2**33, 2**33]),
    "a wider dtype": lambda header: header["w"].update(dtype="F64"),
    "a dtype that does not exist": lambda header: header["w"].update(dtype="F33"),
    "offsets beyond the end": lambda header: header["w"].update(data_offsets=[0, 800], shape=[200]),
    "offsets in reverse": lambda header: header["w"].update(data_offsets=[80, 0]),
    "offsets that leave a gap": lambda header: header["w"].update(data_offsets=[8, 88]),
    "tensors that overlap": lambda header: header.update(v=dict(header["w"])),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    checkpoint(tmp_path / "a", w=torch.zeros(20))
    rewrite_header(tmp_path / "a" / "model.safetensors", LIES[lie])
    with pytest.raises(SoupError, match=r"a/model\.safetensors is not a complete safetensors file"):
        Checkpoint(tmp_path / "a")


@pytest.mark.parametrize("length", [2**40, 2**63, 0])
def test_a_length_of_the_header_that_lies_is_refused(tmp_path: Path, length: int) -> None:
    checkpoint(tmp_path / "a", w=torch.zeros(20))
    file = tmp_path / "a" / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(SoupError, match="not a complete safetensors file"):
        Checkpoint(tmp_path / "a")


def test_a_file_that_is_cut_short_after_it_was_opened_is_an_error_and_no_signal(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "a", w=torch.zeros(20_000), n=torch.arange(5))
    os.truncate(tmp_path / "a" / "model.safetensors", 16)
    for name in ("w", "n"):
        with pytest.raises(SoupError, match="was cut short while it was read"):
            model.read(name)
