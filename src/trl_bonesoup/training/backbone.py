"""Training the backbones of a run into its folder, one after the other: continued, paused, saved."""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import ScoreStatistics
from trl_bonesoup.training.config import MultiRewardPPOConfig
from trl_bonesoup.training.critic import check_value_model
from trl_bonesoup.training.lock import locked
from trl_bonesoup.training.run import Run, on_main_process
from trl_bonesoup.weights import FloatArray

logger = logging.getLogger(__name__)

__all__ = ["check_found", "check_models", "check_stop", "train_backbones"]


def train_backbones(
    run: Run,
    wanted: Sequence[int],
    columns: FloatArray,
    model: Any,
    args: MultiRewardPPOConfig,
    calibration_samples: int,
    *,
    stop_after: int | None = None,
    processing_class: Any = None,
    peft_config: Any = None,
    value_model: Any = None,
    **trainer_kwargs: Any,
) -> None:
    """Train those of the wanted backbones that are not finished, or not as far as `stop_after`.

    Args:
        run: the folder that they go to, opened.
        wanted: indices into the run's backbones.
        columns: what each backbone of the run is trained on, (N, backbones).
        model: id, path or model that every one of them starts from.
        args, calibration_samples, stop_after, trainer_kwargs: see `seek`.

    Raises:
        ConfigurationError: if another process is training one of them.
    """
    state = args.distributed_state
    with ExitStack() as locks:
        on_main_process(state, lambda: _lock(run, wanted, locks))
        done = on_main_process(state, lambda: _done(run, wanted, stop_after))
        base = model
        for j in wanted:
            if j in done:
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
                stop_after,
                loaded_here=isinstance(model, str),
                combination_weights=columns[:, j],
                processing_class=processing_class,
                peft_config=copy.deepcopy(peft_config),  # PEFT writes the names of the modules it found into it
                value_model=copy.deepcopy(value_model),
                **trainer_kwargs,
            )


def _lock(run: Run, wanted: Sequence[int], locks: ExitStack) -> None:
    for j in wanted:
        lock = locked(run.folder / f".lock-{run.slugs[j]}", f"Backbone {j} ({run.slugs[j]}) in {run.folder}")
        if not run.is_finished(j):
            locks.enter_context(lock)
            continue
        with suppress(ConfigurationError), lock:
            pass  # removes the file that a process left which was killed after it finished this one


def _done(run: Run, wanted: Sequence[int], stop_after: int | None) -> list[int]:
    """Return what needs no training now; what a process left that was killed just after it finished is removed."""
    finished = [j for j in wanted if run.is_finished(j)]
    for j in finished:
        shutil.rmtree(run.work_folder(j), ignore_errors=True)
    return [j for j in wanted if j in finished or run.has_reached(j, stop_after)]


def _train_backbone(
    run: Run,
    j: int,
    base: Any,
    args: MultiRewardPPOConfig,
    calibration_samples: int,
    stop_after: int | None,
    *,
    loaded_here: bool,
    **trainer_kwargs: Any,
) -> Any:
    """Train backbone j into its folder; return the base model as it was before, or `None` if it is sharded now."""
    from trl_bonesoup.training.resume import PauseAt
    from trl_bonesoup.training.trainer import MultiRewardPPOTrainer
    from trl_bonesoup.training.upstream import model_settings_were_used

    full = trainer_kwargs["peft_config"] is None
    kept = full and not is_sharded(args)
    initial = {key: value.detach().clone() for key, value in base.state_dict().items()} if kept else None
    state, work = args.distributed_state, run.work_folder(j)
    if stop_after is not None:
        trainer_kwargs["callbacks"] = [*(trainer_kwargs.get("callbacks") or []), PauseAt(stop_after)]
    with model_settings_were_used() if loaded_here else nullcontext():
        trainer = MultiRewardPPOTrainer(model=base, args=_backbone_args(args, work, run.statistics), **trainer_kwargs)
    _show_progress(trainer, run, j, args)
    if run.statistics is None and args.score_normalization == "running":
        scores = _measured(trainer, calibration_samples)
        run.statistics, run.correlation = on_main_process(state, lambda: run.agreed_scale(scores))
        trainer.fix_scores(run.statistics)
    if on_main_process(state, lambda: any(work.glob("checkpoint-*"))):
        trainer.train(resume_from_checkpoint=True)
    else:
        trainer.train()
    if stop_after is None or not stop_after <= trainer.state.global_step < trainer.state.max_steps:
        _save_backbone(trainer, work, run, j)
    restored = None if is_sharded(args) else _restored_base(trainer, initial)
    del trainer
    gc.collect()
    return restored


