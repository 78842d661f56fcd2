"""Reward models that read a prompt and a completion and give numbers: sequence classifiers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.rewards.loaded import SPECIAL_TOKENS, LoadedClassifier, LoadsClassifier, model_id, model_name
from trl_bonesoup.rewards.protocol import completion_texts
from trl_bonesoup.rewards.texts import PromptText, last_user_message, prompt_texts, template_fields

_SCORES = ("logit", "probability")
_ENDS = ("start", "end")


@dataclass(eq=False)
class ClassifierReward(LoadsClassifier):
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
        logit: which of the model's outputs is the score: its number, or its label in the model's
            `id2label`, such as "toxic".
        score: "logit", or "probability": the softmax over all outputs, the sigmoid of a single one.
        shift, scale: the reward is (score + shift) · scale. With scale=-1, less of it is better.
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
            cannot be loaded, has no trained classification head, not so many outputs or no such
            label, lacks a special token that `inputs` uses, or the data set has no `prompt_column`.
    """

    model: Any
    inputs: str | Sequence[str] = ("{prompt}", "{completion}")
    tokenizer: Any = None
    logit: int | str = 0
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

    def __post_init__(self) -> None:
        templates = (self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs)
        _check_templates(templates)
        check_choice("score", self.score, _SCORES)
        check_choice("keep_prompt", self.keep_prompt, _ENDS)
        self.inputs = templates
        self.__name__ = self.name or model_name(self.model)
        if isinstance(self.logit, bool) or not isinstance(self.logit, int | str):
            raise ConfigurationError(
                f"logit of {self.__name__} must be the number of an output or its label; got {self.logit!r}."
            )
        self.spec = describe(self, model_id(self.model), ("model", "tokenizer", "name", "batch_size", "device"))

    def __call__(self, *, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """Score each completion."""
        questions = prompt_texts(prompts, columns, self.prompt_text, self.prompt_column)
        answers = [text.strip() for text in completion_texts(completions)]
        classifier = self.classifier()
        special = classifier.special_tokens(self.inputs)
        rows = []
        for question, answer in zip(questions, answers, strict=True):
            render = functools.partial(self._texts, classifier.without_special_tokens(answer), special)
            rows.append(classifier.encode(render, question, self.keep_prompt)[0])
        output = self._output(classifier)
        return [None if logits is None else self._score(logits, output) for logits in classifier(rows, self.batch_size)]

    def _texts(self, answer: str, special: dict[str, str], question: str) -> tuple[str, ...]:
        return tuple(text.format(prompt=question, completion=answer, **special) for text in self.inputs)

    def _output(self, classifier: LoadedClassifier) -> int:
        """Return the number of the output that is the score."""
        if not isinstance(self.logit, str):
            return self.logit
        labels = getattr(classifier.model.config, "id2label", None) or {}
        found = [int(number) for number, label in labels.items() if label == self.logit]
        if len(found) != 1:
            known = ", ".join(f"{label!r} ({number})" for number, label in labels.items()) or "none"
            raise ConfigurationError(
                f"{self.__name__} has {'several outputs' if found else 'no output'} with the label {self.logit!r}. Its "
                f"labels, with their numbers, are {known}; give logit one of either."
            )
        return found[0]

    def _score(self, logits: Any, output: int) -> float:
        if not 0 <= output < len(logits):
            raise ConfigurationError(f"{self.__name__} has outputs 0 to {len(logits) - 1}; got logit={self.logit}.")
        if self.score == "probability":
            logits = logits.sigmoid() if len(logits) == 1 else logits.softmax(dim=-1)
        return (logits[output].item() + self.shift) * self.scale


def _check_templates(templates: tuple[str, ...]) -> None:
    allowed = {"prompt", "completion", *SPECIAL_TOKENS}
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
