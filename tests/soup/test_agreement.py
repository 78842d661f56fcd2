"""Models that do not belong together are refused with both sides shown, before anything is written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_soups import CHAT_TEMPLATE, adapter_soup, full_soup, tiny_llama, weights_of, write_manifest
from tokenizers import Tokenizer

from trl_bonesoup import BoneSoup, sweep
from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.source import open_soup

EQUAL = [0.5, 0.5]
DOORS = {
    "merge": lambda run, out: merge(run, out, EQUAL),
    "sweep": lambda run, out: sweep(run, out, [EQUAL], show_progress=False),
    "in memory": lambda run, out: BoneSoup.from_pretrained(run),
}


@pytest.fixture(params=["two_adapters", "two_full"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a soup, to be changed; of adapters and of full backbones."""
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "run"))


@pytest.fixture
def full(two_full: Path, tmp_path: Path) -> Path:
    """A copy of a soup of full backbones."""
    return Path(shutil.copytree(two_full, tmp_path / "run"))


def refused(run: Path, message: str) -> None:
    """Check that every way to a soup refuses this one, and that nothing was written."""
    for door in DOORS.values():
        with pytest.raises(SoupError, match=message):
            door(run, run.parent / "out")
    assert not (run.parent / "out").exists()


def change(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


class TestTheSameBackboneTwice:
    def ways(self, run: Path) -> dict[str, Callable[[], str]]:
        def link() -> str:
            (run / "link").symlink_to(run / "backbone0", target_is_directory=True)
            return "link"

        return {
            "the same path": lambda: "backbone0",
            "a trailing slash": lambda: "backbone0/",
            "a detour": lambda: "backbone1/../backbone0",
            "an absolute path": lambda: str(run / "backbone0"),
            "a link": link,
        }

    @pytest.mark.parametrize("way", ["the same path", "a trailing slash", "a detour", "an absolute path", "a link"])
    def test_under_another_path(self, run, way) -> None:
        kind = open_soup(run).kind
        write_manifest(run, ["backbone0", self.ways(run)[way]()], kind=kind)
        refused(run, "Backbones 0 and 1 of soup.json are the same folder .*backbone0: each backbone has to be trained")

    def test_as_a_copy(self, run) -> None:
        shutil.rmtree(run / "backbone1")
        shutil.copytree(run / "backbone0", run / "backbone1")
        refused(run, "Backbones 0 and 1, .*backbone0 and .*backbone1, hold the same weights")

    def test_a_difference_where_nobody_looked_first_is_one(self, run, monkeypatch) -> None:
        monkeypatch.setattr("trl_bonesoup.soup.agreement._LOOK", 1)
        shutil.rmtree(run / "backbone1")
        shutil.copytree(run / "backbone0", run / "backbone1")
        (file,) = (run / "backbone1").glob("*.safetensors")
        content = bytearray(file.read_bytes())
        content[-4] ^= 1
        file.write_bytes(content)
        merge(run, run.parent / "out", EQUAL)


class TestTokenizers:
    def change_tokenizer(self, folder: Path, change: Callable[[Any], None]) -> None:
        file = folder / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        change(tokenizer)
        file.write_text(json.dumps(tokenizer))

    @pytest.fixture
    def tokenized(self, run) -> Path:
        """Every backbone has the tokenizer of the base."""
        for j in range(2):
            for file in (run / "base").glob("*token*"):
                shutil.copyfile(file, run / f"backbone{j}" / file.name)
            shutil.copyfile(run / "base" / "chat_template.jinja", run / f"backbone{j}" / "chat_template.jinja")
        return run

    def test_ids_that_are_permuted(self, tokenized) -> None:
        def swap(tokenizer: Any) -> None:
            vocabulary = tokenizer["model"]["vocab"]
            vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]

        self.change_tokenizer(tokenized / "backbone1", swap)
        refused(tokenized, "The token 'cat' has id 4 in the tokenizer of .*backbone0 but 5 in that of .*backbone1")

    def test_a_base_model_with_other_ids(self, tokenized) -> None:
        def swap(tokenizer: Any) -> None:
            vocabulary = tokenizer["model"]["vocab"]
            vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]

        self.change_tokenizer(tokenized / "base", swap)
        refused(tokenized, "The token 'cat' has id 4 in the tokenizer of .*backbone0 but 5 in that of .*base")

    def test_a_token_that_only_one_has_points_to_what_mergekit_does(self, tokenized) -> None:
        tokenizer = Tokenizer.from_file(str(tokenized / "backbone1" / "tokenizer.json"))
        tokenizer.add_tokens(["<new>"])
        tokenizer.save(str(tokenized / "backbone1" / "tokenizer.json"))
        refused(tokenized, "The token '<new>' has id missing in .*backbone0 but 18 in .*backbone1.*source: union")

    def test_tokens_that_training_added_to_all_need_not_be_in_the_base(self, tokenized) -> None:
        for j in range(2):
            tokenizer = Tokenizer.from_file(str(tokenized / f"backbone{j}" / "tokenizer.json"))
            tokenizer.add_tokens(["<new>"])
            tokenizer.save(str(tokenized / f"backbone{j}" / "tokenizer.json"))
        merge(tokenized, tokenized.parent / "out", EQUAL)

    def test_other_ways_to_split_words(self, tokenized) -> None:
        self.change_tokenizer(tokenized / "backbone1", lambda t: t.update(pre_tokenizer={"type": "WhitespaceSplit"}))
        refused(tokenized, "The tokenizers of .*backbone0 and .*backbone1 differ in their pre_tokenizer")

    def test_padding_that_was_set_last_is_no_difference(self, tokenized) -> None:
        self.change_tokenizer(tokenized / "backbone1", lambda tokenizer: tokenizer.update(truncation={"max_length": 3}))
        merge(tokenized, tokenized.parent / "out", EQUAL)

    def test_unigram_models_are_compared_by_position(self, tokenized) -> None:
        for j, pieces in enumerate((["<unk>", "cat", "dog"], ["<unk>", "dog", "cat"])):
            model = {"type": "Unigram", "unk_id": 0, "vocab": [[piece, -1.0] for piece in pieces]}
            self.change_tokenizer(
                tokenized / f"backbone{j}", lambda t, model=model: t.update(model=model, added_tokens=[])
            )
        refused(tokenized, "The token 'cat' has id 1 in the tokenizer of .*backbone0 but 2 in that of .*backbone1")

    def test_files_of_slow_tokenizers(self, tokenized) -> None:
        for j in range(2):
            (tokenized / f"backbone{j}" / "tokenizer.json").unlink()
            (tokenized / f"backbone{j}" / "tokenizer.model").write_bytes(b"pieces %d" % j)
        with pytest.raises(SoupError, match=r"backbone0 and .*backbone1 differ in tokenizer\.model"):
            merge(tokenized, tokenized.parent / "out", EQUAL)

    @pytest.mark.parametrize("where", ["a file of its own", "tokenizer_config.json"])
    def test_chat_templates(self, tokenized, where) -> None:
        other = CHAT_TEMPLATE.replace("content'] }} ", "content'] }}\n")
        if where == "tokenizer_config.json":
            (tokenized / "backbone1" / "chat_template.jinja").unlink()
            change(tokenized / "backbone1" / "tokenizer_config.json", chat_template=other)
        else:
            (tokenized / "backbone1" / "chat_template.jinja").write_text(other)
        position = CHAT_TEMPLATE.index("content'] }} ") + len("content'] }}")
        refused(
            tokenized, rf"from character {position} on: .*content'\] }}}} \{{% endfor.*backbone0, .*}}}}\\n.*backbone1"
        )

    def test_a_chat_template_that_only_one_has(self, tokenized) -> None:
        (tokenized / "backbone1" / "chat_template.jinja").unlink()
        refused(tokenized, "from character 0 on: .* in .*backbone0, none in .*backbone1")


