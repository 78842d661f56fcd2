"""Seeking: train every backbone from one base, one after the other, and write soup.json.

The folder of a run holds `seek.json` (what was asked for, and the scale of the scores), one folder
per finished backbone, `logs/`, and at the end `soup.json`. A second call with the same settings
continues where the first stopped: with the next backbone, or from the last checkpoint of one that
was interrupted.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import ScoreStatistics, SoupManifest
from trl_bonesoup.rewards.protocol import objective_names as distinct_names
from trl_bonesoup.training.config import MultiRewardPPOConfig
from trl_bonesoup.training.request import seek_request
from trl_bonesoup.training.run import Run, on_main_process
from trl_bonesoup.weights import FloatArray, check_combination_weights

logger = logging.getLogger(__name__)


def seek(
    model: Any,
    reward_funcs: Sequence[Any],
    combination_weights: ArrayLike,
    args: MultiRewardPPOConfig,
    train_dataset: Any,
    *,
    peft_config: Any = None,
    value_model: Any = None,
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
        value_model: the critic, as for `MultiRewardPPOTrainer`, but no model that is loaded already:
            every backbone starts with the same one.
        objective_names: distinct names; by default those of the reward functions.
        processing_class, reward_processing_classes, callbacks: as for the trainer.
        backbones: indices to train now; `None` trains all. With a subset, several machines can
            share the work: on a common disk, the call that finds all of them finished writes
            soup.json; without one, `gather` collects them.
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
    _check_models(model, value_model, args)
    state, folder = args.distributed_state, Path(args.output_dir)
    run = on_main_process(
        state,
        lambda: Run.open(
            folder, seek_request(model, reward_funcs, names, weights, args, train_dataset, peft_config, value_model)
        ),
    )
    finished = on_main_process(state, lambda: [j for j in wanted if run.is_finished(j)])
    base = model
    for j in wanted:
        if j in finished:
            logger.info("Backbone %d (%s) is finished already.", j, run.slugs[j])
            continue
        base = _load(model if base is None else base, args)
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
            peft_config=copy.deepcopy(peft_config),  # PEFT writes the names of the modules it found into it
            value_model=copy.deepcopy(value_model),
        )
    return on_main_process(state, run.finish)


def _train_backbone(
    run: Run, j: int, base: Any, args: MultiRewardPPOConfig, calibration_samples: int, **trainer_kwargs: Any
) -> Any:
    """Train backbone j into its folder; return the base model as it was before, or `None` if it is sharded now."""
    from transformers import ProgressCallback

    from trl_bonesoup.training.progress import RolloutProgress
    from trl_bonesoup.training.trainer import MultiRewardPPOTrainer

    full = trainer_kwargs["peft_config"] is None
    kept = full and not _is_sharded(args)
    initial = {key: value.detach().clone() for key, value in base.state_dict().items()} if kept else None
    state, work = args.distributed_state, run.work_folder(j)
    trainer = MultiRewardPPOTrainer(
        model=base, backbone=j, args=_backbone_args(args, work, run.statistics), **trainer_kwargs
    )
    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        label = f"backbone {j + 1}/{len(run.slugs)} ({run.slugs[j]})"
        trainer.add_callback(RolloutProgress(label, trainer_kwargs["objective_names"], args.steps_per_rollout))
    if run.statistics is None and args.score_normalization == "running":
        trainer.fix_scores(run.set_scale(_measured(trainer, calibration_samples)))
        on_main_process(state, run.save)
    if on_main_process(state, lambda: any(work.glob("checkpoint-*"))):
        trainer.train(resume_from_checkpoint=True)
    else:
        trainer.train()
    _save_backbone(trainer, work, run, j)
    restored = None if _is_sharded(args) else _restored_base(trainer, initial)
    del trainer
    gc.collect()
    return restored


def _measured(trainer: Any, samples: int) -> FloatArray:
    """Sample scores without moving the random state, so that training is the same whoever measured the scale."""
    import torch

    device = trainer.accelerator.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        return trainer.measure_scores(samples)


def _restored_base(trainer: Any, initial: dict[str, Any] | None) -> Any:
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if initial is None:
        policy = policy.unload()
    else:
        policy.load_state_dict(initial)
    policy.__dict__.pop("forward", None)  # GRPOTrainer's fused head, bound to this trainer's temperature
    return policy


def _save_backbone(trainer: Any, work: Path, run: Run, j: int) -> None:
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


def _check_models(model: Any, value_model: Any, args: MultiRewardPPOConfig) -> None:
    if hasattr(model, "peft_config"):
        raise ConfigurationError(
            "A soup's backbones start from one base model, and this one has an adapter on it. Merge the adapter into "
            "it first: model.merge_and_unload().save_pretrained(folder)."
        )
    if hasattr(value_model, "parameters"):
        raise ConfigurationError(
            "Every backbone starts with the same critic: give `seek` the value model's id or path, not a "
            f"{type(value_model).__name__}."
        )
    if _is_sharded(args) and not isinstance(model, str):
        raise ConfigurationError(
            "FSDP and DeepSpeed take a model apart, so that each backbone loads its own: give `seek` the base model's "
            f"id or path, not a {type(model).__name__}."
        )


def _is_sharded(args: MultiRewardPPOConfig) -> bool:
    """Whether FSDP or DeepSpeed spreads the model over processes, by accelerate's configuration or by `args`."""
    chosen = (os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" for name in ("FSDP", "DEEPSPEED"))
    return any(chosen) or bool(args.fsdp) or args.deepspeed is not None


def _wanted(backbones: Sequence[int] | None, n: int) -> list[int]:
    wanted = list(range(n)) if backbones is None else list(backbones)
    for j in wanted:
        if isinstance(j, bool) or not isinstance(j, int) or not 0 <= j < n:
            raise ConfigurationError(f"backbones must be indices from 0 to {n - 1}; got {wanted}.")
    return wanted


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
