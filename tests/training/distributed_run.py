"""Short training runs in as many processes as the launcher started; what they learned is written into a folder.

Called as `torchrun … distributed_run.py FOLDER`, or by functions in the test's own process.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from trl_bonesoup import MultiRewardPPOConfig, MultiRewardPPOTrainer, circulant_weights, seek
from trl_bonesoup.errors import ConfigurationError

GLOBAL_BATCH = 8
EOS_SCALE = 3.0
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
PROMPTS = Dataset.from_dict({"prompt": [f"w{i} w{(7 * i) % 29}" for i in range(16)]})
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {},
    "early stopping": {"num_iterations": 4, "target_kl": 2e-3},
}


def settings(output_dir: Path, processes: int, **changes: Any) -> MultiRewardPPOConfig:
    """Three rollouts of two epochs, with everything on that has a state."""
    chosen = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": GLOBAL_BATCH // processes,
        "num_iterations": 2,
        "max_completion_length": 6,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-3,  # by default Adam makes whole steps of gradients that are rounding errors
        "top_k": 1,
        "kl_coef": 0.05,
        "kl_target": 0.5,
        "kl_horizon": 20,
        "score_normalization": "running",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "activation_checkpointing": False,
        "seed": 3,
    }
    return MultiRewardPPOConfig(**{**chosen, **changes})


def train(folder: Path, kind: str, processes: int, **changes: Any) -> dict[str, Any]:
    """Train on the same global batch whatever the number of processes.

    Sampling is greedy, because random numbers are drawn per process, and an epoch of mini-batches
    is the whole batch, because each process shuffles its own part.

    Returns:
        policy and critic by name, the log, and the state of the KL controller and the normaliser.
    """
    trainer = MultiRewardPPOTrainer(
        str(folder / "base"),
        [distinct_words, even_words],
        [0.7, 0.3],
        args=settings(folder / kind, processes, **KINDS[kind], **changes),
        train_dataset=PROMPTS,
        peft_config=None if kind == "full" else copy.deepcopy(LORA),
    )
    trainer.train()
    policy = trainer.accelerator.get_state_dict(trainer.model)  # whole, if only in the main process
    learned = [name for name, value in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
               if value.requires_grad]  # fmt: skip
    critic = trainer.accelerator.unwrap_model(trainer.critic)
    return {
        "processes": trainer.accelerator.num_processes,
        "sharded": all(hasattr(value, "to_local") for value in trainer.model.parameters()),
        "policy": {name: policy[name].detach().clone() for name in learned if name in policy},
        "critic": {name: value.detach().clone() for name, value in critic.named_parameters()},
        "log": [dict(entry) for entry in trainer.state.log_history],
        "kl_coef": trainer.kl_controller.coef,
        "scores": trainer.scoring.normalizer.state_dict(),
    }


def distinct_words(completions: list[str], **columns: Any) -> list[float]:
    """Count the distinct words, which differ between completions from the first rollout on."""
    return [float(len(set(text.split()))) for text in completions]


def even_words(completions: list[str], **columns: Any) -> list[float]:
    """Count the words with an even number."""
    return [float(sum(word[-1] in "02468" for word in text.split())) for text in completions]


def prepare(folder: Path) -> Path:
    """Save a base model some of whose completions end early, so that processes hold unequal numbers of tokens."""
    save_tiny(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] *= EOS_SCALE
    model.save_pretrained(folder / "base")
    return folder


def seek_all(folder: Path, processes: int, dominance: float) -> dict[str, Any]:
    """Train both backbones of a soup; return what each process was told: the manifest or an error."""
    try:
        manifest = seek(
            str(folder / "base"),
            [distinct_words, even_words],
            circulant_weights(2, dominance),
            settings(folder / "run", processes),
            PROMPTS,
            peft_config=LORA,
            calibration_samples=8,
        )
    except ConfigurationError as error:
        return {"error": str(error)}
    return {"manifest": None if manifest is None else manifest.model_dump_json()}


def main(folder: Path) -> None:
    """Train every kind of backbone, then a soup in three calls, and save what each process learned."""
    state = PartialState(cpu=True)
    for kind in KINDS:
        result = train(folder, kind, state.num_processes)
        if state.is_main_process:
            torch.save(result, folder / f"{kind}.pt")
    calls = [seek_all(folder, state.num_processes, dominance) for dominance in (0.7, 0.7, 0.8)]
    (folder / f"seek-{state.process_index}.json").write_text(json.dumps(calls))


def shard(folder: Path) -> None:
    """Train adapters and a full model under FSDP2, with CPUs that accelerate takes for GPUs."""
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    for kind in ("lora", "full"):
        result = train(folder, kind, 2, use_cpu=False, dataloader_pin_memory=False, bf16=False)
        if PartialState().is_main_process:
            torch.save(result, folder / f"{kind}-sharded.pt")


if __name__ == "__main__":
    {"main": main, "shard": shard}[sys.argv[2]](Path(sys.argv[1]))
