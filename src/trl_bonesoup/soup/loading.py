"""Loading a soup's base model, adapters and tokenizer, from safetensors and without running their code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.adapters import Adapter
from trl_bonesoup.soup.scales import AdapterScales
from trl_bonesoup.soup.source import ModelRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")

__all__ = ["load_adapters", "load_model", "load_tokenizer"]


def load_model(ref: ModelRef, *, dtype: Any = None, device: Any = None, trust_remote_code: bool = False) -> Any:
    """Load a causal language model for inference, in the dtype of its checkpoint unless told otherwise."""
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        ref.id,
        revision=ref.revision,
        dtype="auto" if dtype is None else dtype,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
    )
    if device is not None:
        model.to(device)
    model.requires_grad_(False)
    return model.eval()


def load_adapters(model: Any, adapters: Sequence[Adapter], *, device: Any = None) -> AdapterScales:
    """Put every adapter into `model` beside the others, all of them active.

    Raises:
        SoupError: if one does not fit the model.
    """
    from peft import PeftModel

    _check_base_copies(model, adapters)
    width = len(str(len(adapters) - 1))
    names = [f"backbone_{j:0{width}d}" for j in range(len(adapters))]
    where = str(device or model.device)
    peft_model = None
    for name, adapter in zip(names, adapters, strict=True):
        try:
            if peft_model is None:
                peft_model = PeftModel.from_pretrained(model, adapter.folder, adapter_name=name, torch_device=where)
            else:
                peft_model.load_adapter(adapter.folder, adapter_name=name, torch_device=where)
        except (RuntimeError, ValueError) as error:
            raise SoupError(f"The adapter {adapter.folder} does not fit the base model: {error}") from error
    scales = AdapterScales(peft_model, names)
    scales.check_fit(adapters)
    return scales


def load_tokenizer(
    backbone: Path, base: ModelRef, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer saved with a backbone, else the base model's; None if a local base has none."""
    from transformers import AutoTokenizer

    if _has_tokenizer(backbone):
        base = ModelRef(str(backbone))
    elif base.is_local and not _has_tokenizer(Path(base.id)):
        return None
    return AutoTokenizer.from_pretrained(base.id, revision=base.revision, trust_remote_code=trust_remote_code)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _check_base_copies(model: Any, adapters: Sequence[Adapter]) -> None:
    import torch

    for adapter in adapters:
        stored = adapter.tensors(list(adapter.base_copies.values()))
        for module, key in adapter.base_copies.items():
            weight = model.get_submodule(module).weight
            if weight.shape != stored[key].shape or not torch.equal(
                stored[key].to(weight.device, weight.dtype), weight
            ):
                raise SoupError(
                    f"The adapter {adapter.folder} was trained on a model whose {module} differs from the base "
                    "model's. Check base_model, or merge each backbone into a full checkpoint first."
                )
