"""Tiny classifiers and tokenizers whose every token is known by hand, and one step of TRL's own trainer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from tiny import save_tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

WORDS = ["<pad>", "<eos>", "<bos>", "<sep>", "<unk>", "?", *(f"w{i}" for i in range(20))]
W = {word: i for i, word in enumerate(WORDS)}


def ids(text: str) -> list[int]:
    """The tokens of a text whose words are divided by spaces."""
    return [W[word] for word in text.split()]


def word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token per word; two texts are read one after the other, as GPT-2 does."""
    backend = Tokenizer(models.WordLevel(W, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", **(special or {"eos_token": "<eos>", "bos_token": "<bos>"})
    )


def byte_tokenizer(*, bart: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte, so that decoding gives the exact text; GPT-2's or BART's way with special tokens."""
    special = ["<s>", "<pad>", "</s>"] if bart else ["<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(special + alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if not bart:
        end = special[0]
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", pad_token="<pad>", eos_token="</s>", sep_token="</s>"
    )


class RecordingModel(torch.nn.Module):
    """Stands in for a classifier: keeps what it was given, without padding, and answers with given logits."""

    def __init__(self, logits: list[list[float]] | None = None, **config: Any):
        super().__init__()
        self.config = SimpleNamespace(
            **{"_name_or_path": "org/recorder", "pad_token_id": None, "model_type": "recorder", **config}
        )
        self.config.get_text_config = lambda: self.config
        self.device = torch.device("cpu")
        self.logits = logits
        self.seen: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: Any) -> SimpleNamespace:
        rows = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        self.seen += rows
        if self.logits is None:
            return SimpleNamespace(logits=torch.tensor([[float(len(row))] for row in rows]))
        return SimpleNamespace(logits=torch.tensor(self.logits[: len(rows)]))


def tiny_gpt2(**changes: Any) -> GPT2ForSequenceClassification:
    """A random GPT-2 that classifies and names no padding token, as the published ones."""
    settings = {"vocab_size": len(WORDS), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "num_labels": 1}
    torch.manual_seed(0)
    config = GPT2Config(**{**settings, "bos_token_id": 2, "eos_token_id": 1, "initializer_range": 0.5, **changes})
    return GPT2ForSequenceClassification(config).eval()


def step_of_grpo(folder: Path, rewards: list[Any], prompts: list[Any], **columns: list) -> dict[str, float]:
    """Train TRL's GRPOTrainer for one step on four completions, two per prompt, and return what it logged."""
    trainer = GRPOTrainer(
        model=str(save_tiny(folder / "policy")),
        reward_funcs=rewards,
        args=GRPOConfig(
            output_dir=str(folder / "run"),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=6,
            max_steps=1,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            remove_unused_columns=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts, **columns}),
    )
    trainer.train()
    return trainer.state.log_history[0]
