"""Seeking: train every backbone from one base, in one process, and write soup.json.

The folder of a run holds `seek.json` (what was asked for, and the scale of the scores), one folder
per finished backbone, `logs/`, and at the end `soup.json`. A second call with the same settings
continues where the first stopped, backbone by backbone.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from trl_bonesoup import __version__
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import Backbone, BaseModelRef, Objective, ScoreStatistics, SoupManifest
from trl_bonesoup.rewards.normalization import score_correlation, score_statistics
from trl_bonesoup.rewards.protocol import objective_names as distinct_names
from trl_bonesoup.rewards.spec import reward_spec
from trl_bonesoup.training.config import MultiRewardPPOConfig
from trl_bonesoup.weights import FloatArray, check_combination_weights

logger = logging.getLogger(__name__)

_RECORD = "seek.json"
_LIBRARIES = ("trl", "transformers", "peft", "torch", "datasets", "accelerate")
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


def seek(
    model: Any,
    reward_funcs: Sequence[Any],
    combination_weights: ArrayLike,
    args: MultiRewardPPOConfig,
    train_dataset: Any,
    *,
    peft_config: Any = None,
    objective_names: Sequence[str] | None = None,
    processing_class: Any = None,
    reward_processing_classes: Any = None,
    callbacks: list | None = None,
    backbones: Sequence[int] | None = None,
    calibration_samples: int = 64,
) -> SoupManifest | None:
    """Train the N backbones of a soup, one after the other, and write `args.output_dir`/soup.json.

    The base model and the reward models are loaded once. Unless `args.score_normalization` is
    "none" or "fixed", the base model is sampled first and the mean and standard deviation of each
    objective's scores are fixed for all backbones, so that column j of B mixes the same units in
    every one of them.

    Args:
        model: Hub id, path or model that every backbone starts from.
        reward_funcs: one per objective, as for `MultiRewardPPOTrainer`.
        combination_weights: B of shape (N, N), such as `circulant_weights(N, beta)`.
        args: settings of each backbone's training. `output_dir` is the folder of the run.
        train_dataset: prompts, with a column "prompt".
        peft_config: a LoRA configuration, or `None` to train full models.
        objective_names: distinct names; by default those of the reward functions.
        processing_class, reward_processing_classes, callbacks: as for the trainer.
        backbones: indices to train now; `None` trains all. With a subset, several machines can
            share the work, and the call that finds all of them finished writes soup.json.
        calibration_samples: completions of the base model from which the scale of the scores is
            measured.

    Returns:
        The manifest, or `None` while backbones are missing.

    Raises:
        ConfigurationError, WeightsError: before any model is loaded, if the inputs do not fit
            together or the folder holds another run.

    Source: Bone Soups, Section 3.2 and Algorithm 1.
    """
    reward_funcs = list(reward_funcs)
    names = distinct_names(reward_funcs, objective_names)
    weights = check_combination_weights(combination_weights)
    if len(weights) != len(names):
        raise ConfigurationError(f"combination_weights has {len(weights)} rows for {len(names)} reward functions.")
    wanted = _wanted(backbones, len(names))
    run = _Run.open(Path(args.output_dir), _request(model, reward_funcs, names, weights, args, peft_config))
    base = model
    for j in wanted:
        if run.is_finished(j):
            logger.info("Backbone %d (%s) is finished already.", j, run.slugs[j])
            continue
        base = _load(base, args)
        processing_class = processing_class or _tokenizer(base)
        base = _train_backbone(
            run,
            j,
            base,
            args,
            calibration_samples,
            reward_funcs=reward_funcs,
            combination_weights=weights,
            objective_names=names,
            train_dataset=train_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            peft_config=peft_config,
        )
    return run.finish()


@dataclass
class _Run:
    """The folder of one run: what was asked for, what is finished, and the scale of the scores."""

    folder: Path
    request: dict[str, Any]
    statistics: list[ScoreStatistics] | None
    correlation: list[list[float]] | None
    slugs: list[str]

    @classmethod
    def open(cls, folder: Path, request: dict[str, Any]) -> _Run:
        """Start a run in `folder`, or continue the one that is there.

        Raises:
            ConfigurationError: if the folder holds a run with other settings.
        """
        statistics = correlation = None
        record = folder / _RECORD
        if record.exists():
            saved = json.loads(record.read_text(encoding="utf-8"))
            if saved["request"] != request:
                differences = [
                    f"{key}: {saved['request'].get(key)!r} there, {request.get(key)!r} now"
                    for key in sorted({*saved["request"], *request})
                    if saved["request"].get(key) != request.get(key)
                ]
                raise ConfigurationError(
                    f"{folder} holds a run with other settings ({'; '.join(differences)}). Choose another output_dir, "
                    "or repeat the settings to continue it."
                )
            if saved["statistics"] is not None:
                statistics = [ScoreStatistics(**entry) for entry in saved["statistics"]]
                correlation = saved["correlation"]
        run = cls(folder, request, statistics, correlation, _slugs(request["objectives"]))
        run.save()
        return run

    def set_scale(self, scores: FloatArray) -> list[ScoreStatistics]:
        """Record and return the scale of the scores, from samples of the base model, (K, N)."""
        self.statistics = score_statistics(scores)
        self.correlation = score_correlation(scores)
        self.save()
        return self.statistics

    def save(self) -> None:
        """Write seek.json, completely or not at all."""
        statistics = None if self.statistics is None else [entry.model_dump() for entry in self.statistics]
        record = {"request": self.request, "statistics": statistics, "correlation": self.correlation}
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{_RECORD}"
        beside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        beside.replace(self.folder / _RECORD)

    def backbone_folder(self, j: int) -> Path:
        """Where backbone j appears when it is finished."""
        return self.folder / self.slugs[j]

    def is_finished(self, j: int) -> bool:
        """Whether backbone j is complete: its folder is renamed into place as the last thing."""
        return (self.backbone_folder(j) / "config.json").exists() or (
            self.backbone_folder(j) / "adapter_config.json"
        ).exists()

    def log_file(self, j: int) -> Path:
        """Where the training log of backbone j is kept."""
        return self.folder / "logs" / f"{self.slugs[j]}.json"

    def finish(self) -> SoupManifest | None:
        """Write soup.json if every backbone is finished."""
        missing = [self.slugs[j] for j in range(len(self.slugs)) if not self.is_finished(j)]
        if missing:
            logger.info("Still to train before soup.json can be written: %s.", ", ".join(missing))
            return None
        request = self.request
        statistics: Sequence[ScoreStatistics | None] = self.statistics or [None] * len(self.slugs)
        manifest = SoupManifest(
            base_model=BaseModelRef(**request["base_model"]),
            objectives=tuple(
                Objective(name=name, reward=spec, normalization=scale)
                for name, spec, scale in zip(request["objectives"], request["rewards"], statistics, strict=True)
            ),
            combination_weights=request["combination_weights"],
            backbones=tuple(
                Backbone(
                    path=slug,
                    kind=request["kind"],
                    steps=json.loads(self.log_file(j).read_text(encoding="utf-8"))["steps"],
                    seed=request["settings"]["seed"],
                )
                for j, slug in enumerate(self.slugs)
            ),
            training={**request["settings"], **request["adapter"]},
            versions={"trl-bonesoup": __version__, **{name: version(name) for name in _LIBRARIES}},
        )
        manifest.save(self.folder)
        return manifest


def _train_backbone(
    run: _Run, j: int, base: Any, args: MultiRewardPPOConfig, calibration_samples: int, **trainer_kwargs: Any
) -> Any:
    """Train backbone j into its folder and return the base model as it was before."""
    from transformers import ProgressCallback

    from trl_bonesoup.training.progress import RolloutProgress
    from trl_bonesoup.training.trainer import MultiRewardPPOTrainer

    full = trainer_kwargs["peft_config"] is None
    initial = {key: value.detach().clone() for key, value in base.state_dict().items()} if full else None
    work = run.folder / f".training-{run.slugs[j]}"
    trainer = MultiRewardPPOTrainer(
        model=base, backbone=j, args=_backbone_args(args, work, run.statistics), **trainer_kwargs
    )
    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        label = f"backbone {j + 1}/{len(run.slugs)} ({run.slugs[j]})"
        trainer.add_callback(RolloutProgress(label, trainer_kwargs["objective_names"], args.steps_per_rollout))
    if run.statistics is None and args.score_normalization == "running":
        trainer.fix_scores(run.set_scale(trainer.measure_scores(calibration_samples)))
    trainer.train()
    _save_backbone(trainer, work, run, j)
    restored = trainer.accelerator.unwrap_model(trainer.model)
    if not full:
        restored = restored.unload()
    else:
        restored.load_state_dict(initial)
    restored.__dict__.pop("forward", None)  # GRPOTrainer's fused head, bound to this trainer's temperature
    del trainer
    gc.collect()
    return restored


def _save_backbone(trainer: Any, work: Path, run: _Run, j: int) -> None:
    """Write the policy alone (no critic, no optimizer) beside its folder, then rename it into place."""
    beside = work / "finished"
    policy = trainer.accelerator.unwrap_model(trainer.model)
    weights = trainer.accelerator.get_state_dict(trainer.model)  # all processes: sharded weights are gathered
    if trainer.accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
        policy.save_pretrained(beside, state_dict=weights)
        (beside / "README.md").unlink(missing_ok=True)  # PEFT's empty card; ours is written on push
        if run.request["kind"] == "full":
            trainer.processing_class.save_pretrained(beside)
        run.log_file(j).parent.mkdir(parents=True, exist_ok=True)
        run.log_file(j).write_text(
            json.dumps({"steps": trainer.state.global_step, "log": trainer.state.log_history}, indent=1) + "\n",
            encoding="utf-8",
        )
        beside.replace(run.backbone_folder(j))
        shutil.rmtree(work)
    trainer.accelerator.wait_for_everyone()


def _backbone_args(
    args: MultiRewardPPOConfig, folder: Path, statistics: list[ScoreStatistics] | None
) -> MultiRewardPPOConfig:
    result = copy.copy(args)
    result.output_dir = str(folder)
    result.push_to_hub = False
    if statistics is not None and args.score_normalization == "running":
        result.score_normalization = "fixed"
        result.score_mean = [entry.mean for entry in statistics]
        result.score_std = [entry.std for entry in statistics]
    return result


def _request(
    model: Any, reward_funcs: list, names: tuple[str, ...], weights: Any, args: MultiRewardPPOConfig, peft_config: Any
) -> dict[str, Any]:
    """What a run is about, as JSON: two calls with the same request continue each other."""
    adapter = {}
    if peft_config is not None:
        chosen = {key: getattr(peft_config, key, None) for key in ("r", "lora_alpha", "lora_dropout", "use_rslora")}
        adapter = {f"lora_{key.removeprefix('lora_')}": value for key, value in chosen.items() if value is not None}
    return {
        "base_model": _base_reference(model, Path(args.output_dir)).model_dump(exclude_none=True),
        "objectives": list(names),
        "rewards": [reward_spec(func) for func in reward_funcs],
        "combination_weights": weights.tolist(),
        "kind": "full" if peft_config is None else "adapter",
        "settings": {key: getattr(args, key) for key in _SETTINGS},
        "adapter": adapter,
    }


def _base_reference(model: Any, folder: Path) -> BaseModelRef:
    """Name the base model: by its path relative to the run if it lies inside it, else as it was given."""
    name = model if isinstance(model, str) else model.config._name_or_path
    revision = None if isinstance(model, str) else getattr(model.config, "_commit_hash", None)
    path = Path(name)
    if path.is_dir():
        inside = path.resolve().is_relative_to(folder.resolve())
        name = path.resolve().relative_to(folder.resolve()).as_posix() if inside else str(path.resolve())
    return BaseModelRef(id=name or "unknown", revision=revision)


def _wanted(backbones: Sequence[int] | None, n: int) -> list[int]:
    wanted = list(range(n)) if backbones is None else list(backbones)
    for j in wanted:
        if isinstance(j, bool) or not isinstance(j, int) or not 0 <= j < n:
            raise ConfigurationError(f"backbones must be indices from 0 to {n - 1}; got {wanted}.")
    return wanted


def _slugs(names: Sequence[str]) -> list[str]:
    """Return one distinct folder name per objective."""
    slugs: list[str] = []
    for j, name in enumerate(names):
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:60] or f"backbone-{j}"
        slugs.append(f"{slug}-{j}" if slug in slugs or slug in ("base", "logs") else slug)
    return slugs


def _load(model: Any, args: MultiRewardPPOConfig) -> Any:
    if not isinstance(model, str):
        return model
    from trl.trainer.utils import create_model_from_path

    settings = dict(args.model_init_kwargs or {})
    settings.setdefault("trust_remote_code", args.trust_remote_code)
    return create_model_from_path(model, **settings)


def _tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        model.config._name_or_path,
        revision=getattr(model.config, "_commit_hash", None),
        padding_side="left",
        truncation_side="left",
        trust_remote_code=False,
    )
