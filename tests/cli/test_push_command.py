"""`bonesoup push`: what a person sees, and what goes wrong in one line."""

from pathlib import Path

import pytest
import yaml
from loopback_hub import LoopbackHub
from small_models import write_soup

from trl_bonesoup import BoneSoup
from trl_bonesoup.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_soup(tmp_path_factory.mktemp("push") / "run")


def test_a_grid_with_a_collection(hub: LoopbackHub, run: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["push", str(run), "--repo", "org/soup", "--grid", "0.5", "--collection", "Soups", "--private"]
    arguments += ["--license", "apache-2.0", "--language", "en", "--tag", "v1"]
    assert main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "Nothing was sent. A push would change 5 of 5 repositories and send" in shown and not hub.repos
    assert main(arguments) == 0
    assert "5 of 5 repositories changed" in capsys.readouterr().out
    assert len(hub.repos) == 5 and all(repo.private and "v1" in repo.tags for repo in hub.repos.values())
    for repo in hub.repos.values():
        assert repo.card_data(repo.at("main"))["license"] == "apache-2.0"
        assert repo.card_data(repo.at("main"))["language"] == ["en"]
    assert main(arguments) == 0
    assert "0 of 5 repositories changed, 0 B sent" in capsys.readouterr().out
    assert len(next(iter(hub.collections.values())).items) == 5


def test_settings_from_yaml_and_one_full_soup(hub: LoopbackHub, run: Path, tmp_path: Path) -> None:
    settings = {"repo": "org/soup", "preference": ["good=0.7,brief=0.3"], "full": True, "branch": "next"}
    (tmp_path / "push.yml").write_text(yaml.safe_dump(settings))
    assert main(["push", str(run), "--config", str(tmp_path / "push.yml")]) == 0
    assert "model.safetensors" in hub.files("org/soup-good-0.7-brief-0.3-full", "next")
    assert set(hub.files("org/soup")) == {".gitattributes"}, "nothing was committed to main"
    BoneSoup.from_pretrained("org/soup", revision="next")


def test_a_loaded_soup_pushes_itself(hub: LoopbackHub, run: Path) -> None:
    (done,) = BoneSoup.from_pretrained(run).push_to_hub("org/soup", license="mit")
    assert done.commit == hub.repos["org/soup"].at("main").oid
    # and one that came from the Hub goes on to another repository, whole
    BoneSoup.from_pretrained("org/soup").push_to_hub("ann/copy", preferences=["equal"])
    files, copy = hub.files("org/soup"), hub.files("ann/copy")
    for backbone in ("b0", "b1"):
        weights = f"backbones/{backbone}/adapter_model.safetensors"
        assert files[weights] == copy[weights]
    assert hub.files("ann/copy-base")["model.safetensors"] == files["base/model.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repo", "soup"], "called org/name or user/name; got 'soup'"),
        (["--repo", "others/soup"], "may write to ann, org; others belongs to somebody else"),
        (["--repo", "org/soup", "--license", "All Rights"], "apache-2.0"),
        (["--repo", "org/soup", "--preference", "0.5,0.6"], "sum"),
        (["--repo", "org/soup", "--front", "none.json"], "none.json"),
        (["--repo", "org/soup", "--base-model", "../sft"], "no id of a model on the Hub"),
    ],
)
def test_mistakes_end_in_one_line(
    hub: LoopbackHub, run: Path, capsys: pytest.CaptureFixture, arguments: list[str], said: str
) -> None:
    assert main(["push", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not hub.writes()
