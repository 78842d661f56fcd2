"""The card of a base model that is published beside the family which was trained from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from trl_bonesoup.card_metadata import card_data
from trl_bonesoup.hub.describe import CardMetadata
from trl_bonesoup.markdown import code, fenced

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

__all__ = ["base_card"]


def base_card(repo_id: str, family: str, **metadata: Unpack[CardMetadata]) -> ModelCard:
    """Return a card that says whose base model this is, and nothing of where it came from, which nobody recorded."""
    from huggingface_hub import ModelCard

    data = card_data(
        None,
        relation="finetune",
        library_name="transformers",
        tags=[],
        license=metadata.get("license"),
        language=metadata.get("language"),
    )
    example = fenced(
        "from trl_bonesoup import BoneSoup\n\n"
        f'soup = BoneSoup.from_pretrained("{family}")  # loads this model and the backbones',
        "python",
    )
    text = (
        f"The language model that the backbones of [{family}](https://huggingface.co/{family}) were trained from, as "
        "it was before. It is here so that adapters made from that family find it; where it came from was not recorded."
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {code(repo_id)}\n\n{text}\n\n{example}\n")
