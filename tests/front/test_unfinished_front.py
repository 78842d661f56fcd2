"""Interrupted evaluations: what is kept, what is generated again, and that the numbers are those of one run."""

import contextlib
import functools
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from trl_bonesoup.errors import ConfigurationError, FrontError, RewardError
from trl_bonesoup.front.evaluate import evaluate_front, evaluate_policies
from trl_bonesoup.front.front import Front
from trl_bonesoup.front.policies import Answer
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.front.unfinished import unfinished_path

SETTINGS = EvaluationSettings(samples_per_prompt=2, batch_size=4, seed=9)


class Counted:
    """Three policies that answer with numbers, remember what they were asked, and break when told to."""

    objectives = ("good", "brief")
    preferences_KN = np.array([[0.25, 0.75], [1.0, 0.0]])
    coefficients_KN = None
    markers = ("other",)
    groups = ((0, 1, 2),)
    order = (0, 1, 2)
    texts = ("p0", "p1", "p2")
    total = 18

    def __init__(self, breaks_after=None, name="counted"):
        self.asked, self.name, self.breaks_after = [], name, breaks_after

    @contextlib.contextmanager
    def answering(self, prompts, settings):
        yield self

    def __call__(self, batch, seeds):
        if self.breaks_after is not None and len(self.asked) >= self.breaks_after:
            raise KeyboardInterrupt
        self.asked += [(row.model, row.prompt, row.sample) for row in batch]
        return [Answer(f"{seed % 10007}.{row.model}", [seed % 7, 1]) for row, seed in zip(batch, seeds, strict=True)]

    def provenance(self):
        return {"method": self.name}


def good(completions, **_):
    return [float(text) / 3 for text in completions]


def brief(completions, completion_ids, **_):
    return [-float(ids[0]) / 7 for ids in completion_ids]


def evaluate(policies, path=None, rewards=(good, brief), settings=SETTINGS, prompts=("p0", "p1", "p2"), **options):
    options = {"front_path": path, "show_progress": False, **options}
    return evaluate_policies(policies, list(prompts), list(rewards), settings, **options)


def numbers(front):
    arrays = [front.rewards_KN, front.intervals_KN2, front.n_samples_KN]
    arrays += [array for marker in front.markers.values() for array in (marker.rewards_N, marker.intervals_N2)]
    return [array.tolist() for array in arrays]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "front.json"


@pytest.fixture
def whole():
    return evaluate(Counted())


def names(path):
    return sorted(file.name for file in path.parent.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policies": Counted(name="another")}, r"method \(now 'another', then 'counted'\)"),
        ({"prompts": ["p0", "p1", "p3"]}, "prompts_sha256"),
        ({"settings": EvaluationSettings(samples_per_prompt=2, batch_size=4, seed=8)}, r"seed \(now 8, then 9\)"),
        (
            {"settings": EvaluationSettings(samples_per_prompt=2, max_new_tokens=16, seed=9)},
            r"decoding.max_new_tokens \(now 16, then 128\)",
        ),
        ({"rewards": [brief, brief]}, "rewards.good"),
        ({"objective_names": ["kind", "brief"]}, "objectives"),
    ],
)
def test_a_front_of_another_request_is_not_replaced_unasked(path, change, message):
    evaluate(Counted(), path)
    before = path.read_bytes()
    changed = {"policies": Counted(), "path": path, **change}
    with pytest.raises(ConfigurationError, match=message) as caught:
        evaluate(**changed)
    assert "overwrite" in str(caught.value)
    assert changed["policies"].asked == []
    assert names(path) == ["front.json"]
    assert path.read_bytes() == before
    front = evaluate(**changed, overwrite=True)
    assert Front.from_json(path) == front
    assert path.read_bytes() != before


def test_preferences_make_another_request(path):
    evaluate(Counted(), path)
    policies = Counted()
    policies.preferences_KN = np.array([[0.5, 0.5], [1.0, 0.0]])
    with pytest.raises(ConfigurationError, match="preferences"):
        evaluate(policies, path)


