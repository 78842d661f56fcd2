"""A soup to be pushed, in a folder whose name is nobody's business, with all that a run leaves lying around."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from private_strings import E_MAIL, PAST_TOKEN, PERSON
from small_models import write_soup

from trl_bonesoup import SoupManifest
from trl_bonesoup.front.front import Front
from trl_bonesoup.weights import simplex_grid


@pytest.fixture(scope="session")
def made_soups(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_soup(tmp_path_factory.mktemp(kind), kind=kind) for kind in ("adapter", "full")}


@pytest.fixture
def run_folder(made_soups: dict[str, Path], tmp_path: Path) -> Path:
    """A run as `seek` and `evaluate` leave it, with paths, tokens and addresses wherever they may get to."""
    folder = tmp_path / PERSON / "run"
    shutil.copytree(made_soups["adapter"], folder)
    for name in ("b0", "b1"):
        config = json.loads((folder / name / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(folder / "base")
        (folder / name / "adapter_config.json").write_text(json.dumps(config))
        (folder / name / "README.md").write_text(f"base_model: {folder}/base by {E_MAIL}")
        (folder / name / "training_args.bin").write_bytes(f"pickled {PAST_TOKEN}".encode())
        (folder / name / "critic.safetensors").write_bytes(b"critic")
        (folder / name / "optimizer.pt").write_bytes(b"optimizer")
        (folder / name / "checkpoint-8").mkdir()
        (folder / name / "checkpoint-8" / "adapter_model.safetensors").write_bytes(b"half trained")
    tokenizer = json.loads((folder / "base" / "tokenizer_config.json").read_text())
    tokenizer |= {"name_or_path": str(folder / "base"), "is_local": True}
    (folder / "base" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "base" / "pytorch_model.bin").write_bytes(b"pickled weights")
    (folder / "seek.json").write_text(json.dumps({"output_dir": str(folder)}))
    (folder / "samples.jsonl").write_text(f"asked by {E_MAIL}\n")
    manifest = SoupManifest.load(folder)
    data = manifest.model_dump()
    data["objectives"][0]["reward"] = f"{folder}/reward-model"
    data["training"] = {"output_dir": str(folder), "hub_token": PAST_TOKEN, "run_name": f"by {E_MAIL}", "seed": 3}
    SoupManifest.model_validate(data).save(folder)
    preferences_KN = simplex_grid(2, 0.25)
    rewards_KN = np.stack([preferences_KN[:, 0], -preferences_KN[:, 0]], axis=1)
    Front(
        manifest.objective_names,
        preferences_KN,
        manifest.coefficients(preferences_KN),
        rewards_KN,
        np.stack([rewards_KN - 0.1, rewards_KN + 0.1], axis=-1),
        np.full(rewards_KN.shape, 8),
        provenance={"rewards": {"good": f"{folder}/reward-model"}, "by": E_MAIL, "token": PAST_TOKEN, "prompts": 8},
    ).to_json(folder / "front.json")
    return folder


@pytest.fixture
def without_front(run_folder: Path) -> Path:
    """The same without measurements, so that no picture is drawn."""
    (run_folder / "front.json").unlink()
    return run_folder


@pytest.fixture
def push_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a push would have waited between its tries."""
    waits: list[float] = []
    monkeypatch.setattr("trl_bonesoup.hub.client.time", dataclasses.make_dataclass("Time", ["sleep"])(waits.append))
    return waits
