"""The models inside rewards: classifiers with their tokenizers, loaded safely and fed with what fits their context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.rewards.texts import template_fields

SPECIAL_TOKENS = ("bos", "eos", "sep", "cls", "pad", "mask", "unk")
"""Special tokens that a template may name."""

# These number positions from pad_token_id + 1, so that many of their position embeddings are never reached.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "longformer", "xlm-roberta-xl", "mpnet")


class LoadsClassifier:
    """A reward with the settings of a classifier, which is loaded when it is first needed and never pickled."""

    auto_class = "AutoModelForSequenceClassification"
    """By which class of transformers."""

    model: Any
    tokenizer: Any
    revision: str | None
    device: Any
    dtype: str
    max_length: int | None
    _loaded: LoadedClassifier | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the model that was loaded here; it is loaded again where it is needed."""
        return {**self.__dict__, "_loaded": None}

    def classifier(self) -> LoadedClassifier:
        """Return the classifier that the settings name."""
        if self._loaded is None:
            import transformers

            self._loaded = load_classifier(
                getattr(transformers, self.auto_class),
                self.model,
                self.tokenizer,
                self.revision,
                self.device,
                self.dtype,
                self.max_length,
            )
        return self._loaded


class LoadedClassifier:
    """A classifier with its tokenizer: fits texts into its context and returns what it says of them.

    Args:
        model: a sequence or token classifier.
        tokenizer: a tokenizer of the tokenizers library.
        max_length: in tokens, including special ones.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int):
        self.model = model.eval()
        self.config = model.config.get_text_config()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._special = sorted(
            {*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)}
        )
        # Decoders read the score at the last token that is not the padding token, and know it from here.
        if getattr(self.config, "pad_token_id", None) is None:
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            self.config.pad_token_id = 0 if pad is None else pad

    def special_tokens(self, templates: Iterable[str]) -> dict[str, str]:
        """Return the special tokens that templates name, by name."""
        tokens = {}
        for name in template_fields(templates) & set(SPECIAL_TOKENS):
            token = getattr(self.tokenizer, f"{name}_token", None)
            if token is None:
                raise ConfigurationError(
                    f"The tokenizer of {model_id(self.model)} has no {name} token, which {list(templates)} use; "
                    f"it has {', '.join(self._special) or 'none'}."
                )
            tokens[name] = str(token)
        return tokens

    def without_special_tokens(self, text: str) -> str:
        """Return a text with a space put into every special token that it spells out."""
        for token in self._special:
            if len(token) > 1:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def encode(
        self, render: Callable[[str], tuple[str, ...]], prompt: str, keep: str = "end"
    ) -> tuple[Any, tuple[str, ...]]:
        """Return the tokens of a sample with as much of the prompt as fits, and the texts that they are of.

        Args:
            render: makes the one or two texts of a sample from the prompt.
            prompt: with special tokens still spelled out.
            keep: the end of the prompt that stays.
        """
        prompt = self.without_special_tokens(prompt)
        tokens = self.tokenizer(*render(prompt))
        while prompt and (excess := len(tokens["input_ids"]) - self.max_length) > 0:
            prompt = self._shortened(prompt, excess, keep)
            tokens = self.tokenizer(*render(prompt))
        if len(tokens["input_ids"]) > self.max_length:
            tokens = self.tokenizer(*render(prompt), truncation=True, max_length=self.max_length)
        return tokens, render(prompt)

    def _shortened(self, prompt: str, tokens: int, keep: str) -> str:
        offsets = self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(offsets) <= tokens:
            return ""
        kept = prompt[offsets[tokens][0] :] if keep == "end" else prompt[: offsets[-tokens - 1][1]]
        return kept if len(kept) < len(prompt) else ""

    def __call__(self, rows: Sequence[Any], batch_size: int) -> list[Any]:
        """Return the model's outputs for each row on the CPU in float32, `None` for a row without tokens.

        They are (C,) of a sequence classifier and (T, C) of a token classifier, T with padding.
        """
        import torch

        results: list[Any] = [None] * len(rows)
        by_length = sorted(
            (i for i in range(len(rows)) if rows[i]["input_ids"]), key=lambda i: len(rows[i]["input_ids"])
        )
        for start in range(0, len(by_length), batch_size):
            chosen = by_length[start : start + batch_size]
            with torch.no_grad():
                logits = self.model(**self._batch([rows[i] for i in chosen])).logits.float().cpu()
            for i, row in zip(chosen, logits, strict=True):
                results[i] = row
        return results

    def _batch(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Return rows padded on the right, (B, T)."""
        import torch

        fill = {"input_ids": self.config.pad_token_id, "attention_mask": 0}
        # Models without segments (GPT-2) would add the embedding of another word to every token.
        if getattr(self.config, "type_vocab_size", 0) > 1 and "token_type_ids" in rows[0]:
            fill["token_type_ids"] = 0
        return {
            key: torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(row[key]) for row in rows], batch_first=True, padding_value=value
            ).to(self.model.device)
            for key, value in fill.items()
        }


def load_classifier(
    auto_class: Any, model: Any, tokenizer: Any, revision: str | None, device: Any, dtype: str, max_length: int | None
) -> LoadedClassifier:
    """Return the classifier that the settings of a reward name; see `ClassifierReward`."""
    if not isinstance(model, str):
        if tokenizer is None:
            raise ConfigurationError("A loaded reward model needs its tokenizer: pass tokenizer=…")
        if device is not None:
            model = model.to(device)
    else:
        model, tokenizer = _from_pretrained(auto_class, model, tokenizer, revision, dtype)
        model = model.to(device if device is not None else _device())
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigurationError(
            f"The tokenizer of {model_id(model)} is {type(tokenizer).__name__}; one of the tokenizers library is "
            "needed, which knows where in a text its tokens are."
        )
    return LoadedClassifier(model, tokenizer, max_length or _context(model.config.get_text_config(), tokenizer))


def _from_pretrained(auto_class: Any, name: str, tokenizer: Any, revision: str | None, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    at = {"revision": revision or "main", "trust_remote_code": False}
    try:
        model, info = auto_class.from_pretrained(
            name, use_safetensors=True, dtype=dtype, output_loading_info=True, **at
        )
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(name, **at)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"The reward model {name} (revision {at['revision']}) cannot be loaded: {error}\n"
            "Weights are read from safetensors files only. If the repository has none, look among its pull requests "
            "for the Hub's converted copy and pass revision='refs/pr/<number>', or convert it where you trust it and "
            "pass the folder."
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ConfigurationError(
            f"{name} has no trained weights for {', '.join(missing)}: its scores would be random. "
            f"Use a model that was trained as {type(model).__name__}."
        )
    return model, tokenizer


def _device() -> Any:
    from accelerate import PartialState

    return PartialState().device


def _context(config: Any, tokenizer: Any) -> int:
    """Return the tokens that fit: what both the tokenizer and the model's positions allow."""
    sizes = [int(tokenizer.model_max_length)]
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if positions:
        unused = config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0
        sizes.append(positions - unused)
    return min(sizes)


def model_id(model: Any) -> str:
    """Return the id or folder of a model, or the name of its class if it has none."""
    name = model if isinstance(model, str) else model.config._name_or_path
    return name or type(model).__name__


def model_name(model: Any) -> str:
    """Return the last part of a model's id or folder."""
    return model_id(model).rstrip("/").split("/")[-1]
