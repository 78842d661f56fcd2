"""`bonesoup prepare`, as a user would run it."""

import json
from pathlib import Path

import pytest
import yaml

from trl_bonesoup.cli import main
from trl_bonesoup.data.readers import READERS


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = [{"chosen": f"\n\nHuman: Why {i}?\n\nAssistant: Because {i}."} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    settings = {
        "source": str(tmp_path / "rows.jsonl"),
        "reader": "hh_rlhf",
        "output_dir": str(tmp_path / "data"),
        "files": {
            "sft.jsonl": {"columns": {"prompt": "{before}\n\nAssistant:", "completion": " {answer}"}, "rows": "1:3"}
        },
    }
    (tmp_path / "data.yml").write_text(yaml.safe_dump(settings))
    return tmp_path / "data.yml"


def test_files_are_written_and_counted(config: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["prepare", "--config", str(config)]) == 0
    file = config.parent / "data" / "sft.jsonl"
    assert capsys.readouterr().out == f"{file}: 2 of 4 rows; left out: 2 not chosen\n"
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"prompt": f"\n\nHuman: Why {i}?\n\nAssistant:", "completion": f" Because {i}."} for i in (1, 2)
    ]
    assert main(["prepare", "--config", str(config)]) == 2
    assert "sft.jsonl exist already" in capsys.readouterr().err
    assert main(["prepare", "--config", str(config), "--overwrite", "--reader", "columns"]) == 2
    assert "the fields of a row are chosen" in capsys.readouterr().err


def test_files_may_be_given_as_json(config: Path, capsys: pytest.CaptureFixture) -> None:
    files = '{"out.jsonl": {"columns": {"prompt": "{answer}"}}}'
    assert main(["prepare", "--config", str(config), "--files", files]) == 0
    assert "out.jsonl: 4 of 4 rows" in capsys.readouterr().out
    assert main(["prepare", "--output-dir", "out", "--files", "{"]) == 2
    assert "--files is not JSON" in capsys.readouterr().err
    assert main(["prepare", "--output-dir", "out"]) == 2
    assert "--files is missing" in capsys.readouterr().err


def test_the_help_names_every_reader(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    assert "read: {}, {} or {}".format(*READERS) in help_text
