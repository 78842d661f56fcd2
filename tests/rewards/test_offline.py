"""The offline scorers against values worked out by hand."""

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from trl_bonesoup.rewards.offline import MOST_PARTS, brevity, neutrality, plainness, positivity

LONG = "The cat is happy about a wonderful, terrible thing: it's extraordinary! " * 40


def test_positivity_orders_by_sentiment_and_reads_conversations() -> None:
    good, bad, neutral = positivity(["What a wonderful, happy day!", "A horrible, sad failure.", "The table."])
    assert good > 0.5
    assert bad < -0.5
    assert neutral == 0.0
    assert positivity([[{"role": "assistant", "content": "What a wonderful, happy day!"}]]) == [good]


def test_neutrality_is_the_share_that_carries_no_sentiment() -> None:
    happy = 2.7 + 1  # its valence in VADER's lexicon; a word without one counts 1
    scores = neutrality(["The table is wide.", "I am happy.", "happy"])
    assert scores == pytest.approx([1.0, 2 / (2 + happy), 0.0], abs=0.0005)  # VADER rounds to 3 digits
    good, bad = neutrality(["What a wonderful, happy day!", "A horrible, sad failure."])
    assert max(good, bad) < 0.3
    assert neutrality(["...", ""]) == [None, None]


def test_neutrality_is_paid_by_the_words_that_change_it_and_the_rest_at_the_end() -> None:
    (score,) = neutrality(["I am happy. "])
    assert [end for end, _ in score.segments] == [1, 4, 11, 12]
    assert [part for _, part in score.segments] == pytest.approx([0, 0, 2 / 5.7 - 1, 1], abs=0.0005)


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


def test_positivity_is_paid_by_the_words_that_change_it() -> None:
    text = "I am happy :) but it rains. "
    (score,) = positivity([text])
    compound = SentimentIntensityAnalyzer().polarity_scores
    assert score == pytest.approx(compound(text)["compound"], abs=1e-12)
    paid = dict(score.segments)
    ends = {word: text.index(word) + len(word) for word in ("I", "happy", ":)", "rains.")}
    assert paid[ends["I"]] == paid[ends["rains."]] == 0.0
    assert paid[ends["happy"]] == pytest.approx(compound("happy")["compound"])
    assert paid[ends[":)"]] == pytest.approx(compound("happy :)")["compound"] - compound("happy")["compound"])


def test_plainness_is_paid_by_syllables_and_the_rest_at_the_end() -> None:
    (score,) = plainness(["Cats like understanding. "])
    words, rest = score.segments[:-1], score.segments[-1]
    assert [end for end, _ in words] == [4, 9, 23]
    assert [part for _, part in words] == pytest.approx([-84.6 * (n - 1.45) / 3 for n in (1, 1, 4)])
    assert rest == (25, pytest.approx(206.835 - 1.015 * 3 - 84.6 * 1.45))


@pytest.mark.parametrize("scorer", [positivity, neutrality, plainness])
def test_long_texts_are_paid_by_several_words_at_a_time(scorer) -> None:
    (score,) = scorer([LONG])
    assert 1 < len(score.segments) <= MOST_PARTS + 1
    vader = SentimentIntensityAnalyzer().polarity_scores(LONG)
    whole = {
        positivity: vader["compound"],
        neutrality: vader["neu"],
        plainness: 206.835 - 1.015 * 11 - 84.6 * 20 / 11,  # 40 sentences of 11 words with 20 syllables
    }
    assert score == pytest.approx(whole[scorer], abs=1e-9)
