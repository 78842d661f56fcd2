"""The examples are valid: their settings exist, and the script trains."""

import runpy
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from tiny import save_tiny

from mergekit_bonesoup.check import check_configuration
from trl_bonesoup import MultiRewardPPOConfig
from trl_bonesoup.cli.seek import training_settings
from trl_bonesoup.cli.text_forms import parse_rewards, read_prompts

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_settings_of_seek_exist() -> None:
    settings = yaml.safe_load((EXAMPLES / "seek.yml").read_text())
    assert parse_rewards(settings["reward"])[1] == ["positivity", "neutrality"]
    assert set(training_settings([settings["set"]])) <= set(MultiRewardPPOConfig.__dataclass_fields__)
    assert len(read_prompts(str(EXAMPLES / "prompts.txt"))) >= settings["set"]["per_device_train_batch_size"]


def test_the_recipe_is_accepted_by_mergekit() -> None:
    recipe = yaml.safe_load((EXAMPLES / "bonesoup.yml").read_text())
    check_configuration(MergeConfiguration.model_validate(recipe))


def test_the_script_trains(tmp_path: Path) -> None:
    script = runpy.run_path(str(EXAMPLES / "one_backbone.py"))
    script["main"](str(save_tiny(tmp_path / "base")), str(tmp_path / "run"), max_steps=4)
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
