"""What a push would change in a repository: each file new, changed, the same or removed, and how large it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from trl_bonesoup.card_metadata import TAG
from trl_bonesoup.errors import HubError
from trl_bonesoup.privacy import Content
from trl_bonesoup.soup.download import MODEL_FILES
from trl_bonesoup.soup.folders import size_text

State = Literal["new", "changed", "same", "removed"]

BACKBONES, BASE = "backbones", "base"
"""Folders of a family's repository; the second for a base model that is on no Hub."""

_NOT_CONTENT = (".gitattributes", ".gitignore", "README.md", "LICENSE*")
"""Files of a repository that somebody made on the Hub to push into it."""

_MARKS = {"soup.json": "a family of soups", "soup_export.json": "the soup of one preference"}
"""Files by which repositories of ours are told apart, so that none is pushed over one of another kind."""

__all__ = ["BACKBONES", "BASE", "FileChange", "Remote", "RemoteFile", "RepoPlan", "plan_repo", "size_text"]


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it: SHA-256 of a large one, git's hash of a small one."""

    size: int
    git_oid: str
    sha256: str | None = None


@dataclass(frozen=True)
class Remote:
    """A repository as it is on the Hub.

    Attributes:
        exists: it is there, and this token sees it.
        private: only its owners see it.
        head: hash of the last commit.
        files: by path.
        tags: those of its card, by which ours are known.
        branch_exists: the branch that is pushed to; if not, `head` and `files` are those of main.
    """

    exists: bool = False
    private: bool = False
    head: str | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    tags: Sequence[str] = ()
    branch_exists: bool = False


@dataclass(frozen=True)
class FileChange:
    """What happens to one file."""

    path: str
    state: State
    size: int


@dataclass(frozen=True)
class RepoPlan:
    """What a push changes in one repository."""

    repo_id: str
    files: Mapping[str, Content]
    remote: Remote
    changes: Sequence[FileChange]

    @property
    def to_send(self) -> list[FileChange]:
        """The files that are new or changed."""
        return [change for change in self.changes if change.state in ("new", "changed")]

    @property
    def is_done(self) -> bool:
        """Whether the repository holds all of it already."""
        return self.remote.branch_exists and all(change.state == "same" for change in self.changes)

    @property
    def bytes_to_send(self) -> int:
        """Size of the files that are new or changed."""
        return sum(change.size for change in self.to_send)

    def text(self) -> str:
        """Return the plan as lines: the repository, each file, and the sum."""
        what = "exists" if self.remote.exists else "new repository"
        lines = [f"{self.repo_id}  ({what})"]
        lines += [f"  {change.state:<8}{size_text(change.size):>9}  {change.path}" for change in self.changes]
        total = sum(change.size for change in self.changes if change.state != "removed")
        count = sum(change.state != "removed" for change in self.changes)
        sends = f"to send: {len(self.to_send)}, {size_text(self.bytes_to_send)}" if self.to_send else "nothing to send"
        return "\n".join([*lines, f"  {count} files, {size_text(total)}; {sends}"])


def plan_repo(repo_id: str, files: Mapping[str, Content], remote: Remote) -> RepoPlan:
    """Compare what shall be in a repository with what is there.

    Models that an earlier push left there and that are no part of this one are removed; whatever else somebody put
    into the repository stays.

    Raises:
        HubError: if the repository holds something that no push of ours put there.
    """
    strangers = [path for path in remote.files if not any(fnmatchcase(path, name) for name in _NOT_CONTENT)]
    if strangers and TAG not in remote.tags:
        raise HubError(
            f"{repo_id} exists and holds {', '.join(sorted(strangers)[:3])}, and its card does not have the tag "
            f'"{TAG}", so it is not from an earlier push and stays as it is. Choose another --repo.'
        )
    for name, what in _MARKS.items():
        if name in remote.files and name not in files:
            raise HubError(f"{repo_id} exists and is {what} ({name}), which this push is not. Choose another --repo.")
    changes = [
        FileChange(path, _state(content, remote.files.get(path)), _size(content)) for path, content in files.items()
    ]
    stale = [path for path in remote.files if path not in files and _is_of_a_model(path)]
    changes += [FileChange(path, "removed", remote.files[path].size) for path in stale]
    return RepoPlan(repo_id, files, remote, changes)


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _state(content: Content, there: RemoteFile | None) -> State:
    if there is None:
        return "new"
    if there.size != _size(content):
        return "changed"
    if there.sha256 is not None:
        return "same" if _digest(content, hashlib.sha256) == there.sha256 else "changed"
    header = b"blob %d\0" % there.size
    return (
        "same" if _digest(content, lambda: hashlib.sha1(header, usedforsecurity=False)) == there.git_oid else "changed"
    )


def _digest(content: Content, algorithm: Callable[[], hashlib._Hash]) -> str:
    digest = algorithm()
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_of_a_model(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    is_backbone = Path(folder).parent == Path(BACKBONES)
    patterns = (*MODEL_FILES, "README.md") if is_backbone else MODEL_FILES
    return (is_backbone or folder in ("", BASE)) and any(fnmatchcase(name, pattern) for pattern in patterns)
