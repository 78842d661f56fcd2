"""LoRA on a base of 4-bit weights (QLoRA), which bitsandbytes computes on a CPU as well."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from tiny import count_word, save_tiny
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_bonesoup import MultiRewardPPOTrainer

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def test_lora_learns_on_a_quantized_base(prompts: Dataset, settings: Any, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", hidden_size=64, intermediate_size=64)
    trainer = MultiRewardPPOTrainer(
        str(base), [count_word("w5"), count_word("w7")], [1.0, 0.0],
        args=settings(max_steps=50, per_device_train_batch_size=16), train_dataset=prompts, peft_config=LORA,
        quantization_config=NF4,
    )  # fmt: skip
    layer = trainer.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert layer.weight.dtype == torch.uint8
    before = layer.weight.clone()
    trainer.train()
    curve = [entry["rewards/says_w5/mean"] for entry in trainer.state.log_history if "reward" in entry]
    assert np.mean(curve[-5:]) > 2 * np.mean(curve[:5]) + 0.2
    assert torch.equal(layer.weight, before)
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, quantization_config=NF4), tmp_path / "adapter"
    )
    adapter = {name: value for name, value in trainer.model.named_parameters() if ".lora_" in name}
    assert {value.dtype for value in adapter.values()} == {torch.bfloat16}  # TRL trains adapters of 4-bit bases so
    for name, value in loaded.named_parameters():
        if ".lora_" in name:
            assert torch.equal(value.to(torch.bfloat16), adapter[name]), name
