"""What every contestant is asked to do, written down once so that all of them read the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Work:
    """One run of one contestant.

    Args:
        model: folder of the language model, loaded in float32.
        prompts: conversations; rollout batches are drawn from them.
        steps: rollout batches, without the warm-up.
        warm_up: rollout batches before them, which are reported apart.
        completions: completions in a rollout batch; every optimizer step uses all of them.
        tokens: the longest completion.
        fixed_length: no completion may end early, so that all contestants generate the same number of tokens.
        epochs: how often each rollout batch is used.
        kl_coef: weight of the KL penalty.
        learning_rate: of all that is trained, constant.
        lora_rank: of the policy's adapter, on all linear layers, with alpha twice as large.
        threads: of torch; 0 leaves it to torch, which takes one per core.
        seed: of sampling and of the order of prompts.
    """

    model: str
    prompts: list[list[dict[str, str]]]
    steps: int
    warm_up: int
    completions: int
    tokens: int
    fixed_length: bool
    epochs: int
    kl_coef: float
    learning_rate: float
    lora_rank: int
    threads: int
    seed: int

    def record(self) -> dict[str, Any]:
        """Return what identifies the work, with a digest in place of the prompts."""
        text = json.dumps(self.prompts)
        return {**asdict(self), "prompts": f"{len(self.prompts)}, sha256 {hashlib.sha256(text.encode()).hexdigest()}"}
