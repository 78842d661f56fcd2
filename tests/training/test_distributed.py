"""Scale changes the speed of training and nothing else: processes, activation checkpointing, accumulation."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_run
import pytest
import torch
from safetensors.torch import load_file

from trl_bonesoup import SoupManifest

TESTS = Path(__file__).parents[1]
TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


FSDP2 = {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def launch(folder: Path, task: str, processes: int = 2, **environment: str) -> None:
    """Run `distributed_run.py` under torchrun, which chooses a free port."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    script = str(Path(distributed_run.__file__).resolve())
    path = os.pathsep.join([str(TESTS), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(
        [*command, script, str(folder), task], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distributed_run.prepare(tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="module")
def launched(folder: Path) -> Path:
    """What two processes learn; both kinds of backbone in one launch, because starting takes longer than training."""
    launch(folder, "main")
    return folder


def assert_same_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in ("policy", "critic"):
        assert set(found[part]) == set(expected[part])
        for name, value in expected[part].items():
            torch.testing.assert_close(found[part][name], value, atol=1e-5, rtol=1e-4, msg=f"{part} {name}")
    assert found["kl_coef"] == pytest.approx(expected["kl_coef"], rel=1e-6)
    for key, values in expected["scores"].items():
        assert found["scores"][key] == pytest.approx(values), key


def assert_same_log(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for there, here in zip(found["log"], expected["log"], strict=True):
        for key in set(here) - TIMES:
            assert there[key] == pytest.approx(here[key], rel=1e-3, abs=1e-4), (here["step"], key)


@pytest.mark.parametrize("kind", distributed_run.KINDS)
def test_two_processes_train_what_one_does(launched: Path, kind: str) -> None:
    """Policy, critic, KL controller, normaliser and every metric, over two or three rollouts."""
    two = torch.load(launched / f"{kind}.pt", weights_only=False)
    one = distributed_run.train(launched, kind, processes=1)
    assert (two["processes"], one["processes"]) == (2, 1)
    lengths = [entry["completions/mean_length"] for entry in one["log"] if "kl" in entry]
    assert len(lengths) == (2 if kind == "early stopping" else 3)
    assert min(lengths) < 6.0  # completions end early, so that the processes hold unequal numbers of tokens
    assert one["kl_coef"] != 0.05  # the controller has moved
    assert_same_training(two, one)
    assert_same_log(two, one)


def test_a_sharded_model_trains_the_same(folder: Path) -> None:
    """FSDP2 takes the policy apart; the critic is whole on every process, with an optimizer of its own."""
    launch(folder, "shard", **FSDP2)
    for kind in ("lora", "full"):
        sharded = torch.load(folder / f"{kind}-sharded.pt", weights_only=False)
        assert sharded["processes"] == 2
        assert sharded["sharded"]
        assert_same_training(sharded, distributed_run.train(folder, kind, processes=1))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_activation_checkpointing_trains_the_same(folder: Path, kind: str) -> None:
    stored = distributed_run.train(folder, kind, processes=1)
    recomputed = distributed_run.train(folder, kind, processes=1, activation_checkpointing=True)
    assert_same_training(recomputed, stored)
    assert_same_log(recomputed, stored)


def test_accumulation_trains_the_same_with_everything_that_has_a_state(folder: Path) -> None:
    """Metrics are left out: a mean over micro-batches of unequal length is not the mean over tokens."""
    whole = distributed_run.train(folder, "lora", processes=1)
    parts = distributed_run.train(
        folder, "lora", processes=1, per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    assert_same_training(parts, whole)


def test_two_processes_seek_one_soup(launched: Path) -> None:
    """One process writes, both are told: the soup, the same soup again, and what is wrong with another request."""
    told = [json.loads((launched / f"seek-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    trained, again, refused = told[0]
    manifest = SoupManifest.load(launched / "run")
    assert json.loads(trained["manifest"]) == json.loads(again["manifest"]) == manifest.model_dump(mode="json")
    assert "other settings (combination_weights" in refused["error"]
    shutil.copytree(launched / "base", launched / "alone" / "base")
    one = distributed_run.seek_all(launched / "alone", 1, 0.7)
    alone = SoupManifest.model_validate_json(one["manifest"])
    for there, here in zip(manifest.objectives, alone.objectives, strict=True):
        # both sample the first 8 prompts greedily: two processes see each of them twice
        assert there.normalization.mean == pytest.approx(here.normalization.mean)
        assert there.normalization.std == pytest.approx(here.normalization.std)
    for slug in ("distinct_words", "even_words"):
        expected = load_file(launched / "alone" / "run" / slug / "adapter_model.safetensors")
        for name, value in load_file(launched / "run" / slug / "adapter_model.safetensors").items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=f"{slug} {name}")
    assert not list((launched / "run").glob(".*"))
