"""The one place that knows which TRL the trainer was tested with, and which of its private names it uses."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from trl_bonesoup.errors import DependencyError

TESTED = ("1.16", "1.17")
"""First tested version of TRL, and the first that is not."""

PRIVATE_METHODS = {
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_compute_loss": ("model", "inputs"),
    "_generate": ("prompts",),
    "_generate_and_score_completions": ("inputs",),
    "_get_per_token_logps_and_entropies": (
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
    ),
    "_get_grad_norm": ("model", "grad_norm"),
    "_get_train_sampler": ("dataset",),
    "_save": ("output_dir", "state_dict"),
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_finish_current_push": (),
    "_tokenize_prompts": ("prompts",),
    "create_model_card": ("model_name", "dataset_name", "tags"),
    "init_hf_repo": ("token", "private"),
    "push_to_hub": ("commit_message", "blocking", "token", "revision", "private"),
    "training_step": ("model", "inputs", "num_items_in_batch"),
}
"""Methods of GRPOTrainer that the trainer overrides or calls, with the parameters it relies on."""


def require_tested_trl() -> None:
    """Raise `DependencyError` unless the installed TRL is in the tested range.

    The trainer overrides private methods of `GRPOTrainer`, so another version could train
    something else without an error.
    """
    installed = version("trl")
    key = _release(installed)
    if not _release(TESTED[0]) <= key < _release(TESTED[1]):
        raise DependencyError(
            f"MultiRewardPPOTrainer was tested with trl>={TESTED[0]},<{TESTED[1]}; {installed} is installed. "
            f"Run: pip install 'trl>={TESTED[0]},<{TESTED[1]}'"
        )


@contextmanager
def model_settings_were_used() -> Iterator[None]:
    """Keep back one warning of GRPOTrainer: that `model_init_kwargs` are ignored, for a model that they loaded.

    GRPOTrainer warns of every model that it is given loaded. It does not know that `seek` loaded it, once for all
    backbones, and uses the settings itself for the reference model.
    """
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    logger.addFilter(_is_another_warning)
    try:
        yield
    finally:
        logger.removeFilter(_is_another_warning)


@contextmanager
def old_name_unmentioned() -> Iterator[None]:
    """Keep back what transformers 5 tells TRL and PEFT, at every rollout: that a name they use has a newer one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _is_another_warning(record: logging.LogRecord) -> bool:
    return "`model_init_kwargs` will be ignored" not in record.getMessage()


def _release(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
