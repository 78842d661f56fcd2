"""Checks of the trainer's inputs, made before a model is loaded, and of its prompts, before it is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trl_bonesoup.errors import ConfigurationError, DependencyError
from trl_bonesoup.training.config import MultiRewardPPOConfig
from trl_bonesoup.training.finite import first_not_finite
from trl_bonesoup.training.prompt_kinds import check_kinds, first_rows
from trl_bonesoup.weights import FloatArray, check_column, check_combination_weights

_LOGGERS = ("tensorboard", "trackio", "wandb")
"""Names in `report_to` that are those of packages."""


def training_column(combination_weights: ArrayLike | None, backbone: int | None, n: int) -> FloatArray:
    """Return the column of B, shape (n,), that one backbone is trained on.

    Args:
        combination_weights: B (n, n), one column (n,), or `None` for equal weights.
        backbone: index of the column of B; `None` with a column.
        n: number of objectives.

    Raises:
        ConfigurationError, WeightsError: if they do not fit together.
    """
    if combination_weights is None:
        if backbone is not None:
            raise ConfigurationError(f"backbone={backbone} needs combination_weights, whose column it names.")
        combination_weights = [1.0 / n] * n
    ndim = np.ndim(combination_weights)
    if ndim != 2:
        if backbone is not None:
            raise ConfigurationError(
                f"combination_weights is one column already; backbone={backbone} needs the whole matrix."
            )
        return check_column(combination_weights, n)
    matrix = check_combination_weights(combination_weights)
    if len(matrix) != n:
        raise ConfigurationError(f"combination_weights has {len(matrix)} rows for {n} reward functions.")
    if isinstance(backbone, bool) or not isinstance(backbone, int) or not 0 <= backbone < n:
        raise ConfigurationError(
            f"backbone must say which column of the combination weights to train on, 0 to {n - 1}; got {backbone!r}."
        )
    return matrix[:, backbone]


def check_training(dataset: Any, args: MultiRewardPPOConfig, n: int) -> None:
    """Check what a training on n objectives is given, before anything is loaded or written.

    Raises:
        ConfigurationError: for fixed score statistics or a data set that it cannot use.
        DependencyError: if `report_to` names a logger that is not installed.
    """
    _check_normalization(args, n)
    _check_dataset(dataset, args)
    _check_reports(args)


def _check_normalization(args: MultiRewardPPOConfig, n: int) -> None:
    """Raise `ConfigurationError` unless fixed score statistics are usable for n objectives."""
    for setting in ("score_mean", "score_std"):
        values = getattr(args, setting)
        if values is not None and len(values) != n:
            raise ConfigurationError(f"{setting} needs one number for each of the {n} objectives; got {values}.")
    if args.score_std is not None and min(args.score_std) <= 0:
        raise ConfigurationError(f"Every score_std must be above 0; got {args.score_std}.")


def _check_reports(args: MultiRewardPPOConfig) -> None:
    """Raise `DependencyError` if `report_to` names a common logger whose package is not installed."""
    from transformers.integrations import get_available_reporting_integrations

    missing = sorted({*_LOGGERS} & {*args.report_to} - {*get_available_reporting_integrations()})
    if missing:
        raise DependencyError(
            f"report_to names {', '.join(missing)}, which is not installed. Run: pip install {' '.join(missing)}. Or "
            "leave it out: `seek` keeps a log of each backbone, and a trainer's is in its trainer_state.json."
        )


def _check_dataset(dataset: Any, args: MultiRewardPPOConfig) -> None:
    """Raise `ConfigurationError` for no data set, one without prompts, or with too few for a single rollout batch."""
    if dataset is None:
        return  # GRPOTrainer says so where it needs one
    _check_dataset_type(dataset)
    if not hasattr(dataset, "__len__"):
        if "prompt" not in first_rows(dataset, 1)[0]:
            raise ConfigurationError(
                f"train_dataset needs a column 'prompt'; its first row has {list(first_rows(dataset, 1)[0])}."
            )
        return
    if "prompt" not in dataset.column_names:
        raise ConfigurationError(f"train_dataset needs a column 'prompt'; it has {dataset.column_names}.")
    needed = args.generation_batch_size // args.num_generations
    if len(dataset) < needed:
        raise ConfigurationError(
            f"train_dataset has {len(dataset)} prompts, fewer than the {needed} of one rollout batch, so that no step "
            "would be trained. Use more prompts, or lower per_device_train_batch_size or gradient_accumulation_steps."
        )


def _check_dataset_type(dataset: Any) -> None:
    from datasets import Dataset, IterableDataset

    if isinstance(dataset, (Dataset, IterableDataset)):
        return
    if isinstance(dataset, Mapping) and any(isinstance(part, (Dataset, IterableDataset)) for part in dataset.values()):
        advice = f"Pass one of its splits, such as train_dataset[{next(iter(dataset))!r}]."
    else:
        advice = (
            "Make one of a list of rows: datasets.Dataset.from_list(rows), where a row is {'prompt': …} with any other "
            "columns that the rewards read. Of a torch Dataset, that list is [data[i] for i in range(len(data))]."
        )
    raise ConfigurationError(
        "train_dataset must be a datasets.Dataset or datasets.IterableDataset; got "
        f"{type(dataset).__module__}.{type(dataset).__qualname__}. {advice}"
    )


def planned_steps(dataset: Any, args: MultiRewardPPOConfig) -> int:
    """Return for how many optimizer steps these settings train a backbone.

    Raises:
        ConfigurationError: if `num_train_epochs` decides and the data set has no length.
    """
    if args.max_steps > 0:
        return args.max_steps
    if not hasattr(dataset, "__len__"):
        raise ConfigurationError("A data set without a length needs max_steps, the number of optimizer steps.")
    rollouts = len(dataset) // (args.generation_batch_size // args.num_generations)
    return math.ceil(args.num_train_epochs * math.ceil(rollouts * args.steps_per_rollout))


def check_model(policy: Any, tokenizer: Any) -> None:
    """Raise `ConfigurationError` for a policy with weights that are not finite, or fewer embeddings than its tokenizer.

    Both would fail in the first rollout, with an error that names neither.
    """
    name = first_not_finite(policy.named_parameters())
    if name is not None:
        raise ConfigurationError(
            f"The model to train has NaN or infinity in {name}, so that it cannot generate. Load another checkpoint, "
            "or another dtype if this one is too narrow for it."
        )
    rows = getattr(policy.get_input_embeddings(), "num_embeddings", None)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if rows is not None and largest >= rows:
        raise ConfigurationError(
            f"The tokenizer has tokens up to number {largest} and the model {rows} embeddings. Take the model's own "
            f"tokenizer, or make room first: model.resize_token_embeddings({largest + 1})."
        )


def context_length(model: Any) -> float:
    """Return how many tokens the model's positions reach, or infinity if its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or float("inf")


