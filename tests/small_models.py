"""Tiny models, soups of them, and a tokenizer made in memory."""

from __future__ import annotations

from pathlib import Path

from trl_bonesoup.manifest import Backbone, BaseModelRef, Objective, SoupManifest
from trl_bonesoup.weights import circulant_weights

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
    """Write a base, two backbones and soup.json; with `same`, both compute the same, in files that are no copies."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    make_model(0).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    for j in range(2):
        if kind == "full":
            make_model(0 if same else 10 + j).save_pretrained(folder / f"b{j}")
            make_tokenizer().save_pretrained(folder / f"b{j}")
            continue
        adapter = get_peft_model(make_model(0), LoraConfig(r=2, lora_alpha=2, target_modules=["down_proj", "q_proj"]))
        torch.manual_seed(20 if same else 20 + j)
        for name, parameter in adapter.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.4)
        adapter.save_pretrained(folder / f"b{j}")
    for file in (folder / "b1").glob("*.safetensors") if same else ():
        save_file(load_file(file), file, metadata={"format": "pt", "twin": "of b0"})
    SoupManifest(
        base_model=BaseModelRef(id="base"),
        objectives=(Objective(name="good", reward="good"), Objective(name="brief", reward="brief")),
        combination_weights=circulant_weights(2, beta),  # type: ignore[arg-type]
        backbones=tuple(Backbone(path=f"b{j}", kind=kind) for j in range(2)),  # type: ignore[arg-type]
    ).save(folder)
    return folder
