"""The critic: a value head that reads the hidden states of the policy's own forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


class ValueHead(nn.Module):
    """A linear map from hidden states to values, kept outside the policy so that it is never exported with it.

    It starts at zero: the first values are 0, which is the mean of a normalised score.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return values (B, T) in float32 for hidden states (B, T, D)."""
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            return self.linear(hidden_BTD.float()).squeeze(-1)


@contextmanager
def value_tap(
    trunk: nn.Module, head: nn.Module, num_tokens: int, *, detach: bool = False, trim: bool = False
) -> Iterator[list[Tensor]]:
    """Collect the values of the last `num_tokens` tokens from every forward pass of `trunk` inside the context.

    The value of token t is read where the policy chose it, at position t-1: it estimates the return
    of the state before that choice.

    Args:
        trunk: the decoder below the language-model head; its output has `last_hidden_state`.
        head: maps (B, T, D) to (B, T).
        num_tokens: number T of completion tokens at the end of each row.
        detach: keep the critic's gradient out of the trunk.
        trim: hand only the last T+1 hidden states on to the language-model head, which then does no
            work for the prompt.

    Yields:
        A list that receives one (B, T) tensor per forward pass.
    """
    values: list[Tensor] = []

    def read(_module: nn.Module, _args: tuple, output: Any) -> Any:
        hidden_BTD = output.last_hidden_state[:, -(num_tokens + 1) :]
        states_BTD = hidden_BTD[:, :-1]
        values.append(head(states_BTD.detach() if detach else states_BTD))
        if trim:
            output.last_hidden_state = hidden_BTD
        return output

    handle = trunk.register_forward_hook(read)
    try:
        yield values
    finally:
        handle.remove()


class ZeroCriticGrad(TrainerCallback):
    """Clears the critic's gradient after each optimizer step; `Trainer` clears only that of its own model."""

    def __init__(self, critic: nn.Module):
        self.critic = critic

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the gradient that the step just used."""
        self.critic.zero_grad()
