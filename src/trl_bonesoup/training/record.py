"""What is known of one backbone, from the trainer or from soup.json, for the card that tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trl_bonesoup.manifest import ScoreStatistics, SoupManifest
from trl_bonesoup.rewards.spec import reward_spec
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from trl_bonesoup.training.config import MultiRewardPPOConfig

__all__ = ["BackboneRecord", "TrainedObjective", "described"]


@dataclass(frozen=True)
class TrainedObjective:
    """One reward in the mixture that a backbone was trained on.

    Attributes:
        name: of the objective.
        reward: where its reward function is found, see `trl_bonesoup.rewards.spec.reward_spec`.
        share: its entry in the backbone's column of B.
        scale: mean and standard deviation by which its scores were normalised before they were weighted;
            None if they were not.
    """

    name: str
    reward: str
    share: float
    scale: ScoreStatistics | None = None


@dataclass(frozen=True)
class BackboneRecord:
    """One backbone and how it was trained.

    Attributes:
        base_model: Hub id of the model that it started from, or a folder.
        is_local: whether that is a folder, which may look like a Hub id.
        revision: commit hash of the base model, if it came from the Hub.
        objectives: the rewards, in order.
        kind: whether it is an adapter or a full model.
        steps: optimizer steps it was trained for.
        column: (j, N) if it was trained as backbone j of N, None if on a mixture of its own.
        running: whether the scales of the rewards moved with the scores during training.
        settings: of the trainer and the adapter.
        log: entries of the training log, as in `TrainerState.log_history`.
        versions: of the libraries that trained it.
    """

    base_model: str
    is_local: bool
    objectives: tuple[TrainedObjective, ...]
    kind: Literal["adapter", "full"]
    steps: int
    revision: str | None = None
    column: tuple[int, int] | None = None
    running: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    log: Sequence[Mapping[str, Any]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_manifest(
        cls, manifest: SoupManifest, j: int, *, is_local: bool, log: Sequence[Mapping[str, Any]] = ()
    ) -> BackboneRecord:
        """Return what soup.json records of backbone j.

        Args:
            manifest: what was trained.
            j: index of the backbone.
            is_local: whether `manifest.base_model.id` is a folder.
            log: the "log" of `logs/<backbone>.json` in the folder of the run, if it is at hand.
        """
        backbone = manifest.backbones[j]
        return cls(
            base_model=manifest.base_model.id,
            is_local=is_local,
            objectives=tuple(
                TrainedObjective(objective.name, objective.reward, float(share), objective.normalization)
                for objective, share in zip(manifest.objectives, manifest.weights[:, j], strict=True)
            ),
            kind=backbone.kind,
            steps=backbone.steps,
            revision=manifest.base_model.revision,
            column=(j, len(manifest.backbones)),
            settings=manifest.training,
            log=log,
            versions=manifest.versions,
        )

    def training_rewards(self) -> list[tuple[int, dict[str, float]]]:
        """Return the optimizer step and mean raw scores of the first and the last log entry that has scores.

        An objective that scored nothing there is left out.
        """
        found = []
        for entry in self.log:
            means = {
                objective.name: mean
                for objective in self.objectives
                if (mean := entry.get(f"rewards/{objective.name}/mean")) is not None
            }
            if means and "step" in entry:
                found.append((int(entry["step"]), means))
        return found if len(found) < 3 else [found[0], found[-1]]


def described(
    names: Sequence[str],
    reward_funcs: Sequence[Any],
    column_N: FloatArray,
    place: tuple[int, int] | None,
    args: MultiRewardPPOConfig,
    value_model: Any,
    peft_config: Any,
) -> BackboneRecord:
    """Return what is known of a backbone before its model is loaded.

    Args:
        names, reward_funcs, column_N: the objectives and their shares, (N,).
        place: (j, N) for column j of a matrix, None for a column of its own.
        args, value_model, peft_config: as for the trainer.
    """
    from trl_bonesoup.training.request import adapter_settings, trainer_settings
    from trl_bonesoup.training.run import library_versions

    adapter = {} if peft_config is None else adapter_settings(peft_config)
    return BackboneRecord(
        base_model="",
        is_local=False,
        objectives=tuple(
            TrainedObjective(name, reward_spec(func), float(share))
            for name, func, share in zip(names, reward_funcs, column_N, strict=True)
        ),
        kind="adapter" if adapter else "full",
        steps=0,
        column=place,
        settings={**trainer_settings(args, value_model), **adapter},
        versions=library_versions(),
    )
