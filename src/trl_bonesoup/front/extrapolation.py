"""search_extrapolation: choose α of Equation 9 on validation prompts, and show the front before and after on others."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from trl_bonesoup.errors import ConfigurationError, FrontError
from trl_bonesoup.front.alpha_choice import AlphaChoice, choose_alpha
from trl_bonesoup.front.bootstrap import Estimate, metric_differences
from trl_bonesoup.front.checks import check_same_request, write_json
from trl_bonesoup.front.evaluate import evaluate_policies
from trl_bonesoup.front.front import Front
from trl_bonesoup.front.metrics import shared_reference
from trl_bonesoup.front.policies import Policies
from trl_bonesoup.front.prompts import Prompt, Prompts, read_prompts
from trl_bonesoup.front.samples import read_samples
from trl_bonesoup.front.scores import read_scores
from trl_bonesoup.front.scoring import RewardFunctions, Scorer, reward_functions
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.front.soups import SoupPolicies, read_preferences
from trl_bonesoup.weights import FloatArray, merging_coefficients, simplex_grid

if TYPE_CHECKING:
    from datasets import Dataset
    from matplotlib.figure import Figure

    from trl_bonesoup.soup.lora import BoneSoup

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The published code's candidates."""

RECORD = "extrapolation.json"
BEFORE = "α = 0"

__all__ = ["ALPHAS", "ExtrapolationSearch", "search_extrapolation"]


@dataclass(frozen=True, eq=False)
class ExtrapolationSearch:
    """The α that was chosen, and what it does to the front on prompts that it was not chosen by.

    Args:
        choice: α with the gains that it was chosen by, on the validation prompts.
        fronts: on the test prompts, the front without extrapolation and the one with it, by a label
            that names α; empty without test prompts, or if the choice is 0 throughout.
        differences: by how much the front with extrapolation is above the other in hypervolume (over
            one reference), inner product and controllability, by paired bootstrap over test prompts.
    """

    choice: AlphaChoice
    fronts: Mapping[str, Front]
    differences: Mapping[str, Estimate]

    @property
    def extrapolation(self) -> float | list[float]:
        """α as every `extrapolation` argument takes it."""
        return self.choice.extrapolation

    def plot(self, path: str | Path | None = None, *, kind: str = "front", width: float | None = None) -> Figure:
        """Draw the fronts before and after, on the test prompts; see `Front.plot`.

        Raises:
            FrontError: if there are none.
        """
        from trl_bonesoup.front.plots import plot

        if not self.fronts:
            raise FrontError(
                "There is no front before and after to draw: no α but 0 was chosen, or no test prompts were given."
            )
        return plot(self.fronts, path, kind=kind, width=width)

    def text(self) -> str:
        """Return the table of the choice, the choice, and what it does on the test prompts."""
        parts = [self.choice.table(), self.choice.verdict()]
        if self.differences:
            lines = [
                f"{name.replace('_', ' ')} {estimate.value:+.4g} ({estimate.lower:+.4g} to {estimate.upper:+.4g})"
                + (": within noise" if estimate.within_noise else "")
                for name, estimate in self.differences.items()
            ]
            parts.append("On the test prompts, the whole front changes by\n  " + "\n  ".join(lines))
        return "\n\n".join(parts)


