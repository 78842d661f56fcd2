"""What a run of `seek` is about, as JSON: two calls with the same request continue each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_bonesoup.manifest import BaseModelRef
from trl_bonesoup.rewards.spec import reward_spec
from trl_bonesoup.training.config import MultiRewardPPOConfig
from trl_bonesoup.weights import FloatArray

_SETTINGS = (
    "learning_rate",
    "num_iterations",
    "generation_batch_size",
    "max_completion_length",
    "max_steps",
    "num_train_epochs",
    "temperature",
    "kl_coef",
    "kl_target",
    "gamma",
    "lam",
    "vf_coef",
    "epsilon",
    "cliprange_value",
    "seed",
)
"""Settings that soup.json and the cards show, and that must not change between two calls of `seek`."""

_SHOWN_IF_CHANGED = (
    "critic_learning_rate",
    "critic_warmup_steps",
    "detach_critic",
    "entropy_coef",
    "kl_horizon",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_prompt_length",
    "missing_eos_penalty",
    "num_generations",
    "num_mini_batches",
    "optim",
    "score_clip",
    "target_kl",
    "top_k",
    "top_p",
    "warmup_steps",
    "weight_decay",
    "whiten_advantages",
    "whiten_rewards",
)
"""More of them, which would only fill the cards where they are the defaults."""

_ADAPTER_SHOWN = ("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules")
_ADAPTER_IGNORED = ("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision",
                    "inference_mode", "runtime_config")  # fmt: skip
_PROMPTS_READ = 64


def seek_request(
    model: Any,
    reward_funcs: Sequence[Any],
    names: Sequence[str],
    weights: FloatArray | None,
    args: MultiRewardPPOConfig,
    train_dataset: Any,
    peft_config: Any,
    value_model: Any = None,
) -> dict[str, Any]:
    """Return everything by which two runs differ, as JSON; see `seek` for the arguments."""
    name, path = _model_name(model, Path(args.output_dir))
    revision = None if isinstance(model, str) else getattr(model.config, "_commit_hash", None)
    return {
        "base_model": BaseModelRef(id=name, revision=revision).model_dump(exclude_none=True),
        "base_files": None if path is None else _files_digest(path),
        "objectives": list(names),
        "rewards": [reward_spec(func) for func in reward_funcs],
        "scores": {key: getattr(args, f"score_{key}") for key in ("normalization", "mean", "std")},
        "combination_weights": None if weights is None else weights.tolist(),
        "prompts": _prompts_digest(train_dataset),
        "kind": "full" if peft_config is None else "adapter",
        "settings": trainer_settings(args, value_model),
        "adapter": {} if peft_config is None else adapter_settings(peft_config),
    }


def trainer_settings(args: MultiRewardPPOConfig, value_model: Any = None) -> dict[str, Any]:
    """Return the settings of training that a card shows, and what the critic is."""
    chosen = {key: getattr(args, key) for key in _SETTINGS}
    for key in _SHOWN_IF_CHANGED:
        value = getattr(getattr(args, key), "value", getattr(args, key))  # of an enumeration, such as the schedules
        if value != MultiRewardPPOConfig.__dataclass_fields__[key].default:
            chosen[key] = value
    return {**chosen, **_critic(value_model)}


def _critic(value_model: Any) -> dict[str, str]:
    if value_model is None:
        return {}
    if isinstance(value_model, str):
        return {"value_model": value_model}
    if hasattr(value_model, "parameters"):
        return {"value_model": value_model.config._name_or_path or type(value_model).__name__}
    return {"value_model": ", ".join(f"{key} {value}" for key, value in adapter_settings(value_model).items())}


def _model_name(model: Any, folder: Path) -> tuple[str, Path | None]:
    """Name the base model, by its path relative to the run if it lies inside it; with its folder if it is local."""
    name = model if isinstance(model, str) else model.config._name_or_path
    path = Path(name).resolve()
    if not name or not path.is_dir():
        return name or "unknown", None
    inside = path.is_relative_to(folder.resolve())
    return (path.relative_to(folder.resolve()).as_posix() if inside else str(path)), path


def _files_digest(folder: Path) -> str:
    """Fingerprint a model by its config.json and the names and sizes of its weight files, without reading those."""
    config = folder / "config.json"
    digest = hashlib.sha256(config.read_bytes() if config.is_file() else b"")
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def _prompts_digest(dataset: Any) -> dict[str, Any]:
    """Fingerprint a data set by its length, its columns and prompts spread evenly over it."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names"):
        return {"rows": None, "digest": None}
    rows = len(dataset)
    digest = hashlib.sha256(json.dumps(sorted(dataset.column_names)).encode())
    for k in range(min(rows, _PROMPTS_READ)):
        prompt = dataset[k * rows // min(rows, _PROMPTS_READ)].get("prompt")
        digest.update(json.dumps(prompt, sort_keys=True, default=lambda value: type(value).__name__).encode())
    return {"rows": rows, "digest": digest.hexdigest()[:16]}


def adapter_settings(peft_config: Any) -> dict[str, Any]:
    """Return an adapter's settings: the main ones, and others where they differ from PEFT's defaults."""
    defaults, given = type(peft_config)().to_dict(), peft_config.to_dict()
    shown = {
        key: value
        for key, value in given.items()
        if key not in _ADAPTER_IGNORED and value is not None and (key in _ADAPTER_SHOWN or value != defaults.get(key))
    }
    return {f"lora_{key.removeprefix('lora_')}": _plain(value) for key, value in shown.items()}


def _plain(value: Any) -> bool | int | float | str:
    """Return a value as soup.json takes it: sets in one order, structures as text."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (set, frozenset, list, tuple)) and all(isinstance(item, str) for item in value):
        return ", ".join(sorted(value))
    return json.dumps(value, sort_keys=True, default=str)
