"""MultiRewardPPOTrainer: TRL's GRPOTrainer with a critic instead of groups, on one weighted mixture of rewards.

What differs from GRPOTrainer, and nothing else does:

- advantages are per token, from a critic (by default a value head on the policy's own trunk) and GAE;
- the KL penalty is part of the reward at each token, the score is added at the last one, or in
  parts at the ends of segments;
- each objective's score is normalised before the weights of one backbone mix them;
- the loss is PPO's: clipped ratio, clipped value, optional entropy bonus; a rollout batch's epochs
  may end early;
- a step whose gradient or weights are not finite ends the run, before anything is saved;
- a run that was killed at any moment continues as if it had not been.

Axis letters: B sequence, T completion token, N objective.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import ScoreStatistics
from trl_bonesoup.rewards.protocol import objective_names as distinct_names
from trl_bonesoup.training.config import MultiRewardPPOConfig
from trl_bonesoup.training.critic import (
    StepCritic,
    ZeroCriticGrad,
    check_value_model,
    critic_beside_fsdp2,
    make_critic,
)
from trl_bonesoup.training.forward import CriticForward
from trl_bonesoup.training.gae import (
    explained_variance,
    generalized_advantage_estimation,
    masked_moments,
    token_rewards,
    whiten,
)
from trl_bonesoup.training.guard import CheckWeights, Guarded
from trl_bonesoup.training.inputs import (
    check_model,
    check_prompts,
    check_training,
    context_length,
    fit_prompts,
    training_column,
)
from trl_bonesoup.training.losses import KLController, approximate_kl, policy_loss, value_loss
from trl_bonesoup.training.prompt_kinds import check_rows, first_rows
from trl_bonesoup.training.publish import Publishing, check_publishing
from trl_bonesoup.training.record import described
from trl_bonesoup.training.resume import (
    EpochSampler,
    SaveAtRollouts,
    checkpoint_to_resume,
    load_state,
    save_state,
    what_is_missing,
)
from trl_bonesoup.training.scoring import Scoring
from trl_bonesoup.training.upstream import old_name_unmentioned, require_tested_trl
from trl_bonesoup.weights import FloatArray


class MultiRewardPPOTrainer(Publishing, Guarded, CriticForward):
    """Trains one backbone with PPO on one column of the combination weights.

    Args:
        model: a Hub id, a path, a `PreTrainedModel` or a `PeftModel`, as in `GRPOTrainer`.
        reward_funcs: one reward function, or a list with one per objective; callables in TRL's
            protocol (also async), reward models, or ids of reward models. The list is not changed.
        combination_weights: B of shape (N, N), of which column `backbone` is trained on, or one
            column of shape (N,): a preference gives MORLHF, a unit vector a single-reward expert.
            Left out, all objectives weigh the same.
        backbone: index of the column, required with a matrix and refused with a column.
        args: settings; see `MultiRewardPPOConfig`.
        objective_names: distinct names of the objectives; by default those of the reward functions.
        value_model: the critic. `None` puts a value head on the policy's own trunk, which costs no
            forward pass of its own. A PEFT configuration trains an adapter of its own on the policy's
            frozen base; a Hub id, a path or a model trains another model, whose classification
            head with one label, if it has one, is where the values start.
        train_dataset, eval_dataset, processing_class, reward_processing_classes: as in `GRPOTrainer`.
        callbacks, optimizers, quantization_config, peft_config: as in `GRPOTrainer`.

    Raises:
        ConfigurationError, WeightsError: for settings that do not fit, before a model is loaded.
        RewardError: during training, when a reward function raises or returns anything but one
            finite number (or `None`) per completion, or takes longer than `args.reward_timeout`.
        TrainingError: during training, when the gradient or the weights are not finite, or memory runs out.

    Source: Bone Soups, Section 3.2; PPO as in Ziegler et al. 2019 and Huang et al. 2022.
    """

    _tag_names = ["trl", "ppo", "bone-soup"]  # noqa: RUF012  (as in GRPOTrainer)
    _name = "MultiRewardPPO"

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        combination_weights: ArrayLike | None = None,
        backbone: int | None = None,
        args: MultiRewardPPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        objective_names: Sequence[str] | None = None,
        value_model: Any = None,
        **kwargs: Any,
    ):
        require_tested_trl()
        if reward_funcs is None:
            reward_funcs = []
        reward_funcs = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
        names = distinct_names(reward_funcs, objective_names)
        column = training_column(combination_weights, backbone, len(reward_funcs))
        args = args if args is not None else MultiRewardPPOConfig(output_dir=f"{_last_part(model)}-PPO")
        if not isinstance(args, MultiRewardPPOConfig):
            raise ConfigurationError(f"args must be a MultiRewardPPOConfig; got {type(args).__name__}.")
        check_training(train_dataset, args, len(reward_funcs))
        check_value_model(value_model)
        check_publishing(args)

        self.scoring = Scoring(names, column, args)
        place = None if backbone is None else (backbone, len(names))
        self._record = described(names, reward_funcs, column, place, args, value_model, peft_config)
        upstream_args = copy.copy(args)
        upstream_args.beta = args.kl_coef  # makes GRPOTrainer set up the reference policy
        with old_name_unmentioned():
            super().__init__(
                model=model,
                reward_funcs=self.scoring.checked(reward_funcs),
                args=upstream_args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                **kwargs,
            )
        self.beta = 0.0  # the KL penalty is in the reward; GRPOTrainer must not compute it a second time
        self.reward_func_names = list(names)
        self.reward_weights = self.scoring.column_N
        self.kl_controller = KLController(args.kl_coef, args.kl_target, args.kl_horizon)
        policy = self.accelerator.unwrap_model(self.model)
        check_model(policy, self._tokenizer)
        self._room = context_length(policy) - args.max_completion_length
        self._has_template = getattr(self.processing_class, "chat_template", None) is not None
        check_prompts(self.train_dataset, self._tokenize_prompts, self._room, args, has_template=self._has_template)
        self.critic, self._critic_optimizer = make_critic(value_model, policy).to(self.accelerator.device), None
        if self.accelerator.is_fsdp2:
            self.critic, self._critic_optimizer = critic_beside_fsdp2(self.critic, value_model, args)
            self.add_callback(StepCritic(self._critic_optimizer))
        else:
            self.critic = self.accelerator.prepare_model(self.critic)
        self.add_callback(ZeroCriticGrad(self.critic))
        self.add_callback(CheckWeights(self.critic))
        self.add_callback(SaveAtRollouts(args.steps_per_rollout))
        self._moved = torch.zeros(2)
        self._stopped = False

    def measure_scores(self, num_samples: int) -> FloatArray:
        """Sample the current policy on the first prompts and return every raw score, (num_samples, N).

        Before training the policy is the base model, whose scale `seek` fixes for all backbones. An
        objective without a score is NaN.
        """
        size = self.args.per_device_train_batch_size
        was_training = self.model.training
        self.model.eval()
        scores = []
        first = first_rows(self.train_dataset, num_samples)
        for start in range(0, num_samples, size):
            rows = first[start : start + size]
            check_rows(rows, has_template=self._has_template)
            prompts = [row["prompt"] for row in rows]
            with old_name_unmentioned():
                _, completion_ids, _, completions, *_ = self._generate(prompts)
            scores.append(self._calculate_rewards(rows, prompts, completions, completion_ids).cpu())
        self._metrics["eval"].clear()
        self.model.train(was_training)
        return torch.cat(scores).double().numpy()

    def fix_scores(self, statistics: Sequence[ScoreStatistics]) -> None:
        """Normalise by these statistics from now on, instead of running ones."""
        self.scoring.fix(statistics)
        self.args.score_normalization = "fixed"
        self.args.score_mean = [entry.mean for entry in statistics]
        self.args.score_std = [entry.std for entry in statistics]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or continue, as in `Trainer.train`.

        Args:
            resume_from_checkpoint: a checkpoint, or `True` for the newest one in the output folder
                that was written to its end. If there is none yet, training starts from the beginning.
            args, kwargs: as in `Trainer.train`.

        Raises:
            ConfigurationError: for a checkpoint that was not written to its end.
        """
        if resume_from_checkpoint is True:
            found = checkpoint_to_resume(Path(self.args.output_dir))
            resume_from_checkpoint = None if found is None else str(found)
        elif resume_from_checkpoint:
            missing = what_is_missing(Path(resume_from_checkpoint), thorough=True)
            if missing is not None:
                raise ConfigurationError(
                    f"{resume_from_checkpoint} cannot be resumed from: it lacks {missing}. "
                    "Pass resume_from_checkpoint=True for the newest complete checkpoint."
                )
        with old_name_unmentioned():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass, unless the policy has moved too far for this rollout batch (`target_kl`)."""
        if self._step % self.current_gradient_accumulation_steps == 0:  # an optimizer step begins
            if self._step % (self.args.steps_per_generation * self.num_iterations) == 0:  # and a rollout
                self._stopped = False
            elif self.args.target_kl is not None:
                self._stopped = self._stopped or self._moved_too_far(self.args.target_kl)
                self._metrics["train"]["kl/stopped"].append(float(self._stopped))
            self._moved = torch.zeros(2)
        if self._stopped:
            self._step += 1
            return torch.zeros((), device=self.accelerator.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def _moved_too_far(self, target_kl: float) -> bool:
        tokens, kl = self._moved.tolist()
        return kl > target_kl * tokens

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Add the critic's parameters to the optimizer of the policy."""
        optimizer = super().create_optimizer(model)
        if self._critic_optimizer is not None:
            return optimizer
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        new = [p for p in self.critic.parameters() if p.requires_grad and id(p) not in known]
        if new:
            rate = self.args.critic_learning_rate or self.args.learning_rate
            optimizer.add_param_group({"params": new, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """Keep the raw scores of all processes, (B · processes, N), with NaN where an objective has none."""
        scores_BN = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.scoring.record(scores_BN, self.reward_funcs)
        return scores_BN

    def _tokenize_prompts(self, prompts: list) -> Any:
        """Tokenize, keep the end of a prompt that is too long, and refuse one that does not fit the context."""
        prompt_ids, images, fields = super()._tokenize_prompts(prompts)
        return fit_prompts(prompt_ids, self._room, self.args), images, fields

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Roll out, and replace the group advantages by PPO's: per token, from the critic."""
        check_rows(inputs, has_template=self._has_template)
        self.scoring.forget()
        with self._first_pass_kept():
            batch = super()._generate_and_score_completions(inputs)
            mode = "train" if self.model.training else "eval"
            old_logps_BT, values_BT = self._rollout_pass(batch)
        mask_BT = _generated_tokens(batch)
        kl_BT = (
            (old_logps_BT - self._reference_logps(batch)) * mask_BT
            if self.args.kl_coef
            else torch.zeros_like(values_BT)
        )

        scores_B, parts_BT = self._weighted_scores(batch, mode)
        rewards_BT = token_rewards(scores_B.nan_to_num(nan=0.0), kl_BT, mask_BT, self.kl_controller.coef, parts_BT)
        mask_BT = mask_BT * ~scores_B.isnan().unsqueeze(1)  # a completion nobody scored teaches nothing
        if self.args.whiten_rewards:
            rewards_BT = whiten(rewards_BT, mask_BT, self._moments(rewards_BT, mask_BT), shift_mean=False)
        advantages_BT, returns_BT = generalized_advantage_estimation(
            rewards_BT, values_BT, mask_BT, self.args.gamma, self.args.lam
        )
        self._log_rollout(mode, kl_BT, mask_BT, values_BT, returns_BT, advantages_BT)
        if self.args.whiten_advantages:
            advantages_BT = whiten(advantages_BT, mask_BT, self._moments(advantages_BT, mask_BT))
        if mode == "train":
            self._update_kl_coefficient(kl_BT)
        batch.update(
            advantages=advantages_BT,
            returns=returns_BT,
            old_values=values_BT,
            generated_tokens=mask_BT,
            num_items_in_batch=self.accelerator.gather(mask_BT.sum()).sum(),
        )
        return batch

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """PPO's loss: clipped ratio + vf_coef · clipped value - entropy_coef · entropy, mean over generated tokens."""
        mode = "train" if self.model.training else "eval"
        logps_BT, entropies_BT, values_BT, aux_loss = self._policy_pass(inputs, model)
        if not self.args.entropy_coef:
            entropies_BT = entropies_BT.detach()  # a gradient of zero would be computed at full price
        mask_BT = inputs["generated_tokens"]
        policy_BT, clipped_BT = policy_loss(
            logps_BT, inputs["old_per_token_logps"], inputs["advantages"], self.epsilon_low, self.epsilon_high
        )
        if "importance_sampling_ratio" in inputs:  # corrects for a rollout engine that samples slightly differently
            policy_BT = policy_BT * inputs["importance_sampling_ratio"]
        value_BT, value_clipped_BT = value_loss(
            values_BT, inputs["old_values"], inputs["returns"], self.args.cliprange_value
        )
        rest = 0.0 if self._warming_up() else 1.0
        token_BT = rest * (policy_BT - self.args.entropy_coef * entropies_BT) + self.args.vf_coef * value_BT
        loss = (token_BT * mask_BT).sum() / self._tokens_per_optimizer_step(inputs, mode)
        if self.aux_loss_enabled:
            share = self.current_gradient_accumulation_steps if mode == "train" else 1.0
            loss = loss + rest * self.router_aux_loss_coef * aux_loss / share
        tokens, totals = self._log_tokens(
            mode,
            mask_BT,
            {
                "entropy": entropies_BT,
                "policy_loss": policy_BT,
                "clip_ratio/region_mean": clipped_BT,
                "kl/update": approximate_kl(logps_BT, inputs["old_per_token_logps"]),
                "value/loss": value_BT,
                "value/clip_ratio": value_clipped_BT,
            },
        )
        self._moved = self._moved + torch.tensor([tokens, totals["kl/update"]])
        return loss

    def _critic_detached(self) -> bool:
        return self.args.detach_critic or self._warming_up()

    def _warming_up(self) -> bool:
        return self.model.training and self.state.global_step < self.args.critic_warmup_steps

    def _weighted_scores(self, batch: dict[str, Any], mode: str) -> tuple[Tensor, Tensor | None]:
        """Normalise, weigh and log the scores; return this process's.

        Returns:
            scores (B,), NaN where no objective applies, and what segments earned of them (B, T), if any.
        """
        weighted_B, normalized_BN = self.scoring.weigh(learn=mode == "train")
        metrics = self._metrics[mode]
        for key in ("reward", "reward_std", "frac_reward_zero_std"):  # of unnormalised sums and of groups
            metrics.pop(key, None)
        metrics["reward"].append(weighted_B.nanmean().item())
        shares = self.scoring.missing_N().tolist()
        for name, normalized_B, missing in zip(self.reward_func_names, normalized_BN.T, shares, strict=True):
            metrics[f"objective/{name}"].append(normalized_B.nanmean().item())
            if missing:
                metrics[f"objective/{name}/missing"].append(missing)
        local = len(batch["completion_ids"])
        start = self.accelerator.process_index * local
        rows = slice(start, start + local)
        parts_BT = self._parts(batch, rows) if self.scoring.is_dense else None
        scores_B = weighted_B[rows]
        if self.args.missing_eos_penalty is not None:
            scores_B = scores_B - self.args.missing_eos_penalty * self._cut_off(batch)
        return scores_B, parts_BT

    def _parts(self, batch: dict[str, Any], rows: slice) -> Tensor:
        """Return what segments of this process's completions earned, (B, T)."""
        ids_BT, mask_BT = batch["completion_ids"], batch["completion_mask"].bool()
        generated = [ids[mask].tolist() for ids, mask in zip(ids_BT, mask_BT, strict=True)]
        decode = partial(self._tokenizer.decode, skip_special_tokens=True)
        return self.scoring.parts(rows, generated, decode, ids_BT.shape[1]).to(ids_BT.device)

    def _cut_off(self, batch: dict[str, Any]) -> Tensor:
        ends = torch.tensor(self.eos_token_ids, device=batch["completion_ids"].device)
        ended_B = (torch.isin(batch["completion_ids"], ends) & batch["completion_mask"].bool()).any(dim=1)
        return (~ended_B).float()

    def _update_kl_coefficient(self, kl_BT: Tensor) -> None:
        totals = self.accelerator.reduce(
            torch.stack([kl_BT.sum(), torch.tensor(float(len(kl_BT)), device=kl_BT.device)]), reduction="sum"
        )
        self.kl_controller.update((totals[0] / totals[1]).item(), int(totals[1].item()))

    def _tokens_per_optimizer_step(self, inputs: dict[str, Any], mode: str) -> Tensor:
        """Mean number of generated tokens in one optimizer step, as seen by one process.

        Dividing each micro-batch's sum by it makes the gradient that of the mean over tokens,
        however the rollout batch is split into micro-batches and processes.
        """
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        if mode == "train":
            tokens = tokens * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return tokens

    def _log_rollout(
        self,
        mode: str,
        kl_BT: Tensor,
        mask_BT: Tensor,
        values_BT: Tensor,
        returns_BT: Tensor,
        advantages_BT: Tensor,
    ) -> None:
        metrics = self._metrics[mode]
        if self.args.kl_coef:
            metrics["kl/coef"].append(self.kl_controller.coef)
        everywhere = [
            self.accelerator.gather(self.accelerator.pad_across_processes(tensor.float(), dim=1))
            for tensor in (returns_BT, values_BT, mask_BT)
        ]
        explained = explained_variance(*everywhere)
        if not math.isnan(explained):
            metrics["value/explained_variance"].append(explained)
        self._log_tokens(mode, mask_BT, {"kl": kl_BT, "value/mean": values_BT})
        mean_B = advantages_BT.sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)
        shown = self.accelerator.gather(mean_B).tolist()
        for _ in shown:  # GRPOTrainer has appended its own, which are zero for groups of one
            self._logs["advantages"].pop()
        self._logs["advantages"].extend(shown)

    def _moments(self, values_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return self.accelerator.reduce(masked_moments(values_BT, mask_BT), reduction="sum")

    def _log_tokens(self, mode: str, mask_BT: Tensor, tensors: dict[str, Tensor]) -> tuple[float, dict[str, float]]:
        """Append the mean over the generated tokens of all processes to each metric; return their number and sums."""
        mask_BT = mask_BT.float()
        sums = torch.stack([mask_BT.sum(), *((tensor.detach().float() * mask_BT).sum() for tensor in tensors.values())])
        count, *totals = self.accelerator.reduce(sums, reduction="sum").tolist()
        for name, total in zip(tensors, totals, strict=True):
            self._metrics[mode][name].append(total / max(count, 1.0))
        return count, dict(zip(tensors, totals, strict=True))

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        """Order prompts by seed and epoch, so that a resumed run sees the same ones."""
        return EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save the critic and the running statistics beside the policy."""
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            save_state(folder, self._critic(), self.kl_controller, self.scoring.normalizer)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore the critic and the running statistics with the optimizer."""
        if checkpoint is not None:
            load_state(Path(checkpoint), self._critic(), self.kl_controller, self.scoring.normalizer)
        super()._load_optimizer_and_scheduler(checkpoint)


def _generated_tokens(batch: dict[str, Any]) -> Tensor:
    mask_BT = batch["completion_mask"]
    return mask_BT * batch["tool_mask"] if "tool_mask" in batch else mask_BT


def _last_part(model: Any) -> str:
    name = model if isinstance(model, str) else model.config._name_or_path
    return name.rstrip("/").split("/")[-1] or "model"
