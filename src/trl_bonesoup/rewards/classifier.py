"""Reward models that read a prompt and a completion and give numbers: sequence classifiers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.rewards.protocol import completion_texts
from trl_bonesoup.rewards.texts import PromptText, last_user_message, prompt_texts, template_fields

_SPECIAL = ("bos", "eos", "sep", "cls", "pad", "mask", "unk")
_SCORES = ("logit", "probability")
_ENDS = ("start", "end")
# These number positions from pad_token_id + 1, so that many of their position embeddings are never reached.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "longformer", "xlm-roberta-xl", "mpnet")


@dataclass(eq=False)
class ClassifierReward:
    """A sequence-classification model as a reward function.

    The model is loaded when the first completion is scored. Until then an instance is a few
    settings, which can be pickled and copied; a pickled instance never carries a model that it
    loaded itself. `dataclasses.replace(reward, batch_size=4)` gives a changed copy.

    Args:
        model: id on the Hub or folder, or a loaded model with its `tokenizer`. Remote code is never
            run, and weights are read from safetensors files alone. A loaded model is put into eval
            mode and, if it names no padding token, told the one that is used.
        inputs: how the classifier reads a sample: one text, or a pair of texts, with the fields
            {prompt} and {completion} and the classifier's own special tokens {bos}, {eos}, {sep},
            {cls}, {pad}, {mask} and {unk}. ("{prompt}", "{completion}") is question and answer,
            ("{completion}", "{prompt}") the reverse, "{completion}" the answer alone.
        tokenizer: for a loaded model.
        logit: which of the model's outputs is the score.
        score: "logit", or "probability": the softmax over all outputs, the sigmoid of a single one.
        shift, scale: the reward is (score + shift) · scale.
        name: what the objective is called; by default the last part of the model's id.
        prompt_text: makes a text of a prompt; by default a conversation's last user message.
            `conversation` takes all of it.
        prompt_column: take the prompt from this column of the data set, such as the post without
            the instructions around it.
        keep_prompt: which end of the prompt is kept when the sample is longer than `max_length`:
            "end" or "start". Only when the prompt is gone is the sample cut at its end.
        max_length: in tokens; by default the model's context.
        batch_size: samples per forward pass.
        revision: branch, tag or commit on the Hub. "refs/pr/1" is its first pull request, where the
            Hub's converter leaves a safetensors copy of an older repository.
        device: by default the device of this process in accelerate.
        dtype: of the weights, such as "bfloat16".

    Calling it returns one float per completion, and `None` where the input has no token at all,
    such as an empty completion read alone. White space around a completion is dropped, and the
    name of a special token that a prompt or completion spells out is broken up, so that a policy
    cannot write the classifier's separators.

    Raises:
        ConfigurationError: if a setting is not one of the above or, at the first call, the model
            cannot be loaded, has no trained classification head or not so many outputs, lacks a
            special token that `inputs` uses, or the data set has no `prompt_column`.
    """

    model: Any
    inputs: str | Sequence[str] = ("{prompt}", "{completion}")
    tokenizer: Any = None
    logit: int = 0
    score: str = "logit"
    shift: float = 0.0
    scale: float = 1.0
    name: str | None = None
    prompt_text: PromptText = last_user_message
    prompt_column: str | None = None
    keep_prompt: str = "end"
    max_length: int | None = None
    batch_size: int = 16
    revision: str | None = None
    device: Any = None
    dtype: str = "float32"
    spec: str = field(init=False, repr=False)
    _loaded: LoadedClassifier | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        templates = (self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs)
        _check_templates(templates)
        check_choice("score", self.score, _SCORES)
        check_choice("keep_prompt", self.keep_prompt, _ENDS)
        self.inputs = templates
        self.__name__ = self.name or model_name(self.model)
        self.spec = describe(self, model_id(self.model), ("model", "tokenizer", "name", "batch_size", "device"))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the model that was loaded here; it is loaded again where it is needed."""
        return {**self.__dict__, "_loaded": None}

    def __call__(self, *, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """Score each completion."""
        questions = prompt_texts(prompts, columns, self.prompt_text, self.prompt_column)
        answers = [text.strip() for text in completion_texts(completions)]
        classifier = self._classifier()
        special = classifier.special_tokens(self.inputs)
        rows = []
        for question, answer in zip(questions, answers, strict=True):
            render = functools.partial(self._texts, classifier.without_special_tokens(answer), special)
            rows.append(classifier.encode(render, question, self.keep_prompt)[0])
        return [None if logits is None else self._score(logits) for logits in classifier(rows, self.batch_size)]

    def _texts(self, answer: str, special: dict[str, str], question: str) -> tuple[str, ...]:
        return tuple(text.format(prompt=question, completion=answer, **special) for text in self.inputs)

    def _classifier(self) -> LoadedClassifier:
        if self._loaded is None:
            from transformers import AutoModelForSequenceClassification as AutoModel

            self._loaded = load_classifier(
                AutoModel, self.model, self.tokenizer, self.revision, self.device, self.dtype, self.max_length
            )
        return self._loaded

    def _score(self, logits: Any) -> float:
        if not 0 <= self.logit < len(logits):
            raise ConfigurationError(f"{self.__name__} has outputs 0 to {len(logits) - 1}; got logit={self.logit}.")
        if self.score == "probability":
            logits = logits.sigmoid() if len(logits) == 1 else logits.softmax(dim=-1)
        return (logits[self.logit].item() + self.shift) * self.scale


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
        for name in template_fields(templates) & set(_SPECIAL):
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


def _check_templates(templates: tuple[str, ...]) -> None:
    allowed = {"prompt", "completion", *_SPECIAL}
    named = template_fields(templates)
    if len(templates) not in (1, 2) or not named <= allowed or "completion" not in named:
        raise ConfigurationError(
            f"inputs must be one text or a pair, with {{completion}} and other fields among "
            f"{', '.join(sorted(allowed))}; got {list(templates)}."
        )


def check_choice(setting: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise ConfigurationError unless the value is one of those allowed."""
    if value not in allowed:
        raise ConfigurationError(f"{setting} must be one of {', '.join(allowed)}; got {value!r}.")


def model_id(model: Any) -> str:
    """Return the id or folder of a model, or the name of its class if it has none."""
    name = model if isinstance(model, str) else model.config._name_or_path
    return name or type(model).__name__


def model_name(model: Any) -> str:
    """Return the last part of a model's id or folder."""
    return model_id(model).rstrip("/").split("/")[-1]


def describe(reward: Any, head: str, ignored: Sequence[str]) -> str:
    """Return what soup.json says of an instance: the head and the settings that differ from the defaults."""
    values = {s.name: getattr(reward, s.name) for s in fields(reward) if s.init and s.name not in ignored}
    defaults = {s.name: s.default for s in fields(reward)}
    changed = [
        f"{name}={getattr(value, '__name__', None) or repr(value)}"
        for name, value in values.items()
        if value != defaults[name]
    ]
    return f"{head}({', '.join(changed)})" if changed else head
