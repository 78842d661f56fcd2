"""One forward pass for log-probabilities and values, and none that was made already.

Axis letters: B sequence, T completion token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from trl_bonesoup.training.critic import ValueModel, value_tap
from trl_bonesoup.training.head import MOST_LOGITS, kept_logps
from trl_bonesoup.training.prefix import after_prefix, has_plain_attention, shared_prefix

_MULTIMODAL_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
_FIRST_PASS = ("first_logps", "first_entropies", "first_values")
"""Keys of a batch under which the rollout's pass waits for the first epoch, which it is the forward pass of."""


class CriticForward(GRPOTrainer):
    """A `GRPOTrainer` whose forward passes also give a critic's values.

    Subclasses set `critic` and say with `_critic_detached` whether its loss stays out of the policy.
    """

    critic: nn.Module
    _values_BT: Tensor | None = None
    _values_wanted = True
    _keep_first_pass = False
    _first_pass: tuple[Tensor, ...] | None = None

    def _critic_detached(self) -> bool:
        raise NotImplementedError

    def _rollout_pass(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities and values under the policy that rolled out, (B, T) each, without gradient.

        They are in the batch already if TRL needed them. What may serve the first epoch is added to it.
        """
        if batch.get("old_per_token_logps") is None:
            batch["old_per_token_logps"] = self._frozen_logps(batch, self.model)
        assert self._values_BT is not None
        if self._first_pass is not None:
            batch.update(zip(_FIRST_PASS, self._first_pass, strict=True))
            self._first_pass = None
        return batch["old_per_token_logps"], self._values_BT.detach()

    def _policy_pass(self, batch: dict[str, Any], model: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return log-probabilities, entropies and values, (B, T) with gradient, and the balancing loss of experts."""
        if _FIRST_PASS[0] in batch:
            logps_BT, entropies_BT, values_BT = (batch.pop(key) for key in _FIRST_PASS)
            return logps_BT, entropies_BT, values_BT, None
        logps_BT, entropies_BT, aux_loss = self._logps(
            batch, model, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
        )
        assert self._values_BT is not None
        return logps_BT, entropies_BT, self._values_BT, aux_loss

    def _reference_logps(self, batch: dict[str, Any]) -> Tensor:
        """Log-probabilities under the policy before training: a frozen copy, or the model without its adapter."""
        self._values_wanted = False
        try:
            if self.ref_model is not None:
                return self._frozen_logps(batch, self.ref_model)
            policy = self.accelerator.unwrap_model(self.model)
            with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
                return self._frozen_logps(batch, self.model)
        finally:
            self._values_wanted = True

    @contextmanager
    def _first_pass_kept(self) -> Iterator[None]:
        """Keep the graph of the rollout's pass, where the first optimizer step would only build it again.

        That needs a rollout batch that is one micro-batch on one process, whose activations are
        stored.
        """
        self._values_BT = self._first_pass = None
        self._keep_first_pass = self._may_keep_first_pass()
        try:
            yield
        finally:
            self._keep_first_pass = False

    def _may_keep_first_pass(self) -> bool:
        return (
            self.model.training
            and self.args.steps_per_generation == 1
            and self.accelerator.num_processes == 1
            and not self.args.activation_checkpointing
            and not self.args.gradient_checkpointing
            and not self.aux_loss_enabled
        )

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **inputs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what GRPOTrainer returns, and read the critic's values from the same forward pass, into `_values_BT`.

        A critic with a trunk of its own has a pass of its own. For text, the language-model head sees
        the completion alone. GRPOTrainer's own pass, which off CUDA also scores every prompt
        position, is left to images and mixtures of experts.
        """
        size = batch_size or len(input_ids)
        images = any(value is not None for value in inputs.values())
        keep = self._keep_first_pass and not images and size >= len(input_ids)
        with torch.set_grad_enabled(torch.is_grad_enabled() or keep):
            if images or compute_aux_loss:
                with self._values_of(model, input_ids, attention_mask, logits_to_keep, size):
                    return super()._get_per_token_logps_and_entropies(
                        model, input_ids, attention_mask, logits_to_keep, size, compute_entropy, compute_aux_loss,
                        **inputs,
                    )  # fmt: skip
            with self._values_of(model, input_ids, attention_mask, logits_to_keep, size, trim=True):
                logps_BT, entropies_BT = self._completion_logps(model, input_ids, attention_mask, logits_to_keep, size)
        if keep and entropies_BT is not None and self._values_BT is not None:
            self._first_pass = (logps_BT, entropies_BT, self._values_BT)
            logps_BT, entropies_BT = logps_BT.detach(), entropies_BT.detach()
        return logps_BT, entropies_BT, None

    @contextmanager
    def _values_of(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_tokens: int,
        size: int,
        *,
        trim: bool = False,
    ) -> Iterator[None]:
        """Set `_values_BT` from the passes of `model` inside the context, or from the critic's own."""
        separate = isinstance(self._critic(), ValueModel)
        causal_lm = self._causal_lm(model)
        head = self.critic if self._values_wanted and not separate else None
        with value_tap(causal_lm.base_model, head, num_tokens, detach=self._critic_detached(), trim=trim) as values:
            yield
        if self._values_wanted and separate:
            chunks = zip(input_ids.split(size), attention_mask.split(size), strict=True)
            values = [self.critic(ids, mask, num_tokens) for ids, mask in chunks]
        if self._values_wanted:
            self._values_BT = torch.cat(values)

    def _completion_logps(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, size: int
    ) -> tuple[Tensor, Tensor | None]:
        logps: list[Tensor] = []
        entropies: list[Tensor] = []
        kept = slice(-(num_tokens + 1), None)
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            tokens, valid = ids[:, kept], mask[:, kept] != 0
            with self.accelerator.autocast():
                inputs = self._model_inputs(model, ids, mask, num_tokens)
                if self._keeps_logits(tokens):
                    logits_MV = model(**inputs, use_cache=False).logits.flatten(0, 1)
                    if self.temperature != 1.0:
                        logits_MV = logits_MV / self.temperature
                    targets = tokens.roll(-1, dims=1)  # of the last position nothing is asked, but a slice is a copy
                    for results, values_M in zip(
                        (logps, entropies), kept_logps(logits_MV.float(), targets.flatten()), strict=True
                    ):
                        results.append(values_M.view_as(tokens)[:, :-1].masked_fill(~valid[:, 1:], 0.0))
                else:
                    outputs = model(**inputs, labels=tokens.masked_fill(~valid, -100), fused_lm_head=True)
                    logps.append(outputs.log_probs)
                    if outputs.entropy is not None:  # TRL's head of a reference model gives none
                        entropies.append(outputs.entropy)
        return torch.cat(logps), torch.cat(entropies) if entropies else None

    def _model_inputs(self, model: nn.Module, ids: Tensor, mask: Tensor, num_tokens: int) -> dict[str, Any]:
        """Return what the model is called with: all tokens, or what follows the prefix that all rows share."""
        causal_lm = self._causal_lm(model)
        length = 0
        if (
            ids.device.type == "cpu"
            and self.accelerator.num_processes == 1
            and not self.args.activation_checkpointing
            and has_plain_attention(causal_lm.config.get_text_config())
        ):
            length = shared_prefix(ids, mask, num_tokens)
        if not length:
            return {"input_ids": ids, "attention_mask": mask}
        return after_prefix(causal_lm.base_model, ids, mask, length)

    def _keeps_logits(self, tokens: Tensor) -> bool:
        vocabulary = self.accelerator.unwrap_model(self.model).config.get_text_config().vocab_size
        return tokens.device.type == "cpu" and not self.args.entropy_coef and tokens.numel() * vocabulary <= MOST_LOGITS

    def _logps(self, batch: dict[str, Any], model: nn.Module, **kwargs: Any) -> Any:
        """One forward pass over prompts and completions: log-probabilities (B, T), entropies, balancing loss."""
        return self._get_per_token_logps_and_entropies(
            model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            batch["completion_ids"].shape[1],
            **{key: batch[key] for key in _MULTIMODAL_KEYS if key in batch},
            **kwargs,
        )

    def _frozen_logps(self, batch: dict[str, Any], model: nn.Module) -> Tensor:
        size = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            return self._logps(batch, model, batch_size=size)[0]

    def _causal_lm(self, model: nn.Module) -> Any:
        unwrapped = self.accelerator.unwrap_model(model)
        return unwrapped.get_base_model() if hasattr(unwrapped, "get_base_model") else unwrapped

    def _critic(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.critic)