class TestArchitectures:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, r"architectures is \['LlamaF"),
            ({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}, "rope_parameters is .*10000.0"),
            ({"tie_word_embeddings": True}, "tie_word_embeddings is False in .*backbone0 but True in .*backbone1"),
            ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-06 .* but 1e-05"),
            ({"eos_token_id": 3}, "eos_token_id is 1 .* but 3"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_settings_that_no_shape_shows(self, full, settings, message) -> None:
        change(full / "backbone1" / "config.json", **settings)
        refused(full, message)

    def test_a_base_model_with_another_rope(self, full) -> None:
        change(full / "base" / "config.json", rope_parameters={"rope_theta": 500000.0, "rope_type": "default"})
        refused(full, "rope_parameters is .*10000.0.*backbone0 but .*500000.0.*base")

    def test_how_a_version_writes_the_same_settings_is_no_difference(self, full) -> None:
        """transformers 4 wrote rope_theta beside rope_scaling, and left out what has its default."""
        file = full / "backbone1" / "config.json"
        config = json.loads(file.read_text())
        theta = config.pop("rope_parameters")["rope_theta"]
        config.pop("mlp_bias")
        config |= {
            "rope_theta": theta,
            "rope_scaling": None,
            "torch_dtype": "float32",
            "transformers_version": "4.40.0",
        }
        file.write_text(json.dumps(config))
        merge(full, full.parent / "out", EQUAL)

    def test_the_base_may_have_other_special_tokens(self, full) -> None:
        change(full / "base" / "config.json", pad_token_id=None, eos_token_id=[1, 2], use_cache=False)
        merge(full, full.parent / "out", EQUAL)

    def test_a_backbone_without_its_config(self, full) -> None:
        (full / "backbone0" / "config.json").unlink()
        with pytest.raises(SoupError, match=r"backbone0 is no complete model: its config\.json cannot be read"):
            merge(full, full.parent / "out", EQUAL)

    def test_architectures_that_transformers_does_not_know_are_compared_as_they_are(self, full) -> None:
        for j, flavour in enumerate(("plain", "spiced")):
            change(full / f"backbone{j}" / "config.json", model_type="unheard_of", flavour=flavour)
        with pytest.raises(SoupError, match=r"flavour is 'plain' in .*backbone0 but 'spiced' in .*backbone1"):
            merge(full, full.parent / "out", EQUAL)

    def test_vocabularies_of_other_sizes(self, full) -> None:
        file = full / "backbone1" / "model.safetensors"
        tensors = load_file(file)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], torch.zeros(2, 16)])
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(
            SoupError, match=r"lm_head\.weight is F32 of shape \(24, 16\) .* but F32 of shape \(26, 16\)"
        ):
            merge(full, full.parent / "out", EQUAL)


