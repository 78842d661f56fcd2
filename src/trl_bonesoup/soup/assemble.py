"""A soup.json for models that were trained elsewhere, and what stands between them and a soup."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import ValidationError

from trl_bonesoup.errors import ManifestError, SoupError
from trl_bonesoup.manifest import FILE_NAME, MODELS, Preference, SoupManifest
from trl_bonesoup.soup.adapter_config import CONFIG_FILE, read_settings
from trl_bonesoup.soup.adapters import Adapter, check_same_base, read_adapter
from trl_bonesoup.soup.agreement import check_recorded_base
from trl_bonesoup.soup.features import MERGE_FIRST
from trl_bonesoup.soup.mergeable import MergeableAdapter
from trl_bonesoup.soup.source import ModelRef, find_model
from trl_bonesoup.strict_json import problems
from trl_bonesoup.weights import check_combination_weights

_SAY_WHICH = "Say which model they were trained on with base_model= (--base-model)."

__all__ = ["Assembly", "Part", "assemble"]


@dataclass(frozen=True)
class Part:
    """What one backbone of an assembled soup is.

    Attributes:
        name: of its objective.
        what: in words, such as "LoRA adapter of rank 8".
        obstacle: why it does not mix as it is, and what to do; None if it does.
    """

    name: str
    what: str
    obstacle: str | None = None


@dataclass(frozen=True)
class Assembly:
    """What was written.

    Attributes:
        path: the soup.json.
        manifest: what is in it.
        parts: what each backbone is, in order.
        rank: of an exact adapter of this soup; None for full checkpoints, and if a part has an obstacle.
        other_base: how the adapters contradict the given base model, so that whoever loads the soup has to
            give it again; None if they do not.
    """

    path: Path
    manifest: SoupManifest
    parts: tuple[Part, ...]
    rank: int | None
    other_base: str | None


def assemble(
    backbones: Mapping[str, str | Path],
    out: str | Path,
    *,
    base_model: str | Path | None = None,
    combination_weights: ArrayLike | None = None,
    presets: Mapping[str, Preference] | None = None,
    overwrite: bool = False,
) -> Assembly:
    """Write the soup.json of models that were trained elsewhere, from one base model.

    Of adapters on the Hub the files are fetched, of full checkpoints config.json alone.

    Args:
        backbones: folder or Hub id of each model, by the name of what it is good at.
        out: the folder of soup.json. Paths of backbones are recorded from there, a base model outside of it
            by its absolute path, and Hub ids of backbones at the commit that they are now.
        base_model: folder or Hub id; by default the one that all adapters name.
        combination_weights: B of shape (N, N), column j for backbone j; by default the identity, which is
            right for models that were trained on one reward each.
        presets: preferences by name.
        overwrite: replace a soup.json that is there.

    Raises:
        SoupError: if a model is not found, the adapters name different base models, or there is no exact
            soup of any kind with some of them, saying why for each.
        ManifestError: if there is a soup.json already, or what it would hold is not valid.
        WeightsError: if `combination_weights` are none, or a preset is off the simplex.
        HubError: if a model cannot be fetched.
    """
    file = _target(out, overwrite)
    if len(backbones) < 2:
        raise ManifestError(f"A soup has two backbones or more; got {list(backbones)}.")
    models = {name: _Model.find(name, path) for name, path in backbones.items()}
    adapters = [model for model in models.values() if model.kind == "adapter"]
    base, revision = _base(base_model, adapters)
    parts, mixable = _parts(models)
    manifest = _manifest(models, file.parent, base, revision, combination_weights)
    for name, preference in (presets or {}).items():
        manifest = manifest.with_preset(name, preference)
    mixes = not any(part.obstacle for part in parts)
    try:
        manifest.save(file)
    except OSError as error:
        raise ManifestError(f"{file} cannot be written: {error.strerror}.") from error
    return Assembly(
        file,
        manifest,
        tuple(parts),
        _summed_rank(mixable) if mixes and mixable else None,
        None if base_model is None else _contradiction(adapters, mixable, base),
    )


@dataclass(frozen=True)
class _Model:
    """A model that was found: what is recorded of it, and where its files lie."""

    ref: ModelRef
    revision: str | None
    folder: Path
    kind: str
    config: dict[str, Any]

    @property
    def base_model(self) -> str | None:
        return self.config.get("base_model_name_or_path")

    @classmethod
    def find(cls, name: str, path: str | Path) -> _Model:
        ref = find_model(_expanded(path), None, Path.cwd(), f"backbone {name!r}", old_names=False)
        pinned = ref.pinned()
        folder = Path(pinned.id)
        kinds = [kind for file, kind in MODELS.items() if (folder / file).is_file()]
        if not kinds:
            raise SoupError(f"The folder {folder} holds no model: no {' and no '.join(MODELS)}.")
        if kinds[0] == "adapter":
            folder = pinned.folder()
        config = read_settings(folder / CONFIG_FILE) if kinds[0] == "adapter" else {}
        return cls(ref, pinned.snapshot.commit if pinned.snapshot else None, folder, kinds[0], config)

    def recorded(self, out: Path) -> dict[str, Any]:
        path = Path(os.path.relpath(self.ref.id, out)).as_posix() if self.ref.is_local else self.ref.id
        return {"path": path, "kind": self.kind, "revision": self.revision}

    def part(self, name: str, obstacle: str | None) -> Part:
        if self.kind == "full":
            return Part(name, "full checkpoint", obstacle)
        if self.config["peft_type"] != "LORA":
            return Part(name, f"{self.config['peft_type']} adapter", obstacle)
        rank = max([self.config["r"], *(self.config.get("rank_pattern") or {}).values()])
        return Part(name, f"{'rsLoRA' if self.config.get('use_rslora') else 'LoRA'} adapter of rank {rank}", obstacle)


def _expanded(path: str | Path) -> str:
    return os.path.expanduser(path)  # noqa: PTH111 - it may be a Hub id, whose text Path could change


def _target(out: str | Path, overwrite: bool) -> Path:
    file = Path(out).resolve()
    if file.name != FILE_NAME or file.is_dir():
        file = file / FILE_NAME
    if file.exists() and not overwrite:
        raise ManifestError(
            f"{file} is there already. Choose another folder, or replace it with overwrite=True (--overwrite)."
        )
    return file


def _base(given: str | Path | None, adapters: Sequence[_Model]) -> tuple[ModelRef, str | None]:
    """Return the base model and its revision: the one that was given, or that the adapters name."""
    if given is not None:
        return find_model(_expanded(given), None, Path.cwd(), "base model"), None
    check_same_base(adapters)
    named = adapters[0].base_model if adapters else None
    if not named:
        raise SoupError(f"No base model is named by the backbones. {_SAY_WHICH}")
    try:
        base = find_model(named, None, Path.cwd(), "base model of the adapters")
    except SoupError as error:
        raise SoupError(f"{error} {_SAY_WHICH}") from error
    revisions = {adapter.config.get("revision") for adapter in adapters}
    return base, revisions.pop() if len(revisions) == 1 and not base.is_local else None


def _parts(models: Mapping[str, _Model]) -> tuple[list[Part], list[Adapter]]:
    """Return what each backbone is, and the adapters that mix as they are.

    Raises:
        SoupError: if some mix neither as they are nor after merging, saying why for each of them.
    """
    one_kind = len({model.kind for model in models.values()}) == 1
    parts, mixable, hopeless = [], [], []
    for name, model in models.items():
        obstacle = None
        if model.kind == "adapter":
            try:
                mixable.append(read_adapter(model.folder))
            except SoupError as error:
                obstacle = str(error)
                if not _merges(model.folder):
                    hopeless.append(f"{name}: {obstacle}")
            if obstacle is None and not one_kind:
                obstacle = f"A soup needs backbones of one kind, and others are full checkpoints. {MERGE_FIRST}"
        parts.append(model.part(name, obstacle))
    if hopeless:
        raise SoupError("\n".join(["No soup can be made with these backbones:", *hopeless]))
    return parts, mixable


def _merges(folder: Path) -> bool:
    try:
        MergeableAdapter.read(folder)
    except SoupError:
        return False
    return True


def _manifest(
    models: Mapping[str, _Model], out: Path, base: ModelRef, revision: str | None, weights: ArrayLike | None
) -> SoupManifest:
    base_id = base.id
    if base.is_local and Path(base.id).is_relative_to(out):
        base_id = Path(base.id).relative_to(out).as_posix()
    try:
        return SoupManifest.model_validate(
            {
                "base_model": {"id": base_id, "revision": revision},
                "objectives": [{"name": name, "reward": name} for name in models],
                "combination_weights": check_combination_weights(np.eye(len(models)) if weights is None else weights),
                "backbones": [model.recorded(out) for model in models.values()],
            }
        )
    except ValidationError as error:
        raise ManifestError(f"These backbones make no valid {FILE_NAME}: {problems(error, 'soup')}.") from error


def _summed_rank(adapters: Iterable[Adapter]) -> int:
    """Return the largest rank of a layer when all adapters are stacked."""
    ranks: dict[str, int] = {}
    for adapter in adapters:
        for name, module in adapter.modules.items():
            ranks[name] = ranks.get(name, 0) + module.rank
    return max(ranks.values())


def _contradiction(adapters: Sequence[_Model], mixable: Iterable[Adapter], base: ModelRef) -> str | None:
    try:
        check_same_base(adapters)
        check_recorded_base(mixable, base)
    except SoupError as error:
        return str(error)
    return None
