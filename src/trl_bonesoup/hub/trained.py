"""What a card may say of the training: as trained by trl-bonesoup it names only what soup.json records as such."""

from __future__ import annotations

from collections.abc import Sequence

from trl_bonesoup.manifest import SoupManifest

PACKAGE = "trl-bonesoup"
"""`seek` records its version among those of the libraries that trained the backbones."""
TAGS = ("trl", "rlhf")
"""Of what it trained."""

__all__ = ["elsewhere", "tags"]


def elsewhere(manifest: SoupManifest) -> str:
    """Return what is known of backbones that were trained elsewhere, as of a soup.json that was written by hand.

    It follows "They were" in a sentence, and is empty for backbones that trl-bonesoup trained.
    """
    if PACKAGE in manifest.versions:
        return ""
    if manifest.training or manifest.versions or any(backbone.steps for backbone in manifest.backbones):
        return "trained elsewhere; what `soup.json` says of it is under Training"
    return "trained elsewhere, and how is not recorded"


def tags(manifest: SoupManifest, all_tags: Sequence[str]) -> list[str]:
    """Return the tags of a card, without those that say how its backbones were trained if nobody knows."""
    return [tag for tag in all_tags if not elsewhere(manifest) or tag not in TAGS]
