"""`bonesoup prepare`: make files of prompts out of a public data set."""

from __future__ import annotations

import argparse
import json
from typing import Any

from trl_bonesoup.cli.settings_file import new_parser
from trl_bonesoup.errors import ConfigurationError

_EPILOG = """\
Settings are best written as YAML; examples/ has those of three public data sets:
  source: Anthropic/hh-rlhf          a data set on the Hub, a folder, or a .json(l), .csv or .parquet file
  reader: hh_rlhf                    what its rows hold: here {before}, {answer} and {dialogue}
  output_dir: data/assistant
  files:
    test.jsonl:
      split: test
      columns: {prompt: "{before} \\n\\nAssistant:"}
      lengths:                       rows with texts of other lengths are left out
        - {text: "{dialogue}", between: [8, 512], tokenizer: org/sft}
      rows: "::4"                    every fourth row; ":2000" are the first 2000
    train.jsonl:
      columns: {prompt: "{before} \\n\\nAssistant:"}
      without: [test.jsonl]          no prompt of that file

Each file may have a source, reader, subset (of a data set on the Hub) and revision of its own. With
the reader `columns`, the default, fields are the columns of the data set, and {answers[0]} is the
first item of a list. `one_per: "{id}"` keeps the first row with each id.
"""


def add_parser(subparsers: Any) -> None:
    """Describe the command."""
    parser = new_parser(
        subparsers, "prepare", run, "Write prompts (and answers, for fine-tuning) out of a public data set.", _EPILOG
    )
    parser.add_argument("--source", metavar="SOURCE", help="data set of the files that name none")
    parser.add_argument("--subset", metavar="NAME", help="its configuration on the Hub")
    parser.add_argument("--revision", metavar="REVISION", help="its branch, tag or commit")
    parser.add_argument(
        "--reader", metavar="NAME", help="how its rows are read: columns, hh_rlhf or summarize_from_feedback"
    )
    parser.add_argument("--files", metavar="JSON", help="what to write, by name of the file; see below")
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="folder of the files")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are already there")


def run(arguments: argparse.Namespace) -> None:
    """Write the files, and say what was left out."""
    if not arguments.files:
        raise ConfigurationError("--files is missing: say what to write, best in the --config file.")
    from trl_bonesoup.data.plan import read_plan
    from trl_bonesoup.data.prepare import prepare

    plan = read_plan(
        _files(arguments.files),
        source=arguments.source,
        subset=arguments.subset,
        revision=arguments.revision,
        reader=arguments.reader,
    )
    for file in prepare(plan, arguments.output_dir, overwrite=arguments.overwrite):
        print(file.text())


def _files(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        raise ConfigurationError(f"--files is not JSON: {error}") from error
