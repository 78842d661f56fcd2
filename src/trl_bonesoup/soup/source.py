"""Where a soup's parts lie: soup.json, the base model and the backbones, on disk or on the Hub."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from trl_bonesoup.errors import HubError, SoupError
from trl_bonesoup.manifest import FILE_NAME, MODELS, Preference, SoupManifest
from trl_bonesoup.soup.download import Snapshot

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)

__all__ = ["ModelRef", "SoupSource", "find_model", "open_soup"]


@dataclass(frozen=True)
class ModelRef:
    """A model that transformers can load: a local folder, a Hub id with its revision, or a folder of a snapshot.

    Attributes:
        id: an absolute path or a Hub id.
        revision: of the Hub id.
        snapshot: the repository that the folder `id` is a part of, from which it is fetched when needed.
        hint: what else to say if it is not on the Hub.
    """

    id: str
    revision: str | None = None
    snapshot: Snapshot | None = None
    hint: str = field(default="", compare=False)

    @classmethod
    def named(cls, name: str | Path, revision: str | None = None) -> ModelRef:
        """Return the model that a person names: a folder if there is one, else a Hub id."""
        return cls(str(Path(name).resolve())) if _is_dir(name) else cls(str(name), revision)

    @classmethod
    def on_hub(cls, name: str, revision: str | None, role: str, instead: str, *, old_names: bool = True) -> ModelRef:
        """Return a model on the Hub.

        Args:
            name: its id.
            revision: commit, tag or branch.
            role: what names it, for the message.
            instead: what else it could have been, for the message.
            old_names: take the ids without an organisation that the oldest repositories have.

        Raises:
            SoupError: if it is no Hub id.
        """
        if not _HUB_ID.fullmatch(name) or not (old_names or "/" in name):
            raise SoupError(f"The {role} is {name!r}, which is neither {instead} nor a Hub id.")
        return cls(name, revision)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine, of this machine's owner."""
        return self.snapshot is None and os.path.isabs(self.id) and _is_dir(self.id)  # noqa: PTH117 - beside _is_dir

    def pinned(self) -> ModelRef:
        """Return the same model at the commit that its revision is now.

        Raises:
            HubError: if it cannot be fetched.
            SoupError: if the repository holds no model.
        """
        if self.snapshot is not None or self.is_local:
            return self
        with _hinting(self.hint):
            snapshot = Snapshot.open(self.id, self.revision, list(MODELS))
        if not snapshot.folder.is_dir():
            at = f" at revision {self.revision!r}" if self.revision else ""
            raise SoupError(f"The repository {self.id}{at} holds no model: no config.json and no adapter_config.json.")
        return ModelRef(str(snapshot.folder), snapshot=snapshot)

    def folder(self, *, code: bool = False) -> Path:
        """Return its folder, fetching it from the Hub if needed; with `code`, its Python files too.

        Raises:
            HubError, SoupError: see `pinned`.
        """
        model = self.pinned()
        if model.snapshot is None:
            return Path(model.id)
        return model.snapshot.fetch(Path(model.id).relative_to(model.snapshot.folder).as_posix(), code=code)


