"""Adapters of whatever method, merged by PEFT in float32 and compared with what PEFT computes unmerged."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.adapters import read_config, read_shapes
from trl_bonesoup.soup.features import UNDO_INIT, changes_base, check_merges
from trl_bonesoup.training.upstream import old_name_unmentioned

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
_TOKEN_ROWS = ".token_adapter."
"""In the names of trainable tokens, which PEFT trains alike on both sides of tied embeddings."""

_PROBE = (2, 16)
"""Rows and tokens of the random prompt on which the merged model is compared with PEFT's own."""

_TOLERANCE = 1e-4
"""Of that comparison, relative to the logits: what float32 may lose over many layers."""

__all__ = ["MergeableAdapter"]


@dataclass(frozen=True)
class MergeableAdapter:
    """An adapter that has an exact full checkpoint: its folder, adapter_config.json and names of tensors."""

    folder: Path
    config: dict[str, Any]
    keys: frozenset[str]

    @property
    def base_model(self) -> str | None:
        """The base model that the adapter's own config names."""
        return self.config.get("base_model_name_or_path")

    @classmethod
    def read(cls, folder: Path) -> MergeableAdapter:
        """Read the header of an adapter.

        Raises:
            SoupError: naming a feature that has no exact full checkpoint, with what to do instead.
        """
        config = read_config(folder)
        check_merges(config, folder)
        return cls(folder, config, frozenset(read_shapes(folder)))

    def check_fit(self, base: Any) -> None:
        """Check what can be checked before merging.

        Raises:
            SoupError: if it trains one side of tied embeddings, or begins with a part of base weights
                that are in half precision.
        """
        import torch

        for module, twin in _tied_modules(base).items():
            start = f"{_PREFIX}{module}."
            if any(key.startswith(start) and _TOKEN_ROWS not in key for key in self.keys):
                raise SoupError(
                    f"The adapter {self.folder} trains {module}, which in the base model shares its weight with {twin} "
                    "(tied embeddings), so no checkpoint of this architecture tells the two apart. Save the base model "
                    "with an lm_head of its own and give that with base_model=, --base-model (docs/soups.md shows how)."
                )
        if changes_base(self.config) and base.dtype != torch.float32:
            init = self.config["init_lora_weights"]
            raise SoupError(
                f"The adapter {self.folder} began with init_lora_weights={init!r} on a base model in {base.dtype}, and "
                f"no file records how the weights that it changed were rounded. {UNDO_INIT}"
            )

    def merged_into(self, base: Any) -> Any:
        """Return a float32 copy of a model into which PEFT has merged this adapter.

        Raises:
            SoupError: if it does not fit, or the result is not what PEFT computes without merging.
        """
        import torch
        from peft import PeftModel

        model = copy.deepcopy(base).float()
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.get_input_embeddings().num_embeddings, _PROBE, generator=generator)
        before = _logits(model, tokens)
        try:
            with old_name_unmentioned():
                live = PeftModel.from_pretrained(model, self.folder, torch_device=str(model.device)).eval()
            self._check_loaded(live)
            expected = _logits(live, tokens)
            merged = live.merge_and_unload(safe_merge=True)
        except SoupError:
            raise
        except (RuntimeError, ValueError, TypeError) as error:
            raise SoupError(f"PEFT cannot merge the adapter {self.folder} into the base model: {error}") from error
        apart = float((_logits(merged, tokens) - expected).norm())
        if not apart <= _TOLERANCE * float(expected.norm() + (expected - before).norm()):
            raise SoupError(
                f"Merged into the base model, the adapter {self.folder} computes something else than it does in PEFT: "
                f"logits of norm {float(expected.norm()):.4g} differ by {apart:.2g}."
            )
        return merged

    def _check_loaded(self, live: Any) -> None:
        from peft import get_peft_model_state_dict

        expected = get_peft_model_state_dict(live, save_embedding_layers=False).keys()
        odd = sorted((expected - self.keys) | (self.keys - expected - live.state_dict().keys()))
        if odd:
            raise SoupError(
                f"The adapter {self.folder} does not fit the base model: of its tensors and those that PEFT has, "
                f"{odd[:3]} ({len(odd)} in all) are in only one of the two. Check base_model."
            )


def _tied_modules(model: Any) -> dict[str, str]:
    """Return the modules that share a weight, each with another one of those it shares it with."""
    groups = defaultdict(list)
    for name, tensor in model.state_dict().items():
        groups[tensor.data_ptr()].append(name.rpartition(".")[0])
    tied = [group for group in groups.values() if len(group) > 1]
    return {module: group[k - 1] for group in tied for k, module in enumerate(group)}


def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return model(input_ids=tokens.to(model.device)).logits
