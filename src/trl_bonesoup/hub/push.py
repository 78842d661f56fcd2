"""Publishing a family of soups on the Hub: one repository of all backbones, one for each preference, a collection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, Unpack

from trl_bonesoup.card_metadata import TAG, hub_id
from trl_bonesoup.errors import ConfigurationError, HubError
from trl_bonesoup.front.front import Front
from trl_bonesoup.hub.base_card import base_card
from trl_bonesoup.hub.client import MAIN, HubClient, RefusedError
from trl_bonesoup.hub.collection import collect
from trl_bonesoup.hub.describe import CardMetadata
from trl_bonesoup.hub.family import PublishedBase, family_files, model_files, published_base, published_manifest
from trl_bonesoup.hub.plan import RepoPlan, plan_repo
from trl_bonesoup.hub.singles import SingleSoup, single_soups
from trl_bonesoup.manifest import FILE_NAME, Preference
from trl_bonesoup.markdown import one_line
from trl_bonesoup.privacy import Content, check_private, secrets_of
from trl_bonesoup.soup.source import SoupSource, open_soup

FAILURES_IN_A_ROW = 3
"""After so many repositories that failed one after the other, the Hub is taken to be down."""

__all__ = ["PushedRepo", "push"]

Say = Callable[[str], object]


@dataclass(frozen=True)
class PushedRepo:
    """What a push did with one repository.

    Attributes:
        repo_id: its id.
        state: "pushed", "unchanged" if it held everything already, or "planned" in a dry run.
        commit: hash of the commit that holds everything; None in a dry run of what is not there yet.
        sent_bytes: size of the files that were new or changed.
    """

    repo_id: str
    state: Literal["pushed", "unchanged", "planned"]
    commit: str | None
    sent_bytes: int


@dataclass(frozen=True)
class _Options:
    branch: str
    tag: str | None
    private: bool | None
    dry_run: bool
    secrets: Mapping[str, str]
    say: Say


def push(
    soup: str | Path | SoupSource,
    repo_id: str,
    *,
    preferences: Iterable[Preference] | None = None,
    extrapolation: float | Sequence[float] = 0.0,
    full: bool = False,
    front: Front | str | Path | None = None,
    private: bool | None = None,
    collection: str | None = None,
    branch: str = MAIN,
    tag: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    say: Say = lambda text: None,
    **metadata: Unpack[CardMetadata],
) -> list[PushedRepo]:
    """Publish a soup so that `BoneSoup.from_pretrained(repo_id)` loads it.

    Each repository changes in one commit or not at all, and only in what is not there yet, so that pushing
    the same again sends nothing. What a model does not need (optimizers, checkpoints, critics, pickles)
    stays here, and local paths, tokens and e-mail addresses are cut from what is sent.

    Args:
        soup: folder of soup.json, or an opened soup.
        repo_id: of the family, org/name. Repositories of preferences are called after it.
        preferences: also publish the soups of these, each in a repository of its own: shape (K, N), or K
            preferences as `SoupManifest.preference` takes them.
        extrapolation: α of those.
        full: publish those as full checkpoints instead of adapters.
        front: measurements for the cards; by default the front.json beside soup.json, if there is one.
        private: whether new repositories are private; None leaves it to the Hub's settings.
        collection: title (or slug) of a collection of all of them, made if there is none.
        branch: where to commit, made if there is none.
        tag: name for the commits; one that exists is never moved.
        token: of the Hub; by default the one that is logged in.
        dry_run: only compare and say what would be sent.
        say: called with each line of the plan and of progress, such as `print`.
        **metadata: what only people know: `license`, `language`, `datasets`, and as `base_model` the Hub id to
            name in place of a local base model, which is then not uploaded.

    Returns:
        What was done, a repository each, in the order: the base model's if it gets one, the family's, the
        preferences'.

    Raises:
        ConfigurationError, WeightsError, FrontError: for arguments that do not fit, before anything is sent.
        SoupError: if the soup cannot be merged exactly or is not found.
        HubError: if the Hub refuses, or fails however often it is asked. Repositories that are named in it did
            not change; the same push again does what is missing.
    """
    if hub_id(repo_id) is None or repo_id.count("/") != 1:
        raise ConfigurationError(f"A repository on the Hub is called org/name or user/name; got {repo_id!r}.")
    namespace = repo_id.split("/")[0]
    source = soup if isinstance(soup, SoupSource) else open_soup(soup)
    given = [] if preferences is None else [source.manifest.preference(preference) for preference in preferences]
    singles = single_soups(repo_id, source.manifest, given, extrapolation, full=full)
    front = _front(source, front)
    client = HubClient(token)
    if client.token is not None or not dry_run:
        client.check_user(namespace)
    base = _base(client, source, repo_id, metadata.pop("base_model", None), singles)
    folders = {"the soup's folder": source.folder, **({"the base model": base.folder} if base.folder else {})}
    options = _Options(branch, tag, private, dry_run, secrets_of(client.token, folders=folders), say)

    with TemporaryDirectory(prefix="bonesoup-push-") as temporary:
        stage = Path(temporary)
        published = SoupSource(published_manifest(source, base), stage)
        files = family_files(source, published.manifest, base, stage, front=front, repo_id=repo_id, **metadata)
        check_private(files, options.secrets)
        done = [_push_repo(client, base.id, _base_files(base, repo_id, metadata), options)] if base.own_repo else []
        done.append(_push_repo(client, repo_id, files, options))
        pushed, failed = _push_singles(
            client,
            {
                entry.repo_id: entry.files(source, published, base, front=front, family=repo_id, **metadata)
                for entry in singles
            },
            options,
        )
    done += pushed
    if collection is not None:
        notes = {entry.repo_id: _note(source, entry) for entry in singles}
        items = {entry.repo_id: notes.get(entry.repo_id) for entry in done}
        collect(client, collection, namespace, items, private=private, dry_run=dry_run, say=say)
    if failed:
        raise HubError(_missing(failed, len(done) + len(failed)))
    return done


def _push_singles(
    client: HubClient, singles: Mapping[str, AbstractContextManager[dict[str, Content]]], options: _Options
) -> tuple[list[PushedRepo], dict[str, HubError]]:
    """Push one repository after the other; one that fails does not keep the others from being pushed."""
    done: list[PushedRepo] = []
    failed: dict[str, HubError] = {}
    in_a_row = 0
    for repo_id, made in singles.items():
        if in_a_row == FAILURES_IN_A_ROW:
            failed[repo_id] = HubError("not tried, because the ones before failed")
            continue
        try:
            with made as files:
                done.append(_push_repo(client, repo_id, files, options))
            in_a_row = 0
        except RefusedError:
            raise
        except HubError as error:
            options.say(f"{repo_id}  failed: {error}")
            failed[repo_id] = error
            in_a_row += 1
    return done, failed


def _push_repo(client: HubClient, repo_id: str, files: Mapping[str, Content], options: _Options) -> PushedRepo:
    check_private(files, options.secrets)
    plan = plan_repo(repo_id, files, client.look(repo_id, options.branch))
    _check(client, plan, options)
    options.say(plan.text())
    if options.dry_run:
        state: Literal["planned", "unchanged"] = "unchanged" if plan.is_done else "planned"
        return PushedRepo(repo_id, state, plan.remote.head if plan.is_done else None, plan.bytes_to_send)
    commit = plan.remote.head if plan.is_done else _send(client, plan, options)
    if options.tag is not None and client.tags(repo_id).get(options.tag) is None:
        client.create_tag(repo_id, options.tag, str(commit))
    return PushedRepo(repo_id, "unchanged" if plan.is_done else "pushed", commit, plan.bytes_to_send)


def _send(client: HubClient, plan: RepoPlan, options: _Options) -> str:
    """Make the repository hold what the plan says, in one commit, and return its hash."""
    repo_id, branch = plan.repo_id, options.branch
    if not plan.remote.exists:
        client.create(repo_id, private=options.private)
    if not plan.remote.branch_exists and branch != MAIN:
        client.create_branch(repo_id, branch, plan.remote.head)

    def commit() -> str:
        # Looked at anew for each try: an answer that was lost is found here as a commit that is there.
        now = plan_repo(repo_id, plan.files, client.look(repo_id, branch))
        return str(now.remote.head) if now.is_done else client.commit(now, branch, _message(now))

    return client.retrying(commit)


def _check(client: HubClient, plan: RepoPlan, options: _Options) -> None:
    """Check that a push does not show what shall be private, and moves no tag."""
    repo_id, there = plan.repo_id, plan.remote
    if options.private and there.exists and not there.private:
        raise RefusedError(
            f"{repo_id} exists and is public, so nothing was sent to it. Make it private in its settings on the Hub, "
            "choose another --repo, or leave out --private."
        )
    if options.tag is not None and there.exists:
        tagged = client.tags(repo_id).get(options.tag)
        if tagged is not None and not (plan.is_done and tagged == there.head):
            raise RefusedError(
                f"{repo_id} has a tag {options.tag!r} already, at commit {tagged[:7]}, and what would be tagged now is "
                "something else. Tags are not moved: choose another --tag."
            )


def _base(
    client: HubClient, source: SoupSource, repo_id: str, base_model: str | None, singles: Sequence[SingleSoup]
) -> PublishedBase:
    adapters = any(not single.full for single in singles)
    base = published_base(source, repo_id, base_model=base_model, single_adapters=adapters)
    if base.folder is None or base.own_repo:
        return base
    apart = published_base(source, repo_id, base_model=None, single_adapters=True)
    # What an earlier push with preferences put there is what their adapters name; a second copy would be in vain.
    there = client.look(apart.id)
    return apart if TAG in there.tags and FILE_NAME not in there.files else base


def _base_files(base: PublishedBase, family: str, metadata: CardMetadata) -> dict[str, Content]:
    assert base.folder is not None
    card = str(base_card(base.id, family, **metadata))
    return {**model_files(base.folder, "full", base), "README.md": card.encode()}


def _front(source: SoupSource, front: Front | str | Path | None) -> Front | None:
    if isinstance(front, Front):
        return front
    beside = source.folder / "front.json"
    if front is None and not beside.is_file():
        return None
    return Front.from_json(beside if front is None else front)


def _message(plan: RepoPlan) -> str:
    return f"Push {len(plan.to_send)} files with trl-bonesoup" if plan.to_send else "Remove files with trl-bonesoup"


def _note(source: SoupSource, single: SingleSoup) -> str:
    shares = zip(source.manifest.objective_names, single.preference_N, strict=True)
    return ", ".join(f"{share:.4g} {one_line(name)}" for name, share in shares if share)


def _missing(failed: Mapping[str, HubError], total: int) -> str:
    listing = "\n".join(f"  {repo_id}: {error}" for repo_id, error in failed.items())
    return (
        f"{len(failed)} of {total} repositories were not published; the others are complete. Push the same again, and "
        f"only what is missing is sent:\n{listing}"
    )
