"""The loopback Hub is only worth something if the real client agrees with it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from loopback_hub import LoopbackHub

LARGE = bytes(range(256)) * 400


def commit(files: dict[str, bytes], repo_id: str = "org/soup", **options: object):
    HfApi().create_repo(repo_id, exist_ok=True)
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return HfApi().create_commit(repo_id, operations, commit_message="add", **options)


def test_a_commit_goes_up_and_comes_down_again(hub: LoopbackHub, tmp_path):
    done = commit({"soup.json": b"{}", "backbones/helpful/adapter_model.safetensors": LARGE})
    folder = snapshot_download("org/soup")
    assert hub.files("org/soup")["soup.json"] == b"{}"
    assert Path(f"{folder}/backbones/helpful/adapter_model.safetensors").read_bytes() == LARGE
    assert folder.endswith(done.oid)
    # safetensors went through LFS and not inside the commit
    (put,) = hub.asked(r"^PUT /lfs/")
    assert put.body == LARGE and put.path.endswith(hashlib.sha256(LARGE).hexdigest())
    assert LARGE not in hub.asked(r"/commit/main")[0].body


def test_the_same_commit_twice_is_one(hub: LoopbackHub):
    commit({"soup.json": b"{}", "a.safetensors": LARGE})
    before = len(hub.writes())
    commit({"soup.json": b"{}", "a.safetensors": LARGE})
    assert [request.path for request in hub.writes()[before:]] == ["/api/repos/create"]
    assert hub.commits("org/soup") == ["initial commit", "add"]


def test_what_an_upload_says_it_is_has_to_be_what_arrives(hub: LoopbackHub):
    href = f"{hub.endpoint}/lfs/org/soup/{hashlib.sha256(b'one').hexdigest()}"
    commit({"soup.json": b"{}"})
    assert get_session().put(href, content=b"two").status_code == 400
    assert get_session().put(href, content=b"one").status_code == 200


def test_revisions_tags_branches_and_deleted_files(hub: LoopbackHub):
    api = HfApi()
    first = commit({"soup.json": b"1"}).oid
    api.create_tag("org/soup", tag="v1")
    second = commit({"soup.json": b"2", "front.json": b"{}"}).oid
    api.create_branch("org/soup", branch="next", revision=first)
    api.create_commit("org/soup", [CommitOperationDelete("front.json")], commit_message="without")
    refs = api.list_repo_refs("org/soup")
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1": first}
    assert {branch.name: branch.target_commit for branch in refs.branches}["next"] == first
    read = {
        rev: Path(hf_hub_download("org/soup", "soup.json", revision=rev)).read_text() for rev in ("v1", second, "main")
    }
    assert read == {"v1": "1", second: "2", "main": "2"}
    assert "front.json" not in api.list_repo_files("org/soup")
    assert [c.title for c in api.list_repo_commits("org/soup")] == ["without", "add", "add", "initial commit"]
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/soup", revision="v2")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/soup", "front.json")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("org/soup", tag="v1")


def test_sizes_and_hashes_of_what_is_there(hub: LoopbackHub):
    commit({"a/b.json": b"hello\n", "a.safetensors": LARGE})
    tree = {entry.path: entry for entry in HfApi().list_repo_tree("org/soup", recursive=True)}
    # `printf 'hello\n' | git hash-object --stdin`
    assert tree["a/b.json"].blob_id == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert tree["a.safetensors"].lfs.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert tree["a.safetensors"].size == len(LARGE) and "a" in tree
    (info,) = HfApi().get_paths_info("org/soup", ["a/b.json", "none"])
    assert info.blob_id == tree["a/b.json"].blob_id
    assert {s.rfilename: s.size for s in HfApi().model_info("org/soup", files_metadata=True).siblings}["a/b.json"] == 6


def test_who_may_do_what(hub: LoopbackHub, monkeypatch):
    commit({"soup.json": b"{}"})
    HfApi().create_repo("org/secret", private=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        HfApi().create_repo("org/soup")
    ben = HfApi(token=hub.other_token)
    assert HfApi().whoami()["name"] == "ann" and ben.whoami()["name"] == "ben"
    for api in (ben, HfApi(token=hub.read_token)):
        with pytest.raises(HfHubHTTPError, match="403"):
            api.create_repo("org/new", exist_ok=True)
        with pytest.raises(HfHubHTTPError, match="403"):
            api.create_commit("org/soup", [CommitOperationAdd("x", b"y")], commit_message="x")
    with pytest.raises(RepositoryNotFoundError):
        ben.model_info("org/secret")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("org/none")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token="hf_wrong").create_repo("org/soup", exist_ok=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi().create_repo("org/new")
    assert HfApi().model_info("org/soup").id == "org/soup"


def test_collections(hub: LoopbackHub):
    commit({"soup.json": b"{}"})
    api = HfApi()
    slug = api.create_collection("Soups of ours", namespace="org", exists_ok=True).slug
    assert api.create_collection("Soups of ours", namespace="org", exists_ok=True).slug == slug
    for _ in range(2):
        api.add_collection_item(slug, "org/soup", "model", note="the family", exists_ok=True)
    (item,) = api.get_collection(slug).items
    assert (item.item_id, item.note) == ("org/soup", "the family")
    assert [found.slug for found in api.list_collections(owner="org")] == [slug]
    with pytest.raises(HfHubHTTPError, match="404"):
        api.add_collection_item(slug, "org/none", "model")


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: LoopbackHub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    data = os.urandom(1_000_000)
    hub.put("org/soup", {"a.safetensors": data})
    hub.fail("GET .*resolve", drop="response")
    assert Path(hf_hub_download("org/soup", "a.safetensors")).read_bytes() == data
    ranges = [request.headers.get("range") for request in hub.asked("GET .*resolve")]
    assert ranges == [None, "bytes=500000-"]


def test_an_upload_that_breaks_off_is_sent_again_by_the_client(hub: LoopbackHub):
    fault = hub.fail("PUT /lfs", drop="request", times=2)
    commit({"a.safetensors": LARGE})
    assert fault.hits == 2 and hub.waits == [1, 2]
    assert [len(put.body) for put in hub.asked("PUT")] == [len(LARGE) // 2] * 2 + [len(LARGE)]


def test_faults(hub: LoopbackHub):
    hub.fail("/commit/", status=503)
    with pytest.raises(HfHubHTTPError, match="503"):
        commit({"a": b"1"})
    hub.fail("/commit/", drop="answer")
    with pytest.raises(Exception, match="disconnected"):
        commit({"a": b"1"})
    assert hub.files("org/soup")["a"] == b"1", "it was done, and only the answer was lost"
    hub.fail("whoami", after=2, times=None)
    assert [HfApi().whoami()["name"] for _ in range(2)] == ["ann", "ann"]
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="500"):
            HfApi().whoami()
    hub.heal()
    HfApi().whoami()
    fault = hub.fail("GET", share=0.05, times=None, seed=1)
    codes = []
    for _ in range(200):
        try:
            HfApi().model_info("org/soup")
            codes.append(200)
        except HfHubHTTPError as error:
            codes.append(error.response.status_code)
    assert 3 <= codes.count(500) == fault.hits <= 20


def test_offline_again_after_the_fixture(hub: LoopbackHub, monkeypatch):
    hub.put("org/soup", {"soup.json": b"{}"})
    hf_hub_download("org/soup", "soup.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    assert Path(hf_hub_download("org/soup", "soup.json")).read_text() == "{}"
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("org/soup", "other.json")
    assert len(hub.requests) == before


def test_another_process_talks_to_it(hub: LoopbackHub):
    script = "from huggingface_hub import HfApi; print(HfApi().whoami()['name'], HfApi().create_repo('org/new'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ann", f"{hub.endpoint}/org/new"]
    assert list(hub.repos) == ["org/new"]
