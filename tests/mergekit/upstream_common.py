"""The small models and the check of a merge that mergekit's own tests import as `tests.common`.

mergekit's source distribution has its test files without that module. The names here are those that the tests
import; what stands behind them is written for `run_upstream_tests.py`, which puts this file into its place.
"""

import tempfile
from pathlib import Path


def run_and_check_merge(
    config, check_nan=True, check_tensors=True, validate=None, index_json_name=None, auto_arch=False
):
    """Merge into a folder of its own, and check that it holds a whole model of finite numbers."""
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    with tempfile.TemporaryDirectory() as out:
        run_merge(config, out, MergeOptions())
        index = Path(out, index_json_name or "model.safetensors.index.json")
        assert index.exists() or index.with_name(index.name.removesuffix(".index.json")).exists(), "no weights written"
        assert Path(out, "config.json").exists(), "no config.json written"
        if check_nan:
            _assert_no_nan(out)
        if check_tensors:
            _assert_complete(out, config if auto_arch else None)
        if validate is not None:
            validate(out)


def _assert_no_nan(folder):
    from mergekit.io import LazyTensorLoader

    loader = LazyTensorLoader.from_disk(folder, lazy_unpickle=False)
    spoiled = [name for name in loader.index.tensor_paths if loader.get_tensor(name).isnan().any()]
    assert not spoiled, f"NaN in {spoiled}"


def _assert_complete(folder, config):
    from mergekit.architecture import arch_info_for_config, get_architecture_info
    from mergekit.io import LazyTensorLoader
    from mergekit.options import MergeOptions
    from transformers import AutoConfig

    written = set(LazyTensorLoader.from_disk(folder, lazy_unpickle=False).index.tensor_paths)
    out = AutoConfig.from_pretrained(folder)
    architecture = get_architecture_info(config, MergeOptions()) if config else arch_info_for_config(out)
    required = [weight for weight in architecture.all_weights(out) if not weight.optional]
    missing = [weight.name for weight in required if not written & {weight.name, *(weight.aliases or ())}]
    assert not missing, f"missing: {missing}"


def _llama_like(vocab_size=64, **sizes):
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 4, **sizes}
    return {"vocab_size": vocab_size, "num_hidden_layers": 2, **sizes}


def _saved(model, folder):
    model.save_pretrained(folder)
    return str(folder)


def make_picollama(path, vocab_size=64):
    from transformers import LlamaConfig, LlamaForCausalLM

    return _saved(LlamaForCausalLM(LlamaConfig(**_llama_like(vocab_size))), path)


def make_picogranite(path, vocab_size=64):
    from transformers import GraniteConfig, GraniteForCausalLM

    return _saved(GraniteForCausalLM(GraniteConfig(**_llama_like(vocab_size))), path)


def make_gpt2size(path):
    """A GPT-2 as deep as the smallest published one: the tests name its twelve layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return _saved(GPT2LMHeadModel(GPT2Config(vocab_size=128, n_positions=64, n_embd=48, n_layer=12, n_head=4)), path)


def make_picoLlaVa(path):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        image_size=16, patch_size=4, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2
    )
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**_llama_like()), image_seq_length=16)
    return _saved(LlavaForConditionalGeneration(config), path)
