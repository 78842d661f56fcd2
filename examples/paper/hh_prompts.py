"""Writes the prompts of HH-RLHF as JSON lines: python hh_prompts.py hh-prompts.jsonl [SPLIT]."""

import sys

from datasets import load_dataset

TURN = "\n\nAssistant:"


def prompt_of(dialogue: str) -> str:
    """Return a dialogue without its last answer, ready to be continued."""
    before, turn, _answer = dialogue.rpartition(TURN)
    if not turn:
        raise ValueError(f"This dialogue has no turn of the assistant: {dialogue[:80]!r}")
    return f"{before} {TURN}"


def main(file: str, split: str = "train") -> None:
    dialogues = load_dataset("Anthropic/hh-rlhf", split=split)
    prompts = dialogues.map(lambda row: {"prompt": prompt_of(row["chosen"])}, remove_columns=dialogues.column_names)
    prompts.to_json(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