def test_the_same_request_is_measured_again(path):
    settings = EvaluationSettings(samples_per_prompt=2, batch_size=5, seed=9)
    first, again = evaluate(Counted(), path), evaluate(Counted(), path, settings=settings)
    assert numbers(again) == numbers(first)
    assert Front.from_json(path).provenance["batch_size"] == 5


def test_what_is_no_front_is_not_replaced_unasked(path):
    path.parent.mkdir()
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match=r"front\.json is there.*overwrite"):
        evaluate(Counted(), path)
    assert path.read_text() == "{}"
    assert evaluate(Counted(), path, overwrite=True) == Front.from_json(path)


def test_answers_behind_another_front_are_not_replaced_unasked(path):
    samples = path.with_name("answers.jsonl")
    evaluate(Counted(), path, samples_path=samples)
    before, other = samples.read_bytes(), Counted(name="another")
    with pytest.raises(ConfigurationError, match=r"answers\.jsonl.*overwrite"):
        evaluate(other, path.with_name("other.json"), samples_path=samples)
    assert other.asked == []
    assert samples.read_bytes() == before
    assert names(path) == ["answers.jsonl", "front.json"]
    evaluate(other, path.with_name("other.json"), samples_path=samples, overwrite=True)
    evaluate(other, path.with_name("other.json"), samples_path=samples)


def test_answers_that_were_written_just_before_a_kill_are_written_again(path, whole, monkeypatch):
    samples = path.with_name("answers.jsonl")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Front, "to_json", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counted(), path, samples_path=samples)
    monkeypatch.undo()
    assert names(path) == [".front.json.unfinished", "answers.jsonl"]
    assert numbers(evaluate(Counted(), path, samples_path=samples)) == numbers(whole)


@pytest.mark.parametrize("after", [0, 1, 4, 9, 16])
def test_an_interrupted_evaluation_generates_only_what_is_missing(path, whole, after):
    first = Counted(breaks_after=after)
    with pytest.raises(KeyboardInterrupt):
        evaluate(first, path)
    done = len(first.asked)
    assert names(path) == ([".front.json.unfinished"] if done else [])
    second = Counted()
    front = evaluate(second, path)
    assert len(second.asked) == 18 - done
    assert not set(first.asked) & set(second.asked)
    assert numbers(front) == numbers(whole)
    assert front.provenance["kept_answers"] == done
    assert names(path) == ["front.json"]
    assert Front.from_json(path) == front


def test_a_reward_that_fails_loses_no_answer_and_no_score(path, whole):
    scored = []

    def fails_later(completions, completion_ids, **_):
        if len(scored) >= 8:
            raise ValueError("the judge has gone")
        scored.extend(completions)
        return brief(completions, completion_ids)

    first = Counted()
    with pytest.raises(RewardError, match="the judge has gone"):
        evaluate(first, path, [good, fails_later])
    assert len(first.asked) == 12  # those of the batch in which it failed are kept, too
    second, goods = Counted(), []

    def counted(completions, **_):
        goods.extend(completions)
        return good(completions)

    evaluate(second, path, [counted, brief])
    assert len(second.asked) == 6
    assert len(goods) == 18  # another function than before: its scores are not taken over


def test_scores_of_the_same_reward_are_kept(path, whole):
    calls = {"good": 0, "brief": 0}

    def good_counted(completions, **_):
        calls["good"] += len(completions)
        return good(completions)

    def brief_counted(completions, completion_ids, **_):
        calls["brief"] += len(completions)
        if calls["brief"] == 12:
            raise ValueError("once")
        return brief(completions, completion_ids)

    rewards = [good_counted, brief_counted]
    with pytest.raises(RewardError, match="once"):
        evaluate(Counted(), path, rewards)
    assert numbers(evaluate(Counted(), path, rewards)) == numbers(whole)
    assert calls["good"] == 18
    # the third batch is scored three times: it failed, once more to find the culprit, and again when resumed
    assert 18 < calls["brief"] <= 18 + 2 * 4


