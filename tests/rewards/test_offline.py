"""The offline scorers against values worked out by hand."""

import pytest

from trl_bonesoup.rewards.offline import brevity, plainness, positivity


def test_positivity_orders_by_sentiment_and_reads_conversations() -> None:
    good, bad, neutral = positivity(["What a wonderful, happy day!", "A horrible, sad failure.", "The table."])
    assert good > 0.5
    assert bad < -0.5
    assert neutral == 0.0
    assert positivity([[{"role": "assistant", "content": "What a wonderful, happy day!"}]]) == [good]


def test_brevity_counts_words() -> None:
    assert brevity(["", "one", "it's two", "a b c d, e!"], max_words=4) == [0.0, -0.25, -0.5, -1.0]


@pytest.mark.parametrize(
    ("text", "words", "sentences", "syllables"),
    [
        ("The cat sat on the mat.", 6, 1, 6),
        ("The cat sat. The dog ran", 6, 2, 6),
        ("Understanding.", 1, 1, 4),
    ],
)
def test_plainness_is_flesch_reading_ease(text: str, words: int, sentences: int, syllables: int) -> None:
    expected = 206.835 - 1.015 * words / sentences - 84.6 * syllables / words
    assert plainness([text]) == pytest.approx([max(expected, -100.0)])


def test_plainness_has_no_score_without_words() -> None:
    assert plainness(["...", ""]) == [None, None]
