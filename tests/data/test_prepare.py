"""Files of prompts: which rows they hold, in which order, and what was said of the others."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer

from trl_bonesoup.data.plan import read_plan
from trl_bonesoup.data.prepare import PreparedFile, prepare
from trl_bonesoup.errors import ConfigurationError


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Twelve questions of the words w1 to w12 that end with their number; the last three have no answer."""
    rows = [
        {"id": f"q{i % 7}", "q": " ".join(["w1"] * i) + f" w{i}", "a": [f"w{i}"] if i < 10 else []}
        for i in range(1, 13)
    ]
    file = tmp_path / "source.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


def prepared(source: str, files: dict[str, Any], folder: Path, **settings: Any) -> list[PreparedFile]:
    return prepare(read_plan(files, source=source), folder, **settings)


def numbers(file: Path) -> list[int]:
    """Return the numbers of the questions in a file."""
    return [int(json.loads(line)["prompt"].split("w")[-1]) for line in file.read_text().splitlines()]


def test_templates_make_the_columns(source: str, tmp_path: Path) -> None:
    files = {"out.jsonl": {"columns": {"prompt": "{q} {{?}}", "completion": " {a[0]}"}, "rows": ":2"}}
    prepared(source, files, tmp_path)
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        {"prompt": "w1 w1 {?}", "completion": " w1"},
        {"prompt": "w1 w1 w2 {?}", "completion": " w2"},
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rows": "::4"}, [1, 5, 9]),
        ({"rows": "2::4"}, [3, 7, 11]),
        ({"rows": "-2:"}, [11, 12]),
        # "w1 w1 w2" has 8 characters; question i has 3·i + 2, and 3·i + 3 from w10 on.
        ({"lengths": [{"text": "{q}", "between": [8, 14]}]}, [2, 3, 4]),
        # ids in order: q0 (7), q1 (1, 8), q2 (2, 9), q3 (3, 10), q4 (4, 11), q5 (5, 12), q6 (6)
        ({"one_per": "{id}"}, [7, 1, 2, 3, 4, 5, 6]),
        ({"one_per": "{id}", "rows": "1:3"}, [1, 2]),
        ({"lengths": [{"text": "{q}", "between": [8, 99]}], "one_per": "{id}", "rows": ":2"}, [7, 8]),
    ],
)
def test_rows_are_chosen(source: str, tmp_path: Path, settings: dict[str, Any], expected: list[int]) -> None:
    prepared(source, {"out.jsonl": {"columns": {"prompt": "{q}"}, **settings}}, tmp_path)
    assert numbers(tmp_path / "out.jsonl") == expected


def test_tokens_are_counted_last(source: str, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    length = {"text": "{q} w1", "between": [4, 10], "tokenizer": str(tmp_path / "model")}  # question i has i + 1 words
    (file,) = prepared(
        source, {"out.jsonl": {"columns": {"prompt": "{q}"}, "lengths": [length], "rows": "::2"}}, tmp_path
    )
    assert numbers(tmp_path / "out.jsonl") == [3, 5, 7]
    assert file.left_out["not chosen"] == 6
    assert file.left_out["not of 4 to 10 tokens"] == 3
    assert file.written == 3
    assert file.text() == f"{tmp_path}/out.jsonl: 3 of 12 rows; left out: 6 not chosen, 3 not of 4 to 10 tokens"


def test_no_prompt_is_in_two_files(source: str, tmp_path: Path) -> None:
    files = {
        "test.jsonl": {"columns": {"prompt": "{q}"}, "rows": "::4"},
        "train.jsonl": {"columns": {"prompt": "{q}"}, "without": ["test.jsonl"]},
    }
    _, train = prepared(source, files, tmp_path)
    assert numbers(tmp_path / "train.jsonl") == [2, 3, 4, 6, 7, 8, 10, 11, 12]
    assert train.left_out["in another file"] == 3


def test_rows_without_an_answer_are_left_out(source: str, tmp_path: Path) -> None:
    (file,) = prepared(source, {"out.jsonl": {"columns": {"prompt": "{q}", "completion": "{a[0]}"}}}, tmp_path)
    assert numbers(tmp_path / "out.jsonl") == list(range(1, 10))
    assert file.left_out["with an empty text"] == 3


def test_readers_leave_out_what_is_of_another_kind(tmp_path: Path) -> None:
    dialogues = ["\n\nHuman: Hi\n\nAssistant: Hello.", "\n\nHuman: Bye"]
    folder = tmp_path / "hh"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(f"{json.dumps({'chosen': text})}\n" for text in dialogues))
    columns = {"prompt": "{before} \n\nAssistant:"}
    plan = read_plan({"out.jsonl": {"split": "test", "columns": columns}}, source=str(folder), reader="hh_rlhf")
    (file,) = prepare(plan, tmp_path)
    assert file.left_out["of another kind"] == 1
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"prompt": "\n\nHuman: Hi \n\nAssistant:"}


