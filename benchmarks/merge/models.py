"""The checkpoints and adapters that are merged: of real sizes and layouts, with random weights near one base."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trl_bonesoup import SoupManifest, circulant_weights
from trl_bonesoup.cli.demo_model import embedded_model

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "layers": 2, "heads": (4, 2)},
    "135M": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "layers": 30, "heads": (9, 3)},
    "360M": {"vocab_size": 49152, "hidden_size": 960, "intermediate_size": 2560, "layers": 32, "heads": (15, 5)},
    "1B": {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "layers": 20, "heads": (16, 4)},
}
"""The shapes of SmolLM2-135M and -360M, and of a Llama with 1.03 billion weights; the smaller ones tie embeddings."""

BETA = 0.7


def full_run(root: Path, size: str, n: int) -> Path:
    """Make, unless it is there, a soup of n bfloat16 checkpoints of a size, and return its folder."""
    folder = root / f"full-{size}-{n}"
    if not (folder / "soup.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        config = _config(size)
        base = {name: _normal(shape, 0.02, seed) for seed, (name, shape) in enumerate(_shapes(config))}
        _save(config, base, folder / "base")
        for j in range(n):
            moved = {name: _moved(tensor, 1000 * (j + 1) + i) for i, (name, tensor) in enumerate(base.items())}
            _save(config, moved, folder / f"backbone{j}")
        _record(folder, n, "full")
    return folder


def adapter_run(root: Path, n: int, rank: int, base: str = "SmolLM2") -> Path:
    """Make, unless it is there, a soup of n float32 adapters on all linear layers, and return its folder.

    `base` is SmolLM2 for the demo's model, or one of `SIZES`.
    """
    folder = root / f"adapters-{base}-{n}-r{rank}"
    if not (folder / "soup.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _base(folder / "base", base)
        for j in range(n):
            static_adapter(folder / "base", rank, seed=j).save_pretrained(folder / f"backbone{j}")
        _record(folder, n, "adapter")
    return folder


def static_adapter(base: Path, rank: int, seed: int = 0) -> Any:
    """Return a base model with one random adapter of a rank on all linear layers, as PEFT makes it."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()


def _base(folder: Path, name: str) -> None:
    if name == "SmolLM2":
        embedded_model(folder)
    else:
        config = _config(name)
        _save(config, {key: _normal(shape, 0.02, i) for i, (key, shape) in enumerate(_shapes(config))}, folder)


def _config(size: str) -> LlamaConfig:
    shape = SIZES[size]
    heads, key_value_heads = shape["heads"]
    config = LlamaConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        tie_word_embeddings=size != "1B",
        dtype="bfloat16",
    )
    config.architectures = ["LlamaForCausalLM"]
    return config


def _shapes(config: LlamaConfig) -> Iterator[tuple[str, torch.Size]]:
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return ((name, tensor.shape) for name, tensor in model.state_dict().items() if name not in tied)


def _normal(shape: torch.Size, std: float, seed: int) -> torch.Tensor:
    return torch.empty(shape).normal_(0.0, std, generator=torch.Generator().manual_seed(seed)).bfloat16()


def _moved(tensor: torch.Tensor, seed: int) -> torch.Tensor:
    noise = torch.empty(tensor.shape).normal_(0.0, 0.001, generator=torch.Generator().manual_seed(seed))
    return noise.add_(tensor).bfloat16()


def _save(config: LlamaConfig, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    words = {f"w{i}": i for i in range(config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", eos_token="w1").save_pretrained(folder)


def _record(folder: Path, n: int, kind: str) -> None:
    SoupManifest.model_validate(
        {
            "base_model": {"id": "base"},
            "objectives": [{"name": f"objective{j}", "reward": "none:none"} for j in range(n)],
            "combination_weights": circulant_weights(n, BETA),
            "backbones": [{"path": f"backbone{j}", "kind": kind} for j in range(n)],
        }
    ).save(folder)
