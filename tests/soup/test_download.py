"""Soups from the Hub: what is fetched and when, which revision, from the cache, and what a failure says and leaves."""

import json
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_soups import downloaded, files_of, publish
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import close_session
from loopback_hub import LoopbackHub

from trl_bonesoup.errors import HubError, ManifestError, SoupError
from trl_bonesoup.soup.adapters import read_adapter
from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.lora import BoneSoup
from trl_bonesoup.soup.source import SoupSource, open_soup

ADAPTER = "backbone0/adapter_model.safetensors"


def logits(soup: BoneSoup, batch: dict[str, torch.Tensor], preference: list[float]) -> torch.Tensor:
    soup.set_preference(preference)
    with torch.no_grad():
        return soup.model(**batch).logits


def soup_json(folder: Path, **changes: Any) -> bytes:
    return json.dumps({**json.loads((folder / "soup.json").read_text()), **changes}).encode()


def weights(beta: float) -> dict[str, bytes]:
    return {"combination_weights": [[beta, 1 - beta], [1 - beta, beta]]}


def whole(source: SoupSource) -> list[dict[str, bytes]]:
    """Return the weights and configurations of a soup's backbones and base, fetching what is missing."""
    folders = [*source.backbones(), source.base_model().folder()]
    return [{path: data for path, data in files_of(folder).items() if path != "README.md"} for folder in folders]


@contextmanager
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        close_session()
        yield
    close_session()