def search_extrapolation(
    soup: BoneSoup,
    prompts: Sequence[Prompt] | Dataset,
    reward_funcs: RewardFunctions,
    *,
    alphas: Sequence[float] = ALPHAS,
    per_objective: bool = True,
    test_prompts: Sequence[Prompt] | Dataset | None = None,
    preferences: ArrayLike | None = None,
    settings: EvaluationSettings | None = None,
    objective_names: Sequence[str] | None = None,
    folder: str | Path | None = None,
    show_progress: bool = True,
) -> ExtrapolationSearch:
    """Choose how far to extrapolate away from the base model (Equation 9). Nothing is trained.

    At the vertex of objective i (all weight on it) λ = B⁻¹(k∘e_i) = B⁻¹e_i / (1-α_i): only α_i
    matters there. So the N vertices answer the validation prompts at each α, with the same random numbers, and
    α_i is the one whose reward i is highest there, as in the published code, or one α is chosen for
    all. A gain is compared with its noise by a paired bootstrap; see `AlphaChoice`.

    The best of several noisy gains is too good to be true, and preferences between the vertices were not
    asked. With `test_prompts`, the whole front is therefore measured with and without the chosen α on
    prompts that were not chosen by.

    Args:
        soup: what to measure; its coefficients are put back afterwards.
        prompts: validation prompts, by which α is chosen.
        reward_funcs: as for `evaluate_front`.
        alphas: candidates in [0, 1); 0 is always one of them.
        per_objective: one α for each objective, or one for all.
        test_prompts: prompts for the front before and after, none of them among `prompts`.
        preferences: of that front; by default all multiples of 0.1 (0.5 for more than 3 objectives).
        settings: how prompts are answered; by default once each, as in training.
        objective_names: as for `evaluate_front`.
        folder: where to keep answers, fronts and `extrapolation.json`; the same call then continues a
            search that was interrupted. By default nothing is kept.
        show_progress: show a bar with the remaining time.

    Raises:
        ConfigurationError: for arguments that do not fit, test prompts among the validation prompts, or
            a folder with another search.
        WeightsError: for an α out of range or an invalid preference.
        RewardError, FrontError: as for `evaluate_front`.

    Source: Bone Soups, Equation 9, and the published code.
    """
    settings = settings or EvaluationSettings.of_training(soup.manifest.training)
    vertices = _VertexPolicies(soup, sorted({0.0, *map(float, alphas)}))
    n = len(vertices.objectives)
    grid = simplex_grid(n, 0.1 if n <= 3 else 0.5) if preferences is None else preferences
    grid_KN = read_preferences(grid, soup.manifest.preference)
    functions = reward_functions(reward_funcs, vertices.objectives, objective_names)
    questions = read_prompts(prompts)
    held_out = None if test_prompts is None else _held_out(test_prompts, questions)
    scorers = [Scorer(name, function, questions) for name, function in functions.items()]
    request = {
        **vertices.provenance(),
        "validation_prompts": questions.digest(),
        "test_prompts": None if held_out is None else held_out.digest(),
        "preferences": grid_KN.tolist(),
        "per_objective": per_objective,
        "rewards": {scorer.name: scorer.fingerprint for scorer in scorers},
        "settings": {name: value for name, value in asdict(settings).items() if name != "batch_size"},
    }
    with ExitStack() as stack:
        place = Path(folder if folder is not None else stack.enter_context(tempfile.TemporaryDirectory()))
        check_same_request(place / RECORD, request)
        if not (place / RECORD).is_file():
            write_json(place / RECORD, {"request": request})

        def measure(policies: Policies, name: str, data: Any) -> Front:
            if (place / f"{name}.json").is_file():
                return Front.from_json(place / f"{name}.json")
            return evaluate_policies(
                policies, data, list(functions.values()), settings, objective_names=list(functions),
                front_path=place / f"{name}.json", samples_path=place / f"{name}.parquet", overwrite=True,
                show_progress=show_progress,
            )  # fmt: skip

        measure(vertices, "vertices", prompts)
        scores_AVPSN = _vertex_scores(place / "vertices.parquet", vertices, tuple(functions))
        choice = choose_alpha(scores_AVPSN, vertices.alphas, tuple(functions), per_objective=per_objective)
        fronts: dict[str, Front] = {}
        differences: dict[str, Estimate] = {}
        if held_out is not None and any(choice.chosen):
            soups = [SoupPolicies(soup, grid_KN, alpha) for alpha in (0.0, choice.extrapolation)]
            for label, name, policies in zip((BEFORE, _label(choice)), ("before", "after"), soups, strict=True):
                fronts[label] = measure(policies, name, test_prompts)
            differences = _differences(place, fronts, grid_KN, tuple(functions))
        write_json(
            place / RECORD,
            {
                "request": request,
                **choice.record(),
                "differences": {name: asdict(estimate) for name, estimate in differences.items()},
            },
        )
    return ExtrapolationSearch(choice, fronts, differences)


class _VertexPolicies(SoupPolicies):
    """The soups of the N vertices without extrapolation, and as markers those of the same vertices at each other α."""

    def __init__(self, soup: BoneSoup, alphas: Sequence[float]) -> None:
        vertices_NN = np.eye(len(soup.manifest.objective_names))
        super().__init__(soup, vertices_NN, include_markers=False)
        self.alphas = list(alphas)
        coefficients = [merging_coefficients(soup.manifest.weights, vertices_NN, alpha) for alpha in alphas]
        self.markers = tuple(f"all {name}, α = {alpha:g}" for alpha in alphas[1:] for name in self.objectives)
        self._coefficients_MN = np.vstack(coefficients)

    def provenance(self) -> dict[str, Any]:
        return {**super().provenance(), "method": "vertices of an extrapolation search", "extrapolation": self.alphas}


def _vertex_scores(samples: Path, vertices: _VertexPolicies, objectives: tuple[str, ...]) -> FloatArray:
    """Return the scores of every α, vertex, prompt, sample and objective, shape (A, V, P, S, N)."""
    models = {label: len(vertices.objectives) + m for m, label in enumerate(vertices.markers)}
    scores = {
        (
            sample["preference_index"] if sample["marker"] is None else models[sample["marker"]],
            sample["prompt_index"],
            sample["sample_index"],
        ): [np.nan if sample["scores"][name] is None else sample["scores"][name] for name in objectives]
        for sample in read_samples(samples)
    }
    shape = np.array(list(scores)).max(axis=0) + 1
    scores_MPSN = np.full((*shape, len(objectives)), np.nan)
    for place, values in scores.items():
        scores_MPSN[place] = values
    return scores_MPSN.reshape(len(vertices.alphas), len(objectives), *scores_MPSN.shape[1:])


def _differences(
    folder: Path, fronts: Mapping[str, Front], preferences_KN: FloatArray, objectives: tuple[str, ...]
) -> dict[str, Estimate]:
    before, after = (read_scores(folder / f"{name}.parquet", objectives) for name in ("before", "after"))
    return metric_differences(after, before, preferences_KN, shared_reference(fronts))


def _held_out(test_prompts: Any, validation: Prompts) -> Prompts:
    """Return the test prompts.

    Raises:
        ConfigurationError: if one of them is a validation prompt.
    """
    test = read_prompts(test_prompts)
    seen = {json.dumps(prompt, default=str) for prompt in validation.given}
    shared = sum(json.dumps(prompt, default=str) in seen for prompt in test.given)
    if shared:
        raise ConfigurationError(
            f"{shared} of the {len(test)} test prompts are among the validation prompts, by which α is chosen; the "
            "front before and after would look better than it is. Give other test prompts."
        )
    return test


def _label(choice: AlphaChoice) -> str:
    values = choice.extrapolation
    return f"α = {', '.join(f'{alpha:g}' for alpha in values)}" if isinstance(values, list) else f"α = {values:g}"
