"""Seeking: train every backbone from one base, one after the other, and write soup.json.

The folder of a run holds `seek.json` (what was asked for, and the scale of the scores), one folder
per finished backbone, `logs/`, and at the end `soup.json`. A second call with the same settings
continues where the first stopped: with the next backbone, or from the last checkpoint of one that
was interrupted. One with other settings is refused, unless the first failed before it measured the
scale or kept a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.rewards.protocol import objective_names as distinct_names
from trl_bonesoup.training.backbone import check_found, check_models, check_stop, train_backbones
from trl_bonesoup.training.config import MultiRewardPPOConfig
from trl_bonesoup.training.inputs import check_training
from trl_bonesoup.training.request import seek_request
from trl_bonesoup.training.run import Run, on_main_process
from trl_bonesoup.training.saved_run import RECORD, earlier_soup
from trl_bonesoup.weights import check_combination_weights


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
    stop_after: int | None = None,
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
        stop_after: optimizer step, a multiple of those of one rollout, at which every backbone pauses
            with a checkpoint. A later call without it continues there. The schedule of the learning
            rate spans the whole training either way, so a backbone that paused ends up as one that
            did not.

    Returns:
        The manifest, or `None` while backbones are missing.

    Raises:
        ConfigurationError, WeightsError: before any model is loaded, if the inputs do not fit
            together, the folder holds another run or soup, or another process trains in it.
        DependencyError: likewise, for a logger in `args.report_to` that is not installed.
        RewardError, TrainingError: see `MultiRewardPPOTrainer`.

    Source: Bone Soups, Section 3.2 and Algorithm 1.
    """
    reward_funcs = list(reward_funcs)
    names = distinct_names(reward_funcs, objective_names)
    weights = check_combination_weights(combination_weights)
    if len(weights) != len(names):
        raise ConfigurationError(f"combination_weights has {len(weights)} rows for {len(names)} reward functions.")
    wanted = _wanted(backbones, len(names))
    check_models(model, value_model, args)
    check_stop(stop_after, args)
    check_training(train_dataset, args, len(names))
    state = args.distributed_state
    request = seek_request(model, reward_funcs, names, weights, args, train_dataset, peft_config, value_model)
    check_found(model, args)
    run = on_main_process(state, lambda: _opened(Path(args.output_dir), request))
    train_backbones(
        run,
        wanted,
        weights,
        model,
        args,
        calibration_samples,
        stop_after=stop_after,
        reward_funcs=reward_funcs,
        objective_names=names,
        train_dataset=train_dataset,
        processing_class=processing_class,
        reward_processing_classes=reward_processing_classes,
        callbacks=callbacks,
        peft_config=peft_config,
        value_model=value_model,
    )
    return on_main_process(state, run.finish)


def _opened(folder: Path, request: dict[str, Any]) -> Run:
    """Open the run, if it may replace the soup.json in its folder at the end."""
    if not (folder / RECORD).exists():
        earlier_soup(folder, request)
    run = Run.open(folder, request)
    earlier_soup(folder, request)
    return run


def _wanted(backbones: Sequence[int] | None, n: int) -> list[int]:
    wanted = list(range(n)) if backbones is None else list(backbones)
    for j in wanted:
        if isinstance(j, bool) or not isinstance(j, int) or not 0 <= j < n:
            raise ConfigurationError(f"backbones must be indices from 0 to {n - 1}; got {wanted}.")
    return wanted
