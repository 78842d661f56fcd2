"""One β while it is tried: a run of `seek` that pauses early, and the front of its soups at that step."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.evaluate import evaluate_policies
from trl_bonesoup.front.front import Front
from trl_bonesoup.front.scores import read_scores
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.front.soups import SoupPolicies
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.weights import FloatArray, circulant_weights

if TYPE_CHECKING:
    from trl_bonesoup.soup.source import SoupSource
    from trl_bonesoup.training.config import MultiRewardPPOConfig
    from trl_bonesoup.training.run import Run

logger = logging.getLogger(__name__)

FRONT, ANSWERS = "validation.json", "validation.parquet"

__all__ = ["CandidateRun", "Training"]


@dataclass(frozen=True)
class Training:
    """What the training of every candidate has in common: the arguments of `seek` but for B and the folder."""

    model: Any
    reward_funcs: Sequence[Callable[..., Any]]
    objectives: tuple[str, ...]
    args: MultiRewardPPOConfig
    dataset: Any
    options: Mapping[str, Any]

    def request(self, args: MultiRewardPPOConfig, weights: FloatArray | None) -> dict[str, Any]:
        """Return what a run is about, as JSON."""
        from trl_bonesoup.training.request import seek_request

        options = [self.options.get(name) for name in ("peft_config", "value_model")]
        return seek_request(self.model, self.reward_funcs, self.objectives, weights, args, self.dataset, *options)


class CandidateRun:
    """The run of one β.

    Args:
        dominance: β.
        training: what all candidates share.
        stop_after: optimizer step at which the backbones pause to be measured.
    """

    def __init__(self, dominance: float, training: Training, stop_after: int) -> None:
        self.dominance, self.training, self.stop_after = dominance, training, stop_after
        self.weights = circulant_weights(len(training.objectives), dominance)
        self.folder = Path(training.args.output_dir) / f"beta-{dominance:g}"
        self._args = copy.copy(training.args)
        self._args.output_dir = str(self.folder)

    @property
    def is_measured(self) -> bool:
        """Whether the front is there: it is written last."""
        return (self.folder / FRONT).is_file()

    @property
    def front(self) -> Front:
        """The front of the early soups on the validation prompts."""
        return Front.from_json(self.folder / FRONT)

    @property
    def scores_KPSN(self) -> FloatArray:
        """Every score behind the front."""
        return read_scores(self.folder / ANSWERS, self.training.objectives)

    def steps(self) -> int:
        """Return the optimizer steps of all backbones together that are kept."""
        run = self.run()
        return 0 if run is None else sum(run.steps(j) for j in range(len(self.training.objectives)))

    def run(self) -> Run | None:
        """Return what is in the folder, or `None` if training has not begun."""
        from trl_bonesoup.training.run import RECORD, Run

        return Run.load(self.folder) if (self.folder / RECORD).is_file() else None

    def train(self, others: Sequence[CandidateRun], *, to_the_end: bool = False) -> SoupManifest | None:
        """Train the backbones until they pause, or to the end; return the manifest of a whole soup."""
        from trl_bonesoup.training.seek import seek

        self._share_scale(others)
        return seek(
            self.training.model,
            self.training.reward_funcs,
            self.weights,
            self._args,
            self.training.dataset,
            objective_names=self.training.objectives,
            stop_after=None if to_the_end else self.stop_after,
            **self.training.options,
        )

    def measure(self, prompts: Any, preferences_KN: FloatArray, settings: EvaluationSettings, progress: bool) -> None:
        """Answer the validation prompts with the early soups, and write their front."""
        from trl_bonesoup.soup.lora import BoneSoup

        soup = BoneSoup.from_source(self.early_soup(), device=self._args.device)
        evaluate_policies(
            SoupPolicies(soup, preferences_KN, include_markers=False),
            prompts,
            self.training.reward_funcs,
            settings,
            front_path=self.folder / FRONT,
            samples_path=self.folder / ANSWERS,
            overwrite=True,
            show_progress=progress,
        )
        del soup
        gc.collect()

    def early_soup(self) -> SoupSource:
        """Return the soup whose backbones are the checkpoints of the step at which they paused.

        Raises:
            ConfigurationError: if one is gone.
        """
        from trl_bonesoup.soup.source import SoupSource

        run = self.run()
        assert run is not None
        folders = [run.work_folder(j) / f"checkpoint-{self.stop_after}" for j in range(len(self.training.objectives))]
        missing = [str(folder) for folder in folders if not folder.is_dir()]
        if missing:
            raise ConfigurationError(
                f"The backbones in {self.folder} were trained past step {self.stop_after} before they were measured "
                f"there, and {', '.join(missing)} is gone. Move the folder away to train this β anew."
            )
        paths = [folder.relative_to(run.folder).as_posix() for folder in folders]
        manifest = run.manifest(self.weights, paths, [self.stop_after] * len(paths))
        return SoupSource(manifest, run.folder.resolve())

    def _share_scale(self, others: Sequence[CandidateRun]) -> None:
        """Take over the scale of the scores that another candidate measured: the base is the same."""
        from trl_bonesoup.training.run import Run

        run = Run.open(self.folder, self.training.request(self._args, self.weights))
        for other in others:
            measured = other.run() if run.statistics is None else None
            if measured is not None and measured.statistics is not None:
                run.statistics, run.correlation = measured.statistics, measured.correlation
                run.save()
