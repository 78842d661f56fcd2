"""The Hub's own client with what it leaves to its callers: retries, permissions asked for early, and clear errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from trl_bonesoup.errors import HubError
from trl_bonesoup.hub.plan import Remote, RemoteFile, RepoPlan
from trl_bonesoup.hub_failures import cause_of, explained, is_ours, status_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TRIES = 5
"""How often each step is tried when the Hub or the connection fails; the client tries uploads more often by itself."""
FIRST_WAIT = 1.0
"""Seconds before the second try; each later one waits twice as long as the one before, or what the Hub asks for."""
LONGEST_WAIT = 300.0

MAIN = "main"

_PASSING = (408, 412, 429, 500, 502, 503, 504)
"""What may be different at the next try; 412 says that somebody else committed meanwhile."""
_AGAIN = "What arrived is kept: run the same command again, and only what is missing is sent."

T = TypeVar("T")

__all__ = ["FIRST_WAIT", "MAIN", "TRIES", "GaveUpError", "HubClient", "RefusedError"]


class RefusedError(HubError):
    """The Hub says no, and will say so again: asking for more repositories would be in vain."""


class GaveUpError(HubError):
    """The Hub failed however often it was asked."""


class HubClient:
    """What a push asks of the Hub."""

    def __init__(self, token: str | None = None) -> None:
        from huggingface_hub import HfApi, get_token

        import trl_bonesoup

        self.token = token or get_token()
        self.api: HfApi = HfApi(
            token=self.token or False, library_name="trl-bonesoup", library_version=trl_bonesoup.__version__
        )

    def check_user(self, namespace: str) -> None:
        """Check, before any work, that somebody is logged in who may write to `namespace`.

        Raises:
            RefusedError: without a token, with a wrong one or one that only reads, or for somebody else's namespace.
        """
        if self.token is None:
            raise RefusedError(
                "You are not logged in to the Hub. Log in with `hf auth login`, or set HF_TOKEN to a token that may "
                f"write to {namespace}: {self.api.endpoint}/settings/tokens"
            )
        user = self.ask("Asking who you are", self.api.whoami)
        own = [user["name"], *(org["name"] for org in user.get("orgs", []))]
        if namespace not in own:
            raise RefusedError(
                f"You are logged in as {user['name']} and may write to {', '.join(own)}; {namespace} belongs to "
                "somebody else. Choose another --repo, or log in as a member with `hf auth login`."
            )
        token = user.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise RefusedError(
                f"Your token {token.get('displayName', '')!r} may only read. Make one that may write to {namespace} at "
                f"{self.api.endpoint}/settings/tokens, and log in with `hf auth login`."
            )

    def look(self, repo_id: str, branch: str = MAIN) -> Remote:
        """Return what is in a repository now."""
        return self.ask(f"Looking at {repo_id}", lambda: self._look(repo_id, branch))

    def create(self, repo_id: str, *, private: bool | None) -> None:
        """Make an empty repository."""
        self.ask(f"Creating {repo_id}", lambda: self.api.create_repo(repo_id, private=private, exist_ok=True))

    def create_branch(self, repo_id: str, branch: str, head: str | None) -> None:
        """Make a branch that starts at a commit."""
        self.ask(
            f"Making the branch {branch} of {repo_id}",
            lambda: self.api.create_branch(repo_id, branch=branch, revision=head, exist_ok=True),
        )

    def commit(self, plan: RepoPlan, branch: str, message: str) -> str:
        """Send what a plan has to send, as one commit on the state that it was made for, and return its hash.

        Large files are sent first. Until the commit, which is the last request, nothing of them is to be seen. It is
        not tried again here: a lost answer looks like a failure, and only another look tells the two apart.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [CommitOperationAdd(change.path, plan.files[change.path]) for change in plan.to_send]
        operations += [CommitOperationDelete(change.path) for change in plan.changes if change.state == "removed"]
        return self._once(
            f"Sending files to {plan.repo_id}",
            lambda: self.api.create_commit(
                plan.repo_id, operations, commit_message=message, revision=branch, parent_commit=plan.remote.head
            ),
        ).oid

    def tags(self, repo_id: str) -> dict[str, str]:
        """Return the tags of a repository with their commits."""
        refs = self.ask(f"Looking at the tags of {repo_id}", lambda: self.api.list_repo_refs(repo_id))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def create_tag(self, repo_id: str, tag: str, commit: str) -> None:
        """Give a commit a tag."""
        self.ask(f"Tagging {repo_id}", lambda: self.api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True))

    def ask(self, doing: str, call: Callable[[], T]) -> T:
        """Return what a request gives that may be repeated, trying it `TRIES` times."""
        return self.retrying(lambda: self._once(doing, call))

    @staticmethod
    def retrying(call: Callable[[], T]) -> T:
        """Call what raises `HubError` up to `TRIES` times, waiting longer each time.

        Raises:
            GaveUpError: for the last one.
            RefusedError: at once.
        """
        for attempt in range(1, TRIES + 1):
            try:
                return call()
            except (RefusedError, GaveUpError):
                raise
            except HubError as error:
                if attempt == TRIES:
                    raise GaveUpError(str(error)) from error.__cause__
                time.sleep(_wait_before_next(error, attempt))
        raise AssertionError("unreachable")

    def _once(self, doing: str, call: Callable[[], T]) -> T:
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

        try:
            return call()
        except OfflineModeIsEnabled as error:
            raise RefusedError(f"{doing} needs the Hub, but HF_HUB_OFFLINE is set. Unset it and push again.") from error
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            cause = cause_of(error)
            status = status_of(cause)
            passes = status in _PASSING if status is not None else not is_ours(cause)
            why = explained(cause, self.api.endpoint, token="HF_TOKEN", place="--repo", again=_AGAIN)
            raise (HubError if passes else RefusedError)(f"{doing} failed: {why}") from cause

    def _look(self, repo_id: str, branch: str) -> Remote:
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        has_branch = True
        try:
            info = self.api.model_info(repo_id, revision=branch)
        except RevisionNotFoundError:
            info, has_branch = self.api.model_info(repo_id), False
        except RepositoryNotFoundError:
            return Remote()
        files = {
            file.path: RemoteFile(file.size, file.blob_id, file.lfs.sha256 if file.lfs else None)
            for file in self.api.list_repo_tree(repo_id, recursive=True, revision=info.sha)
            if isinstance(file, RepoFile)
        }
        return Remote(True, bool(info.private), info.sha, files, tuple(info.tags or ()), has_branch)


def _wait_before_next(error: HubError, attempt: int) -> float:
    response = getattr(error.__cause__, "response", None)
    asked = response.headers.get("retry-after", "") if response is not None else ""
    wait = float(asked) if asked.isdigit() else FIRST_WAIT * 2.0 ** (attempt - 1)
    return min(wait, LONGEST_WAIT)
