"""Log-probabilities and entropies from logits that are kept until the backward pass.

TRL's fused head forgets the logits and computes them again, which an accelerator's memory asks for.
On a CPU, where memory is no concern at these sizes and arithmetic is, keeping them is faster.
Axis letters: M token, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOST_LOGITS = 2**25
"""Logits worth keeping, 128 MiB in float32; beyond that TRL's tiles are used."""


_ROWS = 32
"""Tokens handled at a time, so that temporary memory is reused instead of asked for anew."""


class _KeptLogits(torch.autograd.Function):
    """Turns logits into probabilities in place, and those into the gradient: one (M, V) array in all."""

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, targets_M1: Tensor) -> tuple[Tensor, Tensor]:
        logps, entropies = [], []
        for rows_RV, targets_R1 in zip(logits_MV.split(_ROWS), targets_M1.split(_ROWS), strict=True):
            rows_RV.sub_(rows_RV.amax(dim=-1, keepdim=True))
            weights_RV = rows_RV.exp()
            total_R1 = weights_RV.sum(dim=-1, keepdim=True)
            logps.append(rows_RV.gather(-1, targets_R1) - total_R1.log())
            entropies.append(total_R1.log() - (weights_RV * rows_RV).sum(dim=-1, keepdim=True) / total_R1)
            torch.div(weights_RV, total_R1, out=rows_RV)
        ctx.save_for_backward(logits_MV, targets_M1)
        entropies_M = torch.cat(entropies).squeeze(-1)
        ctx.mark_non_differentiable(entropies_M)
        return torch.cat(logps).squeeze(-1), entropies_M

    @staticmethod
    def backward(ctx: Any, grad_M: Tensor, _: Any) -> tuple[Tensor, None]:
        probabilities_MV, targets_M1 = ctx.saved_tensors
        grad_M1 = grad_M.unsqueeze(-1)
        return probabilities_MV.mul_(-grad_M1).scatter_add_(-1, targets_M1, grad_M1), None


def kept_logps(logits_MV: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return log softmax at the targets, with gradient, and the entropies in nats, without; (M,) each.

    Args:
        logits_MV: in float32; overwritten. Nothing else may need them, and the gradient can be taken
            once; a second time is an error.
        targets_M: token ids.
    """
    return _KeptLogits.apply(logits_MV, targets_M.unsqueeze(-1))
