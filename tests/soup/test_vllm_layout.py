"""What vLLM reads of a folder, as rules from its source, applied to what is written here. vLLM itself is not run.

The rules were read in these files of vllm-project/vllm:

- vllm/lora/peft_helper.py at e745bafff: required settings, refused features, one scale for all layers, the rank limit.
  A later revision of the file refuses more features and gives each layer the scale that its patterns say.
- vllm/lora/lora_model.py at 0306474e9: file names, the size of embeddings, base weights that are skipped.
- vllm/lora/utils.py at 001e63a89: how names of tensors are parsed.
- vllm/config/lora.py at 01230b401: the ranks that --max-lora-rank takes.
- vllm/model_executor/model_loader/default_loader.py at 00b5ad071: the files of a full checkpoint.
"""

import json
import re
from pathlib import Path
from typing import Any

import explicit
import numpy as np
import pytest
from safetensors import safe_open
from tiny_soups import VOCABULARY, adapter_soup, tiny_llama, weights_of

from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.to_full import to_full

REQUIRED = ("r", "lora_alpha", "target_modules")
REFUSED = (
    "modules_to_save",
    "use_dora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "use_bdlora",
    "use_qalora",
    "trainable_token_indices",
)
PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica", "lora_ga")
NAME = re.compile(r"base_model\.model\.(.+?)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))")
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def deltas_as_vllm_reads_them(folder: Path, *, patterns: bool) -> dict[str, np.ndarray]:
    """Return ΔW by layer (embeddings transposed), with or without heed to alpha_pattern and rank_pattern."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not set(REQUIRED) - set(config)
    assert not [feature for feature in REFUSED if config.get(feature)]
    assert config.get("bias", "none") == "none"
    assert config.get("init_lora_weights", True) in PLAIN_INITS
    assert max([config["r"], *config["rank_pattern"].values()]) <= max(MAX_LORA_RANKS)
    factors: dict[str, dict[str, np.ndarray]] = {}
    with safe_open(folder / "adapter_model.safetensors", framework="np") as file:
        for key in file.keys():  # noqa: SIM118
            match = NAME.fullmatch(key)
            assert match, key
            factors.setdefault(match[1], {})[match[2] or match[3]] = tensor = file.get_tensor(key).astype(np.float64)
            assert tensor.ndim == 2
            assert match[3] != "A" or tensor.shape[1] == VOCABULARY
    deltas = {}
    for layer, pair in factors.items():
        assert len(pair["A"]) == pair["B"].shape[1] <= config["r"]  # the buffers have r rows
        rank, alpha = config["r"], config["lora_alpha"]
        if patterns:
            rank, alpha = len(pair["A"]), matching(config["alpha_pattern"], layer, alpha)
        deltas[layer] = alpha / (rank**0.5 if config["use_rslora"] else rank) * pair["B"] @ pair["A"]
    return deltas


def matching(pattern: dict[str, float], layer: str, default: float) -> float:
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


SOUPS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "alike": ([{}, {}], {}),
    "different": ([{"r": 2, "use_rslora": True}, {"r": 9, "target_modules": ["q_proj", "up_proj"]}], {}),
    "patterns": ([{"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5, "o_proj": 1}}, {}], {}),
    "embeddings and head": ([{"target_modules": ["embed_tokens", "q_proj"]}, {"target_modules": ["lm_head"]}], {}),
    "compressed": ([{}, {"r": 3, "target_modules": ["q_proj", "down_proj"]}], {"rank": 5}),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("name", SOUPS)
def test_an_adapter_means_the_same_to_vllm(tmp_path: Path, name: str) -> None:
    options, settings = SOUPS[name]
    run = adapter_soup(tmp_path / "run", options)
    out = merge(run, tmp_path / "out", [1.0, 0.0], **settings).path
    base = explicit.float64_weights(run / "base")
    expected = explicit.soup(
        run / "base", [explicit.backbone(run / "base", run / f"backbone{j}") for j in range(2)], [1.75, -0.75]
    )
    if settings:  # what is compressed is compared as it is, which test_compress.py compares with the best one
        expected = explicit.backbone(run / "base", out)
    for patterns in (False, True):
        deltas = deltas_as_vllm_reads_them(out, patterns=patterns)
        for weight in expected:
            change = deltas.pop(weight.removesuffix(".weight"), np.zeros(()))
            change = change.T if "embed_tokens" in weight else change
            np.testing.assert_allclose(base[weight] + change, expected[weight], atol=3e-6, rtol=3e-6)
        assert not deltas


def test_the_rules_tell_an_adapter_that_vllm_would_misread(tmp_path: Path) -> None:
    run = adapter_soup(tmp_path / "run", [{"alpha_pattern": {"q_proj": 5}}, {"use_dora": True}])
    heeded, ignored = (deltas_as_vllm_reads_them(run / "backbone0", patterns=heed) for heed in (True, False))
    layer = "model.layers.0.self_attn.q_proj"
    np.testing.assert_allclose(ignored[layer] * 5 / 8, heeded[layer])
    with pytest.raises(AssertionError):
        deltas_as_vllm_reads_them(run / "backbone1", patterns=False)


def full_checkpoints(tmp_path: Path, two_full: Path) -> list[Path]:
    adapters = adapter_soup(tmp_path / "adapters", [{}, {}], model=tiny_llama(tied=True))
    dora = adapter_soup(tmp_path / "dora", [{"use_dora": True}, {}])
    return [
        merge(two_full, tmp_path / "streamed", [0.5, 0.5]).path,
        merge(adapters, tmp_path / "merged", [0.5, 0.5], full=True).path,
        merge(adapters, tmp_path / "cut", [0.5, 0.5], full=True, max_shard_size="8KB").path,
        to_full(dora, tmp_path / "full").path / "backbone0",
    ]


def test_a_full_checkpoint_is_one_that_vllm_loads(tmp_path: Path, two_full: Path) -> None:
    for folder in full_checkpoints(tmp_path, two_full):
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert config["model_type"] == "llama"
        files = {file.name for file in folder.iterdir()}
        assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= files
        assert not [
            name for name in files if name.startswith(("adapter", "consolidated")) or name.endswith((".bin", ".pt"))
        ]
        weights = {name for name in files if name.endswith(".safetensors")}
        index = folder / "model.safetensors.index.json"
        if index.is_file():  # then vLLM reads only the files in it
            listed = json.loads(index.read_text())["weight_map"]
            assert set(listed.values()) == weights
            assert set(listed) == set(weights_of(folder))
        else:
            assert weights == {"model.safetensors"}
