"""`bonesoup compare`: the benchmark's path on a tiny model, and its plans, read without training anything."""

import argparse
import json
from pathlib import Path

import pytest
import yaml

from trl_bonesoup import BoneSoup
from trl_bonesoup.cli import compare, main
from trl_bonesoup.cli.settings_file import apply_config
from trl_bonesoup.front import results

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "fronts"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model of words that sentiment and readability differ in, with a chat template."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tests" / "front"))
        from small_models import make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("model")
    make_model(0).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(results, "RESAMPLES", 50)


def test_the_benchmark_runs_from_its_plan_to_its_tables(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["compare", "--config", str(FOLDER / "smoke.yml"), "--model", model, "--output-dir", str(tmp_path)]
    arguments += ["--limit", "16", "--set", "use_cpu=true", "--set", "disable_tqdm=true"]
    assert main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    # 2 + 2 + 1 x 2 policies (ABA, MOD and MORLHF need no others) of 2 steps, with 2 seeds; each front is 3 μ x 16
    # answers, for 6 methods and 2 seeds, and the base's once 16
    assert "6 different policies of 13, each for 2 optimizer steps, with 2 seeds: 12 policies, 24 steps." in shown
    assert "Still to do: 24 steps, 592 answers." in shown
    assert "the pace of a rollout for each backbone and a batch of answers" in shown
    assert not (tmp_path / "policies").exists()

    assert main(arguments) == 0
    shown, progress = capsys.readouterr()
    assert shown.count((tmp_path / "compare.md").read_text().strip()) == 1
    assert "After 1 of 2 seeds:" in progress
    assert "After 2 of 2 seeds" not in progress
    record = json.loads((tmp_path / "compare.json").read_text())
    assert [method["folder"] for method in record["methods"]] == [
        "base", "rewarded-soups", "bone-soup-0.7", "aba-0.7", "mod", "random-b-0-1", "morlhf"
    ]  # fmt: skip
    assert record["seeds"] == [0, 1]
    assert {"front.png", "front.svg", "preference.png", "preference.svg"} <= {path.name for path in tmp_path.iterdir()}
    BoneSoup.from_pretrained(tmp_path / "bone-soup-0.7" / "seed-1")

    assert main([*arguments, "--dry-run", "--seeds", "[0, 1, 2]"]) == 0
    shown = capsys.readouterr().out
    assert "Still to do: 12 steps, 288 answers." in shown
    assert "the pace of the finished parts" in shown


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    compare.add_parser(subparsers)
    return apply_config(parser, subparsers.choices, ["compare", *argv])


@pytest.mark.parametrize(
    ("name", "policies", "preferences"),
    [("positivity-plainness", 13, 11), ("positivity-neutrality", 9, 11), ("three", 12, 21)],
)
def test_every_plan_is_valid_and_shares_its_policies(
    name: str, policies: int, preferences: int, tmp_path: Path
) -> None:
    """Of a pair: 2 of Rewarded Soups, 6 of Bone Soup, MORLHF's for (.5, .5), and 2 of each random B."""
    given = ["--config", str(FOLDER / f"{name}.yml"), "--model", "no/such-model", "--output-dir", str(tmp_path)]
    plan = compare.comparison_from(parsed(*given))
    assert len(plan.mixtures) == policies
    assert len(plan.preferences_KN) == preferences
    assert plan.steps_per_policy == 16
    assert plan.seeds == [0, 1, 2]
    assert plan.against == "rewarded-soups"
    oracle = next(method for method in plan.methods if method.slug == "morlhf")
    grid = {tuple(preference) for preference in plan.preferences_KN.round(9).tolist()}
    assert {tuple(mixture.round(9).tolist()) for mixture in oracle.mixtures} <= grid


def test_all_plans_train_alike() -> None:
    plan, neutral, three, selection = (
        yaml.safe_load((FOLDER / f"{name}.yml").read_text())
        for name in ("positivity-plainness", "positivity-neutrality", "three", "dominance")
    )
    units = []
    for balanced in (neutral, three):  # where neutrality is, the units of scores are given
        assert balanced["set"].pop("score_normalization") == "fixed"
        given = zip(balanced["set"].pop("score_mean"), balanced["set"].pop("score_std"), strict=True)
        units.append(dict(zip(balanced["reward"], given, strict=True)))
    assert units[0].items() <= units[1].items()
    assert plan["set"] == neutral["set"] == three["set"]
    assert {**plan["set"], "seed": 0} == selection["set"]
    assert plan["lora_r"] == neutral["lora_r"] == three["lora_r"] == selection["lora_r"]


def test_no_prompt_is_both_trained_on_and_measured() -> None:
    sets = {
        name: (FOLDER / "prompts" / f"{name}.jsonl").read_text().splitlines()
        for name in ("train", "validation", "test")
    }
    train, validation, test = (set(lines) for lines in sets.values())
    assert [len(lines) for lines in (train, validation, test)] == [64, 32, 64]
    assert len(train | validation | test) == 160


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "[base, soup]"], "Unknown method 'soup'"),
        (["--reference", "{positivity: 0}"], "a number for each of ['positivity', 'plainness']"),
        (["--seeds", "[0, 0]"], "different whole numbers"),
        (["--test-prompts", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["compare", "--config", str(FOLDER / "smoke.yml"), "--model", "m", "--output-dir", str(tmp_path / "out")]
    assert main([*command, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
