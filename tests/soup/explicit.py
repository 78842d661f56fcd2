"""What PEFT's adapters make of a base model, worked out in float64 NumPy from the files alone."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from tiny_soups import weights_of

Weights = dict[str, np.ndarray]
PREFIX = "base_model.model."


def float64_weights(folder: Path) -> Weights:
    return {name: tensor.double().numpy() for name, tensor in weights_of(folder).items()}


def backbone(base: Path, adapter: Path) -> Weights:
    """Apply one adapter of LoRA or of a relative: factors, magnitudes, biases, whole modules, token rows."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = {name.removeprefix(PREFIX): value for name, value in float64_weights(adapter).items()}
    merged = float64_weights(base)
    for key, value in tensors.items():
        if key.endswith(".lora_A.weight"):
            layer = key.removesuffix(".lora_A.weight")
            weight = merged[f"{layer}.weight"]
            merged[f"{layer}.weight"] = lora_weight(layer, weight, value, tensors, config)
            if f"{layer}.lora_B.bias" in tensors:
                bias = tensors[f"{layer}.lora_B.bias"] * scale_of(config, layer, len(value))
                merged[f"{layer}.bias"] = merged[f"{layer}.bias"] + bias
        elif key.endswith(".lora_embedding_A"):
            layer = key.removesuffix(".lora_embedding_A")
            product = tensors[f"{layer}.lora_embedding_B"] @ value
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + scale_of(config, layer, len(value)) * product.T
        elif key.endswith(".token_adapter.trainable_tokens_delta"):
            rows = merged[key.replace(".token_adapter.trainable_tokens_delta", ".weight")]
            rows[config["trainable_token_indices"]] = value
        elif ".lora_" not in key and ".base_layer.weight" not in key:
            merged[key.replace(".base_layer.", ".")] = value
    return merged


def lora_weight(
    layer: str, weight: np.ndarray, factor_A: np.ndarray, tensors: Weights, config: dict[str, Any]
) -> np.ndarray:
    factor_B, rank = tensors[f"{layer}.lora_B.weight"], len(factor_A)
    delta = scale_of(config, layer, rank) * factor_B @ factor_A
    if config["fan_in_fan_out"]:
        return weight + delta.T
    if config["init_lora_weights"] == "pissa":  # the base without its largest singular values
        U, values, Vh = np.linalg.svd(weight, full_matrices=False)
        weight = weight - (U[:, :rank] * values[:rank]) @ Vh[:rank]
    if config["init_lora_weights"] == "olora":  # the base without the first columns of its QR factorisation
        Q, R = np.linalg.qr(weight)
        weight = weight - scale_of(config, layer, rank) * Q[:, :rank] @ R[:rank]
    if f"{layer}.lora_magnitude_vector" in tensors:  # DoRA: every row has its magnitude
        direction = weight + delta
        norms = np.linalg.norm(direction, axis=1, keepdims=True)
        return tensors[f"{layer}.lora_magnitude_vector"][:, None] * direction / norms
    return weight + delta


def scale_of(config: dict[str, Any], layer: str, rank: int) -> float:
    patterns = config["alpha_pattern"].items()
    alpha = next((alpha for name, alpha in patterns if re.search(rf"(^|\.){name}$", layer)), config["lora_alpha"])
    return alpha / (rank**0.5 if config["use_rslora"] else rank)


def soup(base: Path, backbones: list[Weights], coefficients: list[float]) -> Weights:
    """Return Σ_j λ_j θ_j + (1 - Σλ) θ_base."""
    rest = 1.0 - sum(coefficients)
    return {
        name: rest * weight + sum(c * theta[name] for c, theta in zip(coefficients, backbones, strict=True))
        for name, weight in float64_weights(base).items()
    }
