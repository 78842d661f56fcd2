"""`bonesoup seek`: train the backbones and write soup.json."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_bonesoup.cli import options
from trl_bonesoup.cli.evaluate import recorded_rewards, reward_specs
from trl_bonesoup.cli.settings_file import Repeat, new_parser
from trl_bonesoup.cli.text_forms import parse_rewards
from trl_bonesoup.errors import BoneSoupError, ConfigurationError
from trl_bonesoup.manifest import SoupManifest

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

Run the same command again to continue after an interruption: finished backbones are kept, and one
that was interrupted continues from its last checkpoint (--set save_strategy=steps --set save_steps=50).

To share the work between machines, give each one its own --backbone. With a common disk, run the
command without it afterwards, and soup.json is written. Without one, all machines need the scale of
the scores that the first measures: when its seek.json holds "statistics", copy that file into the
--output-dir of the others, start them, and at the end collect what all of them trained:
  bonesoup seek --gather machine0/run machine1/run --output-dir run
"""

_TOO_MANY_CUT_OFF = 0.9
"""Share of the answers in a backbone's last rollouts."""

_NEEDED = ("model", "reward", "prompts")


class _Add(Repeat):
    """Collects training settings: flags come after, and so win over, those of a settings file."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Add one setting."""
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), values])


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(subparsers, "seek", run, "Train one backbone per objective and write soup.json.", _EPILOG)
    add_training(parser)
    parser.add_argument(
        "--dominance", type=float, metavar="BETA", default=0.7, help="β of the circulant weights (default 0.7)"
    )
    parser.add_argument(
        "--combination-weights", metavar="JSON", help="a whole matrix B instead, such as [[0.8,0.3],[0.2,0.7]]"
    )
    parser.add_argument(
        "--stop-after",
        type=int,
        metavar="STEP",
        help="pause every backbone at this optimizer step, a multiple of those of one rollout; the same command "
        "without it continues",
    )
    parser.add_argument(
        "--backbone",
        type=int,
        action=Repeat,
        metavar="J",
        help="train only this backbone, from 0; may be repeated",
    )
    parser.add_argument(
        "--gather",
        nargs="+",
        metavar="DIR",
        help="train nothing: copy the backbones that are finished in these folders into --output-dir, write soup.json",
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add what every training of backbones needs: model, rewards, prompts, folder, adapter and settings."""
    parser.add_argument("--model", metavar="MODEL", help="model that every backbone starts from")
    options.add_rewards(parser, required=False)
    options.add_prompts(parser, required=False)
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="folder of the run")
    parser.add_argument("--lora-r", type=int, metavar="R", default=16, help="rank of the LoRA adapters (default 16)")
    parser.add_argument("--lora-alpha", type=int, metavar="A", help="their scale is A/R (default twice the rank)")
    parser.add_argument(
        "--lora-dropout", type=float, metavar="P", default=0.0, help="dropout in front of the adapters (default 0)"
    )
    parser.add_argument(
        "--lora-target-modules",
        action=Repeat,
        metavar="NAME",
        help="adapt the modules of this name, such as q_proj (default all linear layers); may be repeated",
    )
    parser.add_argument("--full", action="store_true", help="train whole models instead of LoRA adapters")
    parser.add_argument(
        "--set", action=_Add, metavar="NAME=VALUE", default=None, help="a training setting; may be repeated"
    )


def run(arguments: argparse.Namespace) -> None:
    """Train what is missing, or gather what other machines trained."""
    if arguments.gather:
        _gather(arguments)
        return
    missing = [f"--{name}" for name in _NEEDED if not getattr(arguments, name)]
    if missing:
        raise ConfigurationError(
            f"{', '.join(missing)} missing: give it as a flag or in the --config file, or name folders to --gather."
        )
    rewards, names = rewards_of(arguments)
    weights = combination_weights(arguments, len(rewards))
    data = options.prompts_from(arguments)
    args = training_args(arguments)

    from trl_bonesoup.training.run import Run
    from trl_bonesoup.training.seek import seek

    before = Run.is_complete(Path(arguments.output_dir))
    manifest = seek(
        arguments.model,
        rewards,
        weights,
        args,
        data,
        peft_config=adapter_config(arguments),
        objective_names=names,
        backbones=arguments.backbone,
        stop_after=arguments.stop_after,
    )
    if args.process_index == 0:
        _say(arguments, manifest, trained=not before)


def _gather(arguments: argparse.Namespace) -> None:
    given = [f"--{name}" for name in (*_NEEDED, "backbone", "set") if getattr(arguments, name)]
    if given:
        raise ConfigurationError(f"--gather trains nothing and does not go with {', '.join(given)}; leave them out.")
    from trl_bonesoup.training.gather import gather

    folders = [arguments.gather] if isinstance(arguments.gather, str) else arguments.gather  # one, in YAML
    _say(arguments, gather(folders, arguments.output_dir))


def rewards_of(arguments: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """Return the reward functions and the names of the objectives that `add_training`'s options ask for."""
    rewards, names = parse_rewards(arguments.reward)
    if len(names) < 2:
        raise ConfigurationError(
            f"--reward is needed at least twice, once for each objective to balance; got {names[0]} alone."
        )
    return rewards, names


def _say(arguments: argparse.Namespace, manifest: SoupManifest | None, *, trained: bool = True) -> None:
    folder = arguments.output_dir
    if manifest is None:
        print(f"Backbones in {folder} are missing or not trained to the end; soup.json is written when all are.")
        return
    if trained:
        print(f"Wrote {folder}/soup.json. Next:")
    else:
        count = len(manifest.backbones)
        print(f"All {count} backbones in {folder} were finished already: nothing was trained. Next:")
    _warn_of_cut_off_answers(folder)
    names = manifest.objective_names
    example = ",".join(f"{name}={1 / len(names):.3g}" for name in names)
    for words in (
        ["plot", folder, "curves.png", "--kind", "training"],
        ["evaluate", folder, "--prompts", "TEST", *_rewards_to_name(manifest, arguments.reward)],
        ["merge", folder, "out", "--preference", example],
    ):
        print(f"  bonesoup {shlex.join(words)}")


def _warn_of_cut_off_answers(folder: str) -> None:
    from trl_bonesoup.training.run import Run, cut_off

    shares = {name: share for name, share in cut_off(Run.load(Path(folder))).items() if share > _TOO_MANY_CUT_OFF}
    if shares:
        found = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        print(
            "bonesoup: warning: nearly all answers of the last rollouts were cut off at max_completion_length "
            f"({found}), so that unfinished texts were scored. Raise --set max_completion_length=, see that prompts "
            "have the form after which the model ends its answers (--chat for an instruct model), or take something "
            "off the score of what is cut off (--set missing_eos_penalty=1).",
            file=sys.stderr,
        )


def _rewards_to_name(manifest: SoupManifest, given: Sequence[str] | None) -> list[str]:
    """Return the --reward flags that `bonesoup evaluate` needs for a soup."""
    try:
        recorded_rewards(manifest)
    except ConfigurationError:
        return [word for spec in given or reward_specs(manifest) for word in ("--reward", str(spec))]
    return []


def training_args(arguments: argparse.Namespace) -> Any:
    """Return the settings of `add_training`'s --set as a `MultiRewardPPOConfig`."""
    settings = training_settings(arguments.set)

    from trl_bonesoup.training.config import MultiRewardPPOConfig

    unknown = set(settings) - set(MultiRewardPPOConfig.__dataclass_fields__)
    if unknown:
        raise ConfigurationError(f"--set: MultiRewardPPOConfig has no field {', '.join(sorted(unknown))}.")
    try:
        return MultiRewardPPOConfig(**{"output_dir": arguments.output_dir, "report_to": "none", **settings})
    except BoneSoupError:
        raise
    except (TypeError, ValueError) as error:
        switches = [name for name, value in settings.items() if isinstance(value, bool)]
        hint = f" YAML reads no and off as false: put quotes around a text ({', '.join(switches)})." if switches else ""
        raise ConfigurationError(f"--set: {error}.{hint}") from error


def adapter_config(arguments: argparse.Namespace) -> Any:
    """Return the LoRA configuration of `add_training`'s options, or `None` for full models."""
    if arguments.full:
        return None
    from peft import LoraConfig

    alpha = 2 * arguments.lora_r if arguments.lora_alpha is None else arguments.lora_alpha
    return LoraConfig(
        r=arguments.lora_r,
        lora_alpha=alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=arguments.lora_target_modules or "all-linear",
        task_type="CAUSAL_LM",
    )


def training_settings(given: Any) -> dict[str, Any]:
    """Return settings from "name=value" texts and mappings that YAML made, later ones winning; values are YAML."""
    import yaml

    settings: dict[str, Any] = {}
    for part in given or []:
        if isinstance(part, dict):
            settings.update({name: _number_or(value) for name, value in part.items()})
            continue
        name, separator, value = str(part).partition("=")
        if not separator:
            raise ConfigurationError(f"--set needs NAME=VALUE; got {part!r}.")
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


def combination_weights(arguments: argparse.Namespace, n: int) -> Any:
    """Return B of shape (N, N) from --dominance or --combination-weights."""
    from trl_bonesoup.weights import check_combination_weights, circulant_weights

    if arguments.combination_weights is None:
        return circulant_weights(n, arguments.dominance)
    given = arguments.combination_weights
    try:
        matrix = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ConfigurationError(f"--combination-weights is not a JSON matrix: {given!r}.") from error
    return check_combination_weights(matrix)
