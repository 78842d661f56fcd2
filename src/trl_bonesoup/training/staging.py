"""What of a backbone is uploaded: a folder with the files that loading or resuming needs, and nothing private.

`Trainer` uploads its whole output folder. In it are training_args.bin (a pickle with the Hub token and local
paths), event files named after the host, logged completions, adapter_config.json and a card with the
path of a local base model. Here everything is left out that is not on a short list, the JSON files on the
list lose the paths of this machine, and the result is searched once more before it is sent.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from trl_bonesoup.errors import HubError
from trl_bonesoup.privacy import json_bytes, model_file

_WEIGHTS = re.compile(r"(adapter_model|model)(-\d+-of-\d+)?\.safetensors")
_MODEL = re.compile(
    rf"{_WEIGHTS.pattern}|model\.safetensors\.index\.json|(config|generation_config|adapter_config)\.json"
)
_TRAINER_STATE = "trainer_state.json"
_RESUME = re.compile(r"critic\.safetensors|bonesoup_state\.json|(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth")

__all__ = ["add_checkpoint", "add_model"]


def add_model(stage: Path, saved: Path, processing_class: Any, base: tuple[str | None, str | None]) -> None:
    """Put into `stage` what is needed to load the model that was saved in a folder.

    Args:
        stage: the folder that is uploaded.
        saved: the output folder of a trainer, or a checkpoint.
        processing_class: the tokenizer or processor; None leaves it out.
        base: see `privacy.portable_config`.

    Raises:
        HubError: if no weights in safetensors were saved there.
        SoupError: for a configuration that is not a JSON object.
    """
    stage.mkdir(parents=True, exist_ok=True)
    found = [file for file in sorted(saved.iterdir()) if file.is_file() and _MODEL.fullmatch(file.name)]
    if not any(_WEIGHTS.fullmatch(file.name) for file in found):
        raise HubError(
            f"{saved} holds no weights in safetensors to upload. FSDP and DeepSpeed gather them only with "
            "FULL_STATE_DICT or stage3_gather_16bit_weights_on_model_save."
        )
    for file in found:
        _link(file, stage / file.name)
    if processing_class is not None:
        processing_class.save_pretrained(stage)
    for file in stage.glob("*config.json"):
        content = model_file(file, base)
        if isinstance(content, bytes):
            _write(file, content)


def add_checkpoint(stage: Path, checkpoint: Path, base: tuple[str | None, str | None]) -> None:
    """Put into `stage` what is needed to resume from a checkpoint, so without training_args.bin, which nothing reads.

    Raises:
        HubError, SoupError: as in `add_model`.
    """
    add_model(stage, checkpoint, None, base)
    for file in sorted(checkpoint.iterdir()):
        if file.is_file() and _RESUME.fullmatch(file.name):
            _link(file, stage / file.name)
    state = json.loads((checkpoint / _TRAINER_STATE).read_text(encoding="utf-8"))
    _write(stage / _TRAINER_STATE, json_bytes({**state, "best_model_checkpoint": None}))


def _link(source: Path, target: Path) -> None:
    """Make a file available in another folder of the same disk; it stays if the first is removed meanwhile."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _write(target: Path, content: bytes) -> None:
    """Replace a file, which may be a link to one that must stay as it is."""
    beside = target.with_name(f".{target.name}")
    beside.write_bytes(content)
    beside.replace(target)
