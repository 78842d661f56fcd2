"""Uploads of the trainer, to a Hub on the loopback interface: what they hold, and what happens when they fail."""

import io
import json
import logging
import shlex
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard, snapshot_download
from loopback_hub import LoopbackHub
from peft import LoraConfig, PeftModel
from tiny import count_word
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_bonesoup import MultiRewardPPOTrainer
from trl_bonesoup.errors import ConfigurationError, HubError
from trl_bonesoup.training.resume import what_is_missing

USER, HOST, EMAIL = "ann-of-the-lab", "host-of-the-lab", "ann@lab.example"
NESTED = "hf_anotherSecretInTheModelsArguments"


@pytest.fixture(autouse=True)
def person(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user, a machine and an address that can be found again."""
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, USER)
    for name in ("EMAIL", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, EMAIL)
    (tmp_path / "home" / USER).mkdir(parents=True)
    (tmp_path / "home" / USER / ".gitconfig").write_text(f"[user]\n  email = {EMAIL}\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home" / USER))
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)


def make(base: str, args: Any, *, adapter: bool = True, **kwargs: Any) -> MultiRewardPPOTrainer:
    return MultiRewardPPOTrainer(
        base,
        [count_word("w1"), count_word("w2")],
        [[0.7, 0.3], [0.3, 0.7]],
        backbone=1,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(16)]}),
        peft_config=LoraConfig(r=2, target_modules="all-linear") if adapter else None,
        **kwargs,
    )


def unpacked(data: bytes) -> Iterator[bytes]:
    """The bytes, and those of every file in it if it is a zip, which is what torch saves."""
    yield data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield archive.read(name)


def leaks(hub: LoopbackHub, *private: str) -> list[tuple[str, str]]:
    """Which private text is in which request's body or which file of any commit."""
    sent = [(f"{request.method} {request.path}", request.body) for request in hub.requests]
    for repo_id, repo in hub.repos.items():
        for branch in repo.branches.values():
            for commit in branch:
                sent += [(f"{repo_id}/{path}", blob.data) for path, blob in commit.files.items()]
    return [
        (where, text)
        for where, data in sent
        for part in unpacked(data)
        for text in (USER, HOST, EMAIL, NESTED, hub.token, *private)
        if text.encode() in part
    ]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[3, 9, 4, 20]])).logits


def test_an_adapter_is_pushed_at_the_end(hub: LoopbackHub, base: str, settings: Any, tmp_path: Path) -> None:
    args = settings(max_steps=2, log_completions=True, hub_token=hub.token, model_init_kwargs={"token": NESTED})
    trainer = make(base, args)
    trainer.train()
    trainer.push_to_hub(license="mit", dataset_name="org/prompts", tags="mine")
    files = hub.files("ann/run")
    assert set(files) - {".gitattributes"} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not leaks(hub, str(tmp_path), base)
    card = ModelCard(files["README.md"].decode())
    card.validate()
    assert card.data.license == "mit" and card.data.datasets == ["org/prompts"] and "mine" in card.data.tags
    folder = snapshot_download("ann/run")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    assert torch.equal(logits(loaded), logits(trainer.model.eval()))
    assert AutoTokenizer.from_pretrained("ann/run")("w1 w2")["input_ids"] == [4, 5]