def _show_progress(trainer: Any, run: Run, j: int, args: MultiRewardPPOConfig) -> None:
    from transformers import ProgressCallback

    from trl_bonesoup.training.progress import RolloutProgress

    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        label = f"backbone {j + 1}/{len(run.slugs)} ({run.slugs[j]})"
        trainer.add_callback(RolloutProgress(label, tuple(trainer.reward_func_names), args.steps_per_rollout))


def _measured(trainer: Any, samples: int) -> FloatArray:
    """Sample scores without moving the random state, so that training is the same whoever measured the scale."""
    import torch

    from trl_bonesoup.training.guard import failures_explained

    device = trainer.accelerator.device
    devices = [device] if device.type == "cuda" else []
    with failures_explained(trainer.args, step=0), torch.random.fork_rng(devices):
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
        if (work / "runs").is_dir():  # of TensorBoard, beside the log
            shutil.copytree(work / "runs", run.log_file(j).with_suffix(""), dirs_exist_ok=True)
        beside.replace(run.backbone_folder(j))
        shutil.rmtree(work, ignore_errors=True)
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


def check_models(model: Any, value_model: Any, args: MultiRewardPPOConfig) -> None:
    """Raise `ConfigurationError` unless every backbone can start from this base and this critic, with no evaluation."""
    if args.eval_strategy != "no":
        raise ConfigurationError(
            f"eval_strategy={args.eval_strategy.value!r} needs an eval_dataset, which `seek` does not take. Leave it "
            "out, and measure soups and backbones afterwards: evaluate_front, or `bonesoup evaluate` in the shell."
        )
    if hasattr(model, "peft_config"):
        raise ConfigurationError(
            "A soup's backbones start from one base model, and this one has an adapter on it. Merge the adapter into "
            "it first: model.merge_and_unload().save_pretrained(folder)."
        )
    check_value_model(value_model)
    if hasattr(value_model, "parameters"):
        raise ConfigurationError(
            "Every backbone starts with the same critic: give `seek` the value model's id or path, not a "
            f"{type(value_model).__name__}."
        )
    if is_sharded(args) and not isinstance(model, str):
        raise ConfigurationError(
            "FSDP and DeepSpeed take a model apart, so that each backbone loads its own: give `seek` the base model's "
            f"id or path, not a {type(model).__name__}."
        )


def check_found(model: Any, args: MultiRewardPPOConfig) -> None:
    """Raise `ConfigurationError` for a base model that is neither here nor on the Hub, before a run is begun for it."""
    from transformers import AutoConfig

    if not isinstance(model, str):
        return
    given = args.model_init_kwargs or {}
    found = {key: given[key] for key in ("revision", "token", "subfolder") if key in given}
    try:
        AutoConfig.from_pretrained(model, trust_remote_code=args.trust_remote_code, **found)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The base model {model!r} was not found: it is no folder with a config.json that transformers knows, and "
            f"could not be read from the Hub. Check the path or the id, or whether the Hub is reached. ({error})"
        ) from error


def check_stop(stop_after: int | None, args: MultiRewardPPOConfig) -> None:
    """Raise `ConfigurationError` unless training can pause after this optimizer step and continue from there."""
    if stop_after is None:
        return
    per_rollout = args.steps_per_rollout
    if isinstance(stop_after, bool) or not isinstance(stop_after, int) or stop_after < 1 or stop_after % per_rollout:
        raise ConfigurationError(
            f"stop_after must be a multiple of the {per_rollout:g} optimizer steps of one rollout, since a rollout is "
            f"not part of a checkpoint; got {stop_after!r}."
        )
    if 0 < args.max_steps <= stop_after:
        raise ConfigurationError(f"stop_after must be below max_steps={args.max_steps}; got {stop_after}.")
    if args.save_only_model:
        raise ConfigurationError(
            "save_only_model=True leaves the optimizer out of checkpoints, so that training could not continue after "
            "stop_after; leave it at False."
        )


def is_sharded(args: MultiRewardPPOConfig) -> bool:
    """Whether FSDP or DeepSpeed spreads the model over processes, by accelerate's configuration or by `args`."""
    chosen = (os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" for name in ("FSDP", "DEEPSPEED"))
    return any(chosen) or bool(args.fsdp) or args.deepspeed is not None


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
