"""Pushes that fail: what is said, that nothing half published looks complete, and that a second one does the rest."""

from collections.abc import Callable
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from trl_bonesoup import BoneSoup
from trl_bonesoup.errors import HubError
from trl_bonesoup.hub.client import TRIES
from trl_bonesoup.hub.push import push

SINGLES = [[0.7, 0.3], [0.5, 0.5], [0.2, 0.8]]


def is_untouched(hub: LoopbackHub, repo_id: str) -> bool:
    """There is no such repository, or only what the Hub itself puts into a new one."""
    return repo_id not in hub.repos or hub.commits(repo_id) == ["initial commit"]


class TestWhoYouAre:
    def test_no_token(self, hub: LoopbackHub, without_front: Path, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(HubError, match=r"not logged in.*`hf auth login`.*HF_TOKEN.*write to org.*settings/tokens"):
            push(without_front, "org/soup")
        assert not hub.requests

    def test_a_dry_run_needs_none(self, hub: LoopbackHub, without_front: Path, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        assert push(without_front, "org/soup", dry_run=True)[0].state == "planned"

    def test_a_wrong_token(self, hub: LoopbackHub, without_front: Path):
        with pytest.raises(HubError, match=r"does not accept your token \(401\).*`hf auth login`.*HF_TOKEN"):
            push(without_front, "org/soup", token="hf_wrong")
        assert not hub.repos and len(hub.requests) == 1, "a wrong token is not tried again"

    def test_a_repository_of_somebody_else(self, hub: LoopbackHub, without_front: Path):
        hub.put("others/soup", {"soup.json": b"{}"})
        with pytest.raises(HubError, match=r"logged in as ann and may write to ann, org; others belongs to somebody"):
            push(without_front, "others/soup")
        assert hub.files("others/soup")["soup.json"] == b"{}" and not hub.writes()

    def test_a_token_that_only_reads(self, hub: LoopbackHub, without_front: Path):
        with pytest.raises(HubError, match=r"token 'tests' may only read.*write to org"):
            push(without_front, "org/soup", token=hub.read_token)
        assert not hub.writes()

    def test_a_token_that_may_not_write_here(self, hub: LoopbackHub, without_front: Path):
        hub.fail("repos/create", status=403, times=None)
        with pytest.raises(HubError, match=r"Creating org/soup failed: your token may not do that \(403"):
            push(without_front, "org/soup")
        assert len(hub.asked("repos/create")) == 1

    def test_offline(self, hub: LoopbackHub, without_front: Path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set\. Unset it"):
            push(without_front, "org/soup")


# What goes wrong, what is said of it, and what it is asked to go wrong with.
OUTAGES: list[tuple[str, str, Callable[[LoopbackHub], object]]] = [
    ("upload cut off", "connection to .* broke off", lambda hub: hub.fail("PUT", drop="request", times=None)),
    ("upload 500", "problem of its own .500", lambda hub: hub.fail("PUT", status=500, times=None)),
    ("commit cut off", "connection to .* broke off", lambda hub: hub.fail("/commit/", drop="request", times=None)),
    ("commit 503", "problem of its own .503", lambda hub: hub.fail("/commit/", status=503, times=None)),
    ("preupload 502", "problem of its own .502", lambda hub: hub.fail("/preupload/", status=502, times=None)),
    ("rate limit", "no more requests for now .429", lambda hub: hub.fail("/commit/", status=429, times=None)),
    ("listing 500", "problem of its own .500", lambda hub: hub.fail("/tree/", status=500, times=None)),
]


@pytest.mark.parametrize(("said", "fail"), [case[1:] for case in OUTAGES], ids=[case[0] for case in OUTAGES])
def test_an_outage_leaves_nothing_that_looks_complete(hub: LoopbackHub, without_front, push_waits, said, fail):
    fail(hub)
    with pytest.raises(HubError, match=f"(?s){said}.*same command again, and only what is missing is sent"):
        push(without_front, "org/soup")
    assert is_untouched(hub, "org/soup")
    hub.heal()
    (done,) = push(without_front, "org/soup")
    assert done.state == "pushed" and len(hub.commits("org/soup")) == 2
    assert BoneSoup.from_pretrained("org/soup").manifest.objective_names == ("good", "brief")


def test_a_short_outage_is_waited_out(hub: LoopbackHub, without_front: Path, push_waits: list[float]):
    hub.fail("/commit/", status=500, times=TRIES - 2)
    hub.fail("/commit/", status=429, headers={"Retry-After": "17"})
    push(without_front, "org/soup")
    assert len(hub.commits("org/soup")) == 2
    assert push_waits == [1, 2, 4, 17], "each wait twice the one before, or what the Hub asks for"


def test_large_files_that_arrived_are_not_sent_again(hub: LoopbackHub, without_front: Path, push_waits):
    hub.fail("/commit/", status=500, times=None)
    with pytest.raises(HubError):
        push(without_front, "org/soup")
    assert len(hub.asked("^PUT")) == 3, "base and two backbones, once for all tries"
    hub.heal()
    hub.requests.clear()
    push(without_front, "org/soup")
    assert not hub.asked("^PUT")


def test_a_lost_answer_is_no_second_commit(hub: LoopbackHub, without_front: Path, push_waits: list[float]):
    hub.fail("/commit/", drop="answer")
    hub.fail("repos/create", drop="answer")
    (done,) = push(without_front, "org/soup")
    assert len(hub.commits("org/soup")) == 2 and len(push_waits) == 2
    assert done.commit == hub.repos["org/soup"].at("main").oid


def test_a_commit_of_somebody_else_meanwhile_is_not_overwritten(hub: LoopbackHub, without_front, push_waits):
    push(without_front, "org/soup")
    (without_front / "base" / "generation_config.json").write_text("{}")

    def another_commit(request) -> bool:
        if "/commit/" in request.path and "other.md" not in hub.files("org/soup"):
            hub.put("org/soup", {"other.md": b"theirs"})
        return False

    hub.fail(another_commit)
    push(without_front, "org/soup")
    assert hub.files("org/soup")["other.md"] == b"theirs"
    assert hub.files("org/soup")["base/generation_config.json"] == b"{}"
    assert len(push_waits) == 1


def test_one_repository_that_fails_does_not_stop_the_others(hub: LoopbackHub, without_front: Path, push_waits):
    hub.fail(r"org/soup-good-0\.5-brief-0\.5/commit", status=500, times=None)
    said: list[str] = []
    with pytest.raises(HubError, match=r"(?s)1 of 5 repositories were not published.*only what is missing.*0\.5-brief"):
        push(without_front, "org/soup", preferences=SINGLES, collection="Soups", say=said.append)
    names = ["org/soup-base", "org/soup", "org/soup-good-0.7-brief-0.3", "org/soup-good-0.2-brief-0.8"]
    assert next(iter(hub.collections.values())).items == names
    assert is_untouched(hub, "org/soup-good-0.5-brief-0.5")
    assert "org/soup-good-0.5-brief-0.5  failed" in "\n".join(said)
    hub.heal()
    done = push(without_front, "org/soup", preferences=SINGLES, collection="Soups")
    assert [entry.repo_id for entry in done if entry.state == "pushed"] == ["org/soup-good-0.5-brief-0.5"]
    assert set(next(iter(hub.collections.values())).items) == {*names, "org/soup-good-0.5-brief-0.5"}


def test_a_hub_that_stays_down_is_not_asked_for_every_repository(hub: LoopbackHub, without_front, push_waits):
    hub.fail("org/soup-good", status=500, times=None)
    preferences = [[share / 10, 1 - share / 10] for share in range(11)]
    with pytest.raises(HubError, match=r"(?s)11 of 13 .*soup-good-1-brief-0: not tried"):
        push(without_front, "org/soup", preferences=preferences)
    assert len({request.path for request in hub.asked("models/org/soup-good")}) == 3


@pytest.mark.parametrize("seed", [0, 1])
def test_five_percent_of_all_requests_fail(hub: LoopbackHub, without_front: Path, push_waits, seed: int):
    faults = [hub.fail(share=0.025, times=None, seed=seed, status=503)]
    faults += [hub.fail(share=0.025, times=None, seed=10 + seed, drop="answer")]
    preferences = [[share / 8, 1 - share / 8] for share in range(9)]
    push(without_front, "org/soup", preferences=preferences, collection="Soups")
    assert sum(fault.hits for fault in faults) > 3
    assert len(hub.repos) == 11 and all(len(hub.commits(repo)) == 2 for repo in hub.repos), "each arrived once"
    assert len(set(next(iter(hub.collections.values())).items)) == 11
