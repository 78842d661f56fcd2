"""The notebook runs from the first cell to the last, offline, and steers; what it shows names no machine."""

import json
import re
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first-soup.ipynb"


def test_it_runs_and_the_soups_follow_their_preferences(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    front = json.loads((tmp_path / "first-soup" / "front.json").read_text(encoding="utf-8"))
    assert front["objectives"] == ["hot", "hearty"]
    rewards_KN = np.array(front["rewards"])
    assert rewards_KN.shape == (11, 2)
    # From all weight on `hot` to all weight on `hearty`: by more than a whole ingredient in either reward.
    assert rewards_KN[0, 0] > rewards_KN[-1, 0] + 2
    assert rewards_KN[0, 1] < rewards_KN[-1, 1] - 2
    assert (rewards_KN[5] > np.array(front["markers"]["base"]["rewards"]) + 2).all()
    assert (tmp_path / "first-soup" / "balanced" / "adapter_model.safetensors").is_file()


def test_what_it_shows_is_there_and_has_no_paths_or_warnings() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == 2
    for output in (output for cell in cells for output in cell.outputs):
        assert output.get("name") != "stderr"
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert not re.search(r"(^|\s|['\"])(/|[A-Z]:\\)\w", text), text
