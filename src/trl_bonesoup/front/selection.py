"""The outcome of choosing β: what every candidate reached over one reference point, and what finding out cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_bonesoup.front.bootstrap import Estimate, metric_differences, metric_intervals
from trl_bonesoup.front.checks import write_json
from trl_bonesoup.front.metrics import shared_reference
from trl_bonesoup.front.table import markdown_table
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from trl_bonesoup.front.candidate import CandidateRun

RECORD = "dominance.json"
FORMAT_VERSION = 1

__all__ = ["Candidate", "DominanceSelection", "SelectionCost", "compare_candidates"]


@dataclass(frozen=True)
class Candidate:
    """One β and the front of its early soups.

    Args:
        dominance: β.
        folder: its run, relative to the folder of the selection.
        metrics: the six metrics of the front by name, over the shared reference.
        hypervolume: the first of them with its 95 % interval over prompts.
        behind: how much the chosen β's hypervolume is above this one's, by paired bootstrap; `None`
            for the chosen one.
    """

    dominance: float
    folder: str
    metrics: Mapping[str, float]
    hypervolume: Estimate
    behind: Estimate | None


@dataclass(frozen=True)
class SelectionCost:
    """What a selection cost, beside training every candidate to the end.

    Args:
        steps_early: optimizer steps that all candidates were trained for before the choice.
        steps_trained: all optimizer steps, with those of the chosen β after it.
        steps_of_all: those of training every candidate to the end.
        answers: to validation prompts.
        seconds_training, seconds_answering: as measured, with loading and saving. A piece that was
            killed is missing.
    """

    steps_early: int
    steps_trained: int
    steps_of_all: int
    answers: int
    seconds_training: float
    seconds_answering: float

    @property
    def seconds_of_all(self) -> float:
        """Estimate the seconds of training every candidate to the end, at the pace that was measured."""
        return self.seconds_training * self.steps_of_all / max(1, self.steps_trained)

    def text(self) -> str:
        """Return the cost in two sentences."""
        return (
            f"Trained {self.steps_trained} optimizer steps ({self.steps_early} of them before the choice) and gave "
            f"{self.answers} answers, in {self.seconds_training:.0f} + {self.seconds_answering:.0f} s. Training every "
            f"candidate to the end would be {self.steps_of_all} steps, about {self.seconds_of_all:.0f} s."
        )


@dataclass(frozen=True)
class DominanceSelection:
    """Which β was chosen, and why.

    Args:
        folder: of the selection, with `dominance.json`.
        objectives: their names.
        reference: the hypervolume's reference point, shared by all candidates.
        candidates: in the order in which they were given.
        chosen: the candidate whose early front has the largest hypervolume.
        cost: of the whole selection.
        manifest: soup.json of the chosen β; `None` while it is trained further.
        request: what was asked for, with everything that a front depends on.
    """

    folder: Path
    objectives: tuple[str, ...]
    reference: tuple[float, ...]
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    cost: SelectionCost
    manifest: SoupManifest | None
    request: Mapping[str, Any]

    @property
    def dominance(self) -> float:
        """The chosen β."""
        return self.chosen.dominance

    @property
    def soup_folder(self) -> Path:
        """Where the chosen β's soup.json lies."""
        return self.folder / self.chosen.folder

    def table(self) -> str:
        """Return a Markdown table of the candidates, the chosen one in bold, and what is to be known of it."""
        header = ["β", "hypervolume", "95 % interval", "behind", "controllability", "length"]
        rows = [header, *(self._row(candidate) for candidate in self.candidates)]
        point = ", ".join(f"{name} {value:.4g}" for name, value in zip(self.objectives, self.reference, strict=True))
        return f"{markdown_table(rows)}\n\nHypervolumes are above {point}, for every β. {self._verdict()}"

    def _row(self, candidate: Candidate) -> list[str]:
        hypervolume, metrics = candidate.hypervolume, candidate.metrics
        mark = "**" if candidate is self.chosen else ""
        return [
            f"{mark}{candidate.dominance:g}{mark}",
            f"{hypervolume.value:.4g}",
            _interval(hypervolume),
            "" if candidate.behind is None else f"{candidate.behind.value:.3g} ({_interval(candidate.behind)})",
            f"{metrics['controllability']:.3f}",
            f"{metrics['length_of_front']:.0f}",
        ]

    def _verdict(self) -> str:
        close = [f"{c.dominance:g}" for c in self.candidates if c.behind is not None and c.behind.within_noise]
        if not close:
            return f"β = {self.dominance:g} is ahead by more than the noise of these prompts."
        return (
            f"β = {self.dominance:g} is ahead of {', '.join(close)} by less than the noise of these prompts: "
            "with others, the choice may be another."
        )

    def save(self) -> Path:
        """Write dominance.json, completely or not at all, and return its path."""
        record = {
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "reference": dict(zip(self.objectives, self.reference, strict=True)),
            "dominance": self.dominance,
            "soup": self.chosen.folder if self.manifest is not None else None,
            "cost": {**asdict(self.cost), "seconds_of_all": self.cost.seconds_of_all},
        }
        return write_json(self.folder / RECORD, {"format_version": FORMAT_VERSION, **record, "request": self.request})


def compare_candidates(runs: Sequence[CandidateRun], seed: int) -> tuple[FloatArray, tuple[Candidate, ...], int]:
    """Compare measured candidates over the reference point that they share.

    Returns:
        The reference point (N,), the candidates in their order, and the index of the one with the
        largest hypervolume (of equals, that of the largest β, whose coefficients are the smallest).
    """
    fronts, scores = [run.front for run in runs], [run.scores_KPSN for run in runs]
    reference_N, preferences_KN = shared_reference(fronts), fronts[0].preferences_KN
    metrics = [front.metrics(reference_N) for front in fronts]
    best = max(range(len(runs)), key=lambda k: (metrics[k]["hypervolume"], runs[k].dominance))
    candidates = []
    for k, run in enumerate(runs):
        own = metric_intervals(scores[k], preferences_KN, reference_N, seed=seed)
        ahead = metric_differences(scores[best], scores[k], preferences_KN, reference_N, seed=seed)
        behind = None if k == best else ahead["hypervolume"]
        candidates.append(Candidate(run.dominance, run.folder.name, metrics[k], own["hypervolume"], behind))
    return reference_N, tuple(candidates), best


def _interval(estimate: Estimate) -> str:
    return f"{estimate.lower:.3g} to {estimate.upper:.3g}"
