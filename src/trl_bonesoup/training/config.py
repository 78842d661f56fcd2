"""MultiRewardPPOConfig: TRL's GRPOConfig with PPO's settings, the paper's defaults, and no silent no-ops."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from trl import GRPOConfig

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.privacy import hide_tokens

_WITHOUT_EFFECT = (
    "delta",
    "importance_sampling_level",
    "loss_type",
    "multi_objective_aggregation",
    "off_policy_mask_threshold",
    "reward_weights",
    "router_aux_loss_coef",
    "top_entropy_quantile",
    "use_adaptive_entropy",
    "use_bias_correction_kl",
)
"""Settings of GRPO's loss that PPO's loss does not read."""


class _GroupSize(int):
    """A group size that GRPOConfig accepts even when it is 1: PPO has a critic and needs no groups."""

    def __lt__(self, other: object) -> bool:
        return False


@dataclass(repr=False)
class MultiRewardPPOConfig(GRPOConfig):
    """Settings of `MultiRewardPPOTrainer`.

    Everything that TRL's `GRPOConfig` says about models, generation (including vLLM), batches,
    logging and the Hub holds here too. What PPO adds or changes:

    - one rollout batch has `generation_batch_size` completions; it is gone through `num_iterations`
      times (PPO's epochs) in optimizer steps of `per_device_train_batch_size ·
      gradient_accumulation_steps · processes` completions. `num_mini_batches` sets how many
      optimizer steps make one epoch.
    - `epsilon` (and `epsilon_high`) clip the policy's ratio, `entropy_coef` weighs an entropy bonus.
    - a prompt and its completion must fit into the model's context; see `max_prompt_length`.

    Defaults are the paper's (its Appendix on PPO settings, and its published code) where it has one,
    and otherwise those of TRL's former `PPOConfig`, whose names are kept.
    """

    learning_rate: float = field(
        default=1e-5, metadata={"help": "Learning rate of AdamW. The paper uses Adam with 1e-5."}
    )
    num_generations: int = field(
        default=1, metadata={"help": "Completions per prompt in a rollout batch. PPO needs no groups: 1."}
    )
    num_iterations: int = field(
        default=4, metadata={"help": "PPO epochs: how often each rollout batch is used. The paper uses 4."}
    )
    num_mini_batches: int = field(
        default=1, metadata={"help": "Optimizer steps per PPO epoch; the rollout batch is divided evenly."}
    )
    scale_rewards: str = field(
        default="none", metadata={"help": "Not used: advantages come from the critic. Leave it at 'none'."}
    )
    beta: float | None = field(
        default=None,
        metadata={"help": "TRL's name of the KL coefficient. Use `kl_coef`: beta is the dominance β in this package."},
    )
    kl_coef: float = field(
        default=0.2,
        metadata={"help": "Weight of the per-token KL penalty inside the reward. 0 needs no reference model."},
    )
    kl_target: float | None = field(
        default=None,
        metadata={
            "help": "KL in nats per completion to which `kl_coef` is steered; None keeps it constant. "
            "The paper's published code uses 3."
        },
    )
    kl_horizon: int = field(
        default=10_000, metadata={"help": "Rollouts over which the adaptive `kl_coef` corrects a deviation."}
    )
    target_kl: float | None = field(
        default=None,
        metadata={
            "help": "Leave out the rest of a rollout batch's optimizer steps once the policy has moved this far from "
            "the one that generated it, in nats per token (the estimate r - 1 - log r); None never stops. Common: "
            "0.01 to 0.05. Not to be confused with `kl_target`, which is about the distance from the base model."
        },
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount γ per token. The paper uses 1."})
    lam: float = field(default=0.95, metadata={"help": "λ of generalised advantage estimation. The paper uses 0.95."})
    cliprange_value: float | None = field(
        default=0.2,
        metadata={"help": "How far a value may move from the rollout's value; None does not clip. The paper uses 0.2."},
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss. The paper uses 0.1."})
    critic_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the critic; None takes `learning_rate`."}
    )
    detach_critic: bool = field(
        default=False,
        metadata={"help": "Keep the value loss out of the policy's trunk: only the head learns from it."},
    )
    critic_warmup_steps: int = field(
        default=0,
        metadata={"help": "Optimizer steps at the start of training in which the critic learns and the policy rests."},
    )
    whiten_rewards: bool = field(
        default=False,
        metadata={
            "help": "Scale a rollout batch's rewards per token (KL penalty and scores) to variance 1, keeping "
            "their mean."
        },
    )
    whiten_advantages: bool = field(
        default=True,
        metadata={"help": "Shift and scale the advantages of a rollout batch to mean 0, variance 1."},
    )
    score_normalization: Literal["running", "fixed", "none"] = field(
        default="running",
        metadata={
            "help": "How each objective's scores are brought to one scale before they are weighted: by the running "
            "mean and standard deviation, by fixed `score_mean` and `score_std` (what `seek` sets, so that all "
            "backbones share one scale), or not at all."
        },
    )
    score_mean: list[float] | None = field(
        default=None, metadata={"help": "Mean of each objective's scores, for score_normalization='fixed'."}
    )
    score_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of each objective's scores, for 'fixed'."}
    )
    score_clip: float | None = field(
        default=None,
        metadata={
            "help": "Bound on each objective's normalised score, so that one outlier cannot rule a batch; None does "
            "not clip."
        },
    )
    missing_eos_penalty: float | None = field(
        default=None,
        metadata={"help": "Subtracted from the weighted score of a completion that was cut off."},
    )
    reward_timeout: float | None = field(
        default=None,
        metadata={
            "help": "Seconds that one call of a reward function may take before the run stops with its name; None sets "
            "no limit, and a call of more than 5 minutes is named in the log."
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={
            "help": "Keep only the last tokens of a longer prompt. None keeps prompts whole, and refuses a data set "
            "with a prompt that does not fit into the model's context together with `max_completion_length`."
        },
    )

    def __post_init__(self) -> None:
        """Check the settings, then let GRPOConfig complete them."""
        if self.beta is not None:
            raise ConfigurationError(
                f"beta={self.beta!r} is TRL's name of the KL coefficient; pass kl_coef={self.beta!r} instead. The "
                "paper's β (dominance) belongs in circulant_weights(n, beta)."
            )
        self._check_ignored_settings()
        self._check_ranges()
        if getattr(self, "bf16", None) is None and not self.fp16:
            self.bf16 = _has_bf16_accelerator()
        if self.generation_batch_size is None and getattr(self, "steps_per_generation", None) is None:
            self.steps_per_generation = self.gradient_accumulation_steps * self.num_mini_batches
        elif self.num_mini_batches != 1:
            raise ConfigurationError(
                f"num_mini_batches={self.num_mini_batches} sets the size of the rollout batch; do not pass "
                "generation_batch_size or steps_per_generation with it."
            )
        self.num_generations = _GroupSize(self.num_generations)
        super().__post_init__()
        self.num_generations = int(self.num_generations)

    @property
    def steps_per_rollout(self) -> float:
        """Optimizer steps between two rollouts."""
        return self.num_iterations * self.steps_per_generation / self.gradient_accumulation_steps

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as what logs to TensorBoard, W&B and others gets them: without tokens."""
        return hide_tokens(super().to_dict())

    def __repr__(self) -> str:
        shown = hide_tokens({setting.name: getattr(self, setting.name) for setting in fields(self)})
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    __str__ = __repr__

    def _check_ignored_settings(self) -> None:
        for setting in fields(GRPOConfig):
            if setting.name not in _WITHOUT_EFFECT:
                continue
            default = setting.default if setting.default is not MISSING else None
            if getattr(self, setting.name) != default:
                raise ConfigurationError(
                    f"{setting.name}={getattr(self, setting.name)!r} belongs to GRPO's loss and has no effect in PPO; "
                    f"leave it at {default!r}."
                    + (" Pass combination_weights to the trainer." if setting.name == "reward_weights" else "")
                )

    def _check_ranges(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise ConfigurationError(message)

        need(self.num_generations >= 1, f"num_generations must be at least 1; got {self.num_generations}.")
        need(self.num_iterations >= 1, f"num_iterations must be at least 1; got {self.num_iterations}.")
        need(self.num_mini_batches >= 1, f"num_mini_batches must be at least 1; got {self.num_mini_batches}.")
        need(self.kl_coef >= 0, f"kl_coef must not be negative; got {self.kl_coef}.")
        need(
            self.kl_target is None or self.kl_target > 0,
            f"kl_target must be above 0 or None; got {self.kl_target}.",
        )
        need(
            self.kl_target is None or self.kl_coef > 0,
            "kl_target steers kl_coef, which must start above 0; got kl_coef=0.",
        )
        need(
            self.target_kl is None or self.target_kl > 0,
            f"target_kl must be above 0 or None; got {self.target_kl}.",
        )
        need(
            self.target_kl is None or not self.fp16,
            "target_kl leaves out optimizer steps, which fp16's gradient scaler does not allow; use bf16.",
        )
        need(self.kl_horizon > 0, f"kl_horizon must be above 0; got {self.kl_horizon}.")
        need(0 <= self.gamma <= 1, f"gamma must be in [0, 1]; got {self.gamma}.")
        need(0 <= self.lam <= 1, f"lam must be in [0, 1]; got {self.lam}.")
        need(self.vf_coef >= 0, f"vf_coef must not be negative; got {self.vf_coef}.")
        need(
            self.cliprange_value is None or self.cliprange_value > 0,
            f"cliprange_value must be above 0 or None; got {self.cliprange_value}.",
        )
        need(
            self.critic_warmup_steps >= 0, f"critic_warmup_steps must not be negative; got {self.critic_warmup_steps}."
        )
        need(
            self.score_clip is None or self.score_clip > 0,
            f"score_clip must be above 0 or None; got {self.score_clip}.",
        )
        need(
            self.reward_timeout is None or self.reward_timeout > 0,
            f"reward_timeout must be above 0 seconds or None; got {self.reward_timeout}.",
        )
        need(
            self.max_prompt_length is None or self.max_prompt_length >= 1,
            f"max_prompt_length must be at least 1 or None; got {self.max_prompt_length}.",
        )
        need(
            self.score_normalization in ("running", "fixed", "none"),
            f"score_normalization must be 'running', 'fixed' or 'none'; got {self.score_normalization!r}.",
        )
        fixed = self.score_normalization == "fixed"
        need(
            fixed == (self.score_mean is not None) == (self.score_std is not None),
            "score_mean and score_std belong to score_normalization='fixed', which needs both; got "
            f"{self.score_normalization!r} with score_mean={self.score_mean} and score_std={self.score_std}.",
        )


def _has_bf16_accelerator() -> bool:
    from transformers.utils import is_torch_bf16_gpu_available

    return bool(is_torch_bf16_gpu_available())
