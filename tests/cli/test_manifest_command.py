"""`bonesoup manifest`: from models that one has to a soup.json, its presets, and the command that comes next."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from trl_bonesoup import SoupManifest
from trl_bonesoup.cli import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and adapters on it."""
    folder = tmp_path_factory.mktemp("trained")
    base = save_tiny(folder / "sft")
    options = {"friendly": {"r": 4}, "concise": {"r": 8, "use_rslora": True}, "dora": {"use_dora": True}}
    for seed, (name, option) in enumerate(options.items()):
        config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **option)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        torch.manual_seed(seed)
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            parameter.data = 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder / "adapters" / name)
    return folder


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(text: str) -> int:
    return main(shlex.split(text))


def manifest(*names: str, more: str = "", out: str = "soup") -> int:
    backbones = " ".join(f"--backbone {name}=adapters/{name}" for name in names)
    return run(f"manifest {out} {backbones} {more}")


def next_command(out: str) -> str:
    (line,) = [line for line in out.splitlines() if line.startswith("Next: bonesoup ")]
    return line.removeprefix("Next: bonesoup ")


def test_from_two_adapters_to_a_merged_one(work: Path, capsys: pytest.CaptureFixture) -> None:
    assert manifest("friendly", "concise", more="--base-model sft") == 0
    out = capsys.readouterr().out
    assert "friendly: LoRA adapter of rank 4, mixes as it is." in out
    assert "concise: rsLoRA adapter of rank 8, mixes as it is." in out
    assert "rank 12, for which vLLM needs --max-lora-rank 16" in out
    np.testing.assert_array_equal(SoupManifest.load("soup").weights, np.eye(2))
    assert run(next_command(out)) == 0
    assert json.loads((work / "out" / "adapter_config.json").read_text())["r"] == 12


def test_the_base_model_may_be_left_out(work: Path) -> None:
    assert manifest("friendly", "concise") == 0
    base = Path(SoupManifest.load("soup").base_model.id)
    assert base.is_absolute() and base.name == "sft"


def test_every_adapter_that_does_not_mix_and_to_full_as_the_next_command(
    work: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree("adapters/dora", "adapters/also-dora")
    assert manifest("dora", "friendly", "also-dora", more="--base-model sft") == 0
    out = capsys.readouterr().out
    assert out.count("DoRA, whose magnitudes do not add up") == 2
    assert "max-lora-rank" not in out
    assert next_command(out) == "to-full soup soup-full"


def test_a_base_that_the_adapters_do_not_name_stays_in_the_next_command(
    work: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("friendly", "concise"):
        file = work / "adapters" / name / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": f"/{name}/sft"}))
    assert manifest("friendly", "concise", more="--base-model sft") == 0
    out = capsys.readouterr().out
    assert "different base models" in out
    assert "--base-model sft" in next_command(out)
    assert run(next_command(out)) == 0


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("--dominance 0.7", [[0.7, 0.3], [0.3, 0.7]]),
        ("--combination-weights [[0.8,0.3],[0.2,0.7]]", [[0.8, 0.3], [0.2, 0.7]]),
    ],
)
def test_weights_other_than_one_reward_each(work: Path, more: str, expected: list[list[float]]) -> None:
    assert manifest("friendly", "concise", more=more) == 0
    np.testing.assert_allclose(SoupManifest.load("soup").weights, expected)


