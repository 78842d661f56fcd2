"""What the loopback Hub remembers: repositories with their history, large files and collections, all in memory."""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass, field

import yaml

CREATED = "2026-01-01T00:00:00.000Z"
GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
"""The file that the Hub itself commits into every new repository."""

_LFS_ENDINGS = (".safetensors", ".bin", ".pt", ".gguf")
_counter = itertools.count()


class Refused(Exception):
    """An answer that is not 2xx; `code` is the Hub's X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Blob:
    """A file of a commit: its bytes, and whether git holds them or a pointer to large-file storage."""

    data: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def git_oid(self) -> str:
        content = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid

    def described(self, path: str) -> dict:
        entry: dict = {"type": "file", "path": path, "size": len(self.data), "oid": self.git_oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}
        return entry


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    title: str
    files: dict[str, Blob]
    author: str
    oid: str = field(default_factory=lambda: hashlib.sha1(b"commit %d" % next(_counter)).hexdigest())

    def described(self) -> dict:
        return {"id": self.oid, "title": self.title, "message": "", "authors": [{"user": self.author}], "date": CREATED}


@dataclass
class Repo:
    """A model repository with all its commits."""

    id: str
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256, committed or not yet."""

    def __post_init__(self) -> None:
        self.branches["main"] = [Commit("initial commit", {".gitattributes": Blob(GIT_ATTRIBUTES)}, "hub")]

    def at(self, revision: str) -> Commit:
        if revision.removeprefix("refs/heads/") in self.branches:
            return self.branches[revision.removeprefix("refs/heads/")][-1]
        if revision in self.tags:
            return self.tags[revision]
        for commit in itertools.chain.from_iterable(self.branches.values()):
            if len(revision) >= 7 and commit.oid.startswith(revision):
                return commit
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str) -> list[Commit]:
        last = self.at(revision)
        commits = next(commits for commits in self.branches.values() if last in commits)
        return commits[: commits.index(last) + 1]

    def file(self, revision: str, path: str) -> tuple[Commit, Blob]:
        commit = self.at(revision)
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        return commit, commit.files[path]

    def commit(self, branch: str, title: str, changes: dict[str, Blob | None], author: str, parent: str | None) -> str:
        """Add a commit; None deletes a file, and a path that ends in a slash stands for a folder."""
        if branch not in self.branches:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        last = self.branches[branch][-1]
        if parent is not None and not last.oid.startswith(parent):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(last.files)
        for path, blob in changes.items():
            if blob is not None:
                files[path] = blob
                continue
            gone = [name for name in files if name == path or (path.endswith("/") and name.startswith(path))]
            if not gone:
                raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        self.branches[branch].append(Commit(title, files, author))
        return self.branches[branch][-1].oid

    def info(self, revision: str, *, blobs: bool) -> dict:
        commit = self.at(revision)
        siblings: list[dict] = [{"rfilename": path} for path in commit.files]
        if blobs:
            for entry, blob in zip(siblings, commit.files.values(), strict=True):
                entry |= {"size": len(blob.data), "blobId": blob.git_oid}
                if blob.lfs:
                    entry["lfs"] = {"size": len(blob.data), "sha256": blob.sha256, "pointerSize": len(blob.pointer)}
        return {
            "_id": self.id,
            "id": self.id,
            "modelId": self.id,
            "author": self.id.split("/")[0],
            "sha": commit.oid,
            "private": self.private,
            "lastModified": CREATED,
            "createdAt": CREATED,
            "tags": self.card_data(commit).get("tags") or [],
            "cardData": self.card_data(commit),
            "siblings": siblings,
        }

    @staticmethod
    def card_data(commit: Commit) -> dict:
        card = commit.files.get("README.md", Blob(b"")).data.decode()
        found = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
        return yaml.safe_load(found[1]) if found else {}

    def tree(self, revision: str, folder: str, *, recursive: bool) -> list[dict]:
        entries: dict[str, dict] = {}
        prefix = f"{folder}/" if folder else ""
        for path, blob in self.at(revision).files.items():
            if not path.startswith(prefix):
                continue
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                above = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    oid = hashlib.sha1(above.encode()).hexdigest()
                    entries[above] = {"type": "directory", "path": above, "size": 0, "oid": oid}
            if recursive or len(parts) == 1:
                entries[path] = blob.described(path)
        if folder and not entries:
            raise Refused(404, "Entry not found", "EntryNotFound")
        return list(entries.values())

    def refs(self) -> dict:
        return {
            "branches": [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].oid}
                for name, commits in self.branches.items()
            ],
            "tags": [
                {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit.oid}
                for name, commit in self.tags.items()
            ],
            "converts": [],
        }

    def upload_mode(self, path: str, size: int, sample: bytes) -> str:
        """Say whether a file goes to large-file storage, as the Hub does: by its ending, size or content."""
        is_large = path.endswith(_LFS_ENDINGS) or size > 10_000_000 or b"\0" in sample
        return "lfs" if is_large else "regular"


@dataclass
class Collection:
    """A named list of repositories."""

    slug: str
    title: str
    owner: str
    private: bool
    description: str | None = None
    items: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def described(self) -> dict:
        return {
            "slug": self.slug,
            "title": self.title,
            "owner": {"name": self.owner},
            "private": self.private,
            "description": self.description,
            "lastUpdated": CREATED,
            "position": 0,
            "theme": "blue",
            "upvotes": 0,
            "items": [
                {
                    "_id": f"item{position}",
                    "id": item,
                    "type": "model",
                    "position": position,
                    **({"note": {"text": self.notes[item]}} if item in self.notes else {}),
                }
                for position, item in enumerate(self.items)
            ],
        }
