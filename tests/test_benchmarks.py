"""The benchmarks run, on tiny models: their numbers mean nothing here, and their tables have what was measured."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_merge_benchmark(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.merge", "--smoke", "--markdown", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--parts", "many", "switch", "rows"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    many = json.loads((tmp_path / "many.json").read_text())[0]["results"]
    assert many["soups"] == 3
    assert set(many["runs"]) == {"copy", "bonesoup sweep", "bonesoup sweep, imported"}
    assert 5 < many["runs"]["copy"][0]["peak_mib"] < many["runs"]["bonesoup sweep"][0]["peak_mib"]
    assert many["runs"]["bonesoup sweep, imported"][0]["inside"] < many["runs"]["bonesoup sweep"][0]["seconds"]
    assert "| 14 | 2 |" in done.stdout
    assert "| soup, a preference per row |" in done.stdout


def test_the_benchmark_of_intervals_counts_every_metric_of_every_front():
    command = [sys.executable, "-m", "benchmarks.intervals", "--trials", "1", "--markdown"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if "%" in line]
    assert len(rows) == 4 * 3
    assert {cell.strip(" |") for row in rows for cell in row[3:]} <= {"0 %", "100 %"}