@contextmanager
def no_connection() -> Iterator[None]:
    def refuse(*_: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.MonkeyPatch.context() as patch:
        close_session()
        patch.setattr(socket.socket, "connect", refuse)
        yield


class TestLoading:
    @pytest.mark.parametrize("kind", ["two_adapters", "two_full"])
    def test_the_logits_are_those_of_the_folder(
        self, hub: LoopbackHub, request: pytest.FixtureRequest, kind: str, batch: dict[str, torch.Tensor]
    ) -> None:
        folder = request.getfixturevalue(kind)
        publish(hub, folder)
        here, there = BoneSoup.from_pretrained(folder), BoneSoup.from_pretrained("org/soup")
        for preference in ([1.0, 0.0], [0.3, 0.7], [0.0, 1.0]):
            assert torch.equal(logits(there, batch, preference), logits(here, batch, preference))
        assert there.tokenizer is not None

    def test_a_soup_is_merged_from_the_hub_without_its_base(
        self, hub: LoopbackHub, two_adapters: Path, tmp_path: Path
    ) -> None:
        publish(hub, two_adapters)
        merge("org/soup", tmp_path / "there", [0.3, 0.7])
        merge(two_adapters, tmp_path / "here", [0.3, 0.7])
        assert files_of(tmp_path / "there")[ADAPTER.split("/")[1]] == files_of(tmp_path / "here")[ADAPTER.split("/")[1]]
        assert not [path for path in downloaded(hub) if path.startswith("base/")]

    def test_backbones_and_base_in_other_repositories_at_recorded_revisions(
        self, hub: LoopbackHub, two_adapters: Path, batch: dict[str, torch.Tensor]
    ) -> None:
        old = publish(hub, two_adapters / "backbone0", "org/helpful")
        publish(hub, two_adapters / "backbone1", "org/harmless")
        HfApi().create_tag("org/harmless", tag="v1")
        publish(hub, two_adapters / "base", "org/sft")
        HfApi().create_branch("org/sft", branch="kept")
        for moved in ("org/helpful", "org/harmless", "org/sft"):
            hub.put(moved, {"adapter_config.json": b"spoilt", "config.json": b"spoilt"})
        changes = {
            "base_model": {"id": "org/sft", "revision": "kept"},
            "backbones": [
                {"path": "org/helpful", "kind": "adapter", "revision": old},
                {"path": "org/harmless", "kind": "adapter", "revision": "v1"},
            ],
        }
        hub.put("org/soup", {"soup.json": soup_json(two_adapters, **changes)})
        soup = BoneSoup.from_pretrained("org/soup")
        expected = logits(BoneSoup.from_pretrained(two_adapters), batch, [0.3, 0.7])
        assert torch.equal(logits(soup, batch, [0.3, 0.7]), expected)
        assert soup.model.name_or_path == "org/sft"

    def test_a_soup_is_pinned_by_commit_tag_or_branch(self, hub: LoopbackHub, two_adapters: Path) -> None:
        first = hub.put("org/soup", {"soup.json": soup_json(two_adapters, **weights(0.6))})
        HfApi().create_tag("org/soup", tag="v1")
        second = hub.put("org/soup", {"soup.json": soup_json(two_adapters, **weights(0.7))})
        HfApi().create_branch("org/soup", branch="next", revision=second)
        hub.put("org/soup", {"soup.json": soup_json(two_adapters, **weights(0.8))})
        opened = {
            revision: open_soup("org/soup", revision=revision) for revision in (first, "v1", "next", "main", None)
        }
        betas = {revision: source.manifest.weights[0, 0] for revision, source in opened.items()}
        assert betas == {first: 0.6, "v1": 0.6, "next": 0.7, "main": 0.8, None: 0.8}
        assert opened["v1"].snapshot is not None
        assert opened["v1"].snapshot.commit == first

    def test_all_files_are_of_the_commit_that_soup_json_is_of(self, hub: LoopbackHub, two_adapters: Path) -> None:
        publish(hub, two_adapters)
        source = open_soup("org/soup")
        hub.put("org/soup", {f"backbone{j}/adapter_config.json": b"of a later commit" for j in range(2)})
        for folder in source.backbones():
            read_adapter(folder)

    def test_a_folder_in_the_working_directory_does_not_stand_in_for_a_repository(
        self, hub: LoopbackHub, two_adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(hub, two_adapters / "base", "org/sft")
        publish(hub, two_adapters, more={"soup.json": soup_json(two_adapters, base_model={"id": "org/sft"})})
        (tmp_path / "org" / "sft").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        folder = open_soup("org/soup").base_model().folder()
        assert (folder / "model.safetensors").read_bytes() == (two_adapters / "base/model.safetensors").read_bytes()


NOT_NEEDED = [
    *("README.md", "front.json", "front.png", "model.safetensors", "training_args.bin", "evil.py"),
    *("backbone0/adapter_model.bin", "backbone0/optimizer.pt", "backbone0/README.md", "backbone0/custom.py"),
    *("backbone0/model.fp16.safetensors", "backbone0/checkpoint-4/adapter_model.safetensors"),
    *("backbone0/checkpoint-4/adapter_config.json", "backbone01/adapter_model.safetensors"),
    *("base/pytorch_model.bin", "base/consolidated.safetensors", "base/onnx/model.safetensors"),
    *("backbone0/checkpoint-4/chat_template.jinja", "base/onnx/vocabulary.tiktoken"),
]


class TestWhatIsFetched:
    def test_the_files_of_the_models_it_names_and_no_others(self, hub: LoopbackHub, two_adapters: Path) -> None:
        differs = (two_adapters / "backbone1/adapter_config.json").read_bytes() + b"\n"  # equal files come once
        publish(
            hub,
            two_adapters,
            more=dict.fromkeys(NOT_NEEDED, b"not needed") | {"backbone1/adapter_config.json": differs},
        )
        BoneSoup.from_pretrained("org/soup")
        needed = {path for path in files_of(two_adapters) if not path.endswith("README.md")}
        assert downloaded(hub)[0] == "soup.json"
        assert sorted(downloaded(hub)) == sorted(needed)

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"combination_weights": [[0.7, 0.3], [0.4, 0.7]]}, r"sums to 1\.1"),
            ({"format_version": 2}, "reads 1"),
            ({"surplus": 1}, "surplus"),
        ],
    )
    def test_nothing_but_soup_json_before_that_is_checked(
        self, hub: LoopbackHub, two_adapters: Path, changes: dict[str, Any], complaint: str
    ) -> None:
        publish(hub, two_adapters, more={"soup.json": soup_json(two_adapters, **changes)})
        with pytest.raises(ManifestError, match=complaint):
            BoneSoup.from_pretrained("org/soup")
        assert downloaded(hub) == ["soup.json"]

    def test_nothing_of_a_backbone_before_all_names_are_checked(self, hub: LoopbackHub, two_adapters: Path) -> None:
        backbones = [{"path": path, "kind": "adapter"} for path in ("backbone0", "../elsewhere")]
        publish(hub, two_adapters, more={"soup.json": soup_json(two_adapters, backbones=backbones)})
        with pytest.raises(SoupError, match=r"backbone 1 of soup\.json is '\.\./elsewhere', outside"):
            BoneSoup.from_pretrained("org/soup")
        assert downloaded(hub) == ["soup.json"]

    def test_nothing_of_a_backbone_before_the_output_folder_is_checked(
        self, hub: LoopbackHub, two_adapters: Path, tmp_path: Path
    ) -> None:
        publish(hub, two_adapters)
        (tmp_path / "something").touch()
        with pytest.raises(SoupError, match="is not empty"):
            merge("org/soup", tmp_path, [0.5, 0.5])
        assert downloaded(hub) == ["soup.json"]

    def test_nothing_a_second_time(self, hub: LoopbackHub, two_adapters: Path) -> None:
        publish(hub, two_adapters)
        whole(open_soup("org/soup"))
        hub.requests.clear()
        whole(open_soup("org/soup"))
        assert downloaded(hub) == []
        assert len(hub.requests) <= 2  # which commit `main` is now

    def test_names_that_are_patterns_elsewhere(self, hub: LoopbackHub, two_adapters: Path) -> None:
        backbones = [{"path": path, "kind": "adapter"} for path in ("help[fu]l*", "backbone1")]
        files = {path.replace("backbone0", "help[fu]l*"): data for path, data in files_of(two_adapters).items()}
        files |= {"helpfl/adapter_config.json": b"another", "soup.json": soup_json(two_adapters, backbones=backbones)}
        hub.put("org/soup", files)
        first, _ = open_soup("org/soup").backbones()
        assert (first / "adapter_model.safetensors").read_bytes() == (two_adapters / ADAPTER).read_bytes()
        assert "helpfl/adapter_config.json" not in downloaded(hub)


