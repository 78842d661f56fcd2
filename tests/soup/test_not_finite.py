"""NaN, infinity and overflow: named with tensor and model before anything is written, or let through when asked."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_soups import adapter_soup, full_soup, tiny_llama, weights_of

from trl_bonesoup import BoneSoup, sweep
from trl_bonesoup.cli import main
from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.export import merge

FACTOR = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
WEIGHT = "model.layers.1.self_attn.v_proj.weight"


def spoil(file: Path, name: str, value: float) -> None:
    tensors = load_file(file)
    tensors[name][3, 2] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture(params=[float("nan"), float("-inf")], ids=str)
def broken(request, tmp_path: Path, two_adapters: Path) -> Path:
    """A soup whose second adapter has one factor that is not finite."""
    run = Path(shutil.copytree(two_adapters, tmp_path / "run"))
    spoil(run / "backbone1" / "adapter_model.safetensors", FACTOR, request.param)
    return run


WRITERS = {
    "adapter": lambda run, out, **allow: merge(run, out, [1.0, 0.0], **allow),
    "adapter of another rank": lambda run, out, **allow: merge(run, out, [1.0, 0.0], rank=2, **allow),
    "checkpoint": lambda run, out, **allow: merge(run, out, [1.0, 0.0], full=True, **allow),
    "sweep": lambda run, out, **allow: sweep(run, out, [[1.0, 0.0]], show_progress=False, **allow),
    "sweep of checkpoints": lambda run, out, **allow: sweep(
        run, out, [[1.0, 0.0]], full=True, show_progress=False, **allow
    ),
    "in memory": lambda run, out, **allow: BoneSoup.from_pretrained(run).save_pretrained(out),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_an_adapter_that_is_not_finite_is_named_with_its_tensor(tmp_path, broken, writer) -> None:
    with pytest.raises(SoupError, match=rf"Tensor {FACTOR} of the adapter .*backbone1 contains NaN or inf.*allow_nan"):
        WRITERS[writer](broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("writer", ["adapter", "sweep"])
def test_it_is_written_when_asked(tmp_path, broken, writer) -> None:
    WRITERS[writer](broken, tmp_path / "out", allow_nan=True)
    (file,) = (tmp_path / "out").rglob("adapter_model.safetensors")
    expected, stored = load_file(broken / "backbone1" / "adapter_model.safetensors")[FACTOR], load_file(file)[FACTOR]
    odd = ~torch.isfinite(stored)
    assert odd.nonzero().tolist() == [[3, 4 + 2]]  # the factor of the second adapter comes after four columns
    np.testing.assert_equal(stored[odd].item(), -expected[3, 2].item())  # λ is 1.75 and -.75


@pytest.mark.parametrize("writer", ["checkpoint", "sweep of checkpoints"])
def test_only_its_row_of_a_checkpoint_is_not_finite(tmp_path, broken, writer) -> None:
    WRITERS[writer](broken, tmp_path / "out", allow_nan=True)
    (file,) = (tmp_path / "out").rglob("model.safetensors")
    for name, tensor in load_file(file).items():
        rows = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()
        assert rows == ([3] if name == WEIGHT else []), name


def test_the_command_lets_it_through_when_asked(tmp_path, broken, capsys) -> None:
    arguments = ["merge", str(broken), str(tmp_path / "out"), "--preference", "1,0"]
    assert main(arguments) == 2
    assert "--allow-nan" in capsys.readouterr().err
    assert main([*arguments, "--allow-nan"]) == 0


def test_a_base_model_that_is_not_finite_is_named(tmp_path, two_adapters) -> None:
    run = Path(shutil.copytree(two_adapters, tmp_path / "run"))
    spoil(run / "base" / "model.safetensors", WEIGHT, float("nan"))
    with pytest.raises(SoupError, match=rf"{WEIGHT} of the base model contains NaN or infinity"):
        merge(run, tmp_path / "out", [0.5, 0.5], full=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("allow_nan", [False, True])
def test_a_checkpoint_of_adapters_beyond_its_dtype_is_refused(tmp_path, two_adapters, allow_nan) -> None:
    """2·1.75·B·A with a B of 30000 is far beyond the 65504 of float16."""
    run = Path(shutil.copytree(two_adapters, tmp_path / "run"))
    spoil(run / "backbone0" / "adapter_model.safetensors", FACTOR, 3e7)
    with pytest.raises(SoupError, match=rf"{WEIGHT} of the soup exceeds the range of torch.float16.*float32"):
        merge(run, tmp_path / "out", [1.0, 0.0], full=True, dtype="float16", allow_nan=allow_nan)
    assert not (tmp_path / "out").exists()


class TestFullBackbones:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        run = full_soup(tmp_path / "run", 2, dtype=torch.float16, beta=0.6)
        spoil(run / "backbone1" / "model.safetensors", WEIGHT, float("inf"))
        return run

    def write(self, writer: str, run: Path, out: Path, **allow: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            WRITERS[writer](run, out, **allow)

    @pytest.mark.parametrize("writer", ["checkpoint", "sweep"])
    def test_it_is_named_or_written_when_asked(self, tmp_path, run, writer) -> None:
        with pytest.raises(SoupError, match=rf"Tensor {WEIGHT} of .*backbone1 contains NaN or infinity.*allow_nan"):
            self.write(writer, run, tmp_path / "out")
        assert not list(tmp_path.glob("out/mu-*"))
        self.write(writer, run, tmp_path / "out", allow_nan=True)
        (file,) = (tmp_path / "out").rglob("model.safetensors")
        stored = weights_of(file.parent)
        assert stored[WEIGHT][3, 2].item() == float("-inf")  # λ is 3 and -2
        assert sum(int((~torch.isfinite(tensor)).sum()) for tensor in stored.values()) == 1

    @pytest.mark.parametrize("writer", ["checkpoint", "sweep"])
    def test_what_rounding_makes_infinite_is_refused_all_the_same(self, tmp_path, run, writer) -> None:
        """λ = 3: a weight of 30000 becomes 90000, and float16 ends at 65504."""
        file = run / "backbone0" / "model.safetensors"
        tensors = load_file(file)
        tensors["model.norm.weight"][0] = 30000.0
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(SoupError, match=r"model\.norm\.weight of the soup exceeds the range.*float32"):
            self.write(writer, run, tmp_path / "out", allow_nan=True)


def test_a_loaded_soup_of_full_backbones_names_it_too(tmp_path) -> None:
    run = full_soup(tmp_path / "run", 2)
    spoil(run / "backbone1" / "model.safetensors", WEIGHT, float("nan"))
    with pytest.raises(SoupError, match=rf"Tensor {WEIGHT} of .*backbone1 contains NaN or infinity"):
        BoneSoup.from_pretrained(run)


def test_adapters_in_half_precision_do_not_overflow(tmp_path) -> None:
    """They are scaled and written in float32: λ = 3 times 60000."""
    run = adapter_soup(tmp_path / "run", [{"target_modules": ["v_proj"]}] * 2, model=tiny_llama(), beta=0.6)
    file = run / "backbone0" / "adapter_model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
    tensors[FACTOR][3, 2] = 60000.0
    save_file(tensors, file)
    out = merge(run, tmp_path / "out", [1.0, 0.0]).path
    # the adapter's own scale is 8/4
    assert load_file(out / "adapter_model.safetensors")[FACTOR][3, 2].item() == pytest.approx(3 * 2 * 60000.0)
