"""Repositories on the Hub: which of their files are fetched, where those may lie, and what to do when it fails."""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from trl_bonesoup.errors import HubError, SoupError
from trl_bonesoup.hub_failures import first_line, status_of
from trl_bonesoup.strict_json import shown

MODEL_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "*.tiktoken", "vocab.json", "vocab.txt"),
    *("merges.txt", "*.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json"),
)
"""What is fetched of a model: no pickles, no code, no checkpoints of training, no second copy in another format."""

CODE_FILES = ("*.py",)
"""What is fetched besides where code of a repository was asked for."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXT = re.compile(rf"os error ({'|'.join(map(str, _FULL))})\b")
"""How the Hub's client for large files, which is written in Rust, says that a disk is full."""

__all__ = ["CODE_FILES", "MODEL_FILES", "Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository in the Hub's cache, whose files are fetched as they are needed.

    Attributes:
        repo: its id.
        commit: the hash, which every later download of this snapshot names.
        folder: where its files appear.
    """

    repo: str
    commit: str
    folder: Path

    @classmethod
    def open(cls, repo: str, revision: str | None, patterns: Sequence[str]) -> Snapshot:
        """Find out which commit a revision is and fetch the files of these names that it has.

        Raises:
            HubError: saying what was asked, what happened, and what to do.
        """
        folder = _download(repo, revision, patterns, ["*/*"])
        return cls(repo, folder.name, folder)

    def holds(self, path: str) -> bool:
        """Return whether the commit has a folder of this name, as far as this machine knows."""
        files = self._files()
        if files is None:
            return os.path.isdir(self.folder / path)  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        return path == "." or any(file.startswith(f"{path}/") for file in files)

    def fetch(self, path: str = ".", *, code: bool = False) -> Path:
        """Fetch the model in a folder of the repository and return where it lies.

        Args:
            path: the folder, with / between its parts; "." is the repository itself.
            code: fetch Python files, too.

        Raises:
            HubError: if that fails.
            SoupError: if a file lies outside the Hub's cache.
        """
        from huggingface_hub.utils import filter_repo_objects

        start = "" if path == "." else f"{glob.escape(path)}/"
        wanted, ignored = [f"{start}{name}" for name in (*MODEL_FILES, *(CODE_FILES if code else ()))], [f"{start}*/*"]
        files = self._files()
        names = None if files is None else filter_repo_objects(files, allow_patterns=wanted, ignore_patterns=ignored)
        if names is None or not all((self.folder / name).is_file() for name in names):
            _download(self.repo, self.commit, wanted, ignored, begun=True)
        folder = self.folder / path
        self._check_links(folder)
        return folder

    def _files(self) -> list[str] | None:
        """Return the files of the commit; None if the cache was made by a client that kept no list."""
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        try:
            return [file.path for file in get_cached_repo_tree(self.repo, revision=self.commit)]
        except CachedRepoTreeNotFoundError:
            return None

    def _check_links(self, folder: Path) -> None:
        """Refuse links that somebody else than the Hub's client has put into the cache."""
        storage = self.folder.parents[1]
        allowed = [storage.resolve(), (storage.parent / "blobs").resolve()]
        for file in [folder, *folder.iterdir()] if folder.is_dir() else []:
            if not any(file.resolve().is_relative_to(place) for place in allowed):
                raise SoupError(
                    f"{file} is a link to {file.resolve()}, outside what the Hub's client keeps of {self.repo}. Such "
                    f"links are not followed: delete {self.folder} and load it again."
                )


def _download(
    repo: str, revision: str | None, patterns: Sequence[str], ignored: Sequence[str], *, begun: bool = False
) -> Path:
    """Fetch the files that match; `begun` says that others of this commit are in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # of httpx, by whatever name huggingface_hub has it

    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ignored))
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise HubError(f"{_asked(repo, revision)}: {_what_to_do(error, repo, revision, begun)}") from error


def _asked(repo: str, revision: str | None) -> str:
    at = f" at revision {revision!r}" if revision else ""
    return f"{repo!r}{at} is not on this machine and could not be fetched from {_constants().ENDPOINT}"


def _what_to_do(error: Exception, repo: str, revision: str | None, begun: bool) -> str:
    from huggingface_hub import errors

    endpoint, cache = _constants().ENDPOINT, _constants().HF_HUB_CACHE
    status = status_of(error)
    if isinstance(error, errors.HFValidationError):
        return f"it is no name of a repository. Give a folder or a Hub id like org/name. ({error})"
    if isinstance(error, errors.GatedRepoError):
        return f"access to it must be granted. Ask for it at {endpoint}/{repo}, then log in with `hf auth login`."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no commit, tag or branch {revision!r}. Its history is at {endpoint}/{repo}/commits/main."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such repository, or it is private and your token does not see it. Check the name; for a "
            "private one log in with `hf auth login`, or set HF_TOKEN to a token of a member."
        )
    if status in (401, 403):
        return f"the Hub refused the token ({status}). Log in with `hf auth login`, or set HF_TOKEN to a valid one."
    if _is_full(error):
        return f"no space is left for {cache}. Free some, or set HF_HOME to a folder on a larger disk. ({error})"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _not_cached(error, begun, cache)
    return (
        f"the download broke off. Files that were complete are kept, so load it again to fetch the rest. "
        f"({shown(first_line(error))})"
    )


def _not_cached(error: Exception, begun: bool, cache: str) -> str:
    from huggingface_hub import errors

    begun = begun or isinstance(error, errors.IncompleteSnapshotError)
    partly = "only a part of it is" if begun else "it is not"
    cause = error.__cause__
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, and {partly} in the cache {cache}. Load it once with HF_HUB_OFFLINE=0."
    status = status_of(cause)
    why = f"the Hub answered {status}" if status else f"the Hub could not be reached ({shown(first_line(cause))})"
    return (
        f"{why}, and {partly} in the cache {cache}. Check the connection and try again later; what is complete is kept."
    )


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if (isinstance(error, OSError) and error.errno in _FULL) or _FULL_TEXT.search(str(error)):
            return True
        error = error.__cause__
    return False


def _constants() -> ModuleType:
    from huggingface_hub import constants

    return constants
