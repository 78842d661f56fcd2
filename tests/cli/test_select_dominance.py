"""`bonesoup select-dominance`, as a user would run it: planned, run, and run again with one more β."""

import json
from pathlib import Path

import pytest
import yaml
from tiny import save_tiny

from trl_bonesoup import SoupManifest
from trl_bonesoup.cli import main

REWARDS = """
from trl_bonesoup.rewards.protocol import completion_texts
def low(completions, **columns):
    return [float(sum(f"w{i}" in text.split() for i in range(10))) for text in completion_texts(completions)]
def high(completions, **columns):
    return [float(sum(f"w{i}" in text.split() for i in range(8, 18))) for text in completion_texts(completions)]
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    save_tiny(folder / "sft")
    (folder / "tiny_select_rewards.py").write_text(REWARDS)
    (folder / "train.txt").write_text("\n".join(f"w{i} w{i + 1}" for i in range(16)))
    (folder / "validation.txt").write_text("\n".join(f"w{i} w{i + 3}" for i in range(4)))
    settings = {
        "model": str(folder / "sft"),
        "reward": ["low=tiny_select_rewards:low", "high=tiny_select_rewards:high"],
        "prompts": str(folder / "train.txt"),
        "validation_prompts": str(folder / "validation.txt"),
        "dominances": [0.6, 0.8],
        "grid": 0.5,
        "output_dir": str(folder / "run"),
        "lora_r": 4,
        "set": {"max_steps": 10, "max_completion_length": 6, "learning_rate": 1e-2, "num_iterations": 2,
                "per_device_train_batch_size": 8, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True},
    }  # fmt: skip
    (folder / "select.yml").write_text(yaml.safe_dump(settings))
    return folder / "select.yml"


@pytest.fixture(autouse=True)
def importable(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(config.parent))


def test_it_plans_selects_and_takes_one_more(config: Path, capsys: pytest.CaptureFixture) -> None:
    folder, arguments = config.parent / "run", ["select-dominance", "--config", str(config)]
    assert main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    # 2 of 10 steps for 2 backbones of 2 β, and the other 8 for 2 backbones; 3 preferences x 4 prompts for each β
    assert "2 candidates (β = 0.6, 0.8), each with 2 backbones for 2 of 10 optimizer steps" in shown
    assert "24 steps, where training all to the end takes 40. 24 answers to validation prompts." in shown
    assert "Still to do: 24 steps, 24 answers." in shown
    assert "the pace of a rollout for each backbone and a batch of answers" in shown
    assert not folder.exists()

    assert main(arguments) == 0
    shown = capsys.readouterr().out
    record = json.loads((folder / "dominance.json").read_text())
    assert f"Next: bonesoup evaluate {folder}/beta-{record['dominance']:g}" in shown
    assert "Hypervolumes are above low" in shown
    manifest = SoupManifest.load(folder / record["soup"])
    assert manifest.weights[0, 0] == record["dominance"]
    assert [backbone.steps for backbone in manifest.backbones] == [10, 10]

    assert main([*arguments, "--dominances", "0.6,0.8,0.9", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "Still to do: 4 steps, 12 answers." in shown
    assert "the pace of the finished parts" in shown
    assert main([*arguments, "--fraction", "0.4"]) == 2
    assert "selection.stop_after: 2 there, 4 now" in capsys.readouterr().err


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture) -> None:
    assert main(["select-dominance", "--model", "m", "--output-dir", "out", "--reward", "brevity"]) == 2
    assert "--prompts, --validation-prompts missing" in capsys.readouterr().err
    arguments = ["--prompts", "p", "--validation-prompts", "v"]
    assert main(["select-dominance", "--model", "m", "--output-dir", "out", "--reward", "brevity", *arguments]) == 2
    assert "--reward is needed at least twice" in capsys.readouterr().err


def test_seek_pauses(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    settings = yaml.safe_load(config.read_text())
    for name in ("validation_prompts", "dominances", "grid"):
        del settings[name]
    (tmp_path / "seek.yml").write_text(yaml.safe_dump({**settings, "output_dir": str(tmp_path / "run")}))
    assert main(["seek", "--config", str(tmp_path / "seek.yml"), "--stop-after", "4"]) == 0
    assert "not trained to the end" in capsys.readouterr().out
    assert sorted(path.parent.name for path in (tmp_path / "run").glob(".training-*/checkpoint-4")) == [
        ".training-high",
        ".training-low",
    ]
