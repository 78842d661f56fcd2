"""`bonesoup seek`: train the backbones and write soup.json."""

from __future__ import annotations

import argparse
import json
from typing import Any

from trl_bonesoup.cli import options
from trl_bonesoup.errors import ConfigurationError

_EPILOG = """\
Any field of MultiRewardPPOConfig can be given with --set, for example
  --set learning_rate=1e-5 --set max_steps=400 --set per_device_train_batch_size=16

as YAML:
  model: org/sft
  reward: [helpful=my_rewards:helpful, harmless=my_rewards:harmless]
  dominance: 0.7
  prompts: prompts.jsonl
  output_dir: run
  set: {learning_rate: 1.0e-5, max_steps: 400}

Run the same command again to continue after an interruption. To share the work between machines
with a common disk, give each one its own --backbone, then run the command without it.
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = options.new_parser(
        subparsers, "seek", run, "Train one backbone per objective and write soup.json.", _EPILOG
    )
    parser.add_argument("--model", metavar="MODEL", required=True, help="model that every backbone starts from")
    options.add_rewards(parser, required=True)
    parser.add_argument(
        "--dominance", type=float, metavar="BETA", default=0.7, help="β of the circulant weights (default 0.7)"
    )
    parser.add_argument(
        "--combination-weights", metavar="JSON", help="a whole matrix B instead, such as [[0.8,0.3],[0.2,0.7]]"
    )
    options.add_prompts(parser, required=True)
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="folder of the run")
    parser.add_argument("--lora-r", type=int, metavar="R", default=16, help="rank of the LoRA adapters (default 16)")
    parser.add_argument("--full", action="store_true", help="train whole models instead of LoRA adapters")
    parser.add_argument(
        "--backbone",
        type=int,
        action=options.Repeat,
        metavar="J",
        help="train only this backbone, from 0; may be repeated",
    )
    parser.add_argument(
        "--set", action=options.Repeat, metavar="NAME=VALUE", default=None, help="a training setting; may be repeated"
    )


def run(arguments: argparse.Namespace) -> None:
    """Train what is missing."""
    rewards, names = options.parse_rewards(arguments.reward)
    settings = training_settings(arguments.set)
    weights = _weights(arguments, len(rewards))
    data = options.prompts_from(arguments)

    from trl_bonesoup.training.config import MultiRewardPPOConfig
    from trl_bonesoup.training.seek import seek

    unknown = set(settings) - set(MultiRewardPPOConfig.__dataclass_fields__)
    if unknown:
        raise ConfigurationError(f"--set: MultiRewardPPOConfig has no field {', '.join(sorted(unknown))}.")
    peft_config = None
    if not arguments.full:
        from peft import LoraConfig

        peft_config = LoraConfig(
            r=arguments.lora_r, lora_alpha=2 * arguments.lora_r, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    manifest = seek(
        arguments.model,
        rewards,
        weights,
        MultiRewardPPOConfig(**{"output_dir": arguments.output_dir, "report_to": "none", **settings}),
        data,
        peft_config=peft_config,
        objective_names=names,
        backbones=arguments.backbone,
    )
    if manifest is None:
        print(f"Backbones are still missing in {arguments.output_dir}; soup.json is written when all are trained.")
    else:
        example = ",".join(f"{name}={1 / len(names):.3g}" for name in names)
        print(f"Wrote {arguments.output_dir}/soup.json. Next: bonesoup merge {arguments.output_dir} out "
              f"--preference {example}")  # fmt: skip


def training_settings(given: Any) -> dict[str, Any]:
    """Return settings from "name=value" texts, or the mapping that YAML made; values are read as YAML."""
    import yaml

    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], dict):
        return dict(given[0])
    settings = {}
    for text in given or []:
        name, separator, value = str(text).partition("=")
        if not separator:
            raise ConfigurationError(f"--set needs NAME=VALUE; got {text!r}.")
        settings[name.strip().replace("-", "_")] = _number_or(yaml.safe_load(value))
    return settings


def _number_or(value: Any) -> Any:
    """Read 1e-5, which YAML takes for text, as a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _weights(arguments: argparse.Namespace, n: int) -> Any:
    from trl_bonesoup.weights import check_combination_weights, circulant_weights

    if arguments.combination_weights is None:
        return circulant_weights(n, arguments.dominance)
    given = arguments.combination_weights
    try:
        matrix = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ConfigurationError(f"--combination-weights is not a JSON matrix: {given!r}.") from error
    return check_combination_weights(matrix)
