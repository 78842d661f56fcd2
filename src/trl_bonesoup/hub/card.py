"""Model cards, and how one gets into the folder of what it describes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from trl_bonesoup.card_metadata import TAG
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.hub.family_card import family_card
from trl_bonesoup.hub.layout import plot_name
from trl_bonesoup.hub.soup_card import soup_card

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

FILE_NAME = "README.md"

__all__ = ["FILE_NAME", "check_replaceable", "family_card", "soup_card", "write_card"]


def write_card(folder: str | Path, card: ModelCard, plot_path: str | Path | None = None) -> Path:
    """Save a card as README.md into the folder of its soup, with the picture beside it, and return its path.

    Args:
        folder: of the adapter, the checkpoint or the family; an older README.md there is replaced.
        card: from `soup_card` or `family_card`.
        plot_path: the same as given to it.

    Raises:
        ConfigurationError: for a picture that no card can show or that does not exist.
    """
    target = Path(folder) / FILE_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    if plot_path is not None:
        source, copy = Path(plot_path), target.with_name(plot_name(plot_path))
        if not source.is_file():
            raise ConfigurationError(f"There is no picture at {source}. Draw it first, with `front.plot(path)`.")
        if not (copy.exists() and copy.samefile(source)):
            shutil.copyfile(source, copy)
    beside = target.with_name(f".{FILE_NAME}.{os.getpid()}")
    card.save(beside)
    beside.replace(target)
    return target


def check_replaceable(folder: str | Path) -> None:
    """Check that no README.md would be lost that somebody wrote: there is none, or it is a card of ours.

    Raises:
        ConfigurationError: if there is another one.
    """
    file = Path(folder) / FILE_NAME
    if file.exists() and not _is_ours(file):
        raise ConfigurationError(
            f"{file} is not a card that trl-bonesoup wrote, and it would be replaced. Move it away, or overwrite it "
            "with --overwrite."
        )


def _is_ours(file: Path) -> bool:
    from huggingface_hub import ModelCard

    try:
        tags = ModelCard.load(file).data.tags
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(tags, list) and TAG in tags
