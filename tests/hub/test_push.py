"""Publishing a family: what is sent, what never is, and that the same push again sends nothing."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from loopback_hub import LoopbackHub
from private_strings import E_MAIL, PAST_TOKEN, PERSON
from small_models import make_tokenizer

from trl_bonesoup import BoneSoup, SoupManifest
from trl_bonesoup.errors import ConfigurationError, HubError, SoupError
from trl_bonesoup.hub.push import push
from trl_bonesoup.soup.export import merge

PREFERENCES = [[0.7, 0.3], [0.0, 1.0], [0.5, 0.5]]


def logits(model) -> torch.Tensor:
    ids = make_tokenizer()(["the cat runs and", "a happy dog is"], return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids).logits


def test_a_family_comes_back_bit_by_bit(hub: LoopbackHub, run_folder: Path):
    push(run_folder, "org/soup")
    here = BoneSoup.from_pretrained(run_folder)
    shutil.move(run_folder, run_folder.parent / "gone")  # nothing may be read from here
    there = BoneSoup.from_pretrained("org/soup")
    for preference in PREFERENCES:
        here.set_preference(preference)
        there.set_preference(preference)
        assert torch.equal(logits(here.model), logits(there.model))
    assert there.tokenizer.get_vocab() == make_tokenizer().get_vocab()


def test_what_is_in_the_repository_of_a_family(hub: LoopbackHub, run_folder: Path):
    (done,) = push(run_folder, "org/soup")
    files = hub.files("org/soup")
    assert (
        sorted(files)
        == [
            ".gitattributes",
            "README.md",
            *(
                f"backbones/{b}/{f}"
                for b in ("b0", "b1")
                for f in ("README.md", "adapter_config.json", "adapter_model.safetensors")
            ),
            *(f"base/{f}" for f in ("config.json", "generation_config.json", "model.safetensors")),
            *(f"base/{f}" for f in ("tokenizer.json", "tokenizer_config.json")),
            "front.json",
            "front.png",
            "soup.json",
            "steering.png",
        ]
        or "base/chat_template.jinja" in files
    )
    manifest = json.loads(files["soup.json"])
    assert manifest["base_model"] == {"id": "base", "revision": None}
    assert [backbone["path"] for backbone in manifest["backbones"]] == ["backbones/b0", "backbones/b1"]
    assert manifest["objectives"][0]["reward"] == "reward-model"
    assert manifest["training"] == {
        "output_dir": "run",
        "hub_token": "(token)",
        "run_name": "by (e-mail address)",
        "seed": 3,
    }
    assert json.loads(files["backbones/b0/adapter_config.json"])["base_model_name_or_path"] is None
    weights = "backbones/b1/adapter_model.safetensors"
    assert files[weights] == (run_folder / "b1" / "adapter_model.safetensors").read_bytes()
    assert (done.state, done.commit) == ("pushed", hub.repos["org/soup"].at("main").oid)
    assert len(hub.commits("org/soup")) == 2, "the Hub's own first commit, and one of ours"


def test_each_backbone_has_a_card_of_its_own(hub: LoopbackHub, without_front: Path):
    (without_front / "logs").mkdir()
    log = [{"step": 3, "rewards/good/mean": 0.25, "rewards/brief/mean": -1.5}]
    (without_front / "logs" / "b1.json").write_text(json.dumps({"steps": 3, "log": log}))
    push(without_front, "org/soup", license="mit")
    first, second = (hub.files("org/soup")[f"backbones/b{j}/README.md"].decode() for j in range(2))
    assert "reward mixture 0.75 `good` + 0.25 `brief`: backbone 0 of the 2" in first
    assert "reward mixture 0.25 `good` + 0.75 `brief`: backbone 1 of the 2" in second
    assert "None were recorded." in first and "| `good` | 0.25 |" in second and "| `brief` | -1.5 |" in second
    assert "\nlicense: mit\n" in first and "\nbase_model:" not in first
    push(without_front, "org/soup", preferences=PREFERENCES[:1])
    assert "\nbase_model: org/soup-base\n" in hub.files("org/soup")["backbones/b0/README.md"].decode()


def test_nothing_private_leaves_the_machine(hub: LoopbackHub, run_folder: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(run_folder.parent))
    push(run_folder, "org/soup", preferences=PREFERENCES[:1], collection="Soups")
    push(run_folder, "org/full", preferences=PREFERENCES[:1], full=True)
    sent = [request.body for request in hub.requests]
    for repo in hub.repos:
        sent += [*hub.files(repo).values(), *(path.encode() for path in hub.files(repo))]
    assert len(hub.repos) == 5
    for private in (str(run_folder.parents[1]), PERSON, hub.token, PAST_TOKEN, E_MAIL, "half trained", "pickled"):
        assert not [content[:200] for content in sent if private.encode() in content], private


def test_a_file_that_still_holds_a_path_or_the_token_stops_the_push(hub: LoopbackHub, run_folder: Path):
    for secret in (str(run_folder), hub.token):
        (run_folder / "base" / "chat_template.jinja").write_text("{# " + secret + " #}")
        with pytest.raises(HubError, match=r"base/chat_template\.jinja holds (your token|the path)") as caught:
            push(run_folder, "org/soup")
        assert secret not in str(caught.value) or secret == str(run_folder)
    assert not hub.repos


def test_the_same_push_again_sends_nothing(hub: LoopbackHub, run_folder: Path):
    options = {"preferences": PREFERENCES[:2], "collection": "Soups", "tag": "v1"}
    first = push(run_folder, "org/soup", **options)
    commits = {repo: hub.commits(repo) for repo in hub.repos}
    hub.requests.clear()
    second = push(run_folder, "org/soup", **options)
    assert not hub.writes()
    assert not hub.asked("preupload|objects/batch|PUT")
    assert {repo: hub.commits(repo) for repo in hub.repos} == commits
    assert {entry.state for entry in first} == {"pushed"} and {entry.state for entry in second} == {"unchanged"}
    assert [entry.commit for entry in first] == [entry.commit for entry in second]


def test_only_what_changed_is_sent(hub: LoopbackHub, without_front: Path):
    push(without_front, "org/soup")
    hub.requests.clear()
    SoupManifest.load(without_front).with_preset("mild", [0.5, 0.5]).save(without_front)
    push(without_front, "org/soup")
    (commit,) = hub.asked("/commit/")
    sent = [json.loads(line)["value"].get("path") for line in commit.body.splitlines()[1:]]
    assert sorted(sent) == ["README.md", "soup.json"] and not hub.asked("^PUT")


def test_models_of_an_earlier_push_go_and_other_files_stay(hub: LoopbackHub, without_front: Path):
    push(without_front, "org/soup")
    old = "backbones/old/adapter_model.safetensors"
    card = "backbones/old/README.md"
    hub.put("org/soup", {old: b"\0old", card: b"old", "notes.md": b"mine", "backbones/notes.md": b"mine"})
    push(without_front, "org/soup")
    files = hub.files("org/soup")
    assert old not in files and card not in files and files["notes.md"] == files["backbones/notes.md"] == b"mine"


def test_a_repository_of_something_else_is_left_alone(hub: LoopbackHub, without_front: Path):
    hub.put("org/soup", {"model.safetensors": b"\0theirs", "README.md": b"---\ntags: [chat]\n---\n"})
    with pytest.raises(
        HubError, match=r"org/soup exists and holds model\.safetensors.*tag \"bone-soup\".*another --repo"
    ):
        push(without_front, "org/soup")
    assert not hub.asked("/commit/")


def test_nothing_is_pushed_over_another_kind_of_ours(hub: LoopbackHub, without_front: Path):
    push(without_front, "org/soup-base")
    push(without_front, "org/soup")
    assert "base/model.safetensors" in hub.files("org/soup"), "org/soup-base is a family and no base model"
    with pytest.raises(HubError, match=r"org/soup-base exists and is a family of soups \(soup\.json\)"):
        push(without_front, "org/soup", preferences=PREFERENCES[:1])
    push(without_front, "org/other", preferences=PREFERENCES[:1])
    with pytest.raises(HubError, match=r"exists and is the soup of one preference \(soup_export\.json\)"):
        push(without_front, "org/other-good-0.7-brief-0.3")
    assert all(len(hub.commits(repo)) == 2 for repo in hub.repos)


def test_a_dry_run_says_everything_and_writes_nothing(hub: LoopbackHub, run_folder: Path):
    said: list[str] = []
    done = push(run_folder, "org/soup", preferences=PREFERENCES[:1], collection="Soups", dry_run=True, say=said.append)
    text = "\n".join(said)
    assert not hub.writes() and not hub.repos and not hub.collections
    assert [(entry.repo_id, entry.state) for entry in done] == [
        ("org/soup-base", "planned"),
        ("org/soup", "planned"),
        ("org/soup-good-0.7-brief-0.3", "planned"),
    ]
    weights = run_folder / "base" / "model.safetensors"
    assert f"new     {weights.stat().st_size / 1000:>6.1f} kB  model.safetensors" in text
    assert "org/soup  (new repository)" in text and "Soups  (new collection), to add: 3 of 3" in text
    push(run_folder, "org/soup")
    said.clear()
    (run_folder / "base" / "generation_config.json").write_text("{}")
    push(run_folder, "org/soup", dry_run=True, say=said.append)
    text = "\n".join(said)
    assert "changed       2 B  base/generation_config.json" in text and "to send: 1, 2 B" in text
    assert "same" in text and "new " not in text
    assert hub.files("org/soup")["base/generation_config.json"] != b"{}"


def test_single_preferences_load_with_peft_and_transformers(hub: LoopbackHub, run_folder: Path, tmp_path: Path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    soup = BoneSoup.from_pretrained(run_folder)
    merge(run_folder, tmp_path / "merged", [0.7, 0.3])
    merged = logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "merged"))
    push(run_folder, "org/soup", preferences=[{"good": 0.7, "brief": 0.3}, "brief"])
    push(run_folder, "org/soup", preferences=[[0.7, 0.3]], extrapolation=0.2, full=True)
    shutil.move(run_folder, run_folder.parent / "gone")
    assert sorted(hub.repos) == [
        "org/soup",
        "org/soup-base",
        "org/soup-good-0-brief-1",
        "org/soup-good-0.7-brief-0.3",
        "org/soup-good-0.7-brief-0.3-alpha-0.2-full",
    ]
    # the adapter is the very one that `merge` writes, a rounding of float32 from the soup in place, as is the full one
    soup.set_preference([0.7, 0.3])
    adapter = AutoPeftModelForCausalLM.from_pretrained("org/soup-good-0.7-brief-0.3")
    assert torch.equal(logits(adapter), merged)
    tokenizer = AutoTokenizer.from_pretrained("org/soup-good-0.7-brief-0.3")  # the base's: backbones have none here
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert 'AutoTokenizer.from_pretrained("org/soup-good-0.7-brief-0.3")' in (
        hub.files("org/soup-good-0.7-brief-0.3")["README.md"].decode()
    )
    torch.testing.assert_close(logits(adapter), logits(soup.model), rtol=1e-4, atol=1e-4)
    soup.set_preference([0.0, 1.0])
    other = AutoPeftModelForCausalLM.from_pretrained("org/soup-good-0-brief-1")
    torch.testing.assert_close(logits(other), logits(soup.model), rtol=1e-4, atol=1e-4)
    soup.set_preference([0.7, 0.3], 0.2)
    full = AutoModelForCausalLM.from_pretrained("org/soup-good-0.7-brief-0.3-alpha-0.2-full")
    torch.testing.assert_close(logits(full), logits(soup.model), rtol=1e-4, atol=1e-4)
    # and the family, whose base model moved into a repository of its own, still loads
    there = BoneSoup.from_pretrained("org/soup")
    there.set_preference([0.7, 0.3], 0.2)
    assert torch.equal(logits(there.model), logits(soup.model))
    assert json.loads(hub.files("org/soup")["soup.json"])["base_model"]["id"] == "org/soup-base"
    assert not [path for path in hub.files("org/soup") if path.startswith("base/")]


def test_a_base_model_that_is_on_the_hub_is_named_and_not_sent(hub: LoopbackHub, without_front: Path):
    base = {file.name: file.read_bytes() for file in (without_front / "base").glob("*.json")}
    hub.put("org/sft", {**base, "model.safetensors": (without_front / "base" / "model.safetensors").read_bytes()})
    push(without_front, "org/soup", base_model="org/sft", preferences=[[0.7, 0.3]])
    assert sorted(hub.repos) == ["org/sft", "org/soup", "org/soup-good-0.7-brief-0.3"]
    for file in ("backbones/b0/adapter_config.json", "backbones/b1/adapter_config.json"):
        assert json.loads(hub.files("org/soup")[file])["base_model_name_or_path"] == "org/sft"
    single = hub.files("org/soup-good-0.7-brief-0.3")
    assert json.loads(single["adapter_config.json"])["base_model_name_or_path"] == "org/sft"
    assert "org/sft" in single["README.md"].decode()
    BoneSoup.from_pretrained("org/soup").set_preference("good")
    with pytest.raises(ConfigurationError, match="no id of a model on the Hub"):
        push(without_front, "org/soup", base_model=str(without_front / "base"))


def test_a_soup_of_full_checkpoints(hub: LoopbackHub, made_soups):
    push(made_soups["full"], "org/full", preferences=[[0.25, 0.75]])
    here, there = (BoneSoup.from_pretrained(path) for path in (made_soups["full"], "org/full"))
    for preference in PREFERENCES[:2]:
        here.set_preference(preference)
        there.set_preference(preference)
        assert torch.equal(logits(here.model), logits(there.model))
    assert "model.safetensors" in hub.files("org/full-good-0.25-brief-0.75")


def test_branches_tags_and_revisions(hub: LoopbackHub, without_front: Path):
    push(without_front, "org/soup", tag="v1")
    SoupManifest.load(without_front).with_preset("mild", [0.5, 0.5]).save(without_front)
    with pytest.raises(HubError, match=r"has a tag 'v1' already.*Tags are not moved"):
        push(without_front, "org/soup", tag="v1")
    assert "mild" not in SoupManifest.model_validate_json(hub.files("org/soup")["soup.json"]).presets
    push(without_front, "org/soup", branch="next", tag="v2")
    push(without_front, "org/soup", branch="next", tag="v2")
    assert hub.commits("org/soup", "next")[:2] == hub.commits("org/soup")
    assert len(hub.commits("org/soup", "next")) == 3 and len(hub.commits("org/soup")) == 2
    loaded = {rev: BoneSoup.from_pretrained("org/soup", revision=rev).manifest.presets for rev in ("v1", "v2", "next")}
    assert loaded["v1"] == {} and set(loaded["v2"]) == set(loaded["next"]) == {"mild"}


def test_private_stays_private(hub: LoopbackHub, without_front: Path):
    push(without_front, "org/soup", private=True, collection="Ours")
    assert hub.repos["org/soup"].private and next(iter(hub.collections.values())).private
    hub.put("org/public", {"README.md": b"---\ntags: [bone-soup]\n---\n"})
    with pytest.raises(HubError, match="exists and is public, so nothing was sent"):
        push(without_front, "org/public", private=True)
    assert not [path for path in hub.files("org/public") if "soup.json" in path]


def test_a_collection_holds_all_of_it_in_order(hub: LoopbackHub, without_front: Path):
    push(without_front, "org/soup", preferences=PREFERENCES[:2], collection="Soups of ours")
    (collection,) = hub.collections.values()
    assert (collection.title, collection.owner) == ("Soups of ours", "org")
    names = ["org/soup-base", "org/soup", "org/soup-good-0.7-brief-0.3", "org/soup-good-0-brief-1"]
    assert collection.items == names
    assert collection.notes == {names[2]: "0.7 good, 0.3 brief", names[3]: "1 brief"}
    push(without_front, "org/soup", preferences=PREFERENCES, collection=collection.slug)
    assert collection.items == [*names, "org/soup-good-0.5-brief-0.5"] and len(hub.collections) == 1


def test_arguments_are_checked_before_anything_is_asked(hub: LoopbackHub, without_front: Path):
    for repo in ("soup", "a/b/c", "org/../x", "org/-x"):
        with pytest.raises(ConfigurationError, match="called org/name"):
            push(without_front, repo)
    with pytest.raises(ConfigurationError, match="same preference was given twice"):
        push(without_front, "org/soup", preferences=[[0.5, 0.5], "equal"])
    (without_front / "b1" / "adapter_model.safetensors").rename(without_front / "b1" / "adapter_model.bin")
    with pytest.raises(SoupError, match="no weights in safetensors"):
        push(without_front, "org/soup")
    for content, said in (("{", "not valid JSON"), ("[]", "no JSON object")):
        (without_front / "b0" / "adapter_config.json").write_text(content)
        with pytest.raises(SoupError, match=rf"adapter_config\.json is .*{said}"):
            push(without_front, "org/soup")
    assert not hub.writes()


def test_hashes_of_git_and_sha256_tell_what_is_the_same(hub: LoopbackHub, tmp_path: Path):
    from trl_bonesoup.hub.plan import Remote, RemoteFile, plan_repo

    # `printf 'hello\n' | git hash-object --stdin`, `printf 'hello\n' | sha256sum`
    git = RemoteFile(6, "ce013625030ba8dba906f756967f9e9ca394464a")
    large = RemoteFile(6, "0" * 40, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03")
    (tmp_path / "file").write_bytes(b"hello\n")
    for there in (git, large):
        for content in (b"hello\n", tmp_path / "file"):
            remote = Remote(True, False, "0" * 40, {"a": there}, ("bone-soup",), True)
            assert plan_repo("org/x", {"a": content}, remote).is_done
            (change,) = plan_repo("org/x", {"a": b"hullo\n"}, remote).changes
            assert change.state == "changed"
    assert hashlib.sha256(b"hello\n").hexdigest() == large.sha256
