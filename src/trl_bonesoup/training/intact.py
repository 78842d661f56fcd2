"""Whether the files of a checkpoint were written to their ends: a crash leaves some that were not."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

__all__ = ["damaged_file", "missing_file"]

_ZIPPED = (".pt", ".pth", ".bin")
"""What `torch.save` writes: an archive, with its table of contents at the end and a checksum for each part."""

_TO_GO_ON = {"optimizer.pt": "optimizer.*", "scheduler.pt": "scheduler.pt", "rng_state.pth": "rng_state*.pth"}
"""What `Trainer` saves besides the weights, and how it is called with FSDP or several processes, too: all of it, or
with `save_only_model` none."""


def damaged_file(checkpoint: Path, *, thorough: bool) -> str | None:
    """Return the first file of a checkpoint that cannot be read to its end, by its name, or `None`.

    Args:
        checkpoint: its folder.
        thorough: compare checksums where a format has them, which reads as much as resuming does.
            Otherwise only ends and tables of contents are read.
    """
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        if not _is_whole(file, thorough):
            return file.relative_to(checkpoint).as_posix()
    return None


def missing_file(checkpoint: Path) -> str | None:
    """Return what a checkpoint should have and has not, or `None`.

    Checkpoints of sharded models keep what they need in folders, and are left to what wrote those.
    """
    if any(path.is_dir() for path in checkpoint.iterdir()):
        return None
    index = checkpoint / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        lost = next((name for name in shards if not (checkpoint / name).is_file()), None)
        if lost is not None:
            return lost
    elif not any((checkpoint / f"{kind}model.safetensors").is_file() for kind in ("adapter_", "")):
        return "adapter_model.safetensors or model.safetensors"
    lost = [name for name, pattern in _TO_GO_ON.items() if not any(checkpoint.glob(pattern))]
    return lost[0] if 0 < len(lost) < len(_TO_GO_ON) else None


def _is_whole(file: Path, thorough: bool) -> bool:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):  # compares the sizes in the header with that of the file
                return True
        if file.suffix == ".json":
            json.loads(file.read_bytes())
        if file.suffix in _ZIPPED:
            with zipfile.ZipFile(file) as archive:
                return not thorough or archive.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError):
        return False
    return True