class TestBaseModels:
    def test_adapters_of_another_base_on_the_hub(self, two_adapters, tmp_path) -> None:
        run = Path(shutil.copytree(two_adapters, tmp_path / "run"))
        for j in range(2):
            change(run / f"backbone{j}" / "adapter_config.json", base_model_name_or_path="org/sft")
        write_manifest(run, ["backbone0", "backbone1"], base="org/another")
        message = "backbone0 was trained on 'org/sft', but the base model of soup.json is 'org/another'"
        for door in DOORS.values():
            with pytest.raises(SoupError, match=message):
                door(run, tmp_path / "out")
        merge(run, tmp_path / "out", EQUAL, base_model=two_adapters / "base")

    def test_a_folder_that_moved_is_no_other_base(self, tmp_path) -> None:
        run = adapter_soup(tmp_path / "run", [{}, {}])
        run.rename(tmp_path / "moved")
        merge(tmp_path / "moved", tmp_path / "out", EQUAL, full=True)


class TestPaths:
    @pytest.mark.parametrize("name", ["a+b", "user@host", "a b", "ünïcödé", "-rf"])
    def test_names_that_mergekit_cannot_hold_are_no_matter(self, tmp_path, two_full, name) -> None:
        run = tmp_path / name
        shutil.copytree(two_full, run)
        (run / "backbone1").rename(run / f"second {name}")
        write_manifest(run, ["backbone0", f"second {name}"], kind="full")
        out = merge(run, tmp_path / f"out {name}", [0.0, 1.0]).path
        theta = [weights_of(two_full / f"backbone{j}")["lm_head.weight"].double() for j in range(2)]
        torch.testing.assert_close(
            weights_of(out)["lm_head.weight"].double(), -0.75 * theta[0] + 1.75 * theta[1], atol=1e-6, rtol=1e-6
        )

    def test_an_output_that_is_an_input_under_another_name(self, run) -> None:
        before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
        (run.parent / "link").symlink_to(run / "backbone1", target_is_directory=True)
        for out in (
            run / "backbone1",
            run / "base",
            run / "backbone0" / "..",
            run.parent / "link",
            f"{run}/backbone1/",
        ):
            with pytest.raises(SoupError, match="which the soup is made from"):
                merge(run, out, EQUAL, overwrite=True)
        assert {file: file.read_bytes() for file in before} == before

    def test_a_hard_link_to_an_input_is_never_written_through(self, run) -> None:
        """What is in the way is moved aside and deleted, so a name that shares its file with an input is safe."""
        (file,) = (run / "backbone1").glob("*.safetensors")
        content = file.read_bytes()
        (run.parent / "out").mkdir()
        os.link(file, run.parent / "out" / file.name)
        config = "config.json" if (run / "backbone1" / "config.json").is_file() else "adapter_config.json"
        shutil.copyfile(run / "backbone1" / config, run.parent / "out" / config)
        merge(run, run.parent / "out", EQUAL, overwrite=True)
        assert file.read_bytes() == content


def test_different_models_of_the_same_code_pass(tmp_path) -> None:
    run = full_soup(tmp_path / "run", 3, beta=0.6)
    merge(run, tmp_path / "out", [0.2, 0.3, 0.5], extrapolation=0.2)
    assert tiny_llama().config.vocab_size == json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"]
