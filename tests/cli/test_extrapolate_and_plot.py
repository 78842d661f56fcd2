"""`bonesoup extrapolate` on a tiny soup, and `bonesoup plot` with fronts and logs."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_models import write_soup

from trl_bonesoup import Front
from trl_bonesoup.cli import main
from trl_bonesoup.front import plots
from trl_bonesoup.weights import simplex_grid

REWARDS = """
def good(completions, **_):
    return [float(text.count("good") + text.count("happy")) for text in completions]
def brief(completions, **_):
    return [-float(len(text.split())) for text in completions]
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_soup(tmp_path / "run")
    (tmp_path / "extrapolate_rewards.py").write_text(REWARDS)
    (tmp_path / "validation.txt").write_text("the cat\na dog is\nsad sun\nthe sea was\n")
    (tmp_path / "test.txt").write_text("a happy dog\nthe sun\ncold and bad\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


ARGUMENTS = ["--prompts", "validation.txt", "--reward", "good=extrapolate_rewards:good",
             "--reward", "brief=extrapolate_rewards:brief", "--max-new-tokens", "6",
             "--samples-per-prompt", "4"]  # fmt: skip


def test_extrapolate_writes_the_choice_and_the_fronts_and_says_what_to_use(work, capsys):
    command = ["extrapolate", "run", "alpha", *ARGUMENTS, "--alphas", "0.3,0.5", "--test-prompts", "test.txt",
               "--grid", "0.5"]  # fmt: skip
    assert main(command) == 0
    record = json.loads((work / "alpha" / "extrapolation.json").read_text(encoding="utf-8"))
    assert record["alphas"] == [0.0, 0.3, 0.5]
    gains = [[point["gain"]["value"] for point in record["vertices"][name]] for name in ("good", "brief")]
    assert record["extrapolation"] == [record["alphas"][int(np.argmax(g))] for g in gains]
    assert any(record["extrapolation"])
    shown = capsys.readouterr().out
    for alpha, name in zip(record["extrapolation"], ("good", "brief"), strict=True):
        assert f"α = {alpha:g} for {name}" in shown
    after = Front.from_json(work / "alpha" / "after.json")
    assert after.provenance["extrapolation"] == record["extrapolation"]
    assert after.preferences_KN.tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    assert "alpha/front.png" in shown

    assert main(command) == 0  # nothing is answered again
    assert json.loads((work / "alpha" / "extrapolation.json").read_text(encoding="utf-8")) == record
    assert main([*command, "--joint"]) == 2
    assert "per_objective" in capsys.readouterr().err


def test_extrapolate_takes_named_rewards_in_any_order(work):
    swapped = [*ARGUMENTS[:2], *ARGUMENTS[4:6], *ARGUMENTS[2:4], *ARGUMENTS[6:]]
    records = []
    for out, arguments in (("in-order", ARGUMENTS), ("swapped", swapped)):
        assert main(["extrapolate", "run", out, *arguments, "--alphas", "0.3,0.5"]) == 0
        records.append(json.loads((work / out / "extrapolation.json").read_text(encoding="utf-8")))
    good, brief = (records[0]["vertices"][name] for name in ("good", "brief"))
    assert [point["gain"] for point in good] != [point["gain"] for point in brief]
    assert [record["vertices"] for record in records] == [records[0]["vertices"]] * 2
    assert records[1]["extrapolation"] == records[0]["extrapolation"]


def test_extrapolate_refuses_prompts_that_it_chose_by(work, capsys):
    assert main(["extrapolate", "run", "alpha", *ARGUMENTS, "--test-prompts", "validation.txt"]) == 2
    assert "4 of the 4 test prompts" in capsys.readouterr().err
    assert not (work / "alpha").exists()


@pytest.fixture
def drawn(monkeypatch) -> list:
    """What is handed to `plots`, in place of drawing it."""
    calls: list = []
    monkeypatch.setattr(plots, "plot", lambda fronts, path, **options: calls.append((fronts, path, options)))
    monkeypatch.setattr(plots, "plot_training", lambda runs, path, **options: calls.append((runs, path, options)))
    return calls


@pytest.fixture
def fronts(tmp_path, monkeypatch) -> dict[str, Front]:
    monkeypatch.chdir(tmp_path)
    made = {}
    for name, shift in (("a", 0.0), ("b", 1.0)):
        rewards_KN = simplex_grid(2, 0.5) + shift
        made[name] = Front(
            objectives=("x", "y"), preferences_KN=simplex_grid(2, 0.5), coefficients_KN=None, rewards_KN=rewards_KN,
            intervals_KN2=np.stack([rewards_KN, rewards_KN], axis=-1), n_samples_KN=np.ones((3, 2), dtype=int),
        )  # fmt: skip
        made[name].to_json(tmp_path / name / "front.json")
    return made


def test_plot_draws_one_front_or_several_by_name(fronts, drawn):
    assert main(["plot", "a/front.json", "out.png"]) == 0
    assert (
        main(["plot", "Bone Soup=a/front.json", "RS=b/front.json", "o.svg", "--width", "3.3", "--kind", "preference"])
        == 0
    )
    assert main(["plot", "a/front.json", "b/front.json", "o.pdf"]) == 0
    assert drawn == [
        (fronts["a"], "out.png", {"kind": "front", "width": None}),
        ({"Bone Soup": fronts["a"], "RS": fronts["b"]}, "o.svg", {"kind": "preference", "width": 3.3}),
        ({"a": fronts["a"], "b": fronts["b"]}, "o.pdf", {"kind": "front", "width": None}),
    ]


def test_plot_takes_its_fronts_from_a_settings_file(fronts, drawn, tmp_path):
    settings = {"inputs": ["one=a/front.json", "two=b/front.json"], "out": "o.png", "kind": "controllability"}
    (tmp_path / "plot.yml").write_text(yaml.safe_dump(settings))
    assert main(["plot", "--config", "plot.yml"]) == 0
    assert drawn == [({"one": fronts["a"], "two": fronts["b"]}, "o.png", {"kind": "controllability", "width": None})]


def test_plot_hands_runs_to_the_training_curves(drawn):
    assert main(["plot", "run", "o.png", "--kind", "training"]) == 0
    assert main(["plot", "β=.7=run", "other", "o.png", "--kind", "training"]) == 0
    assert drawn == [("run", "o.png", {"width": None}), ({"β=.7": "run", "other": "other"}, "o.png", {"width": None})]


def test_two_fronts_of_one_name_are_refused(fronts, drawn, capsys):
    assert main(["plot", "x=a/front.json", "x=b/front.json", "o.png"]) == 2
    assert "a name of its own" in capsys.readouterr().err
    assert drawn == []


def test_fronts_of_one_folder_name_are_called_by_their_parents_too(fronts, drawn, tmp_path):
    for name in ("bone/seed-0", "rs/seed-0", "rs/seed-1"):
        fronts["a"].to_json(tmp_path / name / "front.json")
    files = ["bone/seed-0/front.json", "rs/seed-0/front.json", "rs/seed-1/front.json"]
    assert main(["plot", *files, "o.png"]) == 0
    assert list(drawn.pop()[0]) == ["bone/seed-0", "rs/seed-0", "seed-1"]
    fronts["a"].to_json(tmp_path / "rs" / "x.json")
    fronts["a"].to_json(tmp_path / "bone" / "x.json")
    assert main(["plot", "rs/x.json", "bone/x.json", "seed-1=a/front.json", "rs/seed-1/front.json", "o.png"]) == 0
    assert list(drawn.pop()[0]) == ["rs/x", "bone/x", "seed-1", "rs/seed-1"]


def test_the_same_front_twice_is_refused(fronts, drawn, capsys):
    assert main(["plot", "a/front.json", "a/front.json", "o.png"]) == 2
    assert "a name of its own" in capsys.readouterr().err
    assert drawn == []


def test_a_folder_is_told_what_to_draw_of_it(fronts, drawn, tmp_path, capsys):
    assert main(["plot", "a", "o.png"]) == 2
    assert "a is a folder; give its a/front.json" in capsys.readouterr().err
    fronts["a"].to_json(tmp_path / "cmp" / "rewarded-soups" / "seed-0" / "front.json")
    for name in ("compare.json", "front.png", "preference.png"):
        (tmp_path / "cmp" / name).touch()
    assert main(["plot", "RS=cmp", "o.png"]) == 2
    error = capsys.readouterr().err
    assert "its figures are cmp/front.png and cmp/preference.png" in error
    assert "cmp/rewarded-soups/seed-0/front.json" in error
    (tmp_path / "run").mkdir()
    assert main(["plot", "run", "o.png"]) == 2
    error = capsys.readouterr().err
    assert "bonesoup evaluate run" in error
    assert "--kind training" in error
    assert drawn == []


def test_every_kind_is_offered_and_described(capsys):
    with pytest.raises(SystemExit):
        main(["plot", "--help"])
    shown = capsys.readouterr().out
    assert all(kind in shown for kind in (*plots.KINDS, "training"))
