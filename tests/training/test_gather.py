"""gather: backbones from machines without a common disk become one soup, or nothing is touched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from peft import LoraConfig
from tiny import count_word

from trl_bonesoup import BoneSoup, SoupManifest, circulant_weights, seek
from trl_bonesoup.cli import main
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.training.gather import gather

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
REWARDS = [count_word("w5"), count_word("w7")]
SLUGS = ["says_w5", "says_w7"]


@pytest.fixture(scope="module")
def trained(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two machines, each with its own copy of the base and one backbone; b took over the scale of a."""
    from trl_bonesoup import MultiRewardPPOConfig

    root = tmp_path_factory.mktemp("machines")
    for machine, j in (("a", 0), ("b", 1)):
        shutil.copytree(base, root / machine / "sft")
        if machine == "b":
            (root / "b" / "run").mkdir()
            shutil.copy(root / "a" / "run" / "seek.json", root / "b" / "run" / "seek.json")
        args = MultiRewardPPOConfig(
            output_dir=str(root / machine / "run"),
            per_device_train_batch_size=8,
            num_iterations=1,
            max_completion_length=4,
            max_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        prompts = Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(16)]})
        model = str(root / machine / "sft")
        weights = circulant_weights(2, 0.7)
        assert seek(model, REWARDS, weights, args, prompts, peft_config=LORA, backbones=[j]) is None
    return root


@pytest.fixture
def machines(trained: Path, tmp_path: Path) -> Path:
    """A copy to spoil. The bases stay where they were recorded."""
    for machine in "ab":
        shutil.copytree(trained / machine / "run", tmp_path / machine)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((folder / "seek.json").read_text())
    edit(record)
    (folder / "seek.json").write_text(json.dumps(record))


def test_two_machines_make_one_soup(machines: Path, trained: Path) -> None:
    before = {machine: contents(machines / machine) for machine in "ab"}
    manifest = gather([machines / "b", machines / "a"], machines / "soup")
    assert manifest == SoupManifest.load(machines / "soup")
    assert [backbone.path for backbone in manifest.backbones] == SLUGS
    assert [backbone.steps for backbone in manifest.backbones] == [1, 1]
    assert manifest.base_model.id == str(trained / "b" / "sft")
    recorded = json.loads((machines / "a" / "seek.json").read_text())["statistics"]
    assert [objective.normalization.model_dump() for objective in manifest.objectives] == recorded
    found = contents(machines / "soup")
    for machine, slug in zip("ab", SLUGS, strict=True):
        for name, data in before[machine].items():
            if name.endswith("adapter_config.json"):  # the base is where this machine has it
                config = json.loads(data)
                assert config.pop("base_model_name_or_path") == str(trained / machine / "sft")
                copied = json.loads(found.pop(name))
                assert copied.pop("base_model_name_or_path") == str(trained / "b" / "sft")
                assert copied == config
            elif name != "seek.json":
                assert slug in name
                assert found.pop(name) == data
    assert set(found) == {"seek.json", "soup.json"}
    assert {machine: contents(machines / machine) for machine in "ab"} == before
    BoneSoup.from_pretrained(machines / "soup").set_preference([0.5, 0.5])


def test_a_second_call_changes_nothing(machines: Path) -> None:
    folders = [machines / "a", machines / "b", machines / "b"]
    manifest = gather(folders, machines / "soup")
    before = contents(machines / "soup")
    assert gather(folders, machines / "soup") == manifest
    assert contents(machines / "soup") == before


def test_an_interrupted_gathering_continues(machines: Path) -> None:
    gather([machines / "a", machines / "b"], machines / "soup")
    expected = contents(machines / "soup")
    shutil.rmtree(machines / "soup" / SLUGS[1])
    (machines / "soup" / ".gathering-says_w7").mkdir()
    (machines / "soup" / ".gathering-says_w7" / "half").write_text("half")
    (machines / "soup" / "soup.json").unlink()
    gather([machines / "a", machines / "b"], machines / "soup")
    assert contents(machines / "soup") == expected


def test_one_of_the_folders_may_take_the_others(machines: Path, trained: Path) -> None:
    manifest = gather([machines / "b"], machines / "a")
    assert manifest.base_model.id == str(trained / "a" / "sft")
    assert {"says_w5", "says_w7", "logs", "seek.json", "soup.json"} == {p.name for p in (machines / "a").iterdir()}


def test_seek_continues_a_gathered_run(machines: Path, trained: Path, prompts: Dataset) -> None:
    """The record in the gathered folder is one that `seek` with the same settings takes for its own."""
    from trl_bonesoup.training.run import Run

    gather([machines / "a", machines / "b"], machines / "soup")
    request = json.loads((machines / "b" / "seek.json").read_text())["request"]
    assert Run.open(machines / "soup", request).finish() is not None


