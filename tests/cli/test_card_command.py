"""`bonesoup card`: which card it writes, where, and what it does not replace."""

import json
from pathlib import Path

import pytest
from cards import evaluated, make_front, make_manifest
from huggingface_hub import ModelCard

from trl_bonesoup.cli import main
from trl_bonesoup.weights import simplex_grid


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with soup.json, its front, that of another method, and a saved soup."""
    manifest = make_manifest()
    folder = manifest.save(tmp_path / "run").parent
    evaluated(make_front(manifest, simplex_grid(2, 0.5))).to_json(folder / "front.json")
    evaluated(make_front(manifest, simplex_grid(2, 0.5)[::-1])).to_json(folder / "others.json")
    (folder / "soup").mkdir()
    (folder / "soup" / "adapter_config.json").write_text(json.dumps({"r": 2}))
    return folder


def test_without_a_model_it_writes_the_card_of_the_family(run: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--front", str(run / "front.json"), "--compare", f"Rewarded Soups={run / 'others.json'}"]
    options += [
        "--name",
        "org/family",
        "--license",
        "mit",
        "--language",
        "en",
        "--language",
        "zh",
        "--dataset",
        "org/x",
    ]
    assert main(["card", str(run), *options]) == 0
    assert f"Wrote {run / 'README.md'}." in capsys.readouterr().out
    card = ModelCard.load(run / "README.md")
    assert (card.data.license, card.data.language, card.data.datasets) == ("mit", ["en", "zh"], ["org/x"])
    assert "# `org/family`" in card.text
    assert "| Metric | This family | `Rewarded Soups` |" in card.text
    assert (run / "front.png").read_bytes().startswith(b"\x89PNG")


def test_with_a_model_it_writes_the_card_of_that_soup(run: Path) -> None:
    options = ["--preference", "0.5,0.5", "--front", str(run / "front.json"), "--family", "org/family"]
    options += ["--compare", f"Rewarded Soups={run / 'others.json'}", "--name", "org/soup"]
    assert main(["card", str(run), str(run / "soup"), *options]) == 0
    assert not (run / "README.md").exists()
    card = ModelCard.load(run / "soup" / "README.md")
    assert card.data.library_name == "peft"
    assert [result.metric_value for result in card.data.eval_results] == [10.0, 11.0]
    assert "| `Rewarded Soups` | 0.5, 0.5 | 10 (9.5 to 10.5) |" in card.text
    assert 'BoneSoup.from_pretrained("org/family")' in card.text


def test_settings_may_come_from_yaml(run: Path) -> None:
    (run / "card.yml").write_text(f"soup: {run}\nlanguage: [en, de]\ndataset: [org/a, org/b]\nlicense: mit\n")
    assert main(["card", "--config", str(run / "card.yml")]) == 0
    data = ModelCard.load(run / "README.md").data
    assert (data.language, data.datasets) == (["en", "de"], ["org/a", "org/b"])


def test_a_readme_of_somebody_else_stays_unless_it_is_said(run: Path, capsys: pytest.CaptureFixture) -> None:
    (run / "README.md").write_text("# Notes\n")
    assert main(["card", str(run)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (run / "README.md").read_text() == "# Notes\n"
    assert main(["card", str(run), "--overwrite"]) == 0
    assert main(["card", str(run)]) == 0  # now it is one of ours


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--preference", "0.5,0.5"], "--preference belongs to the card of one soup"),
        (["RUN", "--family", "org/x"], "--family belongs to the card of one soup"),
        (["RUN", "RUN/soup"], "--preference is missing"),
        (["RUN", "RUN", "--preference", "0.5,0.5"], "holds no saved soup"),
        (["RUN", "--compare", "RUN/front.json"], 'takes the name of a method and its front, "NAME=front.json"'),
        (["RUN", "--compare", "x=RUN/front.json"], "compared with this family's own front"),
        (["RUN", "--front", "RUN/soup.json"], "soup.json"),
        (["RUN", "--license", "Apache 2"], "license must be an identifier"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["card", *(argument.replace("RUN", str(run)) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not list(run.rglob("README.md"))
