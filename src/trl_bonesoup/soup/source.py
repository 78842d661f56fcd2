"""Where a soup's parts lie: soup.json, the base model and the backbones, on disk or on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from trl_bonesoup.errors import SoupError
from trl_bonesoup.manifest import FILE_NAME, SoupManifest

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
"""What is fetched from the Hub: no pickles and no code."""

__all__ = ["ModelRef", "SoupSource", "fetch", "open_soup"]


@dataclass(frozen=True)
class ModelRef:
    """A model that transformers can load: a local folder or a Hub id with its revision."""

    id: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine."""
        return Path(self.id).is_dir()

    def folder(self) -> Path:
        """Return its folder, fetching it from the Hub if needed."""
        return Path(self.id) if self.is_local else fetch(self.id, self.revision)


@dataclass(frozen=True)
class SoupSource:
    """An opened soup.json and the rules by which the paths in it are followed.

    Attributes:
        manifest: what was trained.
        folder: where soup.json lies; relative paths start here.
        from_hub: downloaded from the Hub, so that no path in it may leave `folder`.
        base_override: a base model to use in place of the recorded one.
    """

    manifest: SoupManifest
    folder: Path
    from_hub: bool = False
    base_override: str | None = None

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
            return _model_ref(self.base_override, None, Path.cwd(), False, "base_model")
        record = self.manifest.base_model
        try:
            return _model_ref(record.id, record.revision, self.folder, self.from_hub, "base_model of soup.json")
        except SoupError as error:
            raise SoupError(f"{error} Pass base_model= to say where the base model is.") from error

    def backbones(self) -> list[Path]:
        """Return the folders of the N backbones in order, fetching from the Hub those that lie there."""
        return [
            _model_ref(backbone.path, None, self.folder, self.from_hub, f"backbone {j} of soup.json").folder()
            for j, backbone in enumerate(self.manifest.backbones)
        ]

    def inputs(self) -> list[Path]:
        """Return the folders on this machine that writing a soup must leave alone."""
        folders = [self.folder, *self.backbones()]
        try:
            base = self.base_model()
        except SoupError:
            return folders
        return [*folders, Path(base.id)] if base.is_local else folders


def open_soup(path: str | Path, *, base_model: str | Path | None = None, revision: str | None = None) -> SoupSource:
    """Open a soup from a local folder (or its soup.json), or from the Hub.

    Args:
        path: local folder, soup.json, or Hub id.
        base_model: use this Hub id or folder as the base model in place of the recorded one.
        revision: commit, branch or tag on the Hub.

    Raises:
        SoupError: if it is neither here nor on the Hub.
        ManifestError: if its soup.json is missing or invalid.
    """
    override = None if base_model is None else str(base_model)
    local = Path(path)
    if local.is_file():
        local = local.parent
    if local.is_dir():
        return SoupSource(SoupManifest.load(local), local.resolve(), False, override)
    if not _HUB_ID.fullmatch(str(path)):
        raise SoupError(f"There is no folder {path}; give the folder of a {FILE_NAME} or a Hub id like org/name.")
    folder = fetch(str(path), revision)
    return SoupSource(SoupManifest.load(folder), folder.resolve(), True, override)


def fetch(repo: str, revision: str | None = None) -> Path:
    """Return the local snapshot of a Hub repository's JSON, safetensors and tokenizer files.

    Raises:
        SoupError: if it cannot be reached or does not exist.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise SoupError(
            f"{repo!r} is not a folder on this machine, and it could not be fetched from the Hub: {error}"
        ) from error


def _model_ref(name: str, revision: str | None, folder: Path, confined: bool, role: str) -> ModelRef:
    local = (folder / name).resolve()
    if confined and not local.is_relative_to(folder.resolve()):
        raise SoupError(
            f"The {role} is {name!r}, outside the soup's own folder; in a soup that comes from the Hub such paths "
            "are not followed."
        )
    if local.is_dir():
        return ModelRef(str(local))
    if not _HUB_ID.fullmatch(name):
        raise SoupError(f"The {role} is {name!r}, which is neither a folder on this machine ({local}) nor a Hub id.")
    return ModelRef(name, revision)
