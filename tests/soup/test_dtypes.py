"""The dtype of a checkpoint: its names, and what has none."""

import pytest
import torch
from tiny_soups import weights_of

from trl_bonesoup import BoneSoup
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.soup.dtypes import as_dtype, dtype_name
from trl_bonesoup.soup.export import merge, save_soup


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_short_names_are_those_of_torch(name, dtype) -> None:
    assert as_dtype(name) is dtype
    assert getattr(torch, dtype_name(name)) is dtype


@pytest.mark.parametrize("dtype", ["int8", "bf", torch.int8])
def test_others_are_refused_with_what_there_is(dtype) -> None:
    with pytest.raises(ConfigurationError, match="one of float64, float32, float16, bfloat16; got"):
        as_dtype(dtype)


def test_a_full_checkpoint_is_written_in_a_dtype_of_a_short_name(tmp_path, two_full) -> None:
    out = merge(two_full, tmp_path / "out", [0.5, 0.5], dtype="bf16").path
    assert {tensor.dtype for tensor in weights_of(out).values()} == {torch.bfloat16}


def test_an_adapter_has_no_dtype(tmp_path, two_adapters) -> None:
    message = r"dtype=bfloat16 \(--dtype\) is for a full checkpoint.*--full"
    with pytest.raises(ConfigurationError, match=message):
        merge(two_adapters, tmp_path / "out", [0.5, 0.5], dtype="bf16")
    with pytest.raises(ConfigurationError, match=message):
        save_soup(BoneSoup.from_pretrained(two_adapters), [0.5, 0.5], tmp_path / "out", dtype=torch.bfloat16)
    assert not (tmp_path / "out").exists()
