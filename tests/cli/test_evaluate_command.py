"""`bonesoup evaluate` on a tiny soup: every kind of policies, with the numbers that the Python functions give."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_models import write_soup
from tiny_endpoint import serving

from trl_bonesoup import BoneSoup, Front
from trl_bonesoup.cli import main
from trl_bonesoup.front.evaluate import evaluate_policies
from trl_bonesoup.front.mixture import MixturePolicies
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.front.soups import SoupPolicies

REWARDS = """
from trl_bonesoup.rewards.protocol import completion_texts
def lengths(completions, **_):
    return [float(len(text)) for text in completion_texts(completions)]
def letters(completions, **_):
    return [float(sum(map(ord, text))) for text in completion_texts(completions)]
def broken(completions, **_):
    raise ValueError("no judge today")
"""
PROMPTS = ["the cat", "a happy dog runs", "sad", "the sea was cold ."]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_soup(folder / "run")
    (folder / "cli_rewards.py").write_text(REWARDS)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


@pytest.fixture(autouse=True)
def importable(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(work))


def evaluate(work: Path, out: Path, *arguments: str, rewards: tuple[str, str] = ("lengths", "letters")) -> int:
    first, second = rewards
    return main(
        ["evaluate", "--prompts", str(work / "prompts.txt"), "--max-new-tokens", "6", "--seed", "3", "--out", str(out),
         "--reward", f"good=cli_rewards:{first}", "--reward", f"brief=cli_rewards:{second}", *arguments]
    )  # fmt: skip


def expected(policies: object) -> np.ndarray:
    import cli_rewards

    front = evaluate_policies(
        policies, PROMPTS, [cli_rewards.lengths, cli_rewards.letters], EvaluationSettings(max_new_tokens=6, seed=3),
        show_progress=False,
    )  # fmt: skip
    return front.rewards_KN


GRID = [[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]]
PREFERENCES = ["--preference", "1,0", "--preference", "good=0.75,brief=0.25", "--preference", "brief"]


@pytest.mark.parametrize(
    ("method", "policies"),
    [
        ("soup", lambda soup: SoupPolicies(soup, GRID)),
        ("aba", lambda soup: SoupPolicies(soup, GRID, combination_weights=[[1, 0], [0, 1]])),
        ("mod", lambda soup: MixturePolicies(soup, GRID)),
        ("mod-coefficients", lambda soup: MixturePolicies(soup, GRID, mix_with="coefficients")),
    ],
)
def test_the_backbones_of_a_soup_are_merged_or_mixed(work, tmp_path, method, policies, capsys):
    assert evaluate(work, tmp_path / "front.json", str(work / "run"), "--method", method, *PREFERENCES) == 0
    front = Front.from_json(tmp_path / "front.json")
    np.testing.assert_array_equal(front.rewards_KN, expected(policies(BoneSoup.from_pretrained(work / "run"))))
    assert front.provenance["prompts_source"] == str(work / "prompts.txt")
    assert front.table() in capsys.readouterr().out


def test_a_front_of_other_prompts_is_replaced_only_with_overwrite(work, tmp_path, capsys):
    arguments = [str(work / "run"), "--grid", "1"]
    assert evaluate(work, tmp_path / "front.json", *arguments) == 0
    before = (tmp_path / "front.json").read_bytes()
    assert evaluate(work, tmp_path / "front.json", *arguments, "--limit", "3") == 2
    error = capsys.readouterr().err
    assert "front of another request" in error
    assert "prompts_sha256" in error
    assert (tmp_path / "front.json").read_bytes() == before
    assert evaluate(work, tmp_path / "front.json", *arguments, "--limit", "3", "--overwrite") == 0
    assert Front.from_json(tmp_path / "front.json").provenance["prompts"] == 3
    assert evaluate(work, tmp_path / "front.json", *arguments, "--limit", "3") == 0


def test_answers_are_as_long_as_in_training(work, tmp_path, capsys):
    run = write_soup(tmp_path / "run")
    soup = json.loads((run / "soup.json").read_text())
    (run / "soup.json").write_text(json.dumps({**soup, "training": {"max_completion_length": 5, "temperature": 0.5}}))
    arguments = ["--prompts", str(work / "prompts.txt"), "--grid", "1", "--out", str(tmp_path / "front.json")]
    arguments += ["--reward", "good=cli_rewards:lengths", "--reward", "brief=cli_rewards:letters", "--overwrite"]

    def decoding(run, *more):
        assert main(["evaluate", str(run), *arguments, *more]) == 0
        return Front.from_json(tmp_path / "front.json").provenance["decoding"]

    assert decoding(run) == {"max_new_tokens": 5, "temperature": 0.5}
    assert "max_new_tokens 5 and temperature 0.5, as in the training (soup.json)" in capsys.readouterr().out
    assert decoding(run, "--max-new-tokens", "7") == {"max_new_tokens": 7, "temperature": 0.5}
    shown = capsys.readouterr().out
    assert "temperature 0.5, as in the training" in shown
    assert "max_new_tokens 7" not in shown
    assert decoding(work / "run", "--temperature", "0") == {"max_new_tokens": 128, "temperature": 0.0}
    assert "max_new_tokens 128 by default" in capsys.readouterr().out
    assert main(["extrapolate", str(run), str(tmp_path / "alpha"), *arguments[:2], *arguments[6:10],
                 "--alphas", "0.1"]) == 0  # fmt: skip
    record = json.loads((tmp_path / "alpha" / "vertices.json").read_text())["provenance"]
    assert record["decoding"] == {"max_new_tokens": 5, "temperature": 0.5}
    assert "max_new_tokens 5 and temperature 0.5, as in the training" in capsys.readouterr().out


def test_rewards_that_are_named_may_come_in_any_order(work, tmp_path):
    arguments = ["evaluate", str(work / "run"), "--prompts", str(work / "prompts.txt"), "--max-new-tokens", "6"]
    arguments += ["--seed", "3", "--out", str(tmp_path / "front.json"), *PREFERENCES]
    assert main([*arguments, "--reward", "brief=cli_rewards:letters", "--reward", "good=cli_rewards:lengths"]) == 0
    front = Front.from_json(tmp_path / "front.json")
    assert front.objectives == ("good", "brief")
    assert front.provenance["rewards"] == {"good": "cli_rewards:lengths", "brief": "cli_rewards:letters"}
    policies = SoupPolicies(BoneSoup.from_pretrained(work / "run"), GRID)
    np.testing.assert_array_equal(front.rewards_KN, expected(policies))


def test_trained_models_are_measured_with_their_preferences(work, tmp_path):
    run = work / "run"
    arguments = ["--policy", f"{run}/b1@good=0.25,brief=0.75", "--policy", f"{run}/b0@good",
                 "--base-model", f"{run}/base", "--marker", f"start={run}/base"]  # fmt: skip
    assert evaluate(work, tmp_path / "front.json", *arguments) == 0
    front = Front.from_json(tmp_path / "front.json")
    assert front.preferences_KN.tolist() == [[0.25, 0.75], [1.0, 0.0]]
    backbones = expected(MixturePolicies(BoneSoup.from_pretrained(run), [[0, 1], [1, 0]]))
    np.testing.assert_array_equal(front.rewards_KN, backbones)
    assert list(front.markers) == ["start"]


def test_an_endpoint_is_asked(work, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("SERVED_KEY", "sk-very-secret")
    with serving() as server:
        server.answer = lambda asked: asked["model"] * 2
        settings = {"policy": ["mu@1@1,0", "m@0,1"], "endpoint": server.url, "api-key-env": "SERVED_KEY",
                    "extra-body": {"top_k": -1}, "concurrency": 1}  # fmt: skip
        (tmp_path / "evaluate.yml").write_text(yaml.safe_dump(settings))
        assert evaluate(work, tmp_path / "front.json", "--config", str(tmp_path / "evaluate.yml")) == 0
    assert Front.from_json(tmp_path / "front.json").rewards_KN[:, 0].tolist() == [8.0, 2.0]  # "mu@1" twice, "m" twice
    assert set(server.keys) == {"Bearer sk-very-secret"}
    assert all(request["top_k"] == -1 for request in server.requests)


def test_a_sample_of_preferences_has_the_vertices_first(work, tmp_path):
    assert evaluate(work, tmp_path / "front.json", str(work / "run"), "--sample", "3") == 0
    first, second, third = Front.from_json(tmp_path / "front.json").preferences_KN.tolist()
    assert (first, second) == ([1.0, 0.0], [0.0, 1.0])
    assert 0 < third[0] < 1


def test_the_same_command_continues_where_a_reward_failed(work, tmp_path, capsys):
    arguments = [str(work / "run"), "--grid", "0.5", "--batch-size", "8"]
    assert evaluate(work, tmp_path / "front.json", *arguments, rewards=("lengths", "broken")) == 2
    assert "no judge today" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".front.json.unfinished"]
    assert evaluate(work, tmp_path / "front.json", *arguments) == 0
    assert "8 answers were there from an interrupted evaluation." in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["front.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give either SOUP or --policy"),
        (["RUN", "--policy", "m@1,0"], "Give either SOUP or --policy"),
        (["RUN", "--endpoint", "http://127.0.0.1:1/v1"], "go with --policy"),
        (["--policy", "m"], "has the form MODEL@MU; got 'm'"),
        (["--policy", "RUN/b0@1,0", "--method", "mod"], "goes with a soup"),
        (["--policy", "RUN/b0@0.5,0.4", "--base-model", "RUN/base"], "sum to 1"),
        (["--policy", "nowhere at all@1,0"], "nowhere at all"),
        (["--policy", "m@1,0", "--endpoint", "http://127.0.0.1:1/v1", "--extra-body", "[1]"], "JSON object"),
        (["--policy", "m@1,0", "--endpoint", "http://127.0.0.1:1/v1", "--extra-body", "{"], "must be JSON"),
        (["--policy", "m@1,0", "--endpoint", "http://127.0.0.1:1/v1", "--marker", "base"], "has the form LABEL=MODEL"),
        (["RUN", "--method", "mod", "--extrapolation", "0.2"], "goes with merging"),
        (["RUN", "--sample", "1"], "at least 2; got 1"),
    ],
)
def test_mistakes_end_in_one_line(work, tmp_path, arguments, message, capsys):
    arguments = [argument.replace("RUN", str(work / "run")) for argument in arguments]
    assert evaluate(work, tmp_path / "front.json", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_conversations_are_not_wrapped_once_more(work, tmp_path, capsys):
    chats = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    arguments = [str(work / "run"), "--grid", "1", "--prompts", str(tmp_path / "chats.jsonl")]
    assert evaluate(work, tmp_path / "front.json", *arguments, "--chat") == 2
    assert "has them already" in capsys.readouterr().err
    assert evaluate(work, tmp_path / "front.json", *arguments) == 0
    plain = [str(work / "run"), "--grid", "1", "--chat"]
    assert evaluate(work, tmp_path / "chat.json", *plain) == 0
    fronts = [Front.from_json(tmp_path / name) for name in ("front.json", "chat.json")]
    np.testing.assert_array_equal(fronts[0].rewards_KN, fronts[1].rewards_KN)
    assert fronts[0].provenance["prompts_sha256"] == fronts[1].provenance["prompts_sha256"]


def test_policies_need_their_rewards(work, capsys):
    assert main(["evaluate", "--policy", "m@1,0", "--prompts", str(work / "prompts.txt")]) == 2
    assert "--policy needs --reward" in capsys.readouterr().err


def test_what_is_recorded_is_json(work, tmp_path):
    evaluate(work, tmp_path / "front.json", str(work / "run"), "--grid", "1", "--limit", "2", "--chat")
    record = json.loads((tmp_path / "front.json").read_text())["provenance"]
    assert record["prompts_source"] == f"{work / 'prompts.txt'}, the first 2, as user messages"
    assert record["rewards"] == {"good": "cli_rewards:lengths", "brief": "cli_rewards:letters"}
