"""Rows in the form of the public data sets, and what is read of them."""

import pytest

from trl_bonesoup.data.readers import columns, hh_rlhf, summarize_from_feedback


def comparison(post: str | None, *summaries: str, choice: int = 0, id: str = "t3_1") -> dict:
    """A row as openai/summarize_from_feedback has it; a news article has no post."""
    return {
        "info": {"id": id, "post": post, "title": "A title", "subreddit": "tifu", "site": None, "article": None},
        "summaries": [{"text": text, "policy": "sup1", "note": None} for text in summaries],
        "choice": choice,
        "worker": "w",
        "batch": "batch3",
        "split": "train",
        "extra": {"confidence": None},
    }


def test_a_dialogue_is_cut_before_its_last_answer() -> None:
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Why?\n\nAssistant: Because. \n"
    assert hh_rlhf({"chosen": dialogue, "rejected": "no"}) == {
        "dialogue": dialogue,
        "before": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Why?",
        "answer": "Because.",
    }


def test_a_dialogue_without_an_answer_is_of_another_kind() -> None:
    assert hh_rlhf({"chosen": "\n\nHuman: Hi", "rejected": ""}) is None


@pytest.mark.parametrize(("choice", "summary"), [(0, "Lost a shoe."), (1, "He lost it.")])
def test_the_chosen_summary_counts(choice: int, summary: str) -> None:
    row = comparison(" I lost\na shoe. ", " Lost\na shoe. ", "\nHe lost it.", choice=choice)
    assert summarize_from_feedback(row) == {
        "id": "t3_1",
        "post": " I lost\na shoe. ",
        "line": " I lost a shoe. ",
        "summary": summary,
    }


def test_a_news_article_is_of_another_kind() -> None:
    assert summarize_from_feedback(comparison(None, "a", "b")) is None


def test_columns_stay_as_they_are() -> None:
    row = {"question": "Why?", "answer": ["Because."]}
    assert columns(row) == row
    assert columns(row) is not row
