"""The critic: a value head on the hidden states of the policy's own forward pass, or a model of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainerCallback

from trl_bonesoup.errors import ConfigurationError


class ValueHead(nn.Module):
    """A linear map from hidden states to values, kept outside the policy so that it is never exported with it.

    It starts at zero: the first values are 0, which is the mean of a normalised score.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return values (B, T) in float32 for hidden states (B, T, D)."""
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            return self.linear(hidden_BTD.float()).squeeze(-1)


class ValueModel(nn.Module):
    """A critic with a trunk of its own.

    Args:
        trunk: a decoder whose output has `last_hidden_state`.
        head: maps its hidden states to values.
    """

    def __init__(self, trunk: nn.Module, head: ValueHead):
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int) -> Tensor:
        """Return the values (B, T) of the last `num_tokens` tokens, each read where the policy chose it."""
        hidden_BTD = self.trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return self.head(hidden_BTD[:, -(num_tokens + 1) : -1])


def check_value_model(value_model: Any) -> None:
    """Raise `ConfigurationError` for what cannot be a critic."""
    is_model = isinstance(value_model, PreTrainedModel) or hasattr(value_model, "get_base_model")
    if not (value_model is None or isinstance(value_model, str) or hasattr(value_model, "peft_type") or is_model):
        raise ConfigurationError(
            "value_model must be None, a PEFT configuration, a Hub id, a path or a model; got "
            f"{type(value_model).__name__}."
        )


def make_critic(value_model: Any, policy: Any) -> nn.Module:
    """Return the critic that the trainer's `value_model` asks for.

    Args:
        value_model: `None` for a head on the policy's trunk; a PEFT configuration for an adapter of
            its own on the policy's frozen base, whose weights are shared; a Hub id, path or model
            for another model.
        policy: the model that is trained, on its device.

    Raises:
        ConfigurationError: if the value model does not fit the policy.
    """
    if value_model is None:
        return ValueHead(policy.config.get_text_config().hidden_size)
    if isinstance(value_model, str):
        value_model = AutoModelForSequenceClassification.from_pretrained(
            value_model, num_labels=1, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    elif hasattr(value_model, "peft_type") and not isinstance(value_model, nn.Module):
        value_model = _adapter_on_shared_base(value_model, policy)
    theirs, ours = value_model.config.get_text_config(), policy.config.get_text_config()
    if theirs.vocab_size != ours.vocab_size:
        raise ConfigurationError(
            f"The value model has a vocabulary of {theirs.vocab_size} tokens and the policy one of {ours.vocab_size}; "
            "they must read the same tokens."
        )
    whole = value_model.get_base_model() if hasattr(value_model, "get_base_model") else value_model
    head = ValueHead(theirs.hidden_size)
    score = getattr(whole, "score", None)
    if isinstance(score, nn.Linear) and score.out_features == 1:
        with torch.no_grad():
            head.linear.weight.copy_(score.weight)
    return ValueModel(whole.base_model, head)


def _adapter_on_shared_base(config: Any, policy: Any) -> Any:
    from peft import get_peft_model

    if not hasattr(policy, "peft_config"):
        raise ConfigurationError(
            "An adapter as value model shares the frozen base of a policy that is an adapter too, and this policy is "
            "a whole model. Pass a peft_config for the policy, or a model as value_model."
        )
    shared = [*policy.parameters(), *policy.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared if not tensor.requires_grad}
    base = copy.deepcopy(policy, memo).unload()
    return get_peft_model(base, config)


@contextmanager
def value_tap(
    trunk: nn.Module, head: nn.Module | None, num_tokens: int, *, detach: bool = False, trim: bool = False
) -> Iterator[list[Tensor]]:
    """Collect the values of the last `num_tokens` tokens from every forward pass of `trunk` inside the context.

    The value of token t is read where the policy chose it, at position t-1: it estimates the return
    of the state before that choice.

    Args:
        trunk: the decoder below the language-model head; its output has `last_hidden_state`.
        head: maps (B, T, D) to (B, T); without one, nothing is collected.
        num_tokens: number T of completion tokens at the end of each row.
        detach: keep the critic's gradient out of the trunk.
        trim: hand only the last T+1 hidden states on to the language-model head, which then does no
            work for the prompt.

    Yields:
        A list that receives one (B, T) tensor per forward pass.
    """
    values: list[Tensor] = []

    def read(_module: nn.Module, _args: tuple, output: Any) -> Any:
        hidden_BTD = output.last_hidden_state[:, -(num_tokens + 1) :]
        states_BTD = hidden_BTD[:, :-1]
        if head is not None:
            values.append(head(states_BTD.detach() if detach else states_BTD))
        if trim:
            output.last_hidden_state = hidden_BTD.contiguous()  # one product for all rows, not one for each
        return output

    handle = trunk.register_forward_hook(read)
    try:
        yield values
    finally:
        handle.remove()


def trainable_state(critic: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that training changes, by name: those of a shared or frozen base are left out."""
    return {
        name: parameter.detach().contiguous()
        for name, parameter in critic.named_parameters()
        if parameter.requires_grad
    }


class ZeroCriticGrad(TrainerCallback):
    """Clears the critic's gradient after each optimizer step; `Trainer` clears only that of its own model."""

    def __init__(self, critic: nn.Module):
        self.critic = critic

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the gradient that the step just used."""
        self.critic.zero_grad()


def critic_beside_fsdp2(critic: nn.Module, value_model: Any, args: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the critic, whole on every process, with an optimizer of its own.

    FSDP2 shards one model together with its optimizer, which can then hold nothing else.

    Raises:
        ConfigurationError: if the critic shares weights with the policy, which are going to be sharded.
    """
    if hasattr(value_model, "peft_type") and not isinstance(value_model, nn.Module):
        raise ConfigurationError(
            "An adapter as value model shares the policy's base, which FSDP2 takes apart. Leave value_model out, or "
            "pass a model of its own."
        )
    optimizer = torch.optim.AdamW(
        [parameter for parameter in critic.parameters() if parameter.requires_grad],
        lr=args.critic_learning_rate or args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=0.0,
    )
    return nn.parallel.DistributedDataParallel(critic), optimizer


class StepCritic(TrainerCallback):
    """Steps the critic's own optimizer before the policy's, on the policy's learning-rate schedule."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        """Use the gradient of this step."""
        share = lr_scheduler.get_last_lr()[0] / args.learning_rate if args.learning_rate else 1.0
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        self.optimizer.step()
