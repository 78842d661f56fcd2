"""A stacked adapter at a rank of one's choice: of every layer's ΔW, the best approximation of that rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trl_bonesoup.errors import ConfigurationError, SoupError
from trl_bonesoup.soup.adapters import WEIGHTS_FILE
from trl_bonesoup.soup.combine import StackedAdapters, StackedModule, rank_settings, write_config
from trl_bonesoup.soup.rounding import lost_share
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    import torch

__all__ = ["CompressedAdapters", "check_rank"]


@dataclass(frozen=True)
class CompressedAdapters:
    """N adapters as one in which no layer has more than `rank`.

    With thin QR factorisations A^T = Q_A R_A and B·diag(λs) = Q_B R_B, the small matrix R_B R_A^T
    has the singular values of ΔW. Keeping the largest `rank` of them is the best approximation in
    the Frobenius norm (Eckart and Young, 1936), and the rest is its error.
    """

    stacked: StackedAdapters
    rank: int

    def nbytes_at(self, coefficients_N: FloatArray) -> int:
        """Return the bytes of the tensors of the soup of λ."""
        return sum(4 * self._rank(m) * sum(m.shape) for m in self.stacked.at(coefficients_N).modules)

    def write(self, coefficients_N: FloatArray, folder: Path) -> float:
        """Write the adapter of one λ into an existing folder, in float32.

        Returns:
            ‖ΔW_r - ΔW‖ / ‖ΔW‖, Frobenius norms over all layers: the share of the soup's effect that
            is lost. 0 if no layer had to be compressed, or if the soup changes nothing.

        Raises:
            SoupError: if a factor is not finite.
        """
        from safetensors.torch import save_file

        from trl_bonesoup.soup.threads import in_order

        tensors: dict[str, torch.Tensor] = {}
        lost = effect = 0.0
        used = self.stacked.at(coefficients_N)
        layers = in_order(lambda module: self._compressed(module, coefficients_N), used.modules)
        for module, (factor_A, factor_B, values) in zip(used.modules, layers, strict=True):
            lost += float(values[self._rank(module) :].square().sum())
            effect += float(values.square().sum())
            tensors[module.key_A], tensors[module.key_B] = factor_A, factor_B.contiguous()
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        ranks = {module.name: self._rank(module) for module in used.modules}
        write_config({**used.config, **rank_settings(ranks)}, folder)
        return lost_share(lost, effect)

    def _compressed(
        self, module: StackedModule, coefficients_N: FloatArray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return A and B of one layer at its rank, and the singular values of its ΔW."""
        scales, rank = module.scales(coefficients_N), self._rank(module)
        left, values, right = _thin_svd(module.stacked_A, module.joined_B * scales, module.name)
        if rank == len(module.owners):
            return module.stacked_A, module.joined_B * scales.float(), values
        root = values[:rank].sqrt()
        return (root[:, None] * right[:rank]).float(), (left[:, :rank] * root).float(), values

    def _rank(self, module: StackedModule) -> int:
        return min(self.rank, len(module.owners), *module.shape)


def check_rank(rank: int | None, *, full: bool) -> None:
    """Check the rank of an adapter that is to be written; None is the exact one.

    Raises:
        ConfigurationError: if it is not a positive number, or a full checkpoint is to be written.
    """
    if rank is None:
        return
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigurationError(f"The rank of an adapter is a whole number from 1; got {rank!r}.")
    if full:
        raise ConfigurationError(
            f"rank={rank} (--rank) compresses an adapter, and a full checkpoint was asked for (or the backbones are "
            "full checkpoints), which has no rank. Leave it out, or write an adapter."
        )


def _thin_svd(
    factor_A: torch.Tensor, factor_B: torch.Tensor, name: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return U, the singular values and V^T of B·A in float64, without forming the product."""
    import torch

    if not (torch.isfinite(factor_A).all() and torch.isfinite(factor_B).all()):
        raise SoupError(f"The adapters' {name} contains NaN or infinity, so there is nothing to compress.")
    basis_A, small_A = torch.linalg.qr(factor_A.double().T)
    basis_B, small_B = torch.linalg.qr(factor_B.double())
    left, values, right = torch.linalg.svd(small_B @ small_A.T, full_matrices=False)
    return basis_B @ left, values, right @ basis_A.T
