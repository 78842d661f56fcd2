"""Policies for any mixtures of the rewards, trained as backbones are but without a soup of their own.

A preference as the mixture gives MORLHF, a unit vector a single-reward expert. The folder holds
`seek.json` and one folder per policy, named by its mixture, so that a later call can add others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.rewards.protocol import objective_names as distinct_names
from trl_bonesoup.training.backbone import check_found, check_models, train_backbones
from trl_bonesoup.training.config import MultiRewardPPOConfig
from trl_bonesoup.training.inputs import check_training
from trl_bonesoup.training.request import seek_request
from trl_bonesoup.training.run import Run, on_main_process
from trl_bonesoup.weights import FloatArray, check_column

__all__ = ["PolicyRun", "mixture_name", "train_policies"]


@dataclass
class PolicyRun(Run):
    """What is known of one folder of policies; backbone j is the policy of the j-th of `mixtures`."""

    mixtures: Sequence[FloatArray] = ()

    @property
    def slugs(self) -> list[str]:
        """The policies' folder names."""
        return [mixture_name(mixture_N) for mixture_N in self.mixtures]

    @property
    def base_model(self) -> str:
        """The model that every policy started from: a folder on this machine, or a Hub id."""
        path = self.folder / self.request["base_model"]["id"]
        return str(path.resolve()) if path.is_dir() else self.request["base_model"]["id"]

    def soup(self, weights: FloatArray, folder: Path | None = None) -> SoupManifest:
        """Return the record of the soup whose backbones are the policies of the columns of B, (N, N).

        Args:
            weights: B.
            folder: where soup.json shall lie; by default this run's.
        """
        slugs = [mixture_name(column_N) for column_N in weights.T]
        place = self.folder if folder is None else folder
        paths = [Path(os.path.relpath(self.folder / slug, place)).as_posix() for slug in slugs]
        manifest = self.manifest(weights, paths, [self.steps(self.slugs.index(slug)) for slug in slugs])
        if not Path(self.base_model).is_dir():
            return manifest
        base = manifest.base_model.model_copy(update={"id": self.base_model})
        return manifest.model_copy(update={"base_model": base})


def mixture_name(mixture_N: ArrayLike) -> str:
    """Return the folder name of a mixture's policy.

    >>> mixture_name([0.7, 0.1 + 0.2])
    '0.7-0.3'
    """
    return "-".join(f"{weight:.12g}" for weight in np.asarray(mixture_N, dtype=np.float64))


def train_policies(
    model: Any,
    reward_funcs: Sequence[Any],
    mixtures: Sequence[ArrayLike],
    args: MultiRewardPPOConfig,
    train_dataset: Any,
    *,
    peft_config: Any = None,
    value_model: Any = None,
    objective_names: Sequence[str] | None = None,
    processing_class: Any = None,
    reward_processing_classes: Any = None,
    callbacks: list | None = None,
    calibration_samples: int = 64,
) -> PolicyRun:
    """Train one policy for each mixture of the rewards, in folders of `args.output_dir`.

    Each is, bit by bit, what `seek` makes of a column of B with these weights: the scale of the
    scores is measured once for all, and a call with the same settings continues an interrupted one.

    Args:
        mixtures: weights of the objectives in each policy's reward, (N,) on the simplex. Equal ones
            are trained once; those of earlier calls are kept.
        model, reward_funcs, args, train_dataset, peft_config, value_model, objective_names,
            processing_class, reward_processing_classes, callbacks, calibration_samples: as for `seek`.

    Returns:
        The run, with one policy for each different mixture in their order.

    Raises:
        ConfigurationError, WeightsError: before any model is loaded, if the inputs do not fit
            together or the folder holds another run.
    """
    reward_funcs = list(reward_funcs)
    names = distinct_names(reward_funcs, objective_names)
    if len(names) < 2 or not len(mixtures):
        raise ConfigurationError(
            f"Policies for mixtures need at least 2 reward functions and 1 mixture; got {list(names)}, {mixtures!r}."
        )
    distinct = {mixture_name(mixture_N): mixture_N for mixture_N in (check_column(m, len(names)) for m in mixtures)}
    check_models(model, value_model, args)
    check_training(train_dataset, args, len(names))
    request = seek_request(model, reward_funcs, names, None, args, train_dataset, peft_config, value_model)
    check_found(model, args)
    run = on_main_process(args.distributed_state, lambda: PolicyRun.open(Path(args.output_dir), request))
    run.mixtures = list(distinct.values())
    train_backbones(
        run,
        range(len(distinct)),
        np.stack(run.mixtures, axis=1),
        model,
        args,
        calibration_samples,
        reward_funcs=reward_funcs,
        objective_names=names,
        train_dataset=train_dataset,
        processing_class=processing_class,
        reward_processing_classes=reward_processing_classes,
        callbacks=callbacks,
        peft_config=peft_config,
        value_model=value_model,
    )
    return run
