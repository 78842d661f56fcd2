"""The examples for accelerate cannot rot: every key is one that the installed accelerate, or the trainer, knows."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser

from trl_bonesoup import MultiRewardPPOConfig
from trl_bonesoup.cli.seek import training_settings

FOLDER = Path(__file__).parents[1] / "examples" / "accelerate"
CONFIGS = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_accelerate_knows_every_key(file: Path) -> None:
    config = ClusterConfig.from_yaml_file(str(file))  # refuses unknown keys, but looks into no section
    flags = vars(launch_command_parser().parse_args(["script.py"]))
    for section in (config.fsdp_config, config.deepspeed_config):
        assert set(section or {}) <= set(flags)
    assert config.num_processes >= 2
    kinds = {"ddp": "MULTI_GPU", "ddp_cpu": "MULTI_GPU", "fsdp2": "FSDP"}
    assert config.distributed_type.value == kinds.get(file.stem, "DEEPSPEED")


def test_each_configuration_is_listed_and_says_what_was_run() -> None:
    readme = (FOLDER / "README.md").read_text()
    for file in [*CONFIGS, FOLDER / "vllm.yml"]:
        assert f"[{file.name}]({file.name})" in readme
        comments = [line for line in file.read_text().splitlines() if line.startswith("#")]
        assert any(line.startswith(("# Run:", "# Not run:")) for line in comments)
    assert len(CONFIGS) == 5


def test_zero_stages() -> None:
    stages = [yaml.safe_load((FOLDER / f"deepspeed_zero{n}.yaml").read_text())["deepspeed_config"] for n in (2, 3)]
    assert [stage["zero_stage"] for stage in stages] == [2, 3]
    assert stages[1]["zero3_save_16bit_model"] is True  # else a gathered backbone would be empty


def test_the_settings_for_vllm_fit_together(tmp_path: Path) -> None:
    settings = training_settings([yaml.safe_load((FOLDER / "vllm.yml").read_text())["set"]])
    args = MultiRewardPPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)
    assert args.use_vllm
    assert args.vllm_mode == "colocate"
