"""Loading a soup's base model, adapters and tokenizer, from safetensors and without running their code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.adapters import CONFIG_FILE, Adapter
from trl_bonesoup.soup.checkpoints import INDEX_FILE, read_index
from trl_bonesoup.soup.combine import stack_adapters
from trl_bonesoup.soup.scales import AdapterScales
from trl_bonesoup.soup.source import ModelRef
from trl_bonesoup.soup.tokenizers import has_tokenizer
from trl_bonesoup.training.upstream import old_name_unmentioned

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_NAME = "soup"
"""Under which PEFT knows the stacked adapter."""

__all__ = ["load_adapters", "load_model", "load_tokenizer"]


def load_model(ref: ModelRef, *, dtype: Any = None, device: Any = None, trust_remote_code: bool = False) -> Any:
    """Load a causal language model for inference, in the dtype of its checkpoint unless told otherwise.

    It is always loaded from its folder: transformers would follow an adapter's base model to wherever it points.

    Raises:
        HubError: if it cannot be fetched.
        SoupError: if it is an adapter, or transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    folder = ref.folder(code=trust_remote_code)
    _check_files(ref, folder)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto" if dtype is None else dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise SoupError(_not_loaded(ref, "model", error)) from error
    model.name_or_path = model.config.name_or_path = ref.id  # which PEFT and model cards repeat
    if device is not None:
        model.to(device)
    model.requires_grad_(False)
    return model.eval()


def load_adapters(model: Any, adapters: Sequence[Adapter], base: ModelRef, *, allow_nan: bool = False) -> AdapterScales:
    """Put all adapters into `model` as one, stacked, whose scales are the merging coefficients.

    Raises:
        SoupError: if one does not fit the model, or contains NaN or infinity, unless `allow_nan`.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    _check_base_copies(model, adapters)
    for adapter in adapters:
        _check_layers(model, adapter)
    stacked = stack_adapters(adapters, base, allow_nan=allow_nan)
    try:
        with old_name_unmentioned():
            peft_model = get_peft_model(model, stacked.peft_config(), adapter_name=ADAPTER_NAME)
        set_peft_model_state_dict(peft_model, stacked.factors(), adapter_name=ADAPTER_NAME)
    except (RuntimeError, ValueError) as error:
        folders = ", ".join(str(adapter.folder) for adapter in adapters)
        raise SoupError(f"The adapters {folders} do not fit the base model: {error}") from error
    return AdapterScales(peft_model, stacked.modules)


def load_tokenizer(
    backbone: Path, base: ModelRef, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer saved with a backbone, else the base model's; None if neither has one.

    Raises:
        HubError: if the base model cannot be fetched.
        SoupError: if transformers cannot load the tokenizer.
    """
    from transformers import AutoTokenizer

    ref = ModelRef(str(backbone)) if has_tokenizer(backbone) else base
    folder = ref.folder(code=trust_remote_code)
    if not has_tokenizer(folder):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise SoupError(_not_loaded(ref, "tokenizer", error)) from error
    tokenizer.name_or_path = ref.id
    return tokenizer


def _check_files(ref: ModelRef, folder: Path) -> None:
    """Check that transformers will read safetensors files of this folder and nothing else."""
    if (folder / CONFIG_FILE).is_file():
        raise SoupError(
            f"{ref.id} is an adapter (it has an {CONFIG_FILE}), where a whole model is needed. Give the model that it "
            "was trained on, or merge it into that first."
        )
    if (folder / INDEX_FILE).is_file():
        read_index(folder / INDEX_FILE)


def _not_loaded(ref: ModelRef, what: str, error: Exception) -> str:
    code = (
        "It ships code of its own, which runs only if you ask for it: read it, then pass trust_remote_code=True. "
        if "trust_remote_code" in str(error)
        else ""
    )
    return (
        f"The {what} of {ref.id} cannot be loaded. {code}Weights are read from safetensors alone; pickled ones (.bin) "
        f"have to be converted where you trust them. transformers says: {error}"
    )


def _check_layers(model: Any, adapter: Adapter) -> None:
    """Check that an adapter's file holds exactly the layers that its config adapts in `model`."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    try:
        config = LoraConfig.from_peft_type(**adapter.config)
        here = {name for name, _ in model.named_modules() if check_target_module_exists(config, name)}
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise SoupError(f"PEFT cannot read the {CONFIG_FILE} of {adapter.folder}: {error}") from error
    if odd := sorted(here ^ adapter.modules.keys()):
        raise SoupError(
            f"The adapter {adapter.folder} does not fit the base model: of its layers and the model's, {odd[:3]} "
            f"({len(odd)} in all) are in only one of the two. Check base_model."
        )


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