def fit_prompts(prompt_ids: list[list[int]], room: float, args: MultiRewardPPOConfig) -> list[list[int]]:
    """Return the prompts, cut at the front to `max_prompt_length` tokens if that is set.

    Args:
        prompt_ids: tokens of each prompt.
        room: tokens of the model's context that the completion leaves to a prompt.
        args: with `max_prompt_length` and `max_completion_length`.

    Raises:
        ConfigurationError: for a prompt without tokens, or with more than there is room for.
    """
    if args.max_prompt_length is not None:
        prompt_ids = [ids[-args.max_prompt_length :] for ids in prompt_ids]
    for row, ids in enumerate(prompt_ids):
        if not ids:
            raise ConfigurationError(f"Prompt {row} is empty: it has no tokens to continue from.")
        if len(ids) > room:
            raise ConfigurationError(
                f"Prompt {row} has {len(ids)} tokens, and a completion may have {args.max_completion_length}: together "
                f"more than the model's context of {room + args.max_completion_length:.0f}. Leave such prompts out, "
                "lower max_completion_length, or set max_prompt_length to keep only the end of a long prompt."
            )
    return prompt_ids


def check_prompts(
    dataset: Any, tokenize: Callable[[list], Any], room: float, args: MultiRewardPPOConfig, *, has_template: bool
) -> None:
    """Raise `ConfigurationError` if a prompt is empty, does not fit into the model's context, or is of another kind.

    Only prompts that could be too long, or are empty, are tokenized: a text has no more tokens than
    bytes, but for those of a chat template, for which a margin is left. An iterable data set is
    checked as it is used.

    Args:
        dataset: with a column "prompt".
        tokenize: the trainer's, which applies `fit_prompts`.
        room: tokens of the model's context that the completion leaves to a prompt.
        args: with `max_prompt_length` and `max_completion_length`.
        has_template: see `check_kinds`.
    """
    if room < max(args.max_prompt_length or 1, 1):
        raise ConfigurationError(
            f"The model's context of {room + args.max_completion_length:.0f} tokens has no room for "
            f"max_prompt_length={args.max_prompt_length} and max_completion_length={args.max_completion_length}."
        )
    if not hasattr(dataset, "__len__") or "prompt" not in (getattr(dataset, "column_names", None) or ()):
        return
    check_kinds(dataset["prompt"], has_template=has_template)
    for row, prompt in enumerate(dataset["prompt"]):
        size = _most_tokens(prompt)
        if size == 0 or size > room:
            try:
                tokenize([prompt])
            except ConfigurationError as error:
                raise ConfigurationError(f"train_dataset, row {row}: {error}") from error


_TEMPLATE_TOKENS = 256
"""Margin for what a chat template adds to a message; a longer system prompt is caught when it is used."""


def _most_tokens(prompt: Any) -> int:
    if isinstance(prompt, str):
        return len(prompt.encode())
    texts = [message["content"] for message in prompt if isinstance(message.get("content"), str)]
    return sum(len(text.encode()) + _TEMPLATE_TOKENS for text in texts)