def test_a_full_model_is_pushed_when_it_is_saved(hub: LoopbackHub, base: str, settings: Any, tmp_path: Path) -> None:
    args = settings(max_steps=1, push_to_hub=True, hub_model_id="org/full", hub_private_repo=True)
    trainer = make(base, args, adapter=False)
    trainer.train()
    trainer.save_model()
    assert hub.repos["org/full"].private
    assert {"model.safetensors", "config.json", "generation_config.json"} < set(hub.files("org/full"))
    assert not leaks(hub, str(tmp_path), base)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("org/full")), logits(trainer.model.eval()))
    assert ModelCard.load("org/full").data.library_name == "transformers"


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        ("every_save", set()),
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-2", "checkpoint-4"}),
    ],
)
def test_checkpoints_are_pushed(
    strategy: str, folders: set[str], hub: LoopbackHub, base: str, settings: Any, tmp_path: Path
) -> None:
    args = settings(
        push_to_hub=True,
        hub_strategy=strategy,
        hub_always_push=True,
        hub_token=hub.token,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        log_completions=True,
    )
    (tmp_path / "run" / "runs" / HOST).mkdir(parents=True)
    (tmp_path / "run" / "runs" / HOST / f"events.out.tfevents.1.{HOST}").write_text(f"of {USER}")
    make(base, args).train()
    assert hub.commits("ann/run")[1:] == ["Training in progress, step 2", "Training in progress, step 4"]
    files = hub.files("ann/run")
    assert {path.split("/")[0] for path in files if "/" in path} == folders
    assert not [path for path in files if "training_args" in path or path.endswith("parquet") or "tfevents" in path]
    assert not leaks(hub, str(tmp_path), base)
    assert not list((tmp_path / "run" / "_hub").iterdir())
    local = tmp_path / "run" / "checkpoint-4"
    assert json.loads((local / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    assert (local / "training_args.bin").is_file() and what_is_missing(local) is None


def test_training_goes_on_from_an_uploaded_checkpoint(
    hub: LoopbackHub, base: str, settings: Any, tmp_path: Path
) -> None:
    changes = {"save_strategy": "steps", "save_steps": 2, "hub_always_push": True}
    whole = make(base, settings(push_to_hub=True, hub_strategy="all_checkpoints", **changes))
    whole.train()
    snapshot_download("ann/run", local_dir=tmp_path / "downloaded")
    resumed = make(base, settings(output_dir=str(tmp_path / "elsewhere"), **changes))
    resumed.train(resume_from_checkpoint=str(tmp_path / "downloaded" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert torch.equal(logits(resumed.model.eval()), logits(whole.model.eval()))


@pytest.mark.parametrize("failing", ["repos/create", "commit/main"])
def test_a_failed_upload_keeps_the_model_and_says_how_to_go_on(
    failing: str, hub: LoopbackHub, base: str, settings: Any, tmp_path: Path
) -> None:
    trainer = make(base, settings(max_steps=1, hub_model_id="org/one"))
    trainer.train()
    hub.fail(failing, status=500, times=None)
    with pytest.raises(HubError, match=r"saved in .*run\. Call push_to_hub\(\) again.*hf upload org/one") as caught:
        trainer.push_to_hub()
    assert "adapter_model.safetensors" not in (hub.files("org/one") if hub.repos else {})
    kept = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "run"))
    assert torch.equal(logits(kept), logits(trainer.model.eval()))
    hub.heal()
    *_, repo_id, folder = shlex.split(str(caught.value))
    HfApi().create_repo(repo_id, exist_ok=True)
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder)
    by_hand = hub.files("org/one")
    assert "adapter_model.safetensors" in by_hand
    trainer.push_to_hub()
    assert hub.files("org/one") == by_hand
    assert not Path(folder).exists() and not leaks(hub, str(tmp_path), base)


def test_a_checkpoint_that_cannot_be_uploaded_does_not_end_the_training(
    hub: LoopbackHub, base: str, settings: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"push_to_hub": True, "hub_strategy": "every_save", "save_strategy": "steps", "save_steps": 2}
    trainer = make(base, settings(hub_always_push=True, **changes))
    hub.fail("commit/main", status=403, times=1)
    with caplog.at_level(logging.WARNING, "trl_bonesoup"):
        trainer.train()
    assert "not on the Hub, and training goes on: 403" in caplog.text
    assert hub.commits("ann/run")[1:] == ["Training in progress, step 4"]
    assert (tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("token", "repo_id", "advice"),
    [("hf_wrong", "org/x", "hf auth login.*hub_token"), (None, "others/x", "403.*another hub_model_id")],
)
def test_a_repository_that_cannot_be_opened_is_said_before_training(
    token: str | None, repo_id: str, advice: str, hub: LoopbackHub, base: str, settings: Any
) -> None:
    with pytest.raises(HubError, match=f"repository {repo_id} could not be created.*{advice}") as caught:
        make(base, settings(push_to_hub=True, hub_token=token, hub_model_id=repo_id))
    assert not hub.repos and "hf_" not in str(caught.value)


def test_what_is_private_in_a_file_is_not_uploaded(hub: LoopbackHub, base: str, settings: Any, tmp_path: Path) -> None:
    trainer = make(base, settings(max_steps=1))
    trainer.processing_class.chat_template = f"{{# see {Path.home()}/notes #}}"
    with pytest.raises(
        HubError, match=r"chat_template.jinja holds the path of your home folder, so nothing of it was sent"
    ) as caught:
        trainer.push_to_hub()
    assert USER not in str(caught.value)
    assert "chat_template.jinja" not in hub.files("ann/run") and not leaks(hub, str(tmp_path))


def test_sharded_checkpoints_are_not_uploaded(base: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigurationError, match=r'"checkpoint" is not offered with FSDP.*"every_save"'):
        make(base, settings(push_to_hub=True, hub_strategy="checkpoint"))
