"""Published scorers that need no model and no network; they are what `bonesoup demo` trains on.

Each is a plain function in TRL's reward-function protocol.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from trl_bonesoup.errors import DependencyError
from trl_bonesoup.rewards.protocol import completion_texts

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")


def positivity(completions: list, **columns: Any) -> list[float]:
    """Return VADER's compound sentiment of each completion, in [-1, 1]: 1 is most positive.

    Source: Hutto and Gilbert 2014, "VADER: A parsimonious rule-based model for sentiment analysis
    of social media text"; scored by the authors' package vaderSentiment.
    """
    analyzer = _vader()
    return [analyzer.polarity_scores(text)["compound"] for text in completion_texts(completions)]


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

    Source: Flesch 1948, "A new readability yardstick".
    """
    return [_reading_ease(text) for text in completion_texts(completions)]


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
        raise DependencyError("The positivity scorer needs: pip install 'trl-bonesoup[demo]'") from error
    return SentimentIntensityAnalyzer()


@lru_cache(maxsize=1)
def _hyphenator() -> Any:
    try:
        import pyphen
    except ImportError as error:
        raise DependencyError("The plainness scorer needs: pip install 'trl-bonesoup[demo]'") from error
    return pyphen.Pyphen(lang="en_US")


@lru_cache(maxsize=50_000)
def _syllables(word: str) -> int:
    return len(_hyphenator().positions(word)) + 1
