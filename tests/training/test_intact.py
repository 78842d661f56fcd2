"""What a checkpoint of a sharded, a split or an unusual model has to hold; test_resume.py damages a usual one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trl_bonesoup.training.intact import damaged_file, missing_file


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        if name.endswith(".safetensors"):
            save_file({"weight": torch.zeros(2)}, folder / name)
        else:
            torch.save({"state": torch.ones(3)}, folder / name)
    return folder


SPLIT = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (("adapter_model.safetensors",), None),
        (("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"), None),
        (("model.safetensors", "optimizer.bin", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"), None),  # FSDP
        (("optimizer.pt", "scheduler.pt", "rng_state.pth"), "adapter_model.safetensors or model.safetensors"),
        (("model.safetensors", "scheduler.pt", "rng_state.pth"), "optimizer.pt"),
        (("model.safetensors", "optimizer.pt", "rng_state.pth"), "scheduler.pt"),
        (("model.safetensors", "optimizer.pt", "scheduler.pt"), "rng_state.pth"),
    ],
)
def test_what_a_checkpoint_should_have(tmp_path: Path, names: tuple[str, ...], missing: str | None) -> None:
    assert missing_file(write(tmp_path, *names)) == missing


def test_every_shard_of_an_index(tmp_path: Path) -> None:
    write(tmp_path, *SPLIT)
    index = {"metadata": {}, "weight_map": {"a": SPLIT[0], "b": SPLIT[1], "c": SPLIT[0]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert missing_file(tmp_path) is None
    (tmp_path / SPLIT[1]).unlink()
    assert missing_file(tmp_path) == SPLIT[1]


def test_files_in_the_folders_of_a_sharded_model(tmp_path: Path) -> None:
    write(tmp_path / "global_step4", "mp_rank_00_model_states.pt")
    assert missing_file(tmp_path) is None
    assert damaged_file(tmp_path, thorough=True) is None
    file = tmp_path / "global_step4" / "mp_rank_00_model_states.pt"
    file.write_bytes(file.read_bytes()[:-5])
    assert damaged_file(tmp_path, thorough=False) == "global_step4/mp_rank_00_model_states.pt"
