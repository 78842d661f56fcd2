"""The benchmarks run, on tiny models: their numbers mean nothing here, and their tables have what was measured."""

import json
import logging
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_merge_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, which has imported PEFT for other tests: that takes longer than all that is measured."""
    from benchmarks.merge.__main__ import main

    options = ["--smoke", "--markdown", "--out", str(tmp_path), "--parts", "many", "switch", "rows"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["benchmarks.merge", *options])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(logging, "disable", lambda level: None)  # for all tests after this one
    main()
    shown = capsys.readouterr().out
    many = json.loads((tmp_path / "many.json").read_text())[0]["results"]
    assert many["soups"] == 3
    assert set(many["runs"]) == {"copy", "bonesoup sweep", "bonesoup sweep, imported"}
    assert 5 < many["runs"]["copy"][0]["peak_mib"] < many["runs"]["bonesoup sweep"][0]["peak_mib"]
    assert many["runs"]["bonesoup sweep, imported"][0]["inside"] < many["runs"]["bonesoup sweep"][0]["seconds"]
    assert "| 14 | 2 |" in shown
    assert "| soup, a preference per row |" in shown


@pytest.mark.parametrize(("weights", "touched"), [(1000, 0), (2**26, 2)])
def test_memory_is_used_beforehand_only_for_models_that_need_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: int, touched: int
) -> None:
    from benchmarks.merge import files
    from benchmarks.merge.processes import Taken

    calls: list[None] = []
    monkeypatch.setattr(files, "touch", lambda: calls.append(None))
    (tmp_path / "source").mkdir()
    with (tmp_path / "source" / "model.safetensors").open("wb") as file:
        file.truncate(weights)
    files._take_turns({"nothing": lambda out, log: Taken(0.0, 0.0)}, tmp_path / "source", repeats=2)
    assert len(calls) == touched


def test_the_benchmark_of_intervals_counts_every_metric_of_every_front():
    command = [sys.executable, "-m", "benchmarks.intervals", "--trials", "1", "--markdown"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if "%" in line]
    assert len(rows) == 4 * 3
    assert {cell.strip(" |") for row in rows for cell in row[3:]} <= {"0 %", "100 %"}


def test_kept_results_name_no_folder_of_a_machine(tmp_path):
    from benchmarks.fronts.keep import keep

    run = tmp_path / "run"
    for name, record in {
        "compare.json": {"request": {"base_model": f"{run}/base"}, "machine": {"system": platform.platform()}},
        "soup/seed-0/front.json": {"models": [{"model": f"{run}/policies/seed-0/1-0"}, "org/model"], "seed": 0},
        "policies/seed-0/1-0/adapter_config.json": {"not": "kept"},
    }.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(json.dumps(record))
    keep(run, tmp_path / "kept")
    found = {str(file.relative_to(tmp_path / "kept")): json.loads(file.read_text()) for file in
             (tmp_path / "kept").rglob("*.json")}  # fmt: skip
    system = f"{platform.system()} {platform.machine()}"
    assert found == {
        "compare.json": {"request": {"base_model": "base"}, "machine": {"system": system}},
        "soup/seed-0/front.json": {"models": [{"model": "policies/seed-0/1-0"}, "org/model"], "seed": 0},
    }


def test_the_readme_of_fronts_shows_the_results_that_are_kept():
    from benchmarks.fronts.keep import HERE, RESULTS, with_results

    readme = (HERE / "README.md").read_text(encoding="utf-8")
    assert with_results(readme, RESULTS) == readme
    kept = sorted(RESULTS.iterdir())
    assert kept
    for plan in kept:
        table = (plan / "compare.md").read_text(encoding="utf-8")
        assert "| Rewarded Soups " in table
        assert table.strip() in readme
        assert all(str(Path.home()) not in file.read_text() for file in plan.rglob("*.json"))


def test_the_benchmark_of_credit_trains_each_way(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.fronts.credit import at_the_end, main
    from tiny import save_tiny

    from trl_bonesoup.rewards.offline import positivity

    (dense,), (total,) = positivity(["I am happy"]), at_the_end(positivity)(["I am happy"])
    assert (total, type(total)) == (dense, float)
    assert len(dense.segments) == 3

    model = save_tiny(tmp_path / "model")
    options = ["--out", str(tmp_path / "out"), "--model", str(model), "--rollouts", "1", "--seeds", "0", "--markdown"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["benchmarks.fronts.credit", *options])
    main()
    rows = [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines() if " 0." in line]
    paid = ["| at the end", "| word by word"]
    assert rows == [[how, lam] for how in paid for lam in ("0.95", "0.8")]