def test_ranks_that_vllm_does_not_take(work: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("friendly", "concise"):
        config = LoraConfig(target_modules=["q_proj"], r=300)
        get_peft_model(AutoModelForCausalLM.from_pretrained("sft"), config).save_pretrained(f"adapters/{name}")
    assert manifest("friendly", "concise") == 0
    assert "rank 600, more than the 512 that vLLM takes: give merge --rank" in capsys.readouterr().out


def test_settings_from_a_file(work: Path) -> None:
    settings = {
        "soup": "soup",
        "backbone": {"friendly": "adapters/friendly", "concise": "adapters/concise"},
        "combination_weights": [[0.8, 0.3], [0.2, 0.7]],
        "preset": {"blunt": {"concise": 0.9, "friendly": 0.1}, "even": "equal"},
    }
    Path("soup.yml").write_text(yaml.safe_dump(settings))
    assert run("manifest --config soup.yml") == 0
    assert SoupManifest.load("soup").presets == {
        "blunt": {"friendly": 0.1, "concise": 0.9},
        "even": {"friendly": 0.5, "concise": 0.5},
    }


class TestPresets:
    def test_are_added_to_a_soup_and_listed(self, work: Path, capsys: pytest.CaptureFixture) -> None:
        assert manifest("friendly", "concise", more="--preset mild=0.5,0.5") == 0
        assert run("manifest soup --preset cautious=friendly=0.2,concise=0.8 --preset 'very mild=friendly'") == 0
        assert list(SoupManifest.load("soup").presets) == ["mild", "cautious", "very mild"]
        capsys.readouterr()
        assert run("manifest soup") == 0
        out = capsys.readouterr().out
        assert "cautious: friendly=0.2, concise=0.8" in out
        assert "very mild: friendly=1, concise=0" in out
        assert "concise: adapter, ../adapters/concise" in out
        assert run("merge soup out --preference cautious") == 0

    def test_leave_the_rest_of_soup_json_alone(self, work: Path) -> None:
        assert manifest("friendly", "concise", more="--dominance 0.8") == 0
        before = SoupManifest.load("soup")
        assert run("manifest soup/soup.json --preset mild=0.5,0.5") == 0
        assert SoupManifest.load("soup").model_copy(update={"presets": {}}) == before

    def test_the_soups_own_preferences_are_listed_too(self, work: Path, capsys: pytest.CaptureFixture) -> None:
        assert manifest("friendly", "concise") == 0
        capsys.readouterr()
        assert run("manifest soup") == 0
        assert "Presets of every soup: equal, friendly, concise.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("manifest soup", "--backbone NAME=MODEL"),
        ("manifest soup --preset mild=0.5,0.5", "--backbone NAME=MODEL"),
        ("manifest soup --backbone friendly=adapters/friendly", "two backbones or more"),
        ("manifest soup --backbone adapters/friendly", "--backbone needs NAME=MODEL; got 'adapters/friendly'"),
        ("manifest soup --backbone a=sft --backbone a=sft", "--backbone names 'a' twice"),
        ("manifest soup --backbone a=sft --backbone b=", "--backbone needs NAME=MODEL"),
        ("manifest made --base-model sft", "--base-model says of what a new soup is made"),
        ("manifest made --dominance 0.8", "--dominance"),
        ("manifest made --preset mild", "--preset needs NAME=PREFERENCE"),
        ("manifest made --preset mild=0.5,0.6", "sum to 1"),
        ("manifest made --preset mild=concise=0.5,bold=0.5", "bold"),
        ("manifest made --preset friendly=0.5,0.5", "every soup has already"),
        ("manifest made --preset 'Acme, Inc.=0.5,0.5'", "--preference takes"),
        ("manifest made --backbone a=adapters/friendly --backbone b=adapters/concise", "--overwrite"),
        ("manifest soup --backbone a=adapters/friendly --backbone b=adapters/concise --dominance 0.4", "0.4"),
        ("manifest soup --backbone a=adapters/friendly --backbone b=adapters/concise --combination-weights x", "JSON"),
    ],
)
def test_mistakes_end_in_one_line(work: Path, arguments: str, message: str, capsys: pytest.CaptureFixture) -> None:
    assert manifest("friendly", "concise", out="made") == 0
    before = (work / "made" / "soup.json").read_bytes()
    capsys.readouterr()
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (work / "soup").exists()
    assert (work / "made" / "soup.json").read_bytes() == before


def test_a_folder_of_adapters_given_as_a_soup_leads_here(work: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("merge adapters out --preference equal") == 2
    assert "`bonesoup manifest` writes one: docs/soups.md" in capsys.readouterr().err


def test_it_explains_itself(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["manifest", "--help"])
    assert stop.value.code == 0
    assert "--config FILE" in capsys.readouterr().out


def test_home_is_found(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave the tilde after a = alone."""
    monkeypatch.setenv("HOME", str(work))
    assert run("manifest soup --backbone a=~/adapters/friendly --backbone b=~/adapters/concise --base-model ~/sft") == 0
