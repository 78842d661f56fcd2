"""Exports agree with each other and with the live soup, reload with stock classes, and keep what belongs to a model."""

import json
import warnings
from pathlib import Path

import explicit
import numpy as np
import pytest
import torch
from mergekit.scripts import run_yaml
from peft import PeftModel
from tiny_soups import (
    CHAT_TEMPLATE,
    adapter_soup,
    explicit_merge,
    full_soup,
    logits_of,
    tiny_gpt2,
    tiny_llama,
    weights_of,
    write_manifest,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from trl_bonesoup import BoneSoup, SoupManifest
from trl_bonesoup.errors import ConfigurationError, HubError, SoupError
from trl_bonesoup.soup.export import merge, save_soup
from trl_bonesoup.soup.recipe import mergekit_yaml
from trl_bonesoup.soup.rounding import RoundingWarning


def reload_full(folder: Path):
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model


def reload_adapter(base: Path, folder: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)


MODELS = {
    "llama": (tiny_llama, [{"r": 2}, {"r": 4, "use_rslora": True, "target_modules": ["q_proj", "lm_head"]}]),
    "gpt2": (tiny_gpt2, [{"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}] * 2),
    "embeddings": (tiny_llama, [{"target_modules": ["embed_tokens", "v_proj"]}, {"alpha_pattern": {"v_proj": 3}}]),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("kind", MODELS)
def test_adapter_and_checkpoint_agree_with_the_live_soup(tmp_path, batch, kind) -> None:
    build, options = MODELS[kind]
    folder = adapter_soup(tmp_path / "run", options, model=build())
    soup = BoneSoup.from_pretrained(folder)
    adapter = soup.save_pretrained(tmp_path / "adapter", preference=[1.0, 0.0], extrapolation=0.2)
    full = soup.save_pretrained(tmp_path / "full", preference=[1.0, 0.0], extrapolation=0.2, full=True)
    assert soup.preference.tolist() == [0.5, 0.5]
    soup.set_preference([1.0, 0.0], extrapolation=0.2)
    with torch.no_grad():
        live = soup.model(**batch).logits
        torch.testing.assert_close(reload_adapter(folder / "base", adapter)(**batch).logits, live, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(reload_full(full)(**batch).logits, live, atol=2e-5, rtol=1e-5)


EXTRAPOLATED = {2: ([0.9, 0.1], [1.5 / 0.7, -0.5 / 0.7]), 3: ([0.0, 1.0, 0.0], [-0.5 / 0.7, 2.0 / 0.7, -0.5 / 0.7])}


@pytest.mark.parametrize("n", EXTRAPOLATED)
def test_the_three_exports_agree(tmp_path, batch, n) -> None:
    options = [{}, {"r": 2, "use_rslora": True}, {"target_modules": ["q_proj", "down_proj"], "lora_alpha": 5}]
    run = adapter_soup(tmp_path / "run", options[:n], beta={2: 0.7, 3: 0.6}[n])
    preference, coefficients = EXTRAPOLATED[n]
    expected = explicit.soup(
        run / "base", [explicit.backbone(run / "base", run / f"backbone{j}") for j in range(n)], coefficients
    )
    adapter = merge(run, tmp_path / "adapter", preference, extrapolation=0.3).path
    full = merge(run, tmp_path / "full", preference, extrapolation=0.3, full=True).path
    (tmp_path / "bonesoup.yml").write_text(mergekit_yaml(SoupManifest.load(run), run, preference, 0.3))
    stock = tmp_path / "stock"
    arguments = [str(tmp_path / "bonesoup.yml"), str(stock), "--lora-merge-cache", str(tmp_path / "cache"), "--quiet"]
    run_yaml.main(arguments, standalone_mode=False)
    for weights in (explicit.backbone(run / "base", adapter), weights_of(full), weights_of(stock)):
        assert set(weights) == set(expected)
        for name, value in weights.items():
            np.testing.assert_allclose(np.asarray(value, np.float64), expected[name], atol=2e-6, rtol=2e-6)
    with torch.no_grad():
        models = [reload_adapter(run / "base", adapter), reload_full(full), reload_full(stock)]
        exact = logits_of(run / "base", expected, batch)
        for model in models:
            torch.testing.assert_close(model(**batch).logits.double(), exact, atol=3e-5, rtol=1e-5)


class TestAdapter:
    def test_is_written_without_loading_the_base_model(self, tmp_path, two_adapters, monkeypatch) -> None:
        def fail(*args, **kwargs):
            pytest.fail("the base model was loaded")

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
        report = merge(two_adapters, tmp_path / "out", {"objective0": 1.0})
        assert report.coefficients == pytest.approx([1.75, -0.75])
        assert (report.full, report.rounding_loss) == (False, 0.0)
        config = json.loads((report.path / "adapter_config.json").read_text())
        assert config["r"] == 8
        assert config["base_model_name_or_path"] == str(two_adapters / "base")

    def test_a_backbone_that_is_not_used_is_no_part_of_it(self, tmp_path, batch) -> None:
        options = [{"r": 2}, {"r": 4, "target_modules": ["q_proj", "lm_head"]}]
        run = adapter_soup(tmp_path / "run", options, beta=1.0)
        soup = BoneSoup.from_pretrained(run)
        for preference, modules in (([1.0, 0.0], 12), ([0.0, 1.0], 3), ([0.5, 0.5], 13)):
            out = merge(run, tmp_path / str(modules), preference).path
            assert len(weights_of(out)) == 2 * modules
            soup.set_preference(preference)
            adapter = reload_adapter(run / "base", out)
            torch.testing.assert_close(adapter(**batch).logits, soup.model(**batch).logits, atol=2e-5, rtol=1e-5)

    def test_of_no_backbone_is_an_adapter_that_adds_nothing(self, tmp_path, two_adapters, batch) -> None:
        soup = BoneSoup.from_pretrained(two_adapters)
        out = save_soup(soup, np.zeros(2), tmp_path / "out").path
        assert json.loads((out / "adapter_config.json").read_text())["r"] == 4
        base = AutoModelForCausalLM.from_pretrained(two_adapters / "base")(**batch).logits
        torch.testing.assert_close(reload_adapter(two_adapters / "base", out)(**batch).logits, base, atol=0, rtol=0)

    def test_default_is_what_is_set(self, tmp_path, two_adapters, batch) -> None:
        soup = BoneSoup.from_pretrained(two_adapters)
        soup.set_coefficients([-2.0, 0.5])
        model = reload_adapter(two_adapters / "base", soup.save_pretrained(tmp_path / "out"))
        torch.testing.assert_close(model(**batch).logits, soup.model(**batch).logits, atol=2e-5, rtol=1e-5)


class TestFullCheckpointOfAdapters:
    def test_weights_are_the_explicit_merge(self, tmp_path, two_adapters) -> None:
        report = merge(two_adapters, tmp_path / "out", [0.0, 1.0], full=True)
        adapters = [(two_adapters / f"backbone{j}", lambda layer: 2.0) for j in range(2)]
        expected = explicit_merge(two_adapters / "base", adapters, [-0.75, 1.75])
        got = weights_of(report.path)
        assert set(got) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(got[name].double(), torch.tensor(value), atol=1e-6, rtol=1e-6)
        assert report.rounding_loss < 1e-6

    def test_tokenizer_template_and_generation_config_come_with_it(self, tmp_path, two_adapters) -> None:
        out = merge(two_adapters, tmp_path / "out", [0.5, 0.5], full=True).path
        assert AutoTokenizer.from_pretrained(out).chat_template == CHAT_TEMPLATE
        assert GenerationConfig.from_pretrained(out).repetition_penalty == 1.25
        assert not list(out.glob("adapter*"))

    def test_dtype_is_kept_and_its_loss_is_told(self, tmp_path) -> None:
        options = {"target_modules": ["q_proj"], "lora_alpha": 4}
        folder = adapter_soup(tmp_path / "run", [options] * 2, model=tiny_llama(dtype=torch.bfloat16))
        for file in folder.glob("backbone*/adapter_model.safetensors"):
            shrink(file, 0.2)
        with pytest.warns(RoundingWarning, match=r"Rounding loses \d\.\d% .*float32.*adapter"):
            coarse = merge(folder, tmp_path / "bf16", [1.0, 0.0], full=True)
        saved = weights_of(coarse.path)
        assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
        base = weights_of(folder / "base")
        adapters = [(folder / f"backbone{j}", lambda layer: 1.0) for j in range(2)]
        exact = explicit_merge(folder / "base", adapters, [1.75, -0.75])
        changed = [name for name in base if "q_proj" in name]
        lost = sum(float((saved[name].double() - torch.tensor(exact[name])).square().sum()) for name in changed)
        effect = sum(float((base[name].double() - torch.tensor(exact[name])).square().sum()) for name in changed)
        assert coarse.rounding_loss == pytest.approx((lost / effect) ** 0.5, rel=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RoundingWarning)
            fine = merge(folder, tmp_path / "fp32", [1.0, 0.0], full=True, dtype="float32")
        assert fine.rounding_loss < 1e-6
        assert json.loads((fine.path / "config.json").read_text())["dtype"] == "float32"
        assert json.loads((coarse.path / "config.json").read_text())["dtype"] == "bfloat16"

    def test_shards_are_cut_and_reload(self, tmp_path, two_adapters, batch) -> None:
        whole = merge(two_adapters, tmp_path / "whole", [1.0, 0.0], full=True).path
        assert [file.name for file in whole.glob("*.safetensors")] == ["model.safetensors"]
        cut = merge(two_adapters, tmp_path / "cut", [1.0, 0.0], full=True, max_shard_size="8KB").path
        index = json.loads((cut / "model.safetensors.index.json").read_text())
        files = {file.name: file.stat().st_size for file in cut.glob("*.safetensors")}
        assert len(files) > 2
        assert max(files.values()) < 10_000  # 8 KB of tensors and the header
        assert set(index["weight_map"].values()) == set(files)
        saved, again = weights_of(whole), weights_of(cut)
        assert set(index["weight_map"]) == set(saved) == set(again)
        assert all(torch.equal(saved[name], again[name]) for name in saved)
        with torch.no_grad():
            assert torch.equal(reload_full(cut)(**batch).logits, reload_full(whole)(**batch).logits)

    def test_a_coarser_dtype_counts_what_it_loses_everywhere(self, tmp_path, two_adapters) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RoundingWarning)
            report = merge(two_adapters, tmp_path / "out", [0.0, 1.0], full=True, dtype="bfloat16")
        base = explicit.float64_weights(two_adapters / "base")
        theta = [explicit.backbone(two_adapters / "base", two_adapters / f"backbone{j}") for j in range(2)]
        exact, saved = explicit.soup(two_adapters / "base", theta, [-0.75, 1.75]), weights_of(report.path)
        lost = sum(((saved[name].double().numpy() - exact[name]) ** 2).sum() for name in exact)
        effect = sum(((base[name] - exact[name]) ** 2).sum() for name in exact)
        assert report.rounding_loss == pytest.approx((lost / effect) ** 0.5, rel=1e-3)

    def test_an_adapter_on_a_tied_weight_is_refused(self, tmp_path) -> None:
        folder = adapter_soup(
            tmp_path / "run",
            [{"target_modules": ["q_proj"]}, {"target_modules": ["lm_head"]}],
            model=tiny_llama(tied=True),
        )
        with pytest.raises(SoupError, match=r"lm_head has an adapter and shares its weight.*adapter \(full=False, no"):
            merge(folder, tmp_path / "out", [0.5, 0.5], full=True)
        assert not (tmp_path / "out").exists()

    def test_tied_embeddings_stay_tied(self, tmp_path, batch) -> None:
        folder = adapter_soup(tmp_path / "run", [{}, {}], model=tiny_llama(tied=True))
        out = merge(folder, tmp_path / "out", [1.0, 0.0], full=True).path
        assert "lm_head.weight" not in weights_of(out)
        model = reload_full(out)
        assert model.lm_head.weight is model.model.embed_tokens.weight


def shrink(file: Path, factor: float) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor * factor if "lora_B" in name else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file)


class TestFullBackbones:
    def test_streamed_checkpoint_agrees_with_the_live_soup(self, tmp_path, two_full, batch) -> None:
        soup = BoneSoup.from_pretrained(two_full)
        out = soup.save_pretrained(tmp_path / "out", preference=[0.0, 1.0], extrapolation=0.25)
        soup.set_preference([0.0, 1.0], extrapolation=0.25)
        assert torch.equal(reload_full(out)(**batch).logits, soup.model(**batch).logits)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_weights_are_the_float64_sum(self, tmp_path, dtype) -> None:
        folder = full_soup(tmp_path / "run", 3, beta=0.6, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RoundingWarning)
            out = merge(folder, tmp_path / "out", [0.0, 0.0, 1.0]).path
        models = [weights_of(folder / f"backbone{j}") for j in range(3)]
        got = weights_of(out)
        for name in models[0]:
            exact = -0.5 * models[0][name].double() - 0.5 * models[1][name].double() + 2.0 * models[2][name].double()
            assert got[name].dtype == dtype
            torch.testing.assert_close(got[name], exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)

    def test_tokenizer_template_and_configs_are_copied(self, tmp_path, two_full) -> None:
        (two_full / "backbone0" / "training_args.bin").touch()
        out = merge(two_full, tmp_path / "out", [0.5, 0.5]).path
        (two_full / "backbone0" / "training_args.bin").unlink()
        assert AutoTokenizer.from_pretrained(out).chat_template == CHAT_TEMPLATE
        assert GenerationConfig.from_pretrained(out).repetition_penalty == 1.25
        assert not (out / "training_args.bin").exists()

    def test_a_base_out_of_reach_is_only_missed_by_extrapolation(self, tmp_path, two_full) -> None:
        folder = tmp_path / "run"
        folder.mkdir()
        for name in ("backbone0", "backbone1"):
            (folder / name).symlink_to(two_full / name)
        write_manifest(folder, ["backbone0", "backbone1"], kind="full", base="org/out-of-reach")
        assert merge(folder, tmp_path / "out", [1.0, 0.0]).rounding_loss is None
        with pytest.raises(HubError, match="org/out-of-reach"):
            merge(folder, tmp_path / "more", [1.0, 0.0], extrapolation=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "bf17"}, r"one of float64, float32, float16, bfloat16; got 'bf17'"),
        ({"max_shard_size": "5GB"}, "An adapter is one file"),
    ],
)
def test_settings_that_mean_nothing_are_refused_at_once(tmp_path, two_adapters, two_full, settings, message) -> None:
    for run in (two_adapters, two_full):
        with pytest.raises(ConfigurationError, match=message):
            merge(run, tmp_path / "out", [0.5, 0.5], **settings)
    with pytest.raises(ConfigurationError, match=message):
        save_soup(BoneSoup.from_pretrained(two_full), np.array([0.5, 0.5]), tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


class TestFolder:
    def test_a_failure_in_the_middle_leaves_nothing(self, tmp_path, two_adapters, monkeypatch) -> None:
        def fail(*args, **kwargs):
            raise OSError("disk full")

        monkeypatch.setattr("trl_bonesoup.soup.export.copy_companions", fail)
        with pytest.raises(OSError, match="disk full"):
            merge(two_adapters, tmp_path / "out", [0.5, 0.5])
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_model_is_replaced_only_when_asked(self, tmp_path, two_adapters) -> None:
        merge(two_adapters, tmp_path / "out", [0.5, 0.5])
        with pytest.raises(SoupError, match="overwrite=True"):
            merge(two_adapters, tmp_path / "out", [0.5, 0.5])
        merge(two_adapters, tmp_path / "out", [0.5, 0.5], full=True, overwrite=True)
        assert not (tmp_path / "out" / "adapter_config.json").exists()

    def test_a_backbone_is_never_replaced(self, two_adapters) -> None:
        for target in (two_adapters / "backbone0", two_adapters):
            with pytest.raises(SoupError, match="made from"):
                merge(two_adapters, target, [0.5, 0.5], overwrite=True)
        assert (two_adapters / "backbone0" / "adapter_config.json").is_file()
