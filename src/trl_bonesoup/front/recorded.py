"""The answers of a measured front as policies, so that other rewards can score them without any model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.front import Front
from trl_bonesoup.front.policies import Answer, Row
from trl_bonesoup.front.prompts import Prompts
from trl_bonesoup.front.samples import read_samples
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.weights import FloatArray

__all__ = ["RecordedAnswers"]


class RecordedAnswers:
    """What the models of a front answered, from the file of its samples.

    `evaluate_policies(recorded, prompts, other_rewards, recorded.settings)` needs the prompts again,
    because reward functions receive them with the data set's columns.

    Args:
        front: as `evaluate_front` or `evaluate_policies` returned or wrote it.
        samples_path: the `samples_path` of the same evaluation.

    Attributes:
        settings: how the answers were made.

    Raises:
        ConfigurationError: if the file cannot be read, or lacks an answer.
    """

    def __init__(self, front: Front, samples_path: str | Path) -> None:
        self.objectives: tuple[str, ...] = front.objectives
        self.preferences_KN: FloatArray = front.preferences_KN
        self.coefficients_KN: FloatArray | None = front.coefficients_KN
        self.markers: tuple[str, ...] = tuple(front.markers)
        self._record = dict(front.provenance)
        self._path = samples_path
        try:
            self.settings = EvaluationSettings(
                self._record["samples_per_prompt"],
                **self._record["decoding"],
                batch_size=self._record["batch_size"],
                seed=self._record["seed"],
            )
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                f"The front does not say how its answers were made ({error}), so they cannot be told from others."
            ) from error
        self._answers, self._texts = self._read(samples_path)

    @contextlib.contextmanager
    def answering(self, prompts: Prompts, settings: EvaluationSettings) -> Iterator[_RecordedAnswering]:
        """Check that the prompts are those that were answered, and the settings those of the answers."""
        if prompts.digest() != self._record["prompts_sha256"]:
            raise ConfigurationError("These are not the prompts that the recorded answers are to.")
        if settings.samples_per_prompt != self.settings.samples_per_prompt or settings.seed != self.settings.seed:
            raise ConfigurationError("Pass the settings of the recorded answers: recorded.settings.")
        models = range(len(self.preferences_KN) + len(self.markers))
        for row in (
            Row(m, p, s) for m in models for p in range(len(prompts)) for s in range(settings.samples_per_prompt)
        ):
            if row not in self._answers:
                raise ConfigurationError(f"{self._path} has no answer of model {row.model} to prompt {row.prompt}.")
        yield _RecordedAnswering(self._answers, models, [self._texts[p] for p in range(len(prompts))])

    def provenance(self) -> dict[str, Any]:
        """Return the record of the evaluation that the answers are from."""
        return {"method": "recorded answers", "evaluation": self._record}

    def _read(self, path: str | Path) -> tuple[dict[Row, Answer], dict[int, str]]:
        answers, texts = {}, {}
        for sample in read_samples(path):
            model = sample["preference_index"]
            if model is None:
                if sample["marker"] not in self.markers:
                    raise ConfigurationError(f"{path} is of another front: it has answers of {sample['marker']!r}.")
                model = len(self.preferences_KN) + self.markers.index(sample["marker"])
            elif model >= len(self.preferences_KN) or sample["preference"] != self.preferences_KN[model].tolist():
                raise ConfigurationError(
                    f"{path} is of another front: its preference {model} is {sample['preference']}."
                )
            row = Row(model, sample["prompt_index"], sample["sample_index"])
            answers[row] = Answer(sample["completion"], sample.get("completion_ids"))
            texts[row.prompt] = sample["prompt"]
        return answers, texts


class _RecordedAnswering:
    def __init__(self, answers: dict[Row, Answer], models: range, texts: Sequence[str]) -> None:
        self._answers = answers
        self.groups: Sequence[Sequence[int]] = [models]
        self.order: Sequence[int] = range(len(texts))
        self.texts: Sequence[str] = texts

    def __call__(self, batch: Sequence[Row], seeds: Sequence[int]) -> list[Answer]:
        return [self._answers[row] for row in batch]
