"""Rewards for the parts of a completion: its sentences and sub-sentences, scored one by one.

Source: Wu et al. 2023, "Fine-grained human feedback gives better rewards for language model
training", and its code, github.com/allenai/FineGrainedRLHF (tasks/qa_feedback/training).
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trl_bonesoup.errors import ConfigurationError, RewardError
from trl_bonesoup.rewards.classifier import ClassifierReward, check_choice, describe
from trl_bonesoup.rewards.dense import DenseScore
from trl_bonesoup.rewards.loaded import LoadsClassifier, model_id, model_name
from trl_bonesoup.rewards.protocol import completion_texts
from trl_bonesoup.rewards.texts import PromptText, last_user_message, prompt_texts, template_fields

Split = Callable[[str], list[str]]
"""Cuts a text into segments that give the text again when joined."""

_ABBREVIATIONS = frozenset(
    ["mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "cf", "fig", "vol", "e.g", "i.e", "approx"]
)
_SENTENCE_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s|$)|(?<=\S)(?=\s*\n)""")
_CLAUSE_END = re.compile(r"[,;:!?](?=\s)")


def split_sentences(text: str) -> list[str]:
    """Cut a text into sentences; joined, they are the text.

    A sentence ends with . ! ? or … (and closing quotes and brackets) before white space, and at the
    end of a line. A full stop does not end one after a common abbreviation ("Dr.", "e.g."), an
    initial ("J.") or a number at the start of a line ("1."). White space belongs to the sentence
    after it, as it does in the tokens of most models; at the end of the text, to the last.

    >>> split_sentences("Dr. No left. Why? He had to.")
    ['Dr. No left.', ' Why?', ' He had to.']
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text) if not _is_abbreviation(text, match)]
    return _cut(text, ends)


def split_subsentences(text: str, min_words: int = 5) -> list[str]:
    """Cut a text into clauses; joined, they are the text.

    A sentence is cut after , ; : ! or ? before white space, if the clause so far has at least
    `min_words` words and as many are left of the sentence.

    >>> split_subsentences("It rained all day on Monday, so we all stayed at home. Yes, we did.")
    ['It rained all day on Monday,', ' so we all stayed at home.', ' Yes, we did.']
    """
    return [clause for sentence in split_sentences(text) for clause in _clauses(sentence, min_words)]


def _clauses(sentence: str, min_words: int) -> list[str]:
    ends: list[int] = []
    for match in _CLAUSE_END.finditer(sentence):
        before, after = sentence[ends[-1] if ends else 0 : match.end()], sentence[match.end() :]
        if len(before.split()) >= min_words and len(after.split()) >= min_words:
            ends.append(match.end())
    return _cut(sentence, ends)


def _is_abbreviation(text: str, match: re.Match[str]) -> bool:
    if match.group() != ".":
        return False
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    word = re.split(r"\s", line)[-1].lstrip("\"'“‘([")
    initial = len(word) == 1 and word.isupper() and word != "I"
    return initial or word.lower() in _ABBREVIATIONS or line.strip().isdigit()


def _cut(text: str, ends: Sequence[int]) -> list[str]:
    """Return the pieces of a text that end at `ends`; what is left at its end is one more, unless it is blank."""
    if not text.strip():
        return []
    ends = sorted({end for end in ends if text[end:].strip()})
    return [text[start:end] for start, end in itertools.pairwise([0, *ends, len(text)])]


@dataclass(eq=False)
class SegmentedReward:
    """A function that scores the segments of a completion, as a reward function.

    Args:
        score_segments: called with the text of the prompt and the list of segments; returns one
            number per segment, or `None` for one that has no score.
        split: `split_sentences`, `split_subsentences`, or any function that cuts a text into
            segments that give the text again when joined.
        name: what the objective is called; by default the name of `score_segments`.
        prompt_text, prompt_column: as in `ClassifierReward`.

    Calling it returns a `DenseScore` per completion, and `None` where there is no segment or no
    segment has a score.

    Raises:
        RewardError: if there is not one finite number or `None` per segment, or segments do not
            give the text.
    """

    score_segments: Callable[[str, list[str]], Sequence[float | None]]
    split: Split = split_sentences
    name: str | None = None
    prompt_text: PromptText = last_user_message
    prompt_column: str | None = None
    spec: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        scorer = getattr(self.score_segments, "__name__", type(self.score_segments).__name__)
        self.__name__ = self.name or scorer
        self.spec = describe(self, f"segments:{scorer}", ("score_segments", "name"))

    def __call__(self, *, prompts: list, completions: list, **columns: Any) -> list[DenseScore | None]:
        """Score the segments of each completion."""
        questions = prompt_texts(prompts, columns, self.prompt_text, self.prompt_column)
        scores = []
        for question, text in zip(questions, completion_texts(completions), strict=True):
            segments = cut(self.split, text)
            scores.append(dense_score(segments, self.score_segments(question, segments)) if segments else None)
        return scores


@dataclass(eq=False)
class SegmentReward(LoadsClassifier):
    """A token-classification model that classifies each segment of a completion, as a reward function.

    The classifier reads the prefix and then every segment after a separator token, and its class at
    a separator is that of the segment that follows.

    Args:
        model, tokenizer, revision, device, dtype, batch_size, max_length: as in `ClassifierReward`.
        prompt_text, prompt_column, keep_prompt, name: as in `ClassifierReward`.
        values: reward of a segment by class, such as {0: -0.5, 2: 0.5}. The most likely of these
            classes counts; the model's other classes do not.
        split: as in `SegmentedReward`.
        prefix: what comes before the segments, with the field {prompt}.
        separator: the special token before each segment, by name: "sep", "eos", "cls" or "bos".

    Calling it returns a `DenseScore` per completion, and `None` where there is no segment. If a
    sample does not fit into the context, its prompt is cut first; segments that still do not fit
    have no part in the score, and a completion of which none fits has none.

    Raises:
        ConfigurationError: as `ClassifierReward`, and if `values` name a class that the model lacks.
    """

    auto_class = "AutoModelForTokenClassification"

    model: Any
    values: Mapping[int, float]
    split: Split = split_sentences
    prefix: str = "question: {prompt} answer:"
    separator: str = "sep"
    tokenizer: Any = None
    name: str | None = None
    prompt_text: PromptText = last_user_message
    prompt_column: str | None = None
    keep_prompt: str = "end"
    max_length: int | None = None
    batch_size: int = 16
    revision: str | None = None
    device: Any = None
    dtype: str = "float32"
    spec: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("separator", self.separator, ("sep", "eos", "cls", "bos"))
        check_choice("keep_prompt", self.keep_prompt, ("start", "end"))
        if template_fields([self.prefix]) - {"prompt"}:
            raise ConfigurationError(f"prefix has the field {{prompt}} and no other; got {self.prefix!r}.")
        if len(self.values) < 2 or not all(math.isfinite(value) for value in self.values.values()):
            raise ConfigurationError(f"values give a finite reward to each of at least 2 classes; got {self.values}.")
        self.__name__ = self.name or model_name(self.model)
        self.spec = describe(self, model_id(self.model), ("model", "tokenizer", "name", "batch_size", "device"))

    def __call__(self, *, prompts: list, completions: list, **columns: Any) -> list[DenseScore | None]:
        """Score the segments of each completion."""
        questions = prompt_texts(prompts, columns, self.prompt_text, self.prompt_column)
        classifier = self.classifier()
        separator = classifier.special_tokens([f"{{{self.separator}}}"])[self.separator]
        split = [cut(self.split, text) for text in completion_texts(completions)]
        rows, starts = [], []
        for question, segments in zip(questions, split, strict=True):
            safe = [classifier.without_special_tokens(segment.strip()) for segment in segments]
            answer = " ".join(f"{separator} {segment}" for segment in safe)
            tokens, (text,) = classifier.encode(functools.partial(self._text, answer), question, self.keep_prompt)
            # Each separator is a character of the text, whatever else the tokenizer adds.
            lengths = [len(separator) + len(segment) + 2 for segment in safe]
            begins = itertools.accumulate(lengths[:-1], initial=len(text) - len(answer))
            rows.append(tokens)
            starts.append([tokens.char_to_token(begin) for begin in begins] if segments else [])
        outputs = classifier(rows, self.batch_size)
        return [
            dense_score(segments, [None if t is None else self._value(logits[t]) for t in positions])
            for segments, positions, logits in zip(split, starts, outputs, strict=True)
        ]

    def _text(self, answer: str, question: str) -> tuple[str]:
        return (f"{self.prefix.format(prompt=question)} {answer}",)

    def _value(self, logits: Any) -> float:
        if not all(0 <= index < len(logits) for index in self.values):
            raise ConfigurationError(
                f"{self.__name__} has classes 0 to {len(logits) - 1}; values name {sorted(self.values)}."
            )
        return self.values[max(sorted(self.values), key=lambda index: logits[index].item())]


def cut(split: Split, text: str) -> list[str]:
    """Return the segments of a text, after checking that they are all of it.

    Raises:
        RewardError: if they are not.
    """
    segments = split(text)
    if "".join(segments) != text and (segments or text.strip()):
        raise RewardError(
            f"Segments must give the text again when joined, so that their ends are known; {split} made {segments} "
            f"of {text!r}."
        )
    return segments


def dense_score(segments: Sequence[str], scores: Sequence[float | None]) -> DenseScore | None:
    """Return the score of a text from those of its segments, `None` if none has one.

    Raises:
        RewardError: if there is not one finite number or `None` per segment.
    """
    if len(scores) != len(segments):
        raise RewardError(f"{len(scores)} scores were returned for {len(segments)} segments.")
    ends = itertools.accumulate(map(len, segments))
    parts = [(end, float(score)) for end, score in zip(ends, scores, strict=True) if score is not None]
    if bad := [score for _, score in parts if not math.isfinite(score)]:
        raise RewardError(f"Scores of segments must be finite, or None where there is none; got {bad[0]}.")
    return DenseScore(parts) if parts else None


def qa_factuality(model: Any, **settings: Any) -> SegmentReward:
    """Return the factuality reward of QA-Feedback: ±0.5 per sentence, read after the whole prompt.

    Source: `FactualityReward` and fine_grained_config.yml of FineGrainedRLHF. Its models were
    trained with the separator </s>; class 0 is an error and class 2 none.
    """
    return SegmentReward(
        model, **{"values": {0: -0.5, 2: 0.5}, "prefix": "{prompt} answer:", "name": "factuality", **settings}
    )


def qa_relevance(model: Any, **settings: Any) -> SegmentReward:
    """Return the relevance reward of QA-Feedback: ±0.3 per sub-sentence; needs the column "question".

    Source: `SubSentenceVerbosityReward` and fine_grained_config.yml of FineGrainedRLHF; class 1 is
    an irrelevant, repeated or incoherent sub-sentence and class 2 a good one.
    """
    defaults = {
        "values": {1: -0.3, 2: 0.3},
        "split": split_subsentences,
        "prompt_column": "question",
        "name": "relevance",
    }
    return SegmentReward(model, **{**defaults, **settings})


def qa_completeness(model: Any, **settings: Any) -> ClassifierReward:
    """Return the completeness reward of QA-Feedback: 0.3 · (logit + 0.4468) / 8.301 per answer.

    Source: `PreferenceReward` and fine_grained_config.yml of FineGrainedRLHF.
    """
    defaults = {
        "inputs": "{prompt} answer: {completion}",
        "shift": 0.44677690555995353,
        "scale": 0.3 / 8.301160619054132,
        "name": "completeness",
    }
    return ClassifierReward(model, **{**defaults, **settings})
