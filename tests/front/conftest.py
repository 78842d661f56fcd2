"""Tiny soups, a tokenizer made in memory, and a realistic front."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from trl_bonesoup.front.front import Front, Marker
from trl_bonesoup.manifest import Backbone, BaseModelRef, Objective, SoupManifest
from trl_bonesoup.weights import circulant_weights, simplex_grid

WORDS = ["the", "a", "sea", "cat", "dog", "sun", "is", "was", "cold", "happy", "sad", "good", "bad", "and", "runs", "."]
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% if not loop.last %}<eos> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<eos> <assistant> {% endif %}"
)


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>"]
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"], chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def make_model(seed: int):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=5 + len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.5,
            pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    ).eval()  # fmt: skip


def write_soup(folder: Path, *, kind: str = "adapter", same: bool = False, beta: float = 0.75) -> Path:
    """Write a base, two backbones and soup.json; with `same`, both backbones are one and the same."""
    import torch
    from peft import LoraConfig, get_peft_model

    make_model(0).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    for j in range(2):
        if kind == "full":
            make_model(0 if same else 10 + j).save_pretrained(folder / f"b{j}")
            continue
        adapter = get_peft_model(make_model(0), LoraConfig(r=2, lora_alpha=2, target_modules=["down_proj", "q_proj"]))
        torch.manual_seed(20 if same else 20 + j)
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.4)
        adapter.save_pretrained(folder / f"b{j}")
    SoupManifest(
        base_model=BaseModelRef(id="base"),
        objectives=(Objective(name="good", reward="good"), Objective(name="brief", reward="brief")),
        combination_weights=circulant_weights(2, beta),  # type: ignore[arg-type]
        backbones=tuple(Backbone(path=f"b{j}", kind=kind) for j in range(2)),  # type: ignore[arg-type]
    ).save(folder)
    return folder


@pytest.fixture(scope="session")
def soup_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folders: dict[tuple, Path] = {}

    def get(**options) -> Path:
        key = tuple(sorted(options.items()))
        if key not in folders:
            folders[key] = write_soup(tmp_path_factory.mktemp("soup"), **options)
        return folders[key]

    return get


@pytest.fixture
def soup(soup_folder):
    from trl_bonesoup.soup.lora import BoneSoup

    return BoneSoup.from_pretrained(soup_folder())


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model():
    return make_model(0)


@pytest.fixture
def front() -> Front:
    """Eleven preferences along a convex front, in the numbers of a real first prototype."""
    preferences_KN = simplex_grid(2)
    weights_K = preferences_KN[:, 0]
    rewards_KN = np.stack(
        [
            np.interp(weights_K, [0, 0.25, 0.5, 0.75, 1], [0.151, 0.254, 0.340, 0.485, 0.558]),
            np.interp(weights_K, [0, 0.25, 0.5, 0.75, 1], [-0.605, -0.745, -0.838, -0.975, -1.017]),
        ],
        axis=1,
    )
    half_N = np.array([0.05, 0.04])
    return Front(
        objectives=("positivity", "brevity"),
        preferences_KN=preferences_KN,
        coefficients_KN=np.stack([2.5 * weights_K - 0.75, 1.75 - 2.5 * weights_K], axis=1),
        rewards_KN=rewards_KN,
        intervals_KN2=np.stack([rewards_KN - half_N, rewards_KN + half_N], axis=-1),
        n_samples_KN=np.full((11, 2), 64),
        markers={
            "base": Marker(np.array([0.332, -0.942]), np.array([[0.3, 0.36], [-1.0, -0.9]])),
            "backbone positivity": [0.47, -0.95],  # type: ignore[dict-item]
            "backbone brevity": [0.25, -0.73],  # type: ignore[dict-item]
        },
        provenance={"seed": 0, "decoding": {"temperature": 1.0}},
    )
