"""BoneSoup: a loaded soup whose preference is set in place, for a whole batch or row by row."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from trl_bonesoup.errors import SoupError, WeightsError
from trl_bonesoup.manifest import Preference, SoupManifest
from trl_bonesoup.soup.adapters import check_same_base, read_adapter
from trl_bonesoup.soup.agreement import check_agreement, check_recorded_base
from trl_bonesoup.soup.full import FullParameters
from trl_bonesoup.soup.loading import load_adapters, load_model, load_tokenizer
from trl_bonesoup.soup.scales import AdapterScales
from trl_bonesoup.soup.source import ModelRef, SoupSource, open_soup
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from trl_bonesoup.hub.push import PushedRepo

__all__ = ["BoneSoup"]


class _Weights(Protocol):
    model: Any

    def set(self, coefficients: FloatArray) -> None: ...


class BoneSoup:
    """N backbones around one base model, steered by a preference, for inference.

    In adapter space every backbone is θ_j = θ_sft + ΔW_j, so the soup with extrapolation,
    Σ_j λ_j θ_j + (1 - Σλ) θ_sft, is θ_sft + Σ_j λ_j ΔW_j: the coefficients are the adapters' scales
    and the base needs no share of its own.

    A soup starts at the equal preference. Load one with `from_pretrained`. Threads may share it: one
    inside `preferences` keeps the others from changing what is set.

    Attributes:
        manifest: what was trained.
        folder: where soup.json lies.
        model: ready for forward and generate; a PEFT model for adapters, else a transformers model.
        tokenizer: the backbones' or the base model's; None if neither has one.
        preference: μ that is set now, (N,) or inside `preferences` (B, N); None after raw coefficients.
        coefficients: λ that is set now, (N,) or (B, N).
    """

    def __init__(self, source: SoupSource, weights: _Weights, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.preference: FloatArray | None = None
        self._weights = weights
        self._turn = threading.RLock()
        n = len(source.manifest.objectives)
        self.coefficients: FloatArray = np.zeros(n)
        self.set_preference(np.full(n, 1.0 / n))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        base_model: str | Path | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        trust_remote_code: bool = False,
    ) -> BoneSoup:
        """Load a soup and its base model, from safetensors only.

        Args:
            path: folder of soup.json, or Hub id.
            base_model: Hub id or folder to use in place of the recorded base model.
            revision: of the soup on the Hub.
            dtype: of the base model; by default that of its checkpoint.
            device: where to put the model; by default where transformers puts it.
            trust_remote_code: run model code that a repository ships.

        Raises:
            SoupError: if the soup is not found, or its backbones cannot be merged exactly.
            ManifestError: if soup.json is missing or invalid.
        """
        source = open_soup(path, base_model=base_model, revision=revision)
        return cls.from_source(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code)

    @classmethod
    def from_source(
        cls,
        source: SoupSource,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        trust_remote_code: bool = False,
        allow_nan: bool = False,
    ) -> BoneSoup:
        """Load an opened soup; see `from_pretrained`, and `allow_nan` to accept adapters that are not finite."""
        folders, base = source.backbones(code=trust_remote_code), source.base_model()
        options: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
        weights: _Weights
        base_folder = Path(base.id) if base.is_local else None
        if source.kind == "adapter":
            adapters = [read_adapter(folder) for folder in folders]
            if source.base_override is None:
                check_same_base(adapters)
                check_recorded_base(adapters, base)
            check_agreement(folders, base_folder, full=False)
            weights = load_adapters(load_model(base, **options), adapters, base, allow_nan=allow_nan)
        else:
            check_agreement(folders, base_folder, full=True)
            weights = FullParameters(load_model(ModelRef(str(folders[0])), **options), folders, base)
        return cls(source, weights, load_tokenizer(folders[0], base, trust_remote_code=trust_remote_code))

    def __repr__(self) -> str:
        """Say what it is made of, and what is set."""
        names, n = self.manifest.objective_names, len(self.manifest.backbones)
        models = f"{n} adapters" if self.source.kind == "adapter" else f"{n} full checkpoints"
        if self.preference is not None and self.preference.ndim == 1:
            shares = ", ".join(f"{name}={share:.3g}" for name, share in zip(names, self.preference, strict=True))
            return f"<{type(self).__name__} of {models} at {shares}>"
        if self.coefficients.ndim == 2:
            what = f"{len(self.coefficients)} soups, one for each row"
        else:
            what = "coefficients " + ", ".join(f"{round(value, 9) + 0.0:.3g}" for value in self.coefficients)
        return f"<{type(self).__name__} of {models} for {', '.join(names)} at {what}>"

    @property
    def manifest(self) -> SoupManifest:
        """What was trained."""
        return self.source.manifest

    @property
    def folder(self) -> Path:
        """Where soup.json lies."""
        return self.source.folder

    @property
    def model(self) -> Any:
        """The model to call, with the present preference."""
        return self._weights.model

    @property
    def scales(self) -> AdapterScales:
        """The adapters inside the model.

        Raises:
            SoupError: if the backbones are full checkpoints.
        """
        if not isinstance(self._weights, AdapterScales):
            raise SoupError(f"The backbones of {self.folder} are full checkpoints; there are no adapters.")
        return self._weights

    def set_preference(self, preference: Preference, extrapolation: float | Sequence[float] = 0.0) -> FloatArray:
        """Make the model, in place, the soup of a preference and return its λ of shape (N,).

        Args:
            preference: μ in the order of the objectives, a dict by objective name, or a preset by name:
                an objective, "equal", or one of `manifest.presets`.
            extrapolation: α, see `trl_bonesoup.merging_coefficients`.
        """
        mu_N = self.manifest.preference(preference)
        lambda_N = self.manifest.coefficients(mu_N, extrapolation)
        with self._turn:
            self.set_coefficients(lambda_N)
            self.preference = mu_N
        return lambda_N

    def add_preset(self, name: str, preference: Preference) -> None:
        """Give a preference a name in this loaded soup; `manifest.save(folder)` keeps it.

        Raises:
            WeightsError: for a preference off the simplex.
            ManifestError: for a name that is not allowed.
        """
        self.source = self.source.with_preset(name, preference)

    def set_coefficients(self, coefficients: ArrayLike) -> None:
        """Set raw λ of shape (N,): zeros are the base model, a unit vector is one backbone."""
        lambda_N = self._checked(coefficients, 1)
        with self._turn:
            self._weights.set(lambda_N)
            self.preference, self.coefficients = None, lambda_N

    @contextmanager
    def preferences(
        self,
        preference_BN: FloatArray | Sequence[Preference],
        extrapolation: float | Sequence[float] = 0.0,
    ) -> Iterator[FloatArray]:
        """Give every row of a batch its own preference, through forward and generate.

        Inside the block, row i of a batch of B follows preference i. A batch of k·B rows is read as k
        neighbouring rows for each preference, which is how `generate` lays out beams and
        `num_return_sequences`. What was set before comes back at the end, also after an exception.

        Another thread that wants to set a preference, or enter such a block, waits until this one ends.
        Tasks of one event loop share a thread and do not: no `await` belongs inside.

        Args:
            preference_BN: μ of each row, shape (B, N), or B preferences as for `set_preference`.
            extrapolation: α, the same for every row.

        Yields:
            λ of each row, shape (B, N).

        Raises:
            SoupError: if the backbones are full checkpoints, or for a batch that is not k·B rows.
        """
        mu_BN = np.array([self.manifest.preference(row) for row in preference_BN])
        with self.coefficient_rows(self.manifest.coefficients(mu_BN, extrapolation)) as lambda_BN:
            self.preference = mu_BN
            yield lambda_BN

    @contextmanager
    def coefficient_rows(self, coefficients_BN: ArrayLike) -> Iterator[FloatArray]:
        """Do what `preferences` does for raw λ of shape (B, N)."""
        lambda_BN = self._checked(coefficients_BN, 2)
        with self._turn:
            before = self.preference, self.coefficients
            self._weights.set(lambda_BN)
            self.preference, self.coefficients = None, lambda_BN
            try:
                yield lambda_BN
            finally:
                self.preference, self.coefficients = before
                self._weights.set(self.coefficients)

    def save_pretrained(
        self,
        out: str | Path,
        preference: Preference | None = None,
        extrapolation: float | Sequence[float] = 0.0,
        full: bool = False,
        overwrite: bool = False,
        rank: int | None = None,
    ) -> Path:
        """Write one soup as a model of its own and return its folder.

        Args:
            out: the folder, which appears complete or not at all.
            preference: μ; by default what is set now.
            extrapolation: α, if a preference is given.
            full: write a full checkpoint in the dtype of this model instead of one adapter. Soups
                of full checkpoints always do.
            overwrite: replace a model that is already in `out`.
            rank: compress the adapter to this rank; by default it is exact, with the sum of the ranks.

        Warns:
            RoundingWarning: if the dtype of a full checkpoint loses more than 1 % of the soup's effect.

        See `trl_bonesoup.soup.export` for the same with a report of what was written.
        """
        from trl_bonesoup.soup.export import save_soup

        coefficients = (
            self.coefficients if preference is None else self.manifest.coefficients(preference, extrapolation)
        )
        return save_soup(self, self._checked(coefficients, 1), out, full=full, rank=rank, overwrite=overwrite).path

    def push_to_hub(self, repo_id: str, **options: Any) -> list[PushedRepo]:
        """Publish the family on the Hub, so that `from_pretrained(repo_id)` loads it, and return what was done.

        What is published is what lies in `folder`, at every preference, whatever is set now.

        Args:
            repo_id: org/name.
            **options: of `trl_bonesoup.hub.push.push`, such as `preferences` that get a repository each,
                `private`, `collection`, `license` and `dry_run`.
        """
        from trl_bonesoup.hub.push import push  # upwards, for the name under which transformers has it

        return push(self.source, repo_id, **options)

    def _checked(self, coefficients: ArrayLike, axes: int) -> FloatArray:
        lambda_ = np.array(coefficients, dtype=np.float64)
        n = len(self.manifest.objectives)
        if lambda_.ndim != axes or lambda_.shape[-1] != n or not lambda_.size:
            expected = f"({n},)" if axes == 1 else f"(B, {n}), one row for each row of the batch"
            raise SoupError(f"Coefficients here have shape {expected}; got {lambda_.shape}.")
        if not np.isfinite(lambda_).all():
            raise WeightsError(f"Merging coefficients must be finite; got {lambda_.tolist()}.")
        return lambda_
