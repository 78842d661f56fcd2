"""A comparison on a tiny model: one pool of policies, one set of answers, and every method against the others."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import says

from trl_bonesoup import BoneSoup, Front, MultiRewardPPOConfig, SoupManifest, circulant_weights, evaluate_front, seek
from trl_bonesoup.errors import ConfigurationError, FrontError
from trl_bonesoup.front import compare as module
from trl_bonesoup.front import results
from trl_bonesoup.front.compare import Comparison
from trl_bonesoup.front.metrics import spacing
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.weights import simplex_grid

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
TRAIN = Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(16)]})
TEST = [f"w{i} w{i + 3}" for i in range(5)]
GRID = simplex_grid(2, 0.5)
METHODS = ["base", "rewarded-soups", {"bone-soup": {"dominance": 0.7}}, {"aba": {"dominance": 0.7}}, "mod",
           {"random-b": {"draws": 1}}, {"morlhf": {"preferences": [[1, 0], [0.7, 0.3], [0, 1]]}}]  # fmt: skip


REWARDS = [says(0, 10), says(8, 18)]


def settings(folder: Path, **changes: Any) -> MultiRewardPPOConfig:
    chosen = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_iterations": 2,
        "max_completion_length": 6,
        "max_steps": 4,
        "learning_rate": 3e-2,
        "kl_coef": 0.02,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "activation_checkpointing": False,
    }
    return MultiRewardPPOConfig(**{**chosen, **changes})


def comparison(base: str, folder: Path, rewards: Any = REWARDS, changes: Any = None, **given: Any) -> Comparison:
    options = {
        "methods": METHODS,
        "seeds": [3],
        "preferences": GRID,
        "settings": EvaluationSettings(samples_per_prompt=2, max_new_tokens=6, seed=7),
        "peft_config": LORA,
        "calibration_samples": 16,
        "show_progress": False,
    }
    args = settings(folder, **(changes or {}))
    return Comparison(base, rewards, args=args, train_dataset=TRAIN, test_prompts=TEST, **{**options, **given})


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "RESAMPLES", 50)
        yield


@pytest.fixture(scope="module")
def done(base: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("comparison")
    plan = comparison(base, folder)
    # 2 of Rewarded Soups, 2 of Bone Soup and 2 of the random B; MORLHF's are among them. 3 μ x 5 x 2 answers for
    # each of 6 methods, and one of them for the base.
    assert len(plan.mixtures) == 6
    assert (plan.steps_left(), plan.answers_left()) == (24, 190)
    return plan.run()


def front(done: Any, slug: str, seed: int = 3) -> Front:
    return Front.from_json(done.folder / slug / f"seed-{seed}" / "front.json")


def test_policies_are_shared_and_are_those_that_seek_trains(done: Any, base: str, tmp_path: Path) -> None:
    pool = done.folder / "policies" / "seed-3"
    assert {path.name for path in pool.iterdir() if path.name[0] in "01"} >= {"1-0", "0-1", "0.7-0.3", "0.3-0.7"}
    assert len([path for path in pool.iterdir() if path.name[0] in "01"]) == 6
    whole = seek(base, REWARDS, circulant_weights(2, 0.7), settings(tmp_path, seed=3), TRAIN, peft_config=LORA,
                 calibration_samples=16)  # fmt: skip
    folder = done.folder / "bone-soup-0.7" / "seed-3"
    manifest = SoupManifest.load(folder)
    assert manifest.objectives == whole.objectives
    assert manifest.weights.tolist() == whole.weights.tolist()
    for mine, theirs in zip(manifest.backbones, whole.backbones, strict=True):
        expected = load_file(tmp_path / theirs.path / "adapter_model.safetensors")
        found = load_file(folder / mine.path / "adapter_model.safetensors")
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_all_methods_answer_with_the_same_random_numbers(done: Any) -> None:
    """What is the same model in two methods answers the same, whatever is measured beside it."""
    soup = BoneSoup.from_pretrained(done.folder / "bone-soup-0.7" / "seed-3")
    names = soup.manifest.objective_names
    own = evaluate_front(soup, TEST, REWARDS, GRID, samples_per_prompt=2, max_new_tokens=6, seed=7, show_progress=False)
    assert front(done, "bone-soup-0.7").rewards_KN.tolist() == own.rewards_KN.tolist()
    oracle, experts = front(done, "morlhf"), front(done, "rewarded-soups")
    assert oracle.point([0.7, 0.3]).rewards_N.tolist() == own.markers[f"backbone {names[0]}"].rewards_N.tolist()
    assert front(done, "base").rewards_KN.tolist() == [own.markers["base"].rewards_N.tolist()]
    for vertex in ([1, 0], [0, 1]):
        assert oracle.point(vertex).rewards_N.tolist() == experts.point(vertex).rewards_N.tolist()
        assert front(done, "mod").point(vertex).rewards_N.tolist() == experts.point(vertex).rewards_N.tolist()
    averaged = front(done, "aba-0.7")
    assert averaged.coefficients_KN.tolist() == GRID.tolist()
    assert averaged.point([1, 0]).rewards_N.tolist() == own.markers[f"backbone {names[0]}"].rewards_N.tolist()
    assert averaged.point([0.5, 0.5]).rewards_N.tolist() == own.point([0.5, 0.5]).rewards_N.tolist()  # λ = μ there


def test_the_record_agrees_with_the_fronts(done: Any) -> None:
    record = json.loads((done.folder / "compare.json").read_text())
    fronts = {method["folder"]: front(done, method["folder"]) for method in record["methods"]}
    rewards = np.concatenate([each.rewards_KN for each in fronts.values()])
    reference = rewards.min(axis=0) - 0.1 * np.ptp(rewards, axis=0)
    assert list(record["reference"].values()) == pytest.approx(reference.tolist())
    scale = json.loads((done.folder / "policies" / "seed-3" / "seek.json").read_text())["statistics"]
    assert list(record["scale"].values()) == scale
    mean, std = (np.array([entry[name] for entry in scale]) for name in ("mean", "std"))
    for method in record["methods"][1:]:
        measured = fronts[method["folder"]]
        expected = {**measured.metrics(reference), "spacing": spacing((measured.rewards_KN - mean) / std)}
        expected["hypervolume"] /= std.prod()
        standard = (measured.rewards_KN - mean) / std
        expected["inner_product"] = (measured.preferences_KN * standard).sum(axis=1).mean()
        steps = np.diff(standard[np.argsort(measured.preferences_KN[:, 0])], axis=0)
        expected["sparsity"] = (steps**2).sum(axis=1).mean()
        (found,) = method["by_seed"]
        assert {name: found[name] for name in expected} == pytest.approx(expected), method["folder"]
        assert method["over_seeds"]["hypervolume"]["value"] == pytest.approx(expected["hypervolume"])
    text = (done.folder / "compare.md").read_text()
    assert text.strip() == done.table()
    assert all(method["name"] in text for method in record["methods"])
    rows = (done.folder / "compare.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + len(record["methods"])
    assert {"front.png", "front.svg", "preference.png"} <= {path.name for path in done.folder.iterdir()}


class Killed(BaseException):
    """What no error handler catches, as a signal would be."""


def test_metrics_count_rewards_in_the_units_that_the_settings_give(base: str, tmp_path: Path) -> None:
    fixed = {"score_normalization": "fixed", "score_mean": [0.5, 0.25], "score_std": [0.5, 0.1], "max_steps": 2}
    methods = [{"bone-soup": {"dominance": 0.7}}]
    result = comparison(base, tmp_path, changes=fixed, methods=methods).run()
    given = [{"mean": 0.5, "std": 0.5}, {"mean": 0.25, "std": 0.1}]
    record = json.loads((tmp_path / "compare.json").read_text())
    assert list(record["scale"].values()) == given
    measured = front(result, "bone-soup-0.7")
    standard = (measured.rewards_KN - [0.5, 0.25]) / [0.5, 0.1]
    (found,) = record["methods"][0]["by_seed"]
    assert found["inner_product"] == pytest.approx((measured.preferences_KN * standard).sum(axis=1).mean())
    assert "in the mean and units that its settings gave" in result.table()
    soup = SoupManifest.load(tmp_path / "bone-soup-0.7" / "seed-3")
    assert [objective.normalization.model_dump() for objective in soup.objectives] == given


def test_interrupted_anywhere_it_goes_on_to_the_same_end(done: Any, base: str, tmp_path: Path) -> None:
    calls, kill_at = 0, 0

    def counted(completions: list[str], **columns: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == kill_at:
            raise Killed
        return REWARDS[0](completions)

    counted.__name__ = counted.__qualname__ = REWARDS[0].__name__
    for attempt in range(60):
        calls, kill_at = 0, attempt % 5 + 3
        try:
            changes = {"save_strategy": "steps", "save_steps": 2}
            comparison(base, tmp_path, [counted, REWARDS[1]], changes).run()
            break
        except Killed:
            continue
    assert attempt > 5
    found, expected = (json.loads((folder / "compare.json").read_text()) for folder in (tmp_path, done.folder))
    assert found["methods"] == expected["methods"]
    assert found["reference"] == expected["reference"]


def test_seeds_and_methods_are_added_and_nothing_is_done_twice(
    done: Any, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(done.folder, done.folder.parent / "more")
    again = comparison(base, folder)
    assert (again.steps_left(), again.answers_left()) == (0, 0)
    methods = ["base", {"bone-soup": {"dominance": [0.7]}}, {"morlhf": {"preferences": [[0.7, 0.3], [0.2, 0.8]]}}]
    more = comparison(base, folder, methods=methods, seeds=[3, 4])
    # seed 3: the policy for (.2, .8), and MORLHF's front at other preferences; seed 4: 3 policies, 2 fronts
    assert more.steps_left() == (1 + 3) * 4
    assert more.answers_left() == (2 + 3 + 2) * 10
    result = more.run()
    assert [each.method.slug for each in result.methods] == ["base", "bone-soup-0.7", "morlhf"]
    assert (
        front(result, "bone-soup-0.7", 3).to_json(folder / "same.json").read_text()
        == (done.folder / "bone-soup-0.7" / "seed-3" / "front.json").read_text()
    )
    assert (
        front(result, "bone-soup-0.7", 4).rewards_KN.tolist() != front(result, "bone-soup-0.7", 3).rewards_KN.tolist()
    )
    assert not (folder / "base" / "seed-4").exists()
    monkeypatch.setattr(module, "evaluate_policies", None)
    assert more.result().table() == result.table()
    assert "2 seeds: 3, 4" in result.table()


def test_fronts_are_kept_without_their_policies(done: Any, base: str) -> None:
    folder = shutil.copytree(done.folder, done.folder.parent / "kept")
    for path in (folder / "policies" / "seed-3").iterdir():
        if path.name != "seek.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = comparison(base, folder)
    assert (again.steps_left(), again.answers_left()) == (0, 0)
    result = again.run()
    assert result.table() == done.table()
    assert {path.name for path in (folder / "policies" / "seed-3").iterdir()} == {"seek.json"}
    (folder / "rewarded-soups" / "seed-3" / "front.json").unlink()
    assert again.steps_left() == 2 * 4
    again.run()  # the experts of Rewarded Soups are trained again, to the same bits
    assert front(again, "rewarded-soups").rewards_KN.tolist() == front(done, "rewarded-soups").rewards_KN.tolist()


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"learning_rate": 0.1}, {}, "settings.learning_rate: 0.03 there, 0.1 now"),
        ({}, {"settings": EvaluationSettings(max_new_tokens=5)}, "answers.max_new_tokens: 6 there, 5 now"),
        ({}, {"preferences": simplex_grid(2, 0.25)}, "preferences: "),
        ({"max_steps": 8}, {}, "max_steps: 4 there, 8 now"),
    ],
)  # fmt: skip
def test_another_comparison_in_the_folder_is_refused(
    done: Any, base: str, changes: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        comparison(base, done.folder, changes=changes, **given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"seeds": []}, ConfigurationError, "different whole numbers from 0"),
        ({"seeds": [1, 1]}, ConfigurationError, "different whole numbers from 0"),
        ({"against": "mergekit"}, ConfigurationError, "against must be one of the methods"),
        ({"reference": [0.0]}, FrontError, "reference point needs one number for each of the 2"),
        ({"preferences": [[0.5, 0.5], [0.5, 0.5]]}, FrontError, "may occur once"),
        ({"rewards": ["org/model", REWARDS[1]]}, ConfigurationError, "Wrap a reward model in a ClassifierReward"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_written(
    tmp_path: Path, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        comparison("no/such-model", tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