def test_all_files_appear_or_none(source: str, tmp_path: Path) -> None:
    files = {
        "good.jsonl": {"columns": {"prompt": "{q}"}},
        "bad.jsonl": {"columns": {"prompt": "{q}"}, "lengths": [{"text": "{q}", "between": [500, 600]}]},
    }
    with pytest.raises(
        ConfigurationError, match=r"Nothing is left for .*bad.jsonl: 0 of 12 rows; .*12 not of 500 to 600"
    ):
        prepared(source, files, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_files_are_only_replaced_when_asked(source: str, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    files = {"out.jsonl": {"columns": {"prompt": "{q}"}, "rows": ":3"}}
    with pytest.raises(ConfigurationError, match=r"out.jsonl exist already\. .* overwrite"):
        prepared(source, files, tmp_path)
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    prepared(source, files, tmp_path, overwrite=True)
    assert numbers(tmp_path / "out.jsonl") == [1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"prompt": "{question}"}}, r"'\{question\}' cannot be filled in .* are a, id, q\."),
        ({"columns": {"prompt": "{q"}}, r"out.jsonl.columns.prompt: .*'\{q' is no template: expected '\}'"),
        ({"columns": {"prompt": "{}"}}, r"'\{\}' has a field without a name"),
        ({"columns": {"prompt": "{q}"}, "one_per": "{0[id]}"}, r"one_per: .*'\{0\[id\]\}' has a field without"),
        ({"columns": {"prompt": "{q}"}, "reader": "hh_rlhf"}, r"hh_rlhf cannot read .*'chosen'.* a, id, q"),
        ({"columns": {"prompt": "{q.words}"}}, r"'\{q.words\}' cannot be filled in"),
        ({"columns": {"completion": "{q}"}}, r'out.jsonl.columns: .*must have a "prompt"'),
        ({"columns": {"prompt": "{q}"}, "rows": "4"}, r'out.jsonl.rows: .*must be a slice such as "::4"'),
        ({"columns": {"prompt": "{q}"}, "rows": "::-1"}, r"out.jsonl.rows: "),
        ({"columns": {"prompt": "{q}"}, "reader": "hh"}, r"must be one of columns, hh_rlhf, summarize_from_feedback"),
        ({"columns": {"prompt": "{q}"}, "shuffle": True}, r"out.jsonl.shuffle: Extra inputs are not permitted"),
        ({"columns": {"prompt": "{q}"}, "without": ["a.jsonl"]}, r"out.jsonl is to be without a.jsonl, which no file"),
        ({"columns": {"prompt": "{q}"}, "lengths": [{"text": "{q}", "between": [9, 2]}]}, r"the shortest and the"),
        ({"columns": {"prompt": "{q}"}, "lengths": [{"text": "{q}", "between": [1, 2], "tokenizer": "no/such"}]},
         r"The tokenizer no/such, by which lengths are counted, cannot be loaded"),
        ({"columns": {"prompt": "{q}"}, "source": "no/such.csv"}, r"The data set no/such.csv \(csv\) cannot be loaded"),
    ],
)  # fmt: skip
def test_mistakes_are_named(source: str, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        prepared(source, {"out.jsonl": settings}, tmp_path / "out")
    assert not (tmp_path / "out" / "out.jsonl").exists()


@pytest.mark.parametrize("name", ["../out.jsonl", "out.txt", ".jsonl", "a/b.jsonl"])
def test_names_of_files_stay_in_the_folder(name: str) -> None:
    with pytest.raises(ConfigurationError, match="should match pattern"):
        read_plan({name: {"columns": {"prompt": "{q}"}}}, source="x")


def test_a_plan_needs_a_source_and_files() -> None:
    with pytest.raises(ConfigurationError, match=r"out.jsonl.source: Field required"):
        read_plan({"out.jsonl": {"columns": {"prompt": "{q}"}}})
    with pytest.raises(ConfigurationError, match=r"files: .*valid dictionary"):
        read_plan(["out.jsonl"], source="x")


def test_a_folder_that_was_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of the datasets library knows the subset of a folder by its name alone."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "org" / "changing"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nconfigs:\n- {config_name: part, data_files: rows.jsonl}\n---\n")
    plan = read_plan({"out.jsonl": {"columns": {"prompt": "{q}"}}}, source="org/changing", subset="part")
    for rows in (["one", "two"], ["three"]):
        (folder / "rows.jsonl").write_text("".join(f"{json.dumps({'q': text})}\n" for text in rows))
        prepare(plan, tmp_path, overwrite=True)
        assert [json.loads(line)["prompt"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows


def test_a_folder_that_cannot_be_made_is_named(source: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"Nothing can be written to .*taken: File exists"):
        prepared(source, {"out.jsonl": {"columns": {"prompt": "{q}"}}}, tmp_path / "taken")
