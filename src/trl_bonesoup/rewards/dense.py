"""Dense scores: where in a completion the parts of its score were earned."""

from __future__ import annotations

from collections.abc import Sequence


class DenseScore(float):
    """The score of one completion, with the parts that its segments earned.

    A reward function may return it in place of a number. It *is* the number, the sum of the parts,
    so that any trainer that takes TRL's reward functions can use it; `MultiRewardPPOTrainer` also
    gives each part to the token at which its segment ends.

    Args:
        segments: (end, score) per segment. `end` counts the characters of the completion's text up
            to and including the segment, at least 1; ends do not decrease.

    Raises:
        ValueError: if an end is not a positive whole number, or they decrease.

    Source: Wu et al. 2023, "Fine-grained human feedback gives better rewards for language model
    training", Section 2 (a reward at the end of each segment).

    >>> score = DenseScore([(12, 0.5), (30, -0.5), (41, 0.25)])
    >>> score + 1, score.segments[0]
    (1.25, (12, 0.5))
    """

    segments: tuple[tuple[int, float], ...]

    def __new__(cls, segments: Sequence[tuple[int, float]]) -> DenseScore:
        """Check the segments and add up their scores."""
        parts = tuple((end, float(score)) for end, score in segments)
        ends = [end for end, _ in parts]
        if any(isinstance(end, bool) or not isinstance(end, int) or end < 1 for end in ends) or ends != sorted(ends):
            raise ValueError(f"Segments end at whole numbers of characters, from 1 and not decreasing; got {ends}.")
        self = super().__new__(cls, sum(score for _, score in parts))
        self.segments = parts
        return self

    # float's own gives the number, from which the segments could not be had again
    def __getnewargs__(self) -> tuple[tuple[tuple[int, float], ...]]:  # type: ignore[override]
        """Let copies and other processes keep the segments."""
        return (self.segments,)
