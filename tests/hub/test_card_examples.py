"""What a card says to run is run: verbatim, against a Hub on the loopback interface."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from cards import blocks
from huggingface_hub import HfApi, ModelCard
from loopback_hub import LoopbackHub
from safetensors.torch import load_file
from small_models import write_soup

import mergekit_bonesoup
from trl_bonesoup import BoneSoup, SoupManifest
from trl_bonesoup.cli import main
from trl_bonesoup.hub.card import family_card
from trl_bonesoup.hub.describe import describe_soup
from trl_bonesoup.manifest import BaseModelRef
from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.source import open_soup

PREFERENCE = [0.8, 0.2]
PROMPT = torch.tensor([[3, 4, 5, 6]])


@pytest.fixture
def family(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoupManifest:
    """org/family on the Hub, whose soup.json names its base model org/sft there; the working directory is empty."""
    folder = write_soup(tmp_path / "family")
    (folder / "base").rename(tmp_path / "sft")
    recorded = SoupManifest.load(folder).model_copy(update={"base_model": BaseModelRef(id="org/sft")})
    recorded.save(folder)
    upload("org/sft", tmp_path / "sft")
    upload("org/family", folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return recorded


def upload(repo_id: str, folder: str | Path) -> None:
    client = HfApi()
    client.create_repo(repo_id, exist_ok=True)
    client.upload_folder(repo_id=repo_id, folder_path=folder)


def card_of(folder: str, extrapolation: float = 0.0, **options) -> str:
    card = describe_soup(open_soup("org/family"), folder, PREFERENCE, extrapolation, **options)
    return ModelCard.load(card).text


def run(example: str) -> dict:
    names: dict = {}
    exec(compile(example, "card", "exec"), names)
    return names


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=PROMPT).logits


def expected(preference, base_model: str | None = None) -> torch.Tensor:
    soup = BoneSoup.from_pretrained("org/family", base_model=base_model)
    soup.set_preference(preference)
    return logits(soup.model)


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_a_soup_loads_in_three_ways(family: SoupManifest, kind: str) -> None:
    merge("org/family", "soup", PREFERENCE, full=kind == "full")
    upload("org/soup", "soup")
    text = card_of("soup", full=kind == "full", name="org/soup", family="org/family")
    plain, peft, other = blocks(text, "python")
    wanted = expected(PREFERENCE)
    loaded = run(plain)
    torch.testing.assert_close(logits(loaded["model"]), wanted, atol=1e-5, rtol=1e-4)
    assert loaded["tokenizer"].decode(PROMPT[0])
    (command,) = blocks(text, "bash")
    if kind == "full":
        command = command.replace(" --full", "")  # as its text says
    assert main(shlex.split(command)[1:]) == 0
    if kind == "adapter":
        assert Path("out/adapter_model.safetensors").read_bytes() == Path("soup/adapter_model.safetensors").read_bytes()
    torch.testing.assert_close(logits(run(peft)["model"]), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(run(other)["model"]), expected([0.5, 0.5]))


def test_the_command_makes_the_same_soup_again(family: SoupManifest) -> None:
    merge("org/family", "soup", PREFERENCE, full=True, extrapolation=0.2)
    text = card_of("soup", 0.2, full=True, family="org/family")
    (command,) = blocks(text, "bash")
    assert main(shlex.split(command)[1:]) == 0
    assert Path("out/model.safetensors").read_bytes() == Path("soup/model.safetensors").read_bytes()


def test_the_recipe_makes_the_same_model(family: SoupManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_yaml = pytest.importorskip("mergekit.scripts.run_yaml")
    mergekit_bonesoup.register()
    merge("org/family", "soup", PREFERENCE, full=True)
    text = card_of("soup", full=True)
    wanted = load_file("soup/model.safetensors")
    monkeypatch.chdir(tmp_path / "family")
    (recipe,) = blocks(text, "yaml")
    Path("recipe.yml").write_text(recipe, encoding="utf-8")
    _, *arguments = shlex.split(re.search(r"`(mergekit-yaml [^`]*)`", text)[1])
    run_yaml.main([*arguments, "--quiet"], standalone_mode=False)
    found = {name: value for file in Path("out").glob("*.safetensors") for name, value in load_file(file).items()}
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_a_base_model_that_the_card_names_instead_is_used(family: SoupManifest) -> None:
    local = family.model_copy(update={"base_model": BaseModelRef(id="/nowhere/sft")})
    local.save("edited")
    upload("org/family", "edited")
    merge("org/family", "soup", PREFERENCE, base_model="org/sft")
    upload("org/soup", "soup")
    text = card_of("soup", full=False, name="org/soup", family="org/family", base_model="org/sft")
    plain, peft, other = blocks(text, "python")
    for example in (plain, peft):
        found = logits(run(example)["model"])
        torch.testing.assert_close(found, expected(PREFERENCE, "org/sft"), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(run(other)["model"]), expected([0.5, 0.5], "org/sft"))


def test_a_family_answers_every_row_with_its_preference(family: SoupManifest) -> None:
    load, rows = blocks(family_card(family, repo_id="org/family").text, "python")
    names = run(load + rows.replace("One prompt", "a b").replace("Another prompt", "c d"))
    assert len(names["answers"]) == 2
    torch.testing.assert_close(logits(names["model"]), expected([0.5, 0.5]))
    for command in blocks(family_card(family, repo_id="org/family").text, "bash"):
        assert main([*shlex.split(command)[1:], "--overwrite"]) == 0
    torch.testing.assert_close(logits(run(PLAIN)["model"]), expected([0.5, 0.5]), atol=1e-5, rtol=1e-4)


PLAIN = """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("out")
"""