def test_a_base_that_is_only_elsewhere_keeps_its_name(machines: Path) -> None:
    def rename(record: dict[str, Any]) -> None:
        record["request"]["base_model"]["id"] = "/on/another/machine"

    for machine in "ab":
        change(machines / machine, rename)
    assert gather([machines / "a", machines / "b"], machines / "soup").base_model.id == "/on/another/machine"


def setting(record: dict[str, Any]) -> None:
    record["request"]["settings"]["learning_rate"] = 0.5


def other_base(record: dict[str, Any]) -> None:
    record["request"]["base_files"] = "0123456789abcdef"


def other_prompts(record: dict[str, Any]) -> None:
    record["request"]["prompts"]["digest"] = "0123456789abcdef"


def scale(record: dict[str, Any]) -> None:
    record["statistics"][1]["mean"] += 1.0


def no_scale(record: dict[str, Any]) -> None:
    record["statistics"] = None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (setting, r"settings.learning_rate: 1e-05 in .*/a, 0.5 in .*/b"),
        (other_base, r"base_files: .* in .*/b"),
        (other_prompts, r"prompts.digest: .* in .*/b"),
        (scale, r"different scales of the scores.*Copy seek.json of the machine that starts first"),
        (no_scale, r"different scales of the scores.*none measured"),
    ],
)
def test_runs_that_do_not_belong_together(machines: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    change(machines / "b", edit)
    with pytest.raises(ConfigurationError, match=message):
        gather([machines / "a", machines / "b"], machines / "soup")
    assert not (machines / "soup").exists()


def missing(machines: Path) -> None:
    shutil.rmtree(machines / "b" / "says_w7")


def two_versions(machines: Path) -> None:
    shutil.copytree(machines / "a" / "says_w5", machines / "b" / "says_w5")
    shutil.copy(machines / "a" / "logs" / "says_w5.json", machines / "b" / "logs")
    weights = machines / "b" / "says_w5" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")


def two_scales(machines: Path) -> None:
    two_versions(machines)
    shutil.copytree(machines / "a" / "says_w5", machines / "b" / "says_w5", dirs_exist_ok=True)
    config = machines / "b" / "says_w5" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))


def no_log(machines: Path) -> None:
    (machines / "b" / "logs" / "says_w7.json").unlink()


def no_record(machines: Path) -> None:
    (machines / "b" / "seek.json").unlink()


def broken_record(machines: Path) -> None:
    (machines / "b" / "seek.json").write_text("{")


def newer_record(machines: Path) -> None:
    change(machines / "b", lambda record: record.update(format_version=2))


def occupied(machines: Path) -> None:
    (machines / "soup").mkdir()
    (machines / "soup" / "thesis.txt").write_text("mine")


def another_run(machines: Path) -> None:
    shutil.copytree(machines / "a", machines / "soup")
    change(machines / "soup", setting)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, r"finished backbone 1 \(says_w7\).*--backbone j"),
        (two_versions, "different versions of backbone 0"),
        (two_scales, "different versions of backbone 0"),
        (no_log, r"says_w7.json is missing; copy the whole folder"),
        (no_record, "it has no seek.json"),
        (broken_record, "seek.json is not valid JSON"),
        (newer_record, "seek.json has format version 2"),
        (occupied, "is not empty and holds no run"),
        (another_run, "different runs .settings.learning_rate: 0.5 in .*soup, 1e-05 in .*a"),
    ],
)
def test_refused_before_anything_is_touched(machines: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(machines)
    before = contents(machines)
    with pytest.raises(ConfigurationError, match=message):
        gather([machines / "a", machines / "b"], machines / "soup")
    assert contents(machines) == before


def test_nothing_to_gather() -> None:
    with pytest.raises(ConfigurationError, match="name the folders"):
        gather([], "soup")


def test_the_command(machines: Path, capsys: pytest.CaptureFixture) -> None:
    folders = [str(machines / machine) for machine in "ab"]
    assert main(["seek", "--gather", *folders, "--output-dir", str(machines / "soup")]) == 0
    assert "  bonesoup merge" in capsys.readouterr().out
    assert main(["seek", "--gather", *folders, "--output-dir", str(machines / "soup"), "--model", "m"]) == 2
    assert "--gather trains nothing and does not go with --model" in capsys.readouterr().err
    assert main(["seek", "--output-dir", str(machines / "soup"), "--prompts", "p"]) == 2
    assert "--model, --reward missing" in capsys.readouterr().err
