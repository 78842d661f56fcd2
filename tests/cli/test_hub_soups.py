"""The commands on a soup that is on the Hub."""

import json
from pathlib import Path

import pytest
import yaml
from hub_soups import downloaded, publish
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from small_models import write_soup

from trl_bonesoup.cli import main


@pytest.fixture
def soup(hub: LoopbackHub, tmp_path: Path) -> str:
    """Two commits of a soup: v1 with β = .75, and main with β = 1."""
    folder = write_soup(tmp_path / "run")
    first = publish(hub, folder)
    HfApi().create_tag("org/soup", tag="v1")
    data = json.loads((folder / "soup.json").read_text())
    data["combination_weights"] = [[1.0, 0.0], [0.0, 1.0]]
    hub.put("org/soup", {"soup.json": json.dumps(data).encode()})
    return first


def saved_coefficients(folder: Path) -> list[float]:
    return json.loads((folder / "soup_export.json").read_text())["coefficients"]


@pytest.mark.parametrize(
    ("revision", "expected"), [([], [1.0, 0.0]), (["--revision", "v1"], [1.5, -0.5])], ids=["main", "v1"]
)
def test_merge_and_sweep_take_a_revision(soup: str, tmp_path: Path, revision: list[str], expected: list[float]) -> None:
    # β = .75: λ = ((N-1)μ - (1-β)) / (Nβ-1) = (.75/.5, -.25/.5) for all weight on the first objective
    assert main(["merge", "org/soup", str(tmp_path / "one"), "--preference", "1,0", *revision]) == 0
    assert saved_coefficients(tmp_path / "one") == pytest.approx(expected)
    assert main(["sweep", "org/soup", str(tmp_path / "many"), "--preference", "1,0", *revision]) == 0
    point = json.loads((tmp_path / "many/mu-1.00-0.00/sweep_point.json").read_text())
    assert point["coefficients"] == pytest.approx(expected)


def test_a_recipe_for_mergekit_names_what_is_there(
    hub: LoopbackHub, soup: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", "org/soup", "--preference", "0.5,0.5", "--print-yaml", "--revision", soup]) == 0
    recipe = yaml.safe_load(capsys.readouterr().out)
    base, adapter = recipe["models"][0]["model"].split("+")
    assert base == recipe["base_model"]
    assert (Path(base) / "model.safetensors").is_file()
    assert (Path(adapter) / "adapter_model.safetensors").is_file()


def test_a_failure_is_one_line_and_status_2(
    hub: LoopbackHub, soup: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", "org/soup", str(tmp_path / "out"), "--preference", "1,0", "--revision", "v9"]) == 2
    assert "bonesoup: 'org/soup' at revision 'v9' is not on this machine" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert downloaded(hub) == []
