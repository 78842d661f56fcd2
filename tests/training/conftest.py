"""A tiny policy, prompts, and short PPO settings."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tiny import save_tiny

from trl_bonesoup import MultiRewardPPOConfig


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("base")))


@pytest.fixture
def prompts() -> Dataset:
    return Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(16)]})


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    def make(**changes: Any) -> MultiRewardPPOConfig:
        chosen = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 8,
            "num_iterations": 2,
            "max_completion_length": 6,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "kl_coef": 0.05,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "activation_checkpointing": False,
            "seed": 3,
        }
        return MultiRewardPPOConfig(**{**chosen, **changes})

    return make