@pytest.mark.parametrize("change", ["source", "setting", "closure", "column"])
def test_scores_are_computed_again_when_the_reward_has_changed(path, change):
    def reward(scale, sign=1.0):
        def scaled(completions, **_):
            return [sign * scale * float(text) for text in completions]

        return scaled

    def other(completions, **_):
        return [2 * float(text) for text in completions]

    def column(completions, factor=None, **_):
        return [f * float(text) for f, text in zip(factor, completions, strict=True)]

    old, new = {
        "source": (reward(1), other),
        "setting": (functools.partial(weighed, weight=1), functools.partial(weighed, weight=2)),
        "closure": (reward(1), reward(2)),
        "column": (column, column),
    }[change]
    from datasets import Dataset

    def data(factor):
        return Dataset.from_dict({"prompt": ["p0", "p1", "p2"], "factor": [factor] * 3})

    def run(policies, reward, factor, path):
        return evaluate_policies(policies, data(factor), [reward, brief], SETTINGS, front_path=path,
                                 show_progress=False)  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(Counted(breaks_after=8), old, 1, path)
    second = Counted()
    front = run(second, new, 2, path)
    assert len(second.asked) == 10
    assert numbers(front) == numbers(run(Counted(), new, 2, None))


def weighed(completions, weight, **_):
    return [weight * float(text) for text in completions]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"settings": EvaluationSettings(samples_per_prompt=2, batch_size=4, seed=8)}, r"seed \(now 8, then 9\)"),
        ({"settings": EvaluationSettings(samples_per_prompt=1, batch_size=4, seed=9)}, "samples_per_prompt"),
        ({"settings": EvaluationSettings(2, 64, 1.0, 4, 9)}, r"decoding\.max_new_tokens \(now 64, then 128\)"),
        ({"settings": EvaluationSettings(2, 128, 0.5, 4, 9)}, r"decoding\.temperature"),
        ({"prompts": ("p0", "p1", "px")}, "prompts_sha256"),
        ({"policies": Counted(name="other")}, r"policies\.method \(now 'other', then 'counted'\)"),
    ],
)
def test_another_request_does_not_continue_and_destroys_nothing(path, change, named):
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counted(breaks_after=8), path)
    before = unfinished_path(path).read_bytes()
    policies = change.pop("policies", Counted())
    with pytest.raises(ConfigurationError, match=rf"unfinished evaluation of another request in .*{named}.*delete"):
        evaluate(policies, path, **change)
    assert policies.asked == []
    assert unfinished_path(path).read_bytes() == before
    assert evaluate(Counted(), path).provenance["kept_answers"] == 8


def test_another_grid_is_another_request(path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counted(breaks_after=8), path)
    other = Counted()
    other.preferences_KN = np.array([[0.5, 0.5], [1.0, 0.0]])
    with pytest.raises(ConfigurationError, match="preferences"):
        evaluate(other, path)


def test_the_batch_size_may_change(path, whole):
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counted(breaks_after=8), path)
    second = Counted()
    front = evaluate(second, path, settings=EvaluationSettings(samples_per_prompt=2, batch_size=5, seed=9))
    assert len(second.asked) == 10
    assert numbers(front) == numbers(whole)


def test_a_file_that_was_cut_anywhere_is_continued(path, whole):
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counted(breaks_after=12), path)
    complete = unfinished_path(path).read_bytes()
    for cut in range(0, len(complete), 97):
        unfinished_path(path).write_bytes(complete[:cut])
        policies = Counted()
        front = evaluate(policies, path)
        assert len(policies.asked) == 18 - front.provenance["kept_answers"]
        assert numbers(front) == numbers(whole)


def test_what_is_written_after_a_cut_line_is_read_again(path, whole):
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counted(breaks_after=8), path)
    unfinished_path(path).write_bytes(unfinished_path(path).read_bytes()[:-5])
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counted(breaks_after=4), path)
    third = Counted()
    front = evaluate(third, path)
    assert front.provenance["kept_answers"] == 12
    assert len(third.asked) == 6
    assert numbers(front) == numbers(whole)


def test_zeros_where_a_crash_of_the_machine_left_them_are_no_answers(path, whole):
    with pytest.raises(KeyboardInterrupt):
        evaluate(Counted(breaks_after=8), path)
    with unfinished_path(path).open("ab") as file:
        file.write(b"\0" * 100 + b"\n")
    assert numbers(evaluate(Counted(), path)) == numbers(whole)


