"""Recorded answers: other rewards on them give what evaluating with those rewards would have given."""

import json

import numpy as np
import pytest

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.evaluate import evaluate_front, evaluate_policies
from trl_bonesoup.front.front import Front
from trl_bonesoup.front.policies import Answer, Row
from trl_bonesoup.front.recorded import RecordedAnswers
from trl_bonesoup.front.samples import Answers, read_samples

PROMPTS = ["the cat", "a happy dog runs and the sun is good .", "sad", "good"]
GRID = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]


def lengths(completions, **_):
    return [float(len(text)) for text in completions]


def letters(completions, **_):
    return [float(sum(map(ord, text))) for text in completions]


def tokens(completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]


def on_topic(prompts, completions, **_):
    return [
        float(prompt.split()[0] in text) - 0.01 * len(prompt) for prompt, text in zip(prompts, completions, strict=True)
    ]


def evaluate(soup, rewards, **options):
    return evaluate_front(soup, PROMPTS, rewards, GRID, samples_per_prompt=2, max_new_tokens=8, seed=3, batch_size=7,
                          show_progress=False, **options)  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_other_rewards_score_the_same_answers(soup, tmp_path, ending):
    front = evaluate(
        soup, [lengths, letters], samples_path=tmp_path / f"s.{ending}", front_path=tmp_path / "front.json"
    )
    recorded = RecordedAnswers(Front.from_json(tmp_path / "front.json"), tmp_path / f"s.{ending}")
    again = evaluate_policies(recorded, PROMPTS, [tokens, on_topic], recorded.settings, show_progress=False)
    expected = evaluate(soup, [tokens, on_topic])
    np.testing.assert_array_equal(again.rewards_KN, expected.rewards_KN)
    np.testing.assert_array_equal(again.intervals_KN2, expected.intervals_KN2)
    np.testing.assert_array_equal(again.coefficients_KN, front.coefficients_KN)
    for label, marker in expected.markers.items():
        np.testing.assert_array_equal(again.markers[label].rewards_N, marker.rewards_N)
    assert again.provenance["evaluation"] == front.provenance
    assert (again.rewards_KN != front.rewards_KN).all()


def test_answers_may_hold_what_other_programs_take_for_a_new_line(tmp_path):
    text = "one\u2028two\x85three\nfour"
    answers = Answers([[1.0, 0.0]], 1, 1, ("a", "b"))
    answers.add([Row(0, 0, 0)], [Answer(text, [1, 2])], [[0.5], [None]])
    for ending in ("jsonl", "parquet"):
        answers.write(tmp_path / f"s.{ending}", ["prompt"])
        (record,) = read_samples(tmp_path / f"s.{ending}")
        assert record["completion"] == text
        assert record["completion_ids"] == [1, 2]
        assert record["scores"] == {"a": 0.5, "b": None}


def test_what_is_not_of_the_front_is_refused(soup, tmp_path):
    path = tmp_path / "s.jsonl"
    front = evaluate(soup, [lengths, letters], samples_path=path)
    recorded = RecordedAnswers(front, path)

    def score(prompts=PROMPTS, settings=recorded.settings):
        evaluate_policies(recorded, prompts, [lengths, letters], settings, show_progress=False)

    with pytest.raises(ConfigurationError, match="not the prompts"):
        score(PROMPTS[::-1])
    with pytest.raises(ConfigurationError, match=r"recorded\.settings"):
        score(settings=None)

    lines = path.read_text().splitlines()
    cut = tmp_path / "cut.jsonl"
    cut.write_text("\n".join(lines[:-1]))
    recorded = RecordedAnswers(front, cut)
    with pytest.raises(ConfigurationError, match="no answer of model 5 to prompt 3"):
        score()
    other = [json.dumps(json.loads(line) | {"preference": [0.9, 0.1]}) for line in lines]
    cut.write_text("\n".join(other))
    with pytest.raises(ConfigurationError, match=r"another front: its preference 0 is \[0\.9, 0\.1\]"):
        RecordedAnswers(front, cut)
    cut.write_text('{"text": "hello"}')
    with pytest.raises(ConfigurationError, match="does not hold answers"):
        RecordedAnswers(front, cut)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        RecordedAnswers(front, tmp_path / "nowhere.parquet")
    object.__setattr__(front, "provenance", {})
    with pytest.raises(ConfigurationError, match="does not say how its answers were made"):
        RecordedAnswers(front, path)
