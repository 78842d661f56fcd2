"""Which features of PEFT a soup holds exactly: in adapter space, after merging into full backbones, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trl_bonesoup.errors import SoupError

MERGE_FIRST = (
    "`bonesoup to-full SOUP OUT` (trl_bonesoup.soup.to_full.to_full) merges each backbone into a full checkpoint, and "
    "full checkpoints mix exactly."
)

_ONLY_FULL = {
    "use_dora": "DoRA, whose magnitudes do not add up",
    "lora_bias": "lora_bias, a bias outside the low-rank product",
    "modules_to_save": "modules_to_save, whole modules trained beside the low-rank product",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "target_parameters, LoRA on bare parameters",
}
_NOWHERE = {
    "layer_replication": (
        "layer_replication, which changes the model's depth",
        "Replicate the layers of the base model, save that as a base model of its own, and train on it.",
    ),
    "alora_invocation_tokens": (
        "aLoRA, which acts only after its invocation tokens and is no change of the weights",
        "Train with plain LoRA.",
    ),
    "use_qalora": (
        "QA-LoRA, whose factors fit the groups of one quantized base model",
        "Train with plain LoRA on the unquantized base model.",
    ),
    "ensure_weight_tying": (
        "ensure_weight_tying, whose shared factors PEFT does not load as it trained them",
        "Train without it, on a base model whose embeddings are not tied.",
    ),
    "megatron_config": ("Megatron layers", "Train with plain LoRA."),
}

OTHER_VARIANTS = ("velora_config", "monteclora_config", "use_bdlora", "arrow_config", "kasa_config")
"""Fields of PEFT's LoraConfig that make it another method than LoRA, besides those above."""

_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
_RECOMPUTED_INITS = ("pissa", "olora")
"""Take a part out of the base weights that PEFT computes again, to the same values, when it loads the adapter."""

UNDO_INIT = (
    "Save the adapter with PEFT's path_initial_model_for_weight_conversion, which turns it into plain LoRA, or train "
    "with an initialisation that leaves the base model alone."
)
_MERGEABLE_TYPES = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "VERA")
"""Of which the tests compare the merged model with PEFT's own."""

__all__ = ["MERGE_FIRST", "UNDO_INIT", "changes_base", "check_adds_up", "check_merges"]


def check_adds_up(config: dict[str, Any], folder: Path) -> None:
    """Check that scaling the deltas of a LoRA adapter is all that mixing it takes.

    Raises:
        SoupError: naming the features for which it is not, with what to do instead.
    """
    check_merges(config, folder)
    if config["peft_type"] != "LORA":
        raise SoupError(
            f"The adapter {folder} is of type {config['peft_type']!r}; only LoRA adapters add up. {MERGE_FIRST}"
        )
    found = [what for field, what in _ONLY_FULL.items() if config.get(field)]
    if config.get("bias", "none") != "none":
        found.append(f"bias={config['bias']!r}, trained biases")
    if changes_base(config):
        found.append(f"init_lora_weights={config['init_lora_weights']!r}, which changes the base weights")
    if found:
        raise SoupError(f"The adapter {folder} uses {'; '.join(found)}: no exact soup in adapter space. {MERGE_FIRST}")


def check_merges(config: dict[str, Any], folder: Path) -> None:
    """Check that an adapter, of whatever type, can be merged exactly into its base model's weights.

    Raises:
        SoupError: naming the first feature for which it cannot, with what to do instead.
    """
    for what, remedy in _unmergeable(config):
        raise SoupError(f"The adapter {folder} uses {what}: no exact soup of any kind. {remedy}")


def changes_base(config: dict[str, Any]) -> bool:
    """Return whether training began by taking a part out of the base weights."""
    return config.get("init_lora_weights", True) not in _PLAIN_INITS


def _unmergeable(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    kind = config.get("peft_type")
    if kind not in _MERGEABLE_TYPES:
        yield f"the method {kind!r}, for which merging is not tested", "Train with LoRA."
        return
    yield from (feature for field, feature in _NOWHERE.items() if config.get(field))
    for variant in OTHER_VARIANTS:
        if config.get(variant):
            yield f"the LoRA variant {variant}", "Train with plain LoRA."
    if kind == "LORA" and changes_base(config) and config["init_lora_weights"] not in _RECOMPUTED_INITS:
        init = config["init_lora_weights"]
        yield f"init_lora_weights={init!r}, which changes the base weights by what no file records", UNDO_INIT
