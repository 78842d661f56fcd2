"""From adapters to full backbones: the record moves along, nothing is half written, and nothing inexact is merged.

That the backbones are what PEFT computes is compared feature by feature in test_feature_table.py.
"""

import json
import shutil
import warnings
from pathlib import Path

import explicit
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_soups import (
    CHAT_TEMPLATE,
    adapter_soup,
    save_adapter,
    save_base,
    tiny_llama,
    weights_of,
    write_manifest,
)
from transformers import AutoTokenizer, GenerationConfig

from trl_bonesoup import SoupManifest
from trl_bonesoup.errors import ConfigurationError, SoupError
from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.rounding import RoundingWarning
from trl_bonesoup.soup.source import open_soup
from trl_bonesoup.soup.to_full import to_full

DORA = {"use_dora": True, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A soup of two DoRA adapters on a float32 base, with statistics, steps and seeds in its record."""
    folder = adapter_soup(tmp_path_factory.mktemp("run"), [DORA, DORA])
    record = json.loads((folder / "soup.json").read_text())
    record["objectives"][0]["normalization"] = {"mean": 0.25, "std": 2.0}
    record["backbones"][1] |= {"steps": 7, "seed": 3}
    record["training"] = {"kl_coef": 0.2}
    (folder / "soup.json").write_text(json.dumps(record))
    return folder


class TestRecord:
    def test_everything_but_the_kind_stays(self, run, tmp_path) -> None:
        before, after = SoupManifest.load(run), SoupManifest.load(to_full(run, tmp_path / "deep" / "full").path)
        assert [backbone.kind for backbone in after.backbones] == ["full", "full"]
        assert [(b.path, b.steps, b.seed) for b in after.backbones] == [("backbone0", 0, None), ("backbone1", 7, 3)]
        for field in ("objectives", "combination_weights", "training", "versions"):
            assert getattr(after, field) == getattr(before, field)

    def test_a_relative_base_model_is_found_from_the_new_folder(self, run, tmp_path) -> None:
        shutil.copytree(run, tmp_path / "project" / "run")
        to_full(tmp_path / "project" / "run", tmp_path / "project" / "full")
        (tmp_path / "project").rename(tmp_path / "moved")
        base = open_soup(tmp_path / "moved" / "full").base_model()
        assert base.id == str(tmp_path / "moved" / "run" / "base")

    def test_a_base_model_that_was_given_is_recorded(self, run, tmp_path) -> None:
        other = save_base(tiny_llama(seed=4), tmp_path / "other")
        full = to_full(run, tmp_path / "full", base_model=other).path
        assert open_soup(full).base_model().id == str(other)
        theta = explicit.backbone(other, run / "backbone1")["model.layers.0.self_attn.q_proj.weight"]
        got = weights_of(full / "backbone1")["model.layers.0.self_attn.q_proj.weight"]
        torch.testing.assert_close(got.double(), torch.tensor(theta), atol=1e-6, rtol=1e-6)

    def test_backbones_that_are_full_already_are_pointed_at(self, run, tmp_path) -> None:
        folder = Path(shutil.copytree(run, tmp_path / "run"))
        shutil.copytree(run / "base", folder / "whole")
        record = json.loads((folder / "soup.json").read_text())
        record["backbones"][1] |= {"path": "whole", "kind": "full"}
        (folder / "soup.json").write_text(json.dumps(record))
        done = to_full(folder, tmp_path / "full")
        assert list(done.rounding_losses) == ["backbone0"]
        assert open_soup(done.path).backbones() == [done.path / "backbone0", folder / "whole"]
        assert merge(done.path, tmp_path / "out", [0.5, 0.5]).full

    def test_folders_of_one_name_are_told_apart(self, run, tmp_path) -> None:
        for j in range(2):
            shutil.copytree(run / f"backbone{j}", tmp_path / "run" / f"part{j}" / "adapter")
        write_manifest(tmp_path / "run", ["part0/adapter", "part1/adapter"], base=str(run / "base"))
        assert list(to_full(tmp_path / "run", tmp_path / "full").rounding_losses) == ["backbone-0", "backbone-1"]

    @pytest.mark.parametrize("path", ["backbone0/..", "."])
    def test_no_name_leads_out_of_the_folder(self, run, tmp_path, path) -> None:
        shutil.copytree(run / "base", tmp_path / "run" / "base")
        for file in (run / "backbone0").iterdir():
            shutil.copyfile(file, tmp_path / "run" / file.name)
        shutil.copytree(run / "backbone1", tmp_path / "run" / "backbone1")
        (tmp_path / "run" / "backbone0").mkdir()
        write_manifest(tmp_path / "run", [path, "backbone1"], base="base")
        done = to_full(tmp_path / "run", tmp_path / "out" / "full", base_model=tmp_path / "run" / "base")
        names = sorted(item.name for item in done.path.iterdir())
        assert names == ["backbone-0", "backbone-1", "soup.json"]
        assert [item.name for item in (tmp_path / "out").iterdir()] == ["full"]


class TestCheckpoints:
    def test_tokenizer_template_and_generation_config_come_with_them(self, run, tmp_path) -> None:
        folder = to_full(run, tmp_path / "full").path / "backbone1"
        assert AutoTokenizer.from_pretrained(folder).chat_template == CHAT_TEMPLATE
        assert GenerationConfig.from_pretrained(folder).repetition_penalty == 1.25
        assert not list(folder.glob("adapter*"))

    def test_dtype_is_the_base_models_and_its_loss_is_told(self, tmp_path) -> None:
        run = adapter_soup(tmp_path / "run", [DORA, {"r": 1}], model=tiny_llama(dtype=torch.bfloat16))
        base = explicit.float64_weights(run / "base")
        file = run / "backbone1" / "adapter_model.safetensors"
        save_file({name: tensor * 0.2 for name, tensor in load_file(file).items()}, file)
        with pytest.warns(RoundingWarning, match=r"loses \d.*% of what training changed in .*backbone1.*float32"):
            coarse = to_full(run, tmp_path / "coarse")
        for j in range(2):
            exact = explicit.backbone(run / "base", run / f"backbone{j}")
            saved = weights_of(coarse.path / f"backbone{j}")
            assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
            lost = sum(((saved[name].double().numpy() - exact[name]) ** 2).sum() for name in exact)
            effect = sum(((base[name] - exact[name]) ** 2).sum() for name in exact)
            assert coarse.rounding_losses[f"backbone{j}"] == pytest.approx((lost / effect) ** 0.5, rel=1e-3)
            assert json.loads((coarse.path / f"backbone{j}" / "config.json").read_text())["dtype"] == "bfloat16"
        with warnings.catch_warnings():
            warnings.simplefilter("error", RoundingWarning)
            fine = to_full(run, tmp_path / "fine", dtype="float32")
        assert max(fine.rounding_losses.values()) < 1e-6
        assert json.loads((fine.path / "backbone0" / "config.json").read_text())["dtype"] == "float32"

    @pytest.mark.parametrize("dtype", [None, "bfloat16"])
    def test_tied_embeddings_stay_tied(self, tmp_path, dtype) -> None:
        options = [DORA, {"trainable_token_indices": [3, 5]}]
        run = adapter_soup(tmp_path / "run", options, model=tiny_llama(tied=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RoundingWarning)
            full = to_full(run, tmp_path / "full", dtype=dtype).path
        for j in range(2):
            exact = explicit.backbone(run / "base", run / f"backbone{j}")
            saved = weights_of(full / f"backbone{j}")
            assert "lm_head.weight" not in saved
            for name, tensor in saved.items():
                accuracy = {"atol": 1e-6, "rtol": 1e-6} if dtype is None else {"atol": 0, "rtol": 2**-8}
                torch.testing.assert_close(tensor.double(), torch.tensor(exact[name]), **accuracy)


class TestFolder:
    def test_a_failure_at_the_second_backbone_leaves_nothing(self, run, tmp_path) -> None:
        folder = Path(shutil.copytree(run, tmp_path / "run"))
        file = folder / "backbone1" / "adapter_model.safetensors"
        save_file({name: tensor * float("nan") for name, tensor in load_file(file).items()}, file)
        with pytest.raises(SoupError, match=r"backbone1.*NaN"):
            to_full(folder, tmp_path / "full")
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_a_folder_with_something_in_it_is_left_alone(self, run, tmp_path) -> None:
        (tmp_path / "notes.txt").touch()
        with pytest.raises(SoupError, match="not empty"):
            to_full(run, tmp_path)
        with pytest.raises(SoupError, match="made from"):
            to_full(run, run)


class TestRefusals:
    def test_full_backbones(self, two_full, tmp_path) -> None:
        with pytest.raises(SoupError, match="full checkpoints already"):
            to_full(two_full, tmp_path / "out")

    def test_a_dtype_that_no_checkpoint_has(self, run, tmp_path) -> None:
        with pytest.raises(ConfigurationError, match=r"float32, float16, bfloat16; got 'int8'"):
            to_full(run, tmp_path / "out", dtype="int8")

    def test_adapters_of_different_bases(self, run, tmp_path) -> None:
        folder = Path(shutil.copytree(run, tmp_path / "run"))
        other = save_base(tiny_llama(seed=4), folder / "other")
        shutil.rmtree(folder / "backbone1")
        save_adapter(other, folder / "backbone1", 2, **DORA)
        with pytest.raises(SoupError, match=r"base.*other.*base_model="):
            to_full(folder, tmp_path / "full")

    def test_pissa_on_a_base_in_half_precision(self, tmp_path) -> None:
        half = tiny_llama(dtype=torch.bfloat16)
        run = adapter_soup(tmp_path / "run", [{"init_lora_weights": "pissa"}, {}], model=half)
        with pytest.raises(SoupError, match=r"'pissa' on a base model in torch.bfloat16.*initial_model_for_weight"):
            to_full(run, tmp_path / "full")

    def test_an_adapter_of_another_model(self, run, tmp_path) -> None:
        folder = adapter_soup(tmp_path / "run", [{}, {"bias": "all"}], model=tiny_llama(biased=True))
        with pytest.raises(SoupError, match=r"backbone1 does not fit the base model.*bias.*Check base_model"):
            to_full(folder, tmp_path / "full", base_model=run / "base")

    def test_tensors_that_no_layer_takes(self, run, tmp_path) -> None:
        folder = Path(shutil.copytree(run, tmp_path / "run"))
        file = folder / "backbone0" / "adapter_model.safetensors"
        save_file({**load_file(file), "base_model.model.model.layers.7.lora_A.weight": torch.ones(4, 16)}, file)
        with pytest.raises(SoupError, match=r"backbone0 does not fit the base model.*layers\.7"):
            to_full(folder, tmp_path / "full")

    def test_lora_bias_where_the_layer_has_none(self, tmp_path) -> None:
        run = adapter_soup(tmp_path / "run", [{"lora_bias": True}, {}])
        with pytest.raises(SoupError, match=r"PEFT cannot merge .*backbone0.*lora_bias=True.*has no bias"):
            to_full(run, tmp_path / "full")

    def test_a_merge_that_is_not_what_peft_computes(self, run, tmp_path, monkeypatch) -> None:
        from peft.tuners.lora import LoraModel

        monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **options: self.unload())
        with pytest.raises(SoupError, match=r"backbone0 computes something else than it does in PEFT"):
            to_full(run, tmp_path / "full")
        assert not (tmp_path / "full").exists()


def test_shows_nothing_that_is_meant_for_peft(tmp_path, two_adapters) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        to_full(two_adapters, tmp_path / "full")
