"""`bonesoup evaluate`: measure the front of a soup, or of any other models."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from trl_bonesoup.cli import options
from trl_bonesoup.cli.settings_file import Repeat, new_parser
from trl_bonesoup.cli.text_forms import parse_extrapolation, parse_rewards, read_preference
from trl_bonesoup.errors import ConfigurationError

_METHODS = ("soup", "aba", "mod", "mod-coefficients")

_EPILOG = """\
Every preference answers the same prompts with the same random numbers. Without --reward, the
rewards that soup.json records are used where they are the built-in scorers; others are code, which
is run only when it is named here.

An evaluation that was interrupted is continued by the same command. One that is finished is measured
again; a front of other prompts, models, rewards or settings is replaced only with --overwrite.

  bonesoup evaluate run --prompts test.jsonl
  bonesoup evaluate run --prompts test.jsonl --method mod
  bonesoup evaluate --policy runs/a@1,0 --policy runs/b@0.5,0.5 --prompts test.jsonl --reward … --reward …
  bonesoup evaluate --endpoint http://127.0.0.1:8000/v1 --policy mu-1@1,0 --policy mu-2@0.5,0.5 …
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(
        subparsers, "evaluate", run, "Measure rewards over a grid of preferences: of a soup, or of any models.", _EPILOG
    )
    options.add_soup(parser, required=False)
    parser.add_argument(
        "--method",
        choices=_METHODS,
        default="soup",
        help="what to do with the backbones: merge them with λ = B⁻¹μ (soup), merge them with λ = μ (aba), or mix "
        "their logits while decoding with weights μ (mod) or λ (mod-coefficients)",
    )
    _add_policies(parser)
    options.add_prompts(parser, required=True)
    options.add_rewards(parser, required=False)
    options.add_grid(parser)
    parser.add_argument("--out", metavar="FILE", default="front.json", help="where to write the front (front.json)")
    parser.add_argument("--plot", metavar="FILE", help="also draw it: .png, .svg or .pdf")
    parser.add_argument("--samples", metavar="FILE", help="also write every answer: .jsonl or .parquet")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a front of another request, and answers behind another front"
    )
    options.add_answers(parser)


