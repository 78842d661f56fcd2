"""Choosing β: one reference point for all, from the early soups; the best one ends up as if it had never paused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import says

from trl_bonesoup import Front, MultiRewardPPOConfig, SoupManifest, circulant_weights, seek
from trl_bonesoup.errors import ConfigurationError, WeightsError
from trl_bonesoup.front import candidate as candidate_module
from trl_bonesoup.front.dominance import DominanceTrial, early_step, select_dominance
from trl_bonesoup.front.selection import compare_candidates
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.weights import simplex_grid

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
TRAIN = Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(16)]})
VALIDATION = [f"w{i} w{i + 3}" for i in range(6)]


REWARDS = [says(0, 10), says(8, 18)]


def settings(folder: Path, **changes: Any) -> MultiRewardPPOConfig:
    chosen = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_iterations": 2,
        "max_completion_length": 6,
        "max_steps": 6,
        "learning_rate": 2e-2,
        "lr_scheduler_type": "linear",
        "kl_coef": 0.05,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "activation_checkpointing": False,
        "seed": 3,
    }
    return MultiRewardPPOConfig(**{**chosen, **changes})


def options(**changes: Any) -> dict[str, Any]:
    chosen = {
        "dominances": [0.6, 0.8],
        "fraction": 0.3,
        "peft_config": LORA,
        "calibration_samples": 16,
        "preferences": simplex_grid(2, 0.25),
        "settings": EvaluationSettings(samples_per_prompt=2, max_new_tokens=6),
        "show_progress": False,
    }
    return {**chosen, **changes}


def area(points: np.ndarray, reference: np.ndarray) -> float:
    """Brute force: the share of a fine grid that some point dominates, over the area of the grid."""
    top = points.max(axis=0)
    axes = [reference[i] + (np.arange(800) + 0.5) / 800 * (top[i] - reference[i]) for i in (0, 1)]
    cells = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    covered = (points[:, None, None, :] > cells[None]).all(axis=-1).any(axis=0)
    return float(covered.mean() * np.prod(top - reference))


@pytest.fixture(scope="module")
def selected(base: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("selection")
    return select_dominance(base, REWARDS, settings(folder), TRAIN, VALIDATION, **options())


def test_the_largest_hypervolume_over_one_reference_is_chosen(selected: Any) -> None:
    fronts = {c.dominance: Front.from_json(selected.folder / c.folder / "validation.json") for c in selected.candidates}
    assert list(fronts) == [0.6, 0.8]
    rewards = np.concatenate([front.rewards_KN for front in fronts.values()])
    reference = rewards.min(axis=0) - 0.1 * (rewards.max(axis=0) - rewards.min(axis=0))
    assert selected.reference == pytest.approx(reference.tolist(), abs=1e-12)
    areas = {dominance: area(front.rewards_KN, reference) for dominance, front in fronts.items()}
    assert {c.dominance: c.metrics["hypervolume"] for c in selected.candidates} == pytest.approx(areas, rel=0.01)
    assert selected.dominance == max(areas, key=areas.__getitem__)
    for dominance, front in fronts.items():  # merged with the B that the backbones were trained on
        assert front.coefficients_KN[0].tolist() == pytest.approx(
            [dominance / (2 * dominance - 1), (dominance - 1) / (2 * dominance - 1)]
        )
        assert [backbone["steps"] for backbone in front.provenance["backbones"]] == [2, 2]


def test_the_chosen_run_is_a_soup_as_seek_would_have_trained_it(selected: Any, base: str, tmp_path: Path) -> None:
    """Bit by bit, though it paused, though the rate falls linearly, and with the scale of another candidate."""
    whole = seek(base, REWARDS, circulant_weights(2, selected.dominance), settings(tmp_path), TRAIN, peft_config=LORA,
                 calibration_samples=16)  # fmt: skip
    assert selected.manifest == whole == SoupManifest.load(selected.soup_folder)
    for backbone in whole.backbones:
        expected = load_file(tmp_path / backbone.path / "adapter_model.safetensors")
        found = load_file(selected.soup_folder / backbone.path / "adapter_model.safetensors")
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_record_says_what_it_cost_and_what_was_chosen(selected: Any) -> None:
    record = json.loads((selected.folder / "dominance.json").read_text())
    assert record["dominance"] == selected.dominance
    assert record["soup"] == f"beta-{selected.dominance:g}"
    # 2 candidates of 2 backbones for 2 of 6 steps, and 2 backbones for the other 4; 5 μ x 6 prompts x 2 samples, twice
    cost = record["cost"]
    assert (cost["steps_early"], cost["steps_trained"], cost["steps_of_all"], cost["answers"]) == (8, 16, 24, 120)
    assert cost["seconds_of_all"] == pytest.approx(cost["seconds_training"] * 24 / 16)
    assert record["request"]["selection"]["stop_after"] == 2
    assert record["request"]["selection"]["validation_prompts"]["trained_on"] == 0
    table = selected.table()
    assert f"| **{selected.dominance:g}**" in table
    assert all(f"{candidate.hypervolume.value:.4g}" in table for candidate in selected.candidates)
    assert "16 optimizer steps (8 of them before the choice)" in selected.cost.text()


class Killed(BaseException):
    """What no error handler catches, as a signal would be."""


def test_interrupted_anywhere_it_goes_on_to_the_same_end(selected: Any, base: str, tmp_path: Path) -> None:
    """Killed in the training of each backbone, after it, in each measurement, and between any two of these."""
    rollouts: list[int] = []

    def counted(completions: list[str], **columns: Any) -> list[float]:
        rollouts.append(len(completions))
        if len(rollouts) == kill_at:
            raise Killed
        return REWARDS[0](completions)

    counted.__name__ = counted.__qualname__ = REWARDS[0].__name__
    kill_at, uninterrupted = 0, json.loads((selected.folder / "dominance.json").read_text())
    for attempt in range(40):
        rollouts.clear()
        kill_at = attempt % 4 + 2  # a rollout or two more each time
        try:
            args = settings(tmp_path, save_strategy="steps", save_steps=2)
            again = select_dominance(base, [counted, REWARDS[1]], args, TRAIN, VALIDATION, **options())
            break
        except Killed:
            continue
    assert attempt > 5
    found = json.loads((tmp_path / "dominance.json").read_text())
    assert found["candidates"] == uninterrupted["candidates"]
    assert found["reference"] == uninterrupted["reference"]
    for backbone in selected.manifest.backbones:
        expected = load_file(selected.soup_folder / backbone.path / "adapter_model.safetensors")
        result = load_file(again.soup_folder / backbone.path / "adapter_model.safetensors")
        assert all(torch.equal(result[name], value) for name, value in expected.items())


def test_a_candidate_can_be_added_and_nothing_is_done_twice(
    selected: Any, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    folder = shutil.copytree(selected.folder, tmp_path / "more")
    trial = DominanceTrial(base, REWARDS, settings(folder), TRAIN, VALIDATION, **options())
    assert (trial.steps_left(), trial.answers_left()) == (0, 0)
    more = DominanceTrial(base, REWARDS, settings(folder), TRAIN, VALIDATION, **options(dominances=[0.6, 0.8, 0.9]))
    assert (more.steps_left(), more.answers_left()) == (4, 60)
    trained = []
    train = candidate_module.CandidateRun.train
    monkeypatch.setattr(
        candidate_module.CandidateRun,
        "train",
        lambda self, others, **kwargs: trained.append((self.dominance, bool(kwargs))) or train(self, others, **kwargs),
    )
    result = more.run()
    assert trained == [(0.9, False), (result.dominance, True)]
    assert [candidate.dominance for candidate in result.candidates] == [0.6, 0.8, 0.9]
    assert result.cost.steps_early == 12


def stand_in(dominance: float, rewards_KN: list[list[float]]) -> Any:
    """A measured candidate with the same scores at every one of three prompts."""
    rewards = np.array(rewards_KN)
    front = Front(
        objectives=("a", "b"), preferences_KN=simplex_grid(2, 1.0), coefficients_KN=simplex_grid(2, 1.0),
        rewards_KN=rewards, intervals_KN2=np.stack([rewards, rewards], axis=-1),
        n_samples_KN=np.full(rewards.shape, 3),
    )  # fmt: skip
    scores_KPSN = np.broadcast_to(rewards[:, None, None], (2, 3, 1, 2))
    return SimpleNamespace(dominance=dominance, folder=Path(f"beta-{dominance}"), front=front, scores_KPSN=scores_KPSN)


def test_every_candidate_is_measured_above_the_same_point() -> None:
    """Wide and low beats narrow and high over references of their own (21 and .21), but not over a common one.

    Over (-1, -1): (0, 10) and (10, 0) dominate 11 + 11 - 1 = 21; (5, 6) and (6, 5) dominate 42 + 42 - 36 = 48.
    """
    wide, high = stand_in(0.6, [[10.0, 0.0], [0.0, 10.0]]), stand_in(0.8, [[6.0, 5.0], [5.0, 6.0]])
    for runs in ([wide, high], [high, wide]):
        reference_N, candidates, best = compare_candidates(runs, seed=0)
        assert reference_N.tolist() == [-1.0, -1.0]
        assert candidates[best].dominance == 0.8
        values = {c.dominance: c.hypervolume.value for c in candidates}
        assert values == pytest.approx({0.6: 21.0, 0.8: 48.0})
        behind = {c.dominance: c.behind and c.behind.value for c in candidates}
        assert behind == {0.6: pytest.approx(27.0), 0.8: None}


def test_of_equal_candidates_the_one_with_the_smaller_coefficients_is_chosen() -> None:
    runs = [stand_in(dominance, [[1.0, 0.0], [0.0, 1.0]]) for dominance in (0.7, 0.8, 0.6)]
    _, candidates, best = compare_candidates(runs, seed=0)
    assert candidates[best].dominance == 0.8


@pytest.mark.parametrize(
    ("fraction", "total", "rollout", "step"),
    [(0.2, 40, 2, 8), (0.2, 41, 2, 10), (0.2, 100, 4, 20), (0.01, 100, 4, 4), (0.2, 6, 1, 2), (0.3, 10, 1, 3)],
)
def test_the_pause_is_at_the_end_of_a_rollout(fraction: float, total: int, rollout: int, step: int) -> None:
    assert early_step(fraction, total, rollout) == step


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fraction": 1.0}, ConfigurationError, "fraction must be between 0 and 1"),
        ({"fraction": 0.9}, ConfigurationError, "nothing left to train after fraction=0.9 of 6 .* are 3 rollouts"),
        ({"dominances": [0.7]}, ConfigurationError, r"at least two different candidates; got \[0.7\]"),
        ({"dominances": [0.7, 0.7]}, ConfigurationError, "at least two different"),
        ({"dominances": [0.5, 0.7]}, WeightsError, r"must be in \(1/2, 1\]"),
        ({"reward_funcs": ["org/model", REWARDS[1]]}, ConfigurationError, "Wrap a reward model in a ClassifierReward"),
        ({"validation_prompts": ["w1"]}, ConfigurationError, "At least 2 prompts"),
        ({"args": {"save_only_model": True}}, ConfigurationError, "save_only_model=True leaves the optimizer out"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"reward_funcs": REWARDS, "validation_prompts": VALIDATION, **options(), **change}
    args = settings(tmp_path / "out", **given.pop("args", {}))
    with pytest.raises(error, match=message):
        select_dominance("no/such-model", args=args, train_dataset=TRAIN, **given)
    assert not (tmp_path / "out").exists()


def test_another_selection_in_the_folder_is_refused(selected: Any, base: str) -> None:
    for change, message in (
        ({"fraction": 0.5}, r"selection.fraction: 0.3 there, 0.5 now"),
        ({"settings": EvaluationSettings(max_new_tokens=6)}, "selection.answers.samples_per_prompt: 2 there, 1 now"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            DominanceTrial(base, REWARDS, settings(selected.folder), TRAIN, VALIDATION, **options(**change))
    with pytest.raises(ConfigurationError, match=r"settings.learning_rate: 0.02 there, 0.1 now"):
        DominanceTrial(base, REWARDS, settings(selected.folder, learning_rate=0.1), TRAIN, VALIDATION, **options())


def test_prompts_that_are_trained_on_are_no_validation(tmp_path: Path, base: str) -> None:
    with pytest.warns(UserWarning, match="2 of the 3 validation prompts are trained on"):
        trial = DominanceTrial(base, REWARDS, settings(tmp_path), TRAIN, ["w0 w1", "w1 w2", "w0 w2"], **options())
    assert trial.request["selection"]["validation_prompts"]["trained_on"] == 2
