"""Single scores come back from the file of the answers as they were given."""

import json
from pathlib import Path

import numpy as np
import pytest

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front.policies import Answer, Row
from trl_bonesoup.front.samples import Answers
from trl_bonesoup.front.scores import read_scores


def score(model: int, prompt: int, sample: int, objective: int) -> float | None:
    return (
        None
        if (model, prompt, sample, objective) == (1, 2, 0, 1)
        else 100 * model + 10 * prompt + sample + 0.5 * objective
    )


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_scores_are_found_again_by_preference_prompt_sample_and_name(tmp_path: Path, ending: str) -> None:
    answers = Answers([[1.0, 0.0], [0.0, 1.0], "base"], prompts=4, samples=2, objectives=("a", "b"))
    for place in np.ndindex(3, 4, 2):
        row = Row(*(int(index) for index in place))
        answers.add([row], [Answer("text", None)], [[score(*place, i)] for i in (0, 1)])
    file = tmp_path / f"samples.{ending}"
    answers.write(file, ["prompt"] * 4)
    for objectives in (("a", "b"), ("b", "a")):
        found = read_scores(file, objectives)
        assert found.shape == (2, 4, 2, 2)
        for k, p, s, i in np.ndindex(found.shape):
            expected = score(k, p, s, "ab".index(objectives[i]))
            assert np.isnan(found[k, p, s, i]) if expected is None else found[k, p, s, i] == expected
    with pytest.raises(FrontError, match=r"objectives \['a', 'c'\] \(KeyError: 'c'\)"):
        read_scores(file, ("a", "c"))


def test_a_file_that_lacks_answers_is_refused(tmp_path: Path) -> None:
    record = {"preference_index": 0, "prompt_index": 1, "sample_index": 0, "scores": {"a": 1.0}}
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps(record) + "\n")
    with pytest.raises(FrontError, match="lacks some answers"):
        read_scores(file, ("a",))
    file.write_text("")
    with pytest.raises(FrontError, match="lacks some answers"):
        read_scores(file, ("a",))
    with pytest.raises(FrontError, match="FileNotFoundError"):
        read_scores(tmp_path / "missing.parquet", ("a",))
