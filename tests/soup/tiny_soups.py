"""Tiny soups, built from configs: models, adapters with random factors, and independent float64 merges of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from trl_bonesoup import SoupManifest, circulant_weights

WORDS = [
    "<pad>",
    "<eos>",
    *["the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "over", "mat", "tree", "sky", "was", "is"],
]
VOCABULARY = 24
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<eos>", padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_llama(
    *, tied: bool = False, biased: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        attention_bias=biased,
        mlp_bias=biased,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).to(dtype)


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(config)


def tiny_mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        initializer_range=0.3,
    )
    return MixtralForCausalLM(config)


def save_base(model: Any, folder: Path) -> Path:
    model.generation_config.repetition_penalty = 1.25
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, seed: int, method: Any = LoraConfig, **options: Any) -> Path:
    """Save an adapter whose trained tensors are all random: B is not zero, so that every scale shows."""
    lora = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR} if method is LoraConfig else {}
    config = method(**{**lora, "task_type": "CAUSAL_LM", **options})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def write_manifest(
    folder: Path, backbones: Sequence[str], *, kind: str = "adapter", beta: float = 0.7, base: str = "base"
) -> Path:
    n = len(backbones)
    SoupManifest.model_validate(
        {
            "base_model": {"id": base},
            "objectives": [{"name": f"objective{i}", "reward": f"rewards:r{i}"} for i in range(n)],
            "combination_weights": circulant_weights(n, beta),
            "backbones": [{"path": path, "kind": kind} for path in backbones],
        }
    ).save(folder)
    return folder


def adapter_soup(folder: Path, options: Sequence[dict[str, Any]], model: Any = None, beta: float = 0.7) -> Path:
    """Make a folder with a base model, one adapter for each element of `options`, and their soup.json."""
    base = save_base(tiny_llama() if model is None else model, folder / "base")
    names = [f"backbone{j}" for j in range(len(options))]
    for j, (name, option) in enumerate(zip(names, options, strict=True)):
        save_adapter(base, folder / name, seed=j + 1, **option)
    return write_manifest(folder, names, beta=beta)


def full_soup(folder: Path, n: int, *, beta: float = 0.7, **options: Any) -> Path:
    """Make a folder with a base model, n full checkpoints near it, and their soup.json."""
    save_base(tiny_llama(**options), folder / "base")
    for j in range(n):
        model = tiny_llama(**options)
        torch.manual_seed(j + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        save_base(model, folder / f"backbone{j}")
    return write_manifest(folder, [f"backbone{j}" for j in range(n)], kind="full", beta=beta)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a checkpoint, of however many shards, as it is stored."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def explicit_merge(
    base: Path, adapters: Sequence[tuple[Path, Callable[[str], float]]], coefficients: Sequence[float]
) -> dict[str, np.ndarray]:
    """Add Σ_j λ_j s_j B_j A_j to the base's weights in float64 NumPy, from the files alone.

    `adapters` pairs each folder with the scale s of a layer, by the layer's name.
    """
    merged = {name: tensor.double().numpy() for name, tensor in weights_of(base).items()}
    for (folder, scale), coefficient in zip(adapters, coefficients, strict=True):
        factors = {name: tensor.double().numpy() for name, tensor in weights_of(folder).items()}
        for key, factor_B in factors.items():
            if "lora_B" not in key and "lora_embedding_B" not in key:
                continue
            layer = key.removeprefix("base_model.model.").split(".lora_")[0]
            product = factor_B @ factors[key.replace("_B", "_A")]
            weight = f"{layer}.weight"
            transposed = "lora_embedding_B" in key or any(part in layer for part in (".c_attn", ".c_proj", ".c_fc"))
            merged[weight] = merged[weight] + coefficient * scale(layer) * (product.T if transposed else product)
    return merged


def logits_of(folder: Path, weights: dict[str, np.ndarray], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run a batch in float64 through the base's architecture with explicit weights."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    state = {name: torch.tensor(value) for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    with torch.no_grad():
        return model.eval()(**batch).logits