class TestFromTheCache:
    @pytest.mark.parametrize("cut_off", [offline, no_connection])
    @pytest.mark.parametrize("revision", [None, "v1", "commit"])
    def test_a_soup_that_was_loaded_before(
        self, hub: LoopbackHub, two_adapters: Path, cut_off: Any, revision: str | None
    ) -> None:
        commit = publish(hub, two_adapters)
        HfApi().create_tag("org/soup", tag="v1")
        at = commit if revision == "commit" else revision
        whole(open_soup("org/soup", revision=at))
        with cut_off():
            assert whole(open_soup("org/soup", revision=at)) == whole(open_soup(two_adapters))

    def test_models_are_loaded_without_a_question_to_the_hub(self, hub: LoopbackHub, two_adapters: Path) -> None:
        publish(hub, two_adapters)
        before = BoneSoup.from_pretrained("org/soup")
        with offline():
            after = BoneSoup.from_pretrained("org/soup")
        np.testing.assert_array_equal(after.coefficients, before.coefficients)
        assert after.folder == before.folder

    def test_offline_and_never_loaded(self, hub: LoopbackHub, two_adapters: Path) -> None:
        publish(hub, two_adapters)
        with (
            offline(),
            pytest.raises(HubError, match=r"'org/soup' .*HF_HUB_OFFLINE is set, and it is not in the cache"),
        ):
            BoneSoup.from_pretrained("org/soup")

    def test_no_connection_and_never_loaded(self, hub: LoopbackHub) -> None:
        with (
            no_connection(),
            pytest.raises(HubError, match=r"'org/soup' .*could not be reached.*Check the connection"),
        ):
            BoneSoup.from_pretrained("org/soup")

    @pytest.mark.parametrize("cut_off", [offline, no_connection])
    def test_only_a_part_was_loaded(self, hub: LoopbackHub, two_adapters: Path, cut_off: Any) -> None:
        publish(hub, two_adapters)
        open_soup("org/soup")
        with cut_off(), pytest.raises(HubError, match="only a part of it is in the cache"):
            BoneSoup.from_pretrained("org/soup")


