"""What front.json records of an evaluation, so that another can be told to be the same."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import trl_bonesoup
from trl_bonesoup.errors import ConfigurationError, FrontError
from trl_bonesoup.front.bootstrap import RESAMPLES
from trl_bonesoup.front.front import Front
from trl_bonesoup.front.policies import Policies
from trl_bonesoup.front.prompts import Prompts
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.rewards.spec import reward_spec

__all__ = ["answers_record", "check_same_front", "differences", "evaluation_record"]


def evaluation_record(
    prompts: Prompts, functions: Mapping[str, Callable[..., Any]], settings: EvaluationSettings
) -> dict[str, Any]:
    """Return what was asked, how, by which software and on which machine."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rewards": {name: reward_spec(function) for name, function in functions.items()},
        "prompts": len(prompts),
        "prompts_sha256": prompts.digest(),
        **_decoding_record(settings),
        "batch_size": settings.batch_size,
        "intervals": f"95 % percentile bootstrap over prompts, {RESAMPLES} resamples",
        "versions": _versions(),
        "machine": _machine(),
    }


def answers_record(
    policies: Policies, prompts: Prompts, texts: Sequence[str], settings: EvaluationSettings
) -> dict[str, Any]:
    """Return all that the answers of an evaluation depend on, besides the policies' own record.

    The batch size is left out: it decides at most how a sum is rounded.
    """
    return {
        "preferences": policies.preferences_KN.tolist(),
        "coefficients": None if policies.coefficients_KN is None else policies.coefficients_KN.tolist(),
        "markers": list(policies.markers),
        "prompts_sha256": prompts.digest(),
        "encoded_prompts_sha256": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        **_decoding_record(settings),
        "versions": _versions(),
    }


def check_same_front(path: str | Path, policies: Policies, provenance: Mapping[str, Any]) -> None:
    """Check that what a finished front at this place was asked for, if there is one, is asked for again.

    Batch size, software and machine may differ, and so may the source of a reward function.

    Args:
        path: of the front.
        policies: what is to be measured now.
        provenance: what would be recorded of it.

    Raises:
        ConfigurationError: naming what differs, or if the file is no front.
    """
    if not Path(path).exists():
        return
    try:
        there = Front.from_json(path)
    except FrontError as error:
        raise ConfigurationError(
            f"{path} is there and would be replaced, but it is no front: {error} Choose another file, or pass "
            "overwrite=True (--overwrite)."
        ) from error
    anyhow = {"created", "batch_size", "intervals", "versions", "machine", "prompts_source"}
    asked = {key: value for key, value in provenance.items() if key not in anyhow}
    now = {
        **asked,
        "objectives": list(asked["rewards"]),
        "preferences": policies.preferences_KN.tolist(),
        "markers": list(policies.markers),
    }
    then = {
        **{key: there.provenance.get(key) for key in asked},
        "objectives": list(there.objectives),
        "preferences": there.preferences_KN.tolist(),
        "markers": list(there.markers),
    }
    if changed := sorted(differences(json.loads(json.dumps(now)), then)):
        raise ConfigurationError(
            f"{path} holds the front of another request; what differs is {', '.join(changed)}. Choose another file, or "
            "pass overwrite=True (--overwrite) to replace it."
        )


def differences(new: Any, old: Any, name: str = "") -> Iterator[str]:
    """Yield where two records in what JSON can hold differ, with both values where they are short."""
    if isinstance(new, dict) and isinstance(old, dict):
        for key in new.keys() | old.keys():
            yield from differences(new.get(key), old.get(key), f"{name}.{key}" if name else key)
    elif new != old:
        short = max(len(str(new)), len(str(old))) <= 40
        yield f"{name} (now {new!r}, then {old!r})" if short else name


def _decoding_record(settings: EvaluationSettings) -> dict[str, Any]:
    return {
        "samples_per_prompt": settings.samples_per_prompt,
        "seed": settings.seed,
        "decoding": {"max_new_tokens": settings.max_new_tokens, "temperature": float(settings.temperature)},
    }


def _versions() -> dict[str, str]:
    return {
        "trl-bonesoup": trl_bonesoup.__version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "numpy")},
        "python": platform.python_version(),
    }


def _machine() -> dict[str, Any]:
    import torch

    return {
        "system": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _processor() -> str:
    """Return what the processor is called, which `platform` does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
