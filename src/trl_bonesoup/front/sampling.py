"""Sampling with common random numbers: a row's noise depends on its own seed and step, not on its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEED_LIMIT = 2**64

__all__ = ["SeededSampler", "generate", "gumbel_noise", "row_seed"]


class SeededSampler(LogitsProcessor):
    """Turns greedy decoding into exact sampling from softmax(logits / temperature), reproducibly per row.

    Adds Gumbel noise to logits / temperature, so that the largest entry is a sample (the Gumbel-max
    trick). The noise is a function of (row seed, step) alone: rows with one seed share it whatever
    their preference, which makes their difference the effect of the preference, and a row's answer
    does not depend on the rows beside it. Pass it to `model.generate(..., do_sample=False)`.

    Args:
        seeds: one seed per row of the batch, each in [0, 2**64).
        prompt_length: length of the (padded) prompts, from which the step is counted.
        temperature: 0 gives greedy decoding.

    Raises:
        ConfigurationError: for a temperature that is negative or not finite, or a seed out of range.

    Source: Gumbel (1954); Maddison, Tarlow & Minka (2014), Section 2.
    """

    def __init__(self, seeds: Sequence[int], prompt_length: int, temperature: float = 1.0) -> None:
        if not 0.0 <= temperature < float("inf"):
            raise ConfigurationError(
                f"temperature must be a finite number, at least 0 (0 is greedy); got {temperature}."
            )
        for seed in seeds:
            if not 0 <= seed < SEED_LIMIT:
                raise ConfigurationError(f"Each row's seed must be in [0, 2**64); got {seed}.")
        self.prompt_length = prompt_length
        self.temperature = temperature
        self.rows = len(seeds)
        distinct = {seed: index for index, seed in enumerate(dict.fromkeys(seeds))}
        self._seeds = list(distinct)
        self._row_to_seed = torch.tensor([distinct[seed] for seed in seeds], dtype=torch.long)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores (B, vocabulary) in float32 whose largest entry is the sampled token."""
        if len(scores) != self.rows:
            raise ConfigurationError(
                f"The sampler has seeds for {self.rows} rows but the batch has {len(scores)}; "
                "use one beam and one answer per row."
            )
        if self.temperature == 0.0:
            return scores
        step = input_ids.shape[1] - self.prompt_length
        noise = np.stack([gumbel_noise(seed, step, scores.shape[1]) for seed in self._seeds])
        noise_BV = torch.from_numpy(noise.astype(np.float32)).to(scores.device)[self._row_to_seed.to(scores.device)]
        return scores.float() / self.temperature + noise_BV  # type: ignore[return-value]


def gumbel_noise(seed: int, step: int, size: int) -> FloatArray:
    """Return `size` standard Gumbel numbers that depend on (seed, step) alone, on any machine.

    Philox is a counter-based generator keyed by both, so no state has to be carried from step to
    step. Drawn in float64: at float32 resolution, a vocabulary of 50 000 would see an exact zero,
    hence infinite noise, about once in two hundred steps.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))
    exponential = generator.standard_exponential(size)
    return -np.log(np.maximum(exponential, np.finfo(np.float64).tiny))


def row_seed(seed: int, prompt_index: int, sample_index: int) -> int:
    """Return the seed of one answer: the same for every preference, different for every prompt and sample."""
    state = np.random.SeedSequence((seed, prompt_index, sample_index)).generate_state(1, np.uint64)
    return int(state[0])


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    processors: Sequence[LogitsProcessor] = (),
) -> list[list[int]]:
    """Answer a batch of prompts by exact sampling from softmax(logits / temperature).

    Settings of the model's own generation_config that would change the distribution (top-k, top-p,
    repetition penalty) are switched off, as they are in training.

    Args:
        model: a causal language model, or a PEFT model of one.
        tokenizer: for the ids of padding and end of text.
        prompt_ids: token ids, one list per row; padded on the left here.
        seeds: one per row, see `SeededSampler`.
        max_new_tokens: longest answer.
        temperature: 0 is greedy.
        processors: what changes the logits before they are divided by the temperature.

    Returns:
        The token ids of each answer, up to and without its end-of-text token.
    """
    ends = _end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    length = max(len(ids) for ids in prompt_ids)
    padded_BT = torch.tensor([[pad] * (length - len(ids)) + list(ids) for ids in prompt_ids])
    mask_BT = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompt_ids])
    output_BT = model.generate(
        input_ids=padded_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            pad_token_id=pad,
            eos_token_id=ends or None,
            use_cache=True,
        ),
        logits_processor=LogitsProcessorList([*processors, SeededSampler(seeds, length, temperature)]),
    )
    return [_until_end(row, ends) for row in output_BT[:, length:].tolist()]


def _end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return [end for end in dict.fromkeys([*ids, tokenizer.eos_token_id]) if end is not None]


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[: next((position for position, token in enumerate(ids) if token in ends), len(ids))]
