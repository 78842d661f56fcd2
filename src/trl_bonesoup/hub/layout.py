"""From values to a card: the templates, and the picture beside it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_bonesoup.errors import ConfigurationError

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData

PLOT_SUFFIXES = (".png", ".svg", ".jpg", ".jpeg", ".webp")

__all__ = ["plot_name", "render"]


def render(data: ModelCardData, template: str, **values: Any) -> ModelCard:
    """Return a card from its own template and the end that all cards share.

    Args:
        data: its metadata.
        template: name of the file in `templates`.
        values: what the templates name. Values are put in as they are and never read as templates.
    """
    from huggingface_hub import ModelCard

    folder = files(__package__) / "templates"
    texts = [(folder / name).read_text(encoding="utf-8") for name in ("metadata.md", template, "end.md")]
    return ModelCard.from_template(data, template_str="".join([*texts, "\n"]), **values)


def plot_name(plot_path: str | Path) -> str:
    """Return the name of a card's picture in the folder of the card.

    Raises:
        ConfigurationError: for a picture that no card can show.
    """
    suffix = Path(plot_path).suffix.lower()
    if suffix not in PLOT_SUFFIXES:
        raise ConfigurationError(f'A card shows pictures of {", ".join(PLOT_SUFFIXES)}; got "{suffix}".')
    return f"front{suffix}"