class TestFailures:
    """Each says what was asked, what happened and what to do; the second run finishes."""

    def refused(self, repo: str = "org/soup", **options: Any) -> str:
        with pytest.raises((HubError, SoupError)) as caught:
            whole(open_soup(repo, **options))
        return str(caught.value)

    def test_a_private_soup_without_a_token(
        self, hub: LoopbackHub, two_adapters: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(hub, two_adapters, private=True)
        monkeypatch.delenv("HF_TOKEN")
        message = self.refused()
        assert f"'org/soup' is not on this machine and could not be fetched from {hub.endpoint}" in message
        assert "private and your token does not see it" in message
        assert "hf auth login" in message
        monkeypatch.setenv("HF_TOKEN", hub.token)
        assert whole(open_soup("org/soup")) == whole(open_soup(two_adapters))

    def test_somebody_elses_private_soup(
        self, hub: LoopbackHub, two_adapters: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(hub, two_adapters, private=True)
        monkeypatch.setenv("HF_TOKEN", hub.other_token)
        assert "no such repository, or it is private" in self.refused()

    def test_a_wrong_token(self, hub: LoopbackHub, two_adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(hub, two_adapters)
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        message = self.refused()
        assert "the Hub refused the token (401)" in message
        assert "hf_wrong" not in message

    def test_no_such_repository(self, hub: LoopbackHub) -> None:
        assert "'org/none' is not on this machine" in self.refused("org/none")
        assert "Check the name" in self.refused("org/none")

    def test_no_such_revision(self, hub: LoopbackHub, two_adapters: Path) -> None:
        publish(hub, two_adapters)
        message = self.refused(revision="v9")
        assert "'org/soup' at revision 'v9'" in message
        assert "has no commit, tag or branch 'v9'" in message

    def test_a_repository_that_is_no_soup(self, hub: LoopbackHub, two_adapters: Path) -> None:
        commit = publish(hub, two_adapters / "backbone0")
        message = self.refused()
        assert f"org/soup at commit {commit} has no soup.json" in message
        assert "loaded with transformers or PEFT" in message

    def test_a_backbone_that_was_never_uploaded(self, hub: LoopbackHub, two_adapters: Path) -> None:
        files = {path: data for path, data in files_of(two_adapters).items() if not path.startswith("backbone1/")}
        hub.put("org/soup", files)
        assert "backbone 1 of soup.json is 'backbone1', which is neither a folder of org/soup" in self.refused()
        assert downloaded(hub) == ["soup.json"]

    @pytest.mark.parametrize("status", [500, 503])
    def test_the_hub_has_a_problem(self, hub: LoopbackHub, two_adapters: Path, status: int) -> None:
        publish(hub, two_adapters)
        hub.fail(status=status, times=None)
        message = self.refused()
        assert f"the Hub answered {status}" in message
        assert "try again later" in message
        hub.heal()
        assert whole(open_soup("org/soup")) == whole(open_soup(two_adapters))

    @pytest.mark.parametrize("fault", [{"status": 503}, {"drop": "response"}, {"drop": "request"}])
    def test_a_download_that_stops_half_way_is_finished_by_the_next(
        self, hub: LoopbackHub, two_adapters: Path, fault: dict[str, Any]
    ) -> None:
        publish(hub, two_adapters)
        hub.fail(rf"GET .*/resolve/.*{ADAPTER}", times=None, **fault)
        message = self.refused()
        assert "'org/soup'" in message
        assert "load it again" in message or "try again" in message
        assert not list(hub.cache.rglob(ADAPTER))  # type: ignore[union-attr]
        with offline():
            assert "only a part of it is in the cache" in self.refused()
        hub.heal()
        hub.requests.clear()
        assert whole(open_soup("org/soup")) == whole(open_soup(two_adapters))
        assert ADAPTER in downloaded(hub)
        assert "soup.json" not in downloaded(hub)

    def test_a_full_disk(self, hub: LoopbackHub, two_adapters: Path) -> None:
        large = bytes(100_000)
        publish(hub, two_adapters, more={"backbone1/tokenizer.json": large})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(large) // 2, hard))  # writes beyond it fail as on a full disk
        try:
            with pytest.raises(HubError) as caught:
                open_soup("org/soup").backbones()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert f"no space is left for {hub.cache}" in str(caught.value)
        assert "set HF_HOME" in str(caught.value)
        assert not list(hub.cache.rglob("tokenizer.json"))  # type: ignore[union-attr]
        assert not list(hub.cache.rglob("*.incomplete"))  # type: ignore[union-attr]
        assert (open_soup("org/soup").backbones()[1] / "tokenizer.json").stat().st_size == len(large)

    @pytest.mark.parametrize("name", ["org/soup/more", "../up", "/nowhere/at/all", "nul\0", "org/so up", "üb/er"])
    def test_what_is_no_name(self, hub: LoopbackHub, name: str) -> None:
        assert "no folder" in self.refused(name)
        assert not hub.requests

    @pytest.mark.parametrize("name", ["org--x/soup", "org/.soup", "a..b/c", "a" * 97, "a" * 300])
    def test_names_that_the_hub_has_not(self, hub: LoopbackHub, name: str) -> None:
        message = self.refused(name)
        assert "Give a folder or a Hub id like org/name" in message or "no folder" in message
        assert not hub.requests


def test_the_base_that_an_adapter_names_is_not_passed_on(hub: LoopbackHub, two_adapters: Path, tmp_path: Path) -> None:
    named = json.loads((two_adapters / "backbone0/adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(named).is_dir()
    publish(hub, two_adapters, more={"soup.json": soup_json(two_adapters, base_model={"id": "/somewhere/else"})})
    with pytest.raises(SoupError, match="Pass base_model="):
        merge("org/soup", tmp_path / "out", [0.5, 0.5])
    merge("org/soup", tmp_path / "out", [0.5, 0.5], base_model="org/sft")
    written = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "org/sft"


def test_a_source_knows_where_it_is_from(hub: LoopbackHub, two_adapters: Path) -> None:
    commit = publish(hub, two_adapters)
    source = open_soup("org/soup")
    assert source.from_hub and source.snapshot is not None and source.snapshot.repo == "org/soup"
    assert source.folder.name == source.snapshot.commit == commit
    assert not open_soup(two_adapters).from_hub
