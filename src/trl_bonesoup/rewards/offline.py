"""Published scorers that need no model and no network; they are what `bonesoup demo` trains on.

Each is a plain function in TRL's reward-function protocol. Two of them say which words earned the score.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import Any

from trl_bonesoup.errors import DependencyError
from trl_bonesoup.rewards.dense import DenseScore
from trl_bonesoup.rewards.protocol import completion_texts

MOST_PARTS = 64
"""Of a dense score: longer texts are paid by several words at a time."""

USUAL_SYLLABLES = 1.45
"""Of an English word, about: shorter ones are paid and longer ones pay, so that a part says nothing of what follows."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_TOKEN = re.compile(r"\S+")
_SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")


def positivity(completions: list, **columns: Any) -> list[float]:
    """Return VADER's compound sentiment of each completion, in [-1, 1]: 1 is most positive.

    Source: Hutto and Gilbert 2014, "VADER: A parsimonious rule-based model for sentiment analysis
    of social media text"; scored by the authors' package vaderSentiment.

    The score is dense: each word earns what it adds to the sentiment of the text before it.
    """
    return [_sentiment(text) for text in completion_texts(completions)]


def _sentiment(text: str) -> float:
    ends = _ends(_TOKEN, text)
    if not ends:
        return 0.0
    analyzer = _vader()
    scores = [0.0, *(analyzer.polarity_scores(text[:end])["compound"] for end in ends)]
    return DenseScore(_differences(ends, scores))


def neutrality(completions: list, **columns: Any) -> list[float | None]:
    """Return VADER's neutral share of each completion, in [0, 1]: 1 has no word of sentiment, good or bad.

    It competes with `positivity`, whose words it charges for. A completion without words scores `None`.

    Source: as for `positivity`.

    The score is dense: each word earns what it adds to that of the text before it, where the empty
    text counts 1, which is earned at the end.
    """
    return [_neutral_share(text) for text in completion_texts(completions)]


def _neutral_share(text: str) -> float | None:
    ends = _ends(_TOKEN, text)
    if not _WORD.search(text):
        return None
    analyzer = _vader()
    shares = [1.0, *(analyzer.polarity_scores(text[:end])["neu"] for end in ends)]
    return DenseScore([*_differences(ends, shares), (len(text), 1.0)])


def _differences(ends: list[int], scores: list[float]) -> list[tuple[int, float]]:
    return [(end, after - before) for end, (before, after) in zip(ends, pairwise(scores), strict=True)]


def brevity(completions: list, max_words: int = 40, **columns: Any) -> list[float]:
    """Return minus the length of each completion as a share of `max_words`, in [-1, 0]: 0 is an empty answer.

    This is DAPO's soft overlong punishment with its punished zone widened to the whole range, in
    words instead of tokens so that it does not depend on a tokenizer.

    Source: Yu et al. 2025, "DAPO: An open-source LLM reinforcement learning system at scale",
    Equation 13.

    >>> brevity(["Four words and stop."], max_words=8)
    [-0.5]
    """
    lengths = (len(_WORD.findall(text)) for text in completion_texts(completions))
    return [-min(length / max_words, 1.0) for length in lengths]


def plainness(completions: list, **columns: Any) -> list[float | None]:
    """Return the Flesch reading ease of each completion: about 100 is very plain English, below 30 academic prose.

    206.835 - 1.015 · words/sentence - 84.6 · syllables/word, clipped to [-100, 150] so that one
    freak word cannot dominate; syllables are counted from hyphenation patterns (pyphen). A
    completion without words scores `None`.

    The score is dense: each word earns what its syllables add to that of a usual word, and the rest
    is earned at the end.

    Source: Flesch 1948, "A new readability yardstick".
    """
    return [_ease_by_word(text) for text in completion_texts(completions)]


def _ease_by_word(text: str) -> float | None:
    ease = _reading_ease(text)
    if ease is None:
        return None
    ends = [0, *_ends(_WORD, text)]
    words = len(_WORD.findall(text))
    parts = []
    for start, end in pairwise(ends):
        excess = sum(_syllables(word.lower()) - USUAL_SYLLABLES for word in _WORD.findall(text[start:end]))
        parts.append((end, -84.6 * excess / words))
    return DenseScore([*parts, (len(text), ease - sum(part for _, part in parts))])


def _ends(pattern: re.Pattern[str], text: str) -> list[int]:
    """Return where at most `MOST_PARTS` runs of words end, the last of all among them."""
    ends = [match.end() for match in pattern.finditer(text)]
    step = -(-len(ends) // MOST_PARTS) or 1
    return ends[::-1][::step][::-1]


def _reading_ease(text: str) -> float | None:
    words = _WORD.findall(text)
    if not words:
        return None
    sentences = sum(bool(_WORD.search(part)) for part in _SENTENCE_END.split(text))
    syllables = sum(_syllables(word.lower()) for word in words)
    ease = 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)
    return min(max(ease, -100.0), 150.0)


@lru_cache(maxsize=1)
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise DependencyError("positivity and neutrality need: pip install 'trl-bonesoup[demo]'") from error
    return SentimentIntensityAnalyzer()


@lru_cache(maxsize=1)
def _hyphenator() -> Any:
    try:
        import pyphen
    except ImportError as error:
        raise DependencyError("plainness needs: pip install 'trl-bonesoup[demo]'") from error
    return pyphen.Pyphen(lang="en_US")


@lru_cache(maxsize=50_000)
def _syllables(word: str) -> int:
    return len(_hyphenator().positions(word)) + 1
