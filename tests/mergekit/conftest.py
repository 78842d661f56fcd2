"""Tiny checkpoints, and merges of them through mergekit itself."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

LAYERS = 2


@pytest.fixture(scope="session", autouse=True)
def _method_is_known():
    import mergekit_bonesoup

    mergekit_bonesoup.register()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folder with `base`, `a`, `b`, `c` in float32 (also `-bfloat16`, `-float16`): random Llamas of 2 layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("checkpoints")
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    for seed, name in enumerate(("base", "a", "b", "c")):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            suffix = "" if dtype == torch.float32 else f"-{str(dtype).removeprefix('torch.')}"
            model.to(dtype).save_pretrained(folder / f"{name}{suffix}")
            model.float()
    return folder


@pytest.fixture(scope="session")
def adapters(checkpoints):
    """Folders of three LoRA adapters on `base`, with random factors and scale 2; and their ΔW in float64."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    folders, deltas = [], []
    for seed in range(3):
        torch.manual_seed(10 + seed)
        model = get_peft_model(
            LlamaForCausalLM.from_pretrained(checkpoints / "base"),
            LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        )
        factors = {}
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
                factors[name] = parameter.detach().double()
        folder = checkpoints / f"adapter-{seed}"
        model.save_pretrained(folder)
        folders.append(folder)
        deltas.append(
            {
                name.removeprefix("base_model.model.").replace(".lora_A.default", ""): 2.0
                * factors[name.replace("lora_A", "lora_B")]
                @ factor
                for name, factor in factors.items()
                if "lora_A" in name
            }
        )
    return folders, deltas


@pytest.fixture(scope="session")
def load():
    """Read a checkpoint's tensors in float64."""

    def load(folder):
        return {name: tensor.double() for name, tensor in load_file(Path(folder) / "model.safetensors").items()}

    return load


@pytest.fixture
def merge(tmp_path):
    """Merge a configuration (a dict) with mergekit's run_merge and return the tensors as written."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    def merge(config, **options):
        out = tmp_path / "merged"
        options = {"write_model_card": False, "copy_tokenizer": False, "quiet": True, **options}
        run_merge(MergeConfiguration.model_validate(copy.deepcopy(config)), str(out), MergeOptions(**options))
        return load_file(out / "model.safetensors")

    return merge


@pytest.fixture
def command(tmp_path):
    """Run mergekit-yaml in this process; return click's result and the folder it was to write."""
    from click.testing import CliRunner
    from mergekit.scripts.run_yaml import main

    def command(config, *arguments, out="out"):
        file, out = tmp_path / "bonesoup.yml", tmp_path / out
        file.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        return CliRunner().invoke(main, [str(file), str(out), *arguments]), out

    return command


@pytest.fixture
def constant(tmp_path):
    """Write a checkpoint like `base` whose every weight is one number, and return its path."""

    def constant(checkpoints, value, dtype=torch.float32):
        folder = tmp_path / f"constant-{value}"
        folder.mkdir()
        (folder / "config.json").write_bytes((checkpoints / "base" / "config.json").read_bytes())
        tensors = load_file(checkpoints / "base" / "model.safetensors")
        filled = {name: torch.full_like(tensor, value, dtype=dtype) for name, tensor in tensors.items()}
        save_file(filled, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)

    return constant