def test_two_evaluations_of_one_front_do_not_mix(path):
    def meanwhile(completions, **_):
        with pytest.raises(ConfigurationError, match="Another process is evaluating the front"):
            evaluate(Counted(), path)
        return good(completions)

    assert evaluate(Counted(), path, [meanwhile, brief]).provenance["kept_answers"] == 0


def test_a_front_that_cannot_be_written_loses_nothing(path, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(Front, "to_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            evaluate(Counted(), path)
    policies = Counted()
    evaluate(policies, path, samples_path=tmp_path / "samples.jsonl")
    assert policies.asked == []
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 18


def test_an_objective_without_any_score_keeps_the_answers(path):
    def never(completions, **_):
        return [None] * len(completions)

    with pytest.raises(FrontError, match="returned None for every answer"):
        evaluate(Counted(), path, [good, never])
    policies = Counted()
    evaluate(policies, path)
    assert policies.asked == []


def test_none_is_a_score_that_is_kept(path):
    def picky(prompts, completions, **_):
        return [None if prompt == "p0" else float(text) for prompt, text in zip(prompts, completions, strict=True)]

    with pytest.raises(KeyboardInterrupt):
        evaluate(Counted(breaks_after=8), path, [picky, brief])
    front = evaluate(Counted(), path, [picky, brief])
    assert front.n_samples_KN.tolist() == [[4, 6], [4, 6]]
    assert numbers(front) == numbers(evaluate(Counted(), None, [picky, brief]))


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(Counted())
    assert list(tmp_path.iterdir()) == []


# real soups, and real kills

PROMPTS = ["the cat", "a happy dog runs and the sun is good .", "sad", "the sea was cold and bad .", "good"]
GRID = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]


def letters(completions, **_):
    return [float(sum(map(ord, text))) for text in completions]


def lengths(completions, **_):
    return [float(len(text)) for text in completions]


def measure(soup, path, rewards=(letters, lengths)):
    return evaluate_front(soup, PROMPTS, list(rewards), GRID, max_new_tokens=8, batch_size=7, seed=3, front_path=path,
                          show_progress=False)  # fmt: skip


def generated(monkeypatch):
    from trl_bonesoup.front import sampling

    rows, generate = [], sampling.generate
    monkeypatch.setattr(sampling, "generate", lambda *a, **k: rows.append(len(a[2])) or generate(*a, **k))
    return rows


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_a_killed_evaluation_of_a_soup_goes_on_to_the_same_numbers(soup_folder, path, monkeypatch, kind):
    from trl_bonesoup.soup.lora import BoneSoup

    soup = BoneSoup.from_pretrained(soup_folder(kind=kind))
    whole = numbers(measure(soup, None))
    calls = []

    def kills_the_process(completions, **_):
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return lengths(completions)

    process = multiprocessing.get_context("fork").Process(
        target=measure, args=(soup, path, (letters, kills_the_process))
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert names(path) == [".front.json.unfinished"]

    rows = generated(monkeypatch)
    front = measure(soup, path)
    # batches of 7 of the 30 answers of an adapter soup, and of 5 (all prompts of one model) of a full one
    assert sum(rows) == (30 - 3 * 7 if kind == "adapter" else 30 - 3 * 5)
    assert numbers(front) == whole
    assert names(path) == ["front.json"]


def test_the_sidecar_of_other_weights_is_refused(soup_folder, path, tmp_path):
    import shutil

    from trl_bonesoup.soup.lora import BoneSoup

    soup = BoneSoup.from_pretrained(soup_folder())
    with pytest.raises(RewardError):
        measure(soup, path, (letters, lambda completions, **_: 1 / 0))
    folder = shutil.copytree(soup_folder(), tmp_path / "retrained")
    weights = folder / "b1" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x3f")
    with pytest.raises(ConfigurationError, match=r"policies\.fingerprints\.backbones"):
        measure(BoneSoup.from_pretrained(folder), path)
    record = json.loads(unfinished_path(path).read_text().splitlines()[0])["request"]
    assert record["policies"]["fingerprints"]["base_model"].startswith("sha256:")
