"""What the repository of a family holds: soup.json, backbones, a local base model, the front; and the cards."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Unpack

from trl_bonesoup.card_metadata import hub_id
from trl_bonesoup.errors import ConfigurationError, SoupError
from trl_bonesoup.front.front import Front
from trl_bonesoup.hub.describe import CardMetadata, describe_family
from trl_bonesoup.hub.plan import BACKBONES, BASE
from trl_bonesoup.hub.portable import cleaned, portable_manifest
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.markdown import last_folder
from trl_bonesoup.privacy import Content, model_file
from trl_bonesoup.soup.download import MODEL_FILES
from trl_bonesoup.soup.source import SoupSource
from trl_bonesoup.training.card import backbone_card
from trl_bonesoup.training.record import BackboneRecord

_OF_FULL_MODELS = ("config.json", "generation_config.json", "model*")
_OF_ADAPTERS = ("adapter_*",)

__all__ = ["PublishedBase", "family_files", "model_files", "published_base", "published_manifest", "safe_name"]


@dataclass(frozen=True)
class PublishedBase:
    """Where those who load a published soup find its base model.

    Attributes:
        id: Hub id, or `base`, a folder of the family's repository.
        revision: commit hash of the Hub id, if one is known.
        folder: from where it is uploaded; None if it is on the Hub already.
        own_repo: it is uploaded into the repository `id`.
    """

    id: str
    revision: str | None = None
    folder: Path | None = None
    own_repo: bool = False

    @property
    def named_by_adapters(self) -> tuple[str | None, str | None]:
        """What an adapter_config.json says; PEFT looks there for a Hub id, so a folder of the repository is none."""
        return (None, None) if self.folder and not self.own_repo else (self.id, self.revision)


def published_base(source: SoupSource, repo_id: str, *, base_model: str | None, single_adapters: bool) -> PublishedBase:
    """Decide where the base model of a published soup is.

    Args:
        source: the soup; one that records a Hub id keeps it.
        repo_id: of the family.
        base_model: Hub id to name in place of a local base model, which is then not uploaded.
        single_adapters: soups are published as adapters of their own. PEFT finds the base model of an adapter only
            as a repository, so a local one gets a repository, too.

    Raises:
        ConfigurationError: if the base model is not found, or `base_model` is no Hub id.
    """
    if base_model is not None:
        if hub_id(base_model) is None or Path(base_model).exists():
            raise ConfigurationError(
                f"base_model={base_model!r} is no id of a model on the Hub. Without it, a base model that is a local "
                "folder is uploaded."
            )
        return PublishedBase(base_model)
    try:
        ref = source.base_model()
    except SoupError as error:
        raise ConfigurationError(
            f"{error} To publish the soup, name the base model's id on the Hub (--base-model ORG/NAME)."
        ) from error
    if not ref.is_local and ref.snapshot is None:
        return PublishedBase(ref.id, ref.revision)
    if single_adapters:
        return PublishedBase(f"{repo_id}-base", None, ref.folder(), own_repo=True)
    return PublishedBase(BASE, None, ref.folder())


def published_manifest(source: SoupSource, base: PublishedBase) -> SoupManifest:
    """Return soup.json as it is published, with the backbones that are here in folders of the repository."""
    manifest = source.manifest
    names = _distinct(safe_name(last_folder(backbone.path)) for backbone in manifest.backbones)
    paths = [
        f"{BACKBONES}/{name}" if _is_here(source, backbone.path) else backbone.path
        for name, backbone in zip(names, manifest.backbones, strict=True)
    ]
    return portable_manifest(manifest, (base.id, base.revision), paths)


def family_files(
    source: SoupSource,
    manifest: SoupManifest,
    base: PublishedBase,
    stage: Path,
    *,
    front: Front | None,
    repo_id: str,
    **metadata: Unpack[CardMetadata],
) -> dict[str, Content]:
    """Return the files of the family's repository by path.

    Args:
        source: the soup on this machine.
        manifest: from `published_manifest`.
        base: from `published_base`.
        stage: an empty folder for what is made here: soup.json, the front with its pictures, the family's card.
        front: measurements of the soups.
        repo_id: of the family.
        **metadata: for the cards.
    """
    files: dict[str, Content] = {}
    for j, (backbone, published, folder) in enumerate(
        zip(source.manifest.backbones, manifest.backbones, source.backbones(), strict=True)
    ):
        if published.path != backbone.path or _is_here(source, backbone.path):
            card = _backbone_card(source, manifest, j, base, **metadata)
            files |= _in_folder(published.path, {**model_files(folder, backbone.kind, base), "README.md": card})
    if base.folder is not None and not base.own_repo:
        files |= _in_folder(BASE, model_files(base.folder, "full", base))
        (stage / BASE).mkdir()  # by which the card knows that this is a folder and no Hub id
    manifest.save(stage)
    if front is not None:
        front = replace(front, provenance=cleaned(dict(front.provenance)))
        front.to_json(stage / "front.json")
        front.plot(stage / "steering.png", kind="preference")
    describe_family(SoupSource(manifest, stage), stage, front=front, repo_id=repo_id, **metadata)
    return files | {file.name: file.read_bytes() for file in sorted(stage.iterdir()) if file.is_file()}


def model_files(folder: Path, kind: str, base: PublishedBase) -> dict[str, Content]:
    """Return the files of one model that loading it needs: weights in safetensors, configs, tokenizer.

    Raises:
        SoupError: if it has no weights in safetensors.
    """
    others = _OF_FULL_MODELS if kind == "adapter" else _OF_ADAPTERS
    found = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and _matches(file.name, MODEL_FILES) and not _matches(file.name, others)
    ]
    if not any(file.suffix == ".safetensors" for file in found):
        raise SoupError(
            f"{folder} holds no weights in safetensors, and nothing else is published. Save it again with "
            "safe_serialization=True."
        )
    return {file.name: model_file(file, base.named_by_adapters) for file in found}


def safe_name(text: str) -> str:
    """Return text as a part of a path or of a repository's name.

    >>> safe_name("not too long!"), safe_name("..")
    ('not-too-long', 'x')
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)
    return re.sub(r"-{2,}|\.{2,}", "-", name).strip("-._") or "x"


def _backbone_card(
    source: SoupSource, manifest: SoupManifest, j: int, base: PublishedBase, **metadata: Unpack[CardMetadata]
) -> bytes:
    from trl_bonesoup.front.plots.training import read_training_logs

    log = source.folder / "logs" / f"{source.manifest.backbones[j].path}.json"
    (entries,) = read_training_logs(log).values() if log.is_file() else [[]]
    is_local = base.folder is not None and not base.own_repo
    record = BackboneRecord.from_manifest(manifest, j, is_local=is_local, log=entries)
    if is_local:  # the card says what it was called where this was trained
        record = replace(record, base_model=source.manifest.base_model.id)
    return str(backbone_card(record, name=last_folder(manifest.backbones[j].path), **metadata)).encode()


def _is_here(source: SoupSource, path: str) -> bool:
    return source.snapshot.holds(path) if source.snapshot is not None else (source.folder / path).is_dir()


def _distinct(names: Iterable[str]) -> list[str]:
    distinct: list[str] = []
    for name in names:
        others = 1
        while (candidate := name if others == 1 else f"{name}-{others}") in distinct:
            others += 1
        distinct.append(candidate)
    return distinct


def _in_folder(folder: str, files: dict[str, Content]) -> dict[str, Content]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
