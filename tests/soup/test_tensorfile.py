"""Safetensors files written in pieces are the files that safetensors itself writes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from trl_bonesoup.soup.tensorfile import TensorFile, TensorInfo

TENSORS = {"ids": torch.arange(7), "w": torch.rand(300, 5), "half": torch.rand(3).bfloat16(), "none": torch.zeros(0, 4)}
LAYOUT = {
    "ids": TensorInfo("f", "I64", (7,)),
    "w": TensorInfo("f", "F32", (300, 5)),
    "half": TensorInfo("f", "BF16", (3,)),
    "none": TensorInfo("f", "F32", (0, 4)),
}


def assert_same(got: dict[str, torch.Tensor]) -> None:
    assert got.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)


def test_pieces_in_any_order_from_several_threads(tmp_path) -> None:
    flat = TENSORS["w"].reshape(-1)
    with TensorFile(tmp_path / "f", LAYOUT) as file, ThreadPoolExecutor(4) as pool:
        for name in ("half", "ids", "none"):
            assert file.write(name, TENSORS[name]) == TENSORS[name].nbytes
        list(pool.map(lambda start: file.write("w", flat[start : start + 7], 4 * start), range(1498, -1, -7)))
    assert_same(load_file(tmp_path / "f"))


def test_what_is_there_stays_when_it_is_continued(tmp_path) -> None:
    with TensorFile(tmp_path / "f", LAYOUT) as file:
        file.write("ids", TENSORS["ids"])
        file.write("w", TENSORS["w"][:100])
    with TensorFile(tmp_path / "f", LAYOUT, resume=True) as file:
        file.write("w", TENSORS["w"][100:], 100 * 5 * 4)
        file.write("half", TENSORS["half"])
    assert_same(load_file(tmp_path / "f"))


def test_an_older_file_is_not_overwritten_by_accident(tmp_path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(FileExistsError):
        TensorFile(tmp_path / "f", LAYOUT)
