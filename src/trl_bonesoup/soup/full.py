"""A full soup in memory: the parameters of one model, recomputed from the backbones' files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.ingredients import Ingredients, accumulate, base_share
from trl_bonesoup.soup.source import ModelRef
from trl_bonesoup.weights import FloatArray

__all__ = ["FullParameters"]


class FullParameters:
    """A model whose parameters are the soup of full checkpoints.

    Args:
        model: a model of the backbones' architecture; its parameters are overwritten.
        folders: the backbones, in order.
        base: where the base model is; it is only read when a soup gives it a share.

    Raises:
        SoupError: if the checkpoints do not fit together or do not fit `model`.
    """

    def __init__(self, model: Any, folders: Sequence[Path], base: ModelRef) -> None:
        self.model = model
        self._folders = folders
        self._base = base
        self._ingredients = Ingredients.open(folders, None)
        self._now_N: FloatArray | None = None
        self._targets = {
            name: tensor for name, tensor in model.state_dict().items() if name in set(self._ingredients.names)
        }
        self._check_complete()

    def set(self, coefficients_N: FloatArray) -> None:
        """Recompute every parameter in place: fp32 sums, cast once, base share 1 - Σλ.

        If that fails half way, the parameters are computed back to what they were.

        Raises:
            SoupError: for λ of shape (B, N): one set of weights cannot be several soups at once; for
                files that have changed or cannot be read any more, and for sums that are not finite.
        """
        if coefficients_N.ndim == 2:
            raise SoupError(
                f"A soup of full checkpoints has one set of weights, so {len(coefficients_N)} rows cannot each have "
                "their own preference. Call set_preference for one preference at a time, or train the backbones as "
                "LoRA adapters, where rows are free to differ."
            )
        try:
            self._merge(coefficients_N)
        except BaseException:
            if self._now_N is not None:
                self._merge(self._now_N)
            raise
        self._now_N = coefficients_N

    def _merge(self, coefficients_N: FloatArray) -> None:
        if base_share(coefficients_N) and self._ingredients.base is None:
            self._ingredients = Ingredients.open(self._folders, self._base.folder())
        shares = self._ingredients.shares(coefficients_N)
        for name, target in self._targets.items():
            tensors = self._ingredients.read(name)
            if not tensors[0].is_floating_point():
                continue
            dtype = torch.promote_types(tensors[0].dtype, torch.float32)
            exact = accumulate(tensors, shares, torch.empty(tensors[0].shape, dtype=dtype))
            if not torch.isfinite(exact).all():
                raise SoupError(self._ingredients.blame(name))
            target.copy_(exact)

    def _check_complete(self) -> None:
        covered = {tensor.data_ptr() for tensor in self._targets.values()}
        missing = [name for name, value in self.model.state_dict().items() if value.data_ptr() not in covered]
        unused = [name for name in self._ingredients.names if name not in self._targets]
        if missing or unused:
            raise SoupError(
                f"The tensors in {self._folders[0]} are not those of the loaded model (only in the model: "
                f"{missing[:3]}; only in the files: {unused[:3]}), so this architecture cannot be merged in place. "
                "Write the soup with `merge` (in the shell `bonesoup merge`) and load the result."
            )
