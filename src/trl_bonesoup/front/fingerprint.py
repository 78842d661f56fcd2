"""Which files a model was loaded from, by their content: what tells whether two evaluations had the same model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from trl_bonesoup.soup.source import ModelRef
from trl_bonesoup.soup.tokenizers import TOKENIZER_FILES

_FILES = ("*.safetensors", "config.json", "adapter_config.json", "generation_config.json", *TOKENIZER_FILES)
"""What the answers of a model depend on."""

__all__ = ["fingerprint"]


def fingerprint(model: ModelRef) -> str:
    """Return the SHA-256 of a local model's weights, configuration and tokenizer, or the commit of one on the Hub.

    Reads every file once.
    """
    if model.is_local:
        return f"sha256:{_digest(Path(model.id))}"
    if model.snapshot is not None:
        return f"commit:{model.snapshot.commit}/{Path(model.id).relative_to(model.snapshot.folder).as_posix()}"
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model.id, "config.json", revision=model.revision)
    return f"commit:{Path(cached).parent.name if isinstance(cached, str) else model.revision}"


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name} {content}\n".encode())
    return total.hexdigest()