@dataclass(frozen=True)
class SoupSource:
    """An opened soup.json and the rules by which the paths in it are followed.

    A folder on this machine is trusted to name any path. What comes from the Hub names folders of its own
    repository and other repositories, nothing else.

    Attributes:
        manifest: what was trained.
        folder: where soup.json lies; relative paths start here.
        base_override: a base model to use in place of the recorded one.
        snapshot: the commit on the Hub that soup.json is from; None if it is a folder on this machine.
    """

    manifest: SoupManifest
    folder: Path
    base_override: str | None = None
    snapshot: Snapshot | None = None

    @property
    def from_hub(self) -> bool:
        """Whether soup.json was downloaded, so that no path in it may leave `folder`."""
        return self.snapshot is not None

    @property
    def kind(self) -> str:
        """`adapter` or `full`.

        Raises:
            SoupError: if the backbones are some of each.
        """
        kinds = {backbone.kind for backbone in self.manifest.backbones}
        if len(kinds) > 1:
            raise SoupError(
                f"The backbones of {self.folder} are of kinds {sorted(kinds)}; a soup needs all of one kind. "
                "`bonesoup to-full SOUP OUT` merges each adapter into a full checkpoint."
            )
        return kinds.pop()

    def base_model(self) -> ModelRef:
        """Return the model that every backbone started from.

        Raises:
            SoupError: if it is a folder that does not exist here, or that a Hub soup may not name.
        """
        if self.base_override is not None:
            return find_model(self.base_override, None, Path.cwd(), "base_model")
        record = self.manifest.base_model
        try:
            return self._find(record.id, record.revision, "base_model")
        except SoupError as error:
            raise SoupError(f"{error} Pass base_model= (--base-model) to say where the base model is.") from error

    def backbones(self, *, code: bool = False) -> list[Path]:
        """Return the folders of the N backbones in order, fetching from the Hub those that lie there.

        Args:
            code: fetch their Python files, too.

        Raises:
            SoupError: if soup.json names what it may not or what is not there; nothing is fetched then.
            HubError: if one cannot be fetched; what is complete is kept.
        """
        return [backbone.folder(code=code) for backbone in self._pinned]

    @cached_property
    def _pinned(self) -> list[ModelRef]:  # once, so that a branch on the Hub that moves meanwhile gives no mixture
        return [backbone.pinned() for backbone in self._backbones()]

    def _backbones(self) -> list[ModelRef]:
        return [
            self._find(backbone.path, backbone.revision, f"backbone {j}", old_names=False)
            for j, backbone in enumerate(self.manifest.backbones)
        ]

    def with_preset(self, name: str, preference: Preference) -> SoupSource:
        """Return the same soup, at the same commits, with a named preference added or changed.

        Raises:
            WeightsError, ManifestError: see `SoupManifest.with_preset`.
        """
        changed = replace(self, manifest=self.manifest.with_preset(name, preference))
        vars(changed).update({key: value for key, value in vars(self).items() if key == "_pinned"})
        return changed

    def fetch(self) -> None:
        """Fetch what lies in the soup's own repository, so that other programs find it there."""
        for model in (*self._backbones(), self.base_model()):
            if model.snapshot is not None:
                model.folder()

    def inputs(self) -> list[Path]:
        """Return the folders on this machine that writing a soup must leave alone, without fetching any."""
        models = self._backbones()
        with contextlib.suppress(SoupError):
            models.append(self.base_model())
        return [self.folder, *(Path(model.id) for model in models if model.is_local)]

    def _find(self, name: str, revision: str | None, role: str, *, old_names: bool = True) -> ModelRef:
        role = f"{role} of soup.json"
        if self.snapshot is None:
            return find_model(name, revision, self.folder, role, old_names=old_names)
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise SoupError(
                f"The {role} is {name!r}, outside the soup's own folder; in a soup that comes from the Hub such paths "
                "are not followed."
            )
        path = str(PurePosixPath(name))
        if self.snapshot.holds(path):
            return ModelRef(str(self.folder / path), snapshot=self.snapshot)
        instead = f"a folder of {self.snapshot.repo} at commit {self.snapshot.commit}"
        return ModelRef.on_hub(name, revision, role, instead, old_names=old_names)


def find_model(name: str, revision: str | None, folder: Path, role: str, *, old_names: bool = True) -> ModelRef:
    """Return the model of this name: a folder, from `folder` on, or else what is on the Hub.

    Args:
        name: a path or an id.
        revision: of the id.
        folder: where relative paths start.
        role: what names it, for messages.
        old_names: see `ModelRef.on_hub`.

    Raises:
        SoupError: if it is neither a folder nor an id.
    """
    local = folder / name
    if _is_dir(local):
        return ModelRef(str(local.resolve()))
    hint, instead = _if_meant_from_here(name, folder), f"a folder on this machine ({local})"
    try:
        model = ModelRef.on_hub(name, revision, role, instead, old_names=old_names)
    except SoupError as error:
        raise SoupError(f"{error}{hint}") from error
    return replace(model, hint=f" There is no folder {local} either.{hint}")


def open_soup(path: str | Path, *, base_model: str | Path | None = None, revision: str | None = None) -> SoupSource:
    """Open a soup from a local folder (or its soup.json), or from the Hub.

    Args:
        path: local folder, soup.json, or Hub id.
        base_model: use this Hub id or folder as the base model in place of the recorded one.
        revision: commit, branch or tag on the Hub.

    Raises:
        SoupError: if it is neither a folder here nor a soup on the Hub.
        HubError: if it cannot be fetched, saying why and what to do.
        ManifestError: if its soup.json is missing or invalid.
    """
    override = None if base_model is None else str(base_model)
    local = Path(path)
    if os.path.isfile(local):  # noqa: PTH113 - Path.is_file raises for a name that is too long
        local = local.parent
    if _is_dir(local):
        return SoupSource(SoupManifest.load(local), local.resolve(), override)
    if not _HUB_ID.fullmatch(str(path)):
        raise SoupError(f"There is no folder {path}; give the folder of a {FILE_NAME} or a Hub id like org/name.")
    with _hinting(f" There is no folder {local.absolute()} either."):
        snapshot = Snapshot.open(str(path), revision, [FILE_NAME])
    if not (snapshot.folder / FILE_NAME).is_file():
        raise SoupError(
            f"The repository {path} at commit {snapshot.commit} has no {FILE_NAME}, so it is no soup. `bonesoup push` "
            "makes one; a single model is loaded with transformers or PEFT."
        )
    return SoupSource(SoupManifest.load(snapshot.folder), snapshot.folder, override, snapshot)


@contextlib.contextmanager
def _hinting(hint: str) -> Iterator[None]:
    """Add to what the Hub's client says; a path with a typing error looks like an id."""
    try:
        yield
    except HubError as error:
        raise HubError(f"{error}{hint}") from error


def _if_meant_from_here(name: str, folder: Path) -> str:
    """Return what to write for a path that would be right from the working directory."""
    meant = Path.cwd() / name
    if folder == Path.cwd() or not _is_dir(meant):
        return ""
    return f" Paths in {FILE_NAME} count from its folder: write {Path(os.path.relpath(meant, folder)).as_posix()!r}."


def _is_dir(path: str | Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for a name that is too long