def _add_policies(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        action=Repeat,
        metavar="MODEL@MU",
        help="instead of a soup, one model for each preference: a folder or Hub id of a checkpoint or adapter (or a "
        "name that the endpoint knows), @, and the preference that it is for; may be repeated",
    )
    parser.add_argument("--marker", action=Repeat, metavar="LABEL=MODEL", help="with --policy: a model to compare with")
    parser.add_argument("--endpoint", metavar="URL", help="with --policy: ask this OpenAI-compatible endpoint")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable with the endpoint's key")
    parser.add_argument("--concurrency", type=int, metavar="N", default=8, help="requests under way at once (8)")
    parser.add_argument("--extra-body", metavar="JSON", help='what else requests say, such as {"top_k": -1}')


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, then print the table and the metrics."""
    if (arguments.soup is None) == (not arguments.policy):
        raise ConfigurationError("Give either SOUP or --policy, once for each preference.")
    if arguments.policy is None and (arguments.endpoint or arguments.marker):
        raise ConfigurationError("--endpoint and --marker go with --policy.")
    data = options.prompts_from(arguments)
    policies, rewards, names = (_of_soup if arguments.soup is not None else _of_models)(arguments)
    training = policies.soup.manifest.training if arguments.soup is not None else {}

    from trl_bonesoup.front.evaluate import evaluate_policies

    front = evaluate_policies(
        policies,
        data,
        rewards,
        options.answer_settings(arguments, training),
        objective_names=names,
        front_path=arguments.out,
        samples_path=arguments.samples,
        overwrite=arguments.overwrite,
        prompts_source=_prompts_source(arguments),
    )
    if kept := front.provenance["kept_answers"]:
        print(f"{kept} answers were there from an interrupted evaluation.")
    print(front.table())
    if len(front) > 1:
        print(metrics_text(front))
    if arguments.plot:
        front.plot(arguments.plot)
    print(f"Wrote {', '.join(str(Path(p)) for p in (arguments.out, arguments.plot, arguments.samples) if p)}.")


def metrics_text(front: Any) -> str:
    """Return the six metrics in one line each, with the reference point that the hypervolume is above."""
    reference = front.default_reference()
    lines = [f"{name.replace('_', ' '):>16}  {value:.4g}" for name, value in front.metrics(reference).items()]
    point = ", ".join(f"{name} {value:.4g}" for name, value in zip(front.objectives, reference, strict=True))
    return "\n".join([*lines, f"(hypervolume above {point}; compare fronts only over one shared reference point)"])


def _of_soup(arguments: argparse.Namespace) -> tuple[Any, list[Any], list[str]]:
    source = options.soup_of(arguments)
    preferences = options.parse_grid(arguments, source.manifest)
    extrapolation = parse_extrapolation(arguments.extrapolation)
    if arguments.method.startswith("mod") and extrapolation != 0.0:
        raise ConfigurationError("--extrapolation goes with merging; --method mod mixes logits and has none.")
    rewards, names = parse_rewards(
        arguments.reward or recorded_rewards(source.manifest), source.manifest.objective_names
    )

    import numpy as np

    from trl_bonesoup.front.mixture import MixturePolicies
    from trl_bonesoup.front.soups import SoupPolicies
    from trl_bonesoup.soup.lora import BoneSoup

    soup = BoneSoup.from_source(source, dtype=arguments.dtype, device=arguments.device)
    if arguments.method.startswith("mod"):
        mix_with = "preference" if arguments.method == "mod" else "coefficients"
        return MixturePolicies(soup, preferences, mix_with=mix_with), rewards, names
    weights = np.eye(len(names)) if arguments.method == "aba" else None
    return SoupPolicies(soup, preferences, extrapolation, combination_weights=weights), rewards, names


def _of_models(arguments: argparse.Namespace) -> tuple[Any, list[Any], list[str]]:
    if not arguments.reward:
        raise ConfigurationError("--policy needs --reward, once for each objective, in the order of the preferences.")
    if arguments.method != "soup":
        raise ConfigurationError(f"--method {arguments.method} goes with a soup, not with --policy.")
    rewards, names = parse_rewards(arguments.reward)
    pairs = [_split(text, "@", "MODEL@MU", "--policy") for text in arguments.policy]
    models, preferences = [model for model, _ in pairs], [read_preference(mu) for _, mu in pairs]
    markers = dict(_split(text, "=", "LABEL=MODEL", "--marker") for text in arguments.marker or ())
    if arguments.endpoint is None:
        from trl_bonesoup.front.checkpoints import CheckpointPolicies

        checkpoints = CheckpointPolicies(
            models,
            preferences,
            names,
            markers=markers,
            base_model=arguments.base_model,
            dtype=arguments.dtype,
            device=arguments.device,
        )
        return checkpoints, rewards, names

    from trl_bonesoup.endpoint import Endpoint
    from trl_bonesoup.front.served import TIMEOUT, ServedPolicies

    endpoint = Endpoint(
        arguments.endpoint, api_key_env=arguments.api_key_env, concurrency=arguments.concurrency, timeout=TIMEOUT
    )
    extra_body = _extra_body(arguments.extra_body)
    return ServedPolicies(endpoint, models, preferences, names, markers=markers, extra_body=extra_body), rewards, names


def _split(text: Any, separator: str, form: str, flag: str) -> tuple[str, str]:
    """Split at the last @ (no preference has one), or at the first = (no label should)."""
    first, found, second = str(text).rpartition(separator) if separator == "@" else str(text).partition(separator)
    if not found or not first or not second:
        raise ConfigurationError(f"{flag} has the form {form}; got {text!r}.")
    return first, second


def _extra_body(text: Any) -> dict[str, Any]:
    if text is None or isinstance(text, dict):
        return dict(text or {})
    try:
        body = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"--extra-body must be JSON: {error}; got {text!r}.") from error
    if not isinstance(body, dict):
        raise ConfigurationError(f'--extra-body must be a JSON object such as {{"top_k": -1}}; got {text!r}.')
    return body


def _prompts_source(arguments: argparse.Namespace) -> str:
    parts = [
        str(arguments.prompts),
        f"column {arguments.prompt_column}" if arguments.prompt_column != "prompt" else "",
        f"the first {arguments.limit}" if arguments.limit is not None else "",
        "as user messages" if arguments.chat else "",
    ]
    return ", ".join(part for part in parts if part)


def recorded_rewards(manifest: Any) -> list[str]:
    """Return the rewards of a soup in the form of --reward, if none of them is code that its author brought.

    Raises:
        ConfigurationError: if one is.
    """
    from trl_bonesoup.rewards.spec import BUILT_IN, PUBLIC, can_be_named

    own = {*BUILT_IN, *(f"trl_bonesoup.rewards.public:{name}" for name in PUBLIC)}
    foreign = [objective.reward for objective in manifest.objectives if objective.reward not in own]
    if foreign:
        unnamed = [objective.name for objective in manifest.objectives if not can_be_named(objective.reward)]
        note = f"What it records of {', '.join(unnamed)} has no such name: fill one in. " if unnamed else ""
        flags = shlex.join(word for spec in reward_specs(manifest) for word in ("--reward", spec))
        raise ConfigurationError(
            f"soup.json names the rewards {', '.join(foreign)}, which are code of its author. If you trust it, name "
            f"each as module:attribute. {note}Add: {flags}"
        )
    return reward_specs(manifest)


def reward_specs(manifest: Any) -> list[str]:
    """Return what to give --reward for each objective of a soup, to be filled in where soup.json has no such name."""
    from trl_bonesoup.rewards.spec import can_be_named

    return [
        f"{objective.name}={objective.reward if can_be_named(objective.reward) else 'MODULE:ATTRIBUTE'}"
        for objective in manifest.objectives
    ]
