"""BoneSoup against explicit float64 merges, and rows of a batch against the same rows one at a time."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_soups import (
    LINEAR,
    adapter_soup,
    explicit_merge,
    logits_of,
    save_adapter,
    save_base,
    tiny_gpt2,
    tiny_llama,
    weights_of,
    write_manifest,
)

from trl_bonesoup import BoneSoup, SoupManifest
from trl_bonesoup.errors import SoupError, WeightsError
from trl_bonesoup.soup import full


def plain(layer: str) -> float:
    return 2.0


@pytest.fixture(scope="module")
def soup(two_adapters: Path) -> BoneSoup:
    return BoneSoup.from_pretrained(two_adapters)


def assert_soup(
    folder: Path, scales: list[Any], coefficients: list[float], batch: dict[str, Any], soup: BoneSoup
) -> None:
    adapters = [(folder / f"backbone{j}", scale) for j, scale in enumerate(scales)]
    expected = logits_of(folder / "base", explicit_merge(folder / "base", adapters, coefficients), batch)
    torch.testing.assert_close(soup.model(**batch).logits.double(), expected, atol=2e-5, rtol=1e-5)


class TestSetPreference:
    @pytest.mark.parametrize(
        ("preference", "coefficients"),
        [([1.0, 0.0], [1.75, -0.75]), ([0.5, 0.5], [0.5, 0.5]), ([0.3, 0.7], [0.0, 1.0]), ([0.0, 1.0], [-0.75, 1.75])],
    )
    def test_logits_are_those_of_the_explicit_merge(self, two_adapters, soup, batch, preference, coefficients) -> None:
        np.testing.assert_allclose(soup.set_preference(preference), coefficients, atol=1e-12)
        assert_soup(two_adapters, [plain, plain], coefficients, batch, soup)

    def test_extrapolation_scales_the_deltas_beyond_a_sum_of_one(self, two_adapters, soup, batch) -> None:
        # k = 1/(1 - .5) = 2 doubles λ = (1.75, -.75); Σλ = 2 leaves the base -1, which is implied.
        np.testing.assert_allclose(soup.set_preference([1.0, 0.0], extrapolation=0.5), [3.5, -1.5], atol=1e-12)
        assert_soup(two_adapters, [plain, plain], [3.5, -1.5], batch, soup)

    def test_extrapolation_for_each_objective(self, two_adapters, soup, batch) -> None:
        # k∘μ = (.5/.75, .5) = (2/3, 1/2); λ = ((.7·2/3 - .3·.5)/.4, (.7·.5 - .3·2/3)/.4).
        expected = [(0.7 * 2 / 3 - 0.15) / 0.4, (0.35 - 0.2) / 0.4]
        np.testing.assert_allclose(soup.set_preference([0.5, 0.5], extrapolation=[0.25, 0.0]), expected, atol=1e-12)
        assert_soup(two_adapters, [plain, plain], expected, batch, soup)

    def test_by_name_and_by_order_agree(self, soup, batch) -> None:
        soup.set_preference({"objective1": 0.9, "objective0": 0.1})
        named = soup.model(**batch).logits
        soup.set_preference([0.1, 0.9])
        assert torch.equal(named, soup.model(**batch).logits)
        soup.set_preference([0.9, 0.1])
        assert not torch.allclose(named, soup.model(**batch).logits, atol=1e-2)

    def test_by_the_name_of_a_preset(self, soup, batch) -> None:
        np.testing.assert_allclose(soup.set_preference("objective1"), [-0.75, 1.75], atol=1e-12)
        assert soup.preference.tolist() == [0.0, 1.0]
        with soup.preferences(["objective0", "equal", [0.25, 0.75]]):
            assert soup.preference.tolist() == [[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]]

    def test_a_preset_that_is_added_to_a_loaded_soup(self, two_adapters: Path, tmp_path: Path) -> None:
        soup = BoneSoup.from_pretrained(two_adapters)
        soup.add_preset("cautious", [0.2, 0.8])
        assert soup.set_preference("cautious").tolist() == soup.set_preference([0.2, 0.8]).tolist()
        soup.manifest.save(tmp_path)
        assert SoupManifest.load(tmp_path).presets == {"cautious": {"objective0": 0.2, "objective1": 0.8}}
        assert SoupManifest.load(two_adapters).presets == {}
        with pytest.raises(WeightsError, match="sum to 1"):
            soup.add_preset("much", [0.9, 0.8])
        assert list(soup.manifest.presets) == ["cautious"]

    def test_neighbouring_preferences_give_different_weights(self, soup, batch) -> None:
        soup.set_preference([0.6, 0.4])
        first = soup.model(**batch).logits
        soup.set_preference([0.601, 0.399])
        assert (soup.model(**batch).logits - first).abs().max() > 1e-4

    def test_state_says_what_is_set(self, soup) -> None:
        soup.set_preference([0.6, 0.4])
        assert soup.preference.tolist() == [0.6, 0.4]
        np.testing.assert_allclose(soup.coefficients, [0.75, 0.25])
        soup.set_coefficients([1.0, 0.0])
        assert soup.preference is None
        assert soup.coefficients.tolist() == [1.0, 0.0]

    @pytest.mark.parametrize(("kind", "models"), [("two_adapters", "2 adapters"), ("two_full", "2 full checkpoints")])
    def test_printing_it_says_what_is_set(self, request, kind, models) -> None:
        soup = BoneSoup.from_pretrained(request.getfixturevalue(kind))
        soup.set_preference([2 / 3, 1 / 3])
        assert repr(soup) == f"<BoneSoup of {models} at objective0=0.667, objective1=0.333>"
        soup.set_coefficients([1.75, -0.75])
        assert str(soup) == f"<BoneSoup of {models} for objective0, objective1 at coefficients 1.75, -0.75>"
        if kind == "two_adapters":
            with soup.preferences([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]):
                assert str(soup) == "<BoneSoup of 2 adapters for objective0, objective1 at 3 soups, one for each row>"

    def test_loading_shows_nothing_that_is_meant_for_peft(self, two_adapters) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            BoneSoup.from_pretrained(two_adapters)

    def test_a_bad_preference_changes_nothing(self, soup, batch) -> None:
        soup.set_preference([0.6, 0.4])
        before = soup.model(**batch).logits
        with pytest.raises(WeightsError, match="sum to 1"):
            soup.set_preference([0.6, 0.6])
        with pytest.raises(WeightsError, match=r"Unknown objective.*objective0"):
            soup.set_preference({"helpful": 1.0})
        assert soup.preference.tolist() == [0.6, 0.4]
        assert torch.equal(before, soup.model(**batch).logits)

    def test_starts_at_the_equal_preference_ready_for_inference(self, two_adapters) -> None:
        fresh = BoneSoup.from_pretrained(two_adapters)
        assert fresh.preference.tolist() == [0.5, 0.5]
        assert not fresh.model.training
        assert not any(parameter.requires_grad for parameter in fresh.model.parameters())
        assert fresh.tokenizer.chat_template
        assert fresh.folder == two_adapters


class TestSetCoefficients:
    def test_zeros_are_the_base_and_unit_vectors_the_backbones(self, two_adapters, soup, batch) -> None:
        for coefficients in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]):
            soup.set_coefficients(coefficients)
            assert_soup(two_adapters, [plain, plain], coefficients, batch, soup)

    @pytest.mark.parametrize("wrong", [[1.0], [1.0, 0.0, 0.0], [[1.0, 0.0]]])
    def test_refuses_a_wrong_shape(self, soup, wrong) -> None:
        with pytest.raises(SoupError, match=r"shape \(2,\)"):
            soup.set_coefficients(wrong)

    def test_refuses_nan(self, soup) -> None:
        with pytest.raises(WeightsError, match="finite"):
            soup.set_coefficients([float("nan"), 1.0])


MIXES = {
    "ranks and alphas": ([{"r": 2, "lora_alpha": 3}, {"r": 8, "lora_alpha": 5}], [1.5, 0.625]),
    "one rsLoRA": ([{}, {"r": 4, "lora_alpha": 6, "use_rslora": True}], [2.0, 3.0]),
    "all rsLoRA": (
        [{"r": 4, "lora_alpha": 2, "use_rslora": True}, {"r": 9, "lora_alpha": 6, "use_rslora": True}],
        [1.0, 2.0],
    ),
    "targets": (
        [{"target_modules": ["q_proj", "embed_tokens"]}, {"target_modules": ["up_proj", "lm_head"]}],
        [2.0, 2.0],
    ),
    "layers": ([{"layers_to_transform": [0]}, {}], [2.0, 2.0]),
    "regular expression": ([{"target_modules": r".*\.1\..*_proj"}, {}], [2.0, 2.0]),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
class TestExactMixes:
    @pytest.mark.parametrize("mix", MIXES)
    def test_adapters_that_differ(self, mix, tmp_path, batch) -> None:
        options, scales = MIXES[mix]
        folder = adapter_soup(tmp_path, options)
        soup = BoneSoup.from_pretrained(folder)
        soup.set_preference([1.0, 0.0], extrapolation=0.2)
        coefficients = [1.75 / 0.8, -0.75 / 0.8]
        assert_soup(folder, [lambda layer, s=s: s for s in scales], coefficients, batch, soup)

    def test_rank_and_alpha_patterns(self, tmp_path, batch) -> None:
        patterns = {
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6},
            "alpha_pattern": {"q_proj": 10, "o_proj": 1},
        }
        folder = adapter_soup(tmp_path, [patterns, {}])
        soup = BoneSoup.from_pretrained(folder)
        soup.set_preference([1.0, 0.0])

        def scale(layer: str) -> float:
            if layer.endswith("q_proj"):
                return 10 / 2
            if layer.endswith("o_proj"):
                return 1 / 4
            return 8 / 6 if layer.endswith("layers.1.mlp.up_proj") else 8 / 4

        assert_soup(folder, [scale, plain], [1.75, -0.75], batch, soup)

    def test_gpt2_whose_layers_store_transposed_weights(self, tmp_path, batch) -> None:
        options = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
        folder = adapter_soup(tmp_path, [options, {**options, "r": 3}], model=tiny_gpt2())
        soup = BoneSoup.from_pretrained(folder)
        soup.set_preference([0.0, 1.0])
        assert_soup(folder, [plain, lambda layer: 8 / 3], [-0.75, 1.75], batch, soup)

    def test_three_backbones(self, tmp_path, batch) -> None:
        folder = adapter_soup(tmp_path, [{}, {"r": 2}, {"r": 8}], beta=0.6)
        soup = BoneSoup.from_pretrained(folder)
        np.testing.assert_allclose(soup.set_preference([0.0, 1.0, 0.0]), [-0.5, 2.0, -0.5], atol=1e-12)
        assert_soup(folder, [plain, lambda layer: 4.0, lambda layer: 1.0], [-0.5, 2.0, -0.5], batch, soup)

    def test_bf16_base(self, tmp_path, batch) -> None:
        folder = adapter_soup(tmp_path, [{}, {}], model=tiny_llama(dtype=torch.bfloat16))
        soup = BoneSoup.from_pretrained(folder)
        assert soup.model.get_base_model().dtype == torch.bfloat16
        soup.set_preference([1.0, 0.0])
        adapters = [(folder / f"backbone{j}", plain) for j in range(2)]
        expected = logits_of(folder / "base", explicit_merge(folder / "base", adapters, [1.75, -0.75]), batch)
        unscaled = logits_of(folder / "base", explicit_merge(folder / "base", adapters, [1.0, 0.0]), batch)
        error = (soup.model(**batch).logits.double() - expected).norm() / (expected - unscaled).norm()
        assert error < 0.05


ROWS = [[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]]
GENERATION = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "do_sample": False},
    "beams returned": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "without a cache": {"do_sample": False, "use_cache": False},
}


class TestPreferences:
    def test_rows_equal_the_rows_one_at_a_time(self, soup, batch) -> None:
        with soup.preferences(ROWS) as coefficients:
            together = soup.model(**batch).logits
        np.testing.assert_allclose(coefficients, [[1.75, -0.75], [-0.125, 1.125], [-0.75, 1.75]], atol=1e-12)
        for i, preference in enumerate(ROWS):
            soup.set_preference(preference)
            alone = soup.model(**{name: value[i : i + 1] for name, value in batch.items()}).logits[0]
            torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(together[0], alone, atol=0.1)

    @pytest.mark.parametrize("settings", GENERATION.values(), ids=GENERATION)
    def test_generate(self, soup, batch, settings) -> None:
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, **settings}
        with soup.preferences(ROWS, extrapolation=0.1):
            together = soup.model.generate(**batch, **settings)
        alone = []
        for i, preference in enumerate(ROWS):
            soup.set_preference(preference, extrapolation=0.1)
            alone.append(soup.model.generate(**{name: value[i : i + 1] for name, value in batch.items()}, **settings))
        assert torch.equal(together, torch.cat(alone))
        soup.set_preference([0.5, 0.5])
        assert not torch.equal(together, soup.model.generate(**batch, **settings))

    def test_sampling_draws_each_sequence_from_its_own_soup(self, soup, batch) -> None:
        settings = {"max_new_tokens": 1, "do_sample": True, "top_k": 0, "repetition_penalty": 1.0}
        with soup.preferences(ROWS):
            drawn = soup.model.generate(
                **batch, **settings, num_return_sequences=2, output_scores=True, return_dict_in_generate=True
            )
        for i, preference in enumerate(ROWS):
            soup.set_preference(preference)
            alone = soup.model(**{name: value[i : i + 1] for name, value in batch.items()}).logits[0, -1]
            for row in (2 * i, 2 * i + 1):
                torch.testing.assert_close(drawn.scores[0][row], alone, atol=1e-5, rtol=1e-5)

    def test_raw_coefficient_rows(self, soup, batch) -> None:
        with soup.coefficient_rows([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]):
            assert soup.preference is None
            together = soup.model(**batch).logits
        for i, coefficients in enumerate([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]):
            soup.set_coefficients(coefficients)
            torch.testing.assert_close(together[i], soup.model(**batch).logits[i], atol=1e-5, rtol=1e-5)

    def test_dicts_by_name(self, soup, batch) -> None:
        with soup.preferences([{"objective0": 1.0}, {"objective1": 1.0}, {"objective1": 0.5, "objective0": 0.5}]):
            assert soup.preference.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]

    def test_bf16_rows_have_the_bits_of_a_uniform_batch(self, tmp_path, batch) -> None:
        folder = adapter_soup(tmp_path, [{}, {}], model=tiny_llama(dtype=torch.bfloat16))
        soup = BoneSoup.from_pretrained(folder)
        soup.set_preference([1.0, 0.0])
        uniform = soup.model(**batch).logits
        with soup.preferences([[1.0, 0.0]] * 3):
            assert torch.equal(soup.model(**batch).logits, uniform)

    @pytest.mark.parametrize("rows", [2, 4])
    def test_a_batch_that_does_not_fit_is_refused(self, soup, batch, rows) -> None:
        with (
            soup.preferences([[1.0, 0.0]] * rows),
            pytest.raises(SoupError, match=rf"{rows} preferences.*\(3, 8, 16\)"),
        ):
            soup.model(
                **{name: torch.nn.functional.pad(value, (8 - value.shape[1], 0)) for name, value in batch.items()}
            )

    def test_what_was_set_comes_back(self, soup, batch) -> None:
        soup.set_preference([0.9, 0.1])
        before = soup.model(**batch).logits
        with soup.preferences(ROWS):
            rows = soup.model(**batch).logits
            with pytest.raises(RuntimeError, match="inner"), soup.preferences([[0.0, 1.0]]):
                raise RuntimeError("inner")
            assert torch.equal(soup.model(**batch).logits, rows)
            assert soup.preference.tolist() == ROWS
        assert torch.equal(soup.model(**batch).logits, before)
        assert soup.preference.tolist() == [0.9, 0.1]
        np.testing.assert_allclose(soup.coefficients, [1.5, -0.5], atol=1e-12)

    def test_saving_without_a_preference_needs_one_that_is_the_same_for_all(self, soup, tmp_path) -> None:
        with soup.preferences(ROWS), pytest.raises(SoupError, match=r"shape \(2,\)"):
            soup.save_pretrained(tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestThreads:
    def test_another_thread_waits_until_the_block_ends(self, soup, batch) -> None:
        """Without waiting, the second thread's preference would be in force in the first one's block."""
        entered, came = threading.Event(), threading.Event()
        seen = {}

        def second() -> None:
            came.set()
            with soup.preferences([[0.0, 1.0]]):
                entered.set()
                seen["second"] = soup.model(**batch).logits

        other = threading.Thread(target=second)
        with soup.preferences([[1.0, 0.0]]):
            first = soup.model(**batch).logits
            other.start()
            assert came.wait(10)
            assert not entered.wait(0.2)
            assert torch.equal(soup.model(**batch).logits, first)
        other.join(10)
        soup.set_preference([0.0, 1.0])
        torch.testing.assert_close(seen["second"], soup.model(**batch).logits, atol=1e-5, rtol=1e-5)

    def test_setting_waits_too(self, soup, batch) -> None:
        done = threading.Event()
        other = threading.Thread(target=lambda: (soup.set_preference([0.0, 1.0]), done.set()))
        with soup.preferences([[1.0, 0.0]]):
            before = soup.model(**batch).logits
            other.start()
            assert not done.wait(0.2)
            assert torch.equal(soup.model(**batch).logits, before)
        other.join(10)
        assert soup.preference.tolist() == [0.0, 1.0]

    def test_many_threads_get_what_they_asked_for(self, soup, batch) -> None:
        soup.set_preference([0.5, 0.5])
        asked = [[1.0, 0.0], [0.0, 1.0], [0.3, 0.7], [0.8, 0.2]]
        expected = []
        for preference in asked:
            with soup.preferences([preference]):
                expected.append(soup.model(**batch).logits)

        def ask(k: int) -> bool:
            with soup.preferences([asked[k % 4]]):
                return torch.equal(soup.model(**batch).logits, expected[k % 4])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, range(80)))
        assert soup.preference.tolist() == [0.5, 0.5]


class TestFull:
    def test_logits_are_those_of_the_explicit_merge(self, two_full, batch) -> None:
        soup = BoneSoup.from_pretrained(two_full)
        base, *backbones = (weights_of(two_full / name) for name in ("base", "backbone0", "backbone1"))
        for alpha, (first, second, rest) in {0.0: (1.75, -0.75, 0.0), 0.5: (3.5, -1.5, -1.0)}.items():
            soup.set_preference([1.0, 0.0], extrapolation=alpha)
            merged = {
                name: (
                    first * backbones[0][name].double()
                    + second * backbones[1][name].double()
                    + rest * base[name].double()
                ).numpy()
                for name in base
            }
            expected = logits_of(two_full / "base", merged, batch)
            torch.testing.assert_close(soup.model(**batch).logits.double(), expected, atol=2e-5, rtol=1e-5)

    def test_a_preference_that_fails_half_way_leaves_the_one_before(self, two_full, batch, monkeypatch) -> None:
        soup = BoneSoup.from_pretrained(two_full)
        soup.set_preference([0.9, 0.1])
        before = {name: value.clone() for name, value in soup.model.state_dict().items()}
        accumulate, calls = full.accumulate, []

        def fails_at_the_fifth(*given):
            calls.append(given)
            if len(calls) == 5:
                raise OSError("the disk is gone")
            return accumulate(*given)

        monkeypatch.setattr(full, "accumulate", fails_at_the_fifth)
        with pytest.raises(OSError, match="the disk is gone"):
            soup.set_preference([0.1, 0.9])
        assert len(calls) > 5
        assert soup.preference.tolist() == [0.9, 0.1]
        for name, value in soup.model.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_rows_are_refused_with_the_reason(self, two_full) -> None:
        soup = BoneSoup.from_pretrained(two_full)
        with pytest.raises(SoupError, match=r"one set of weights.*LoRA"), soup.preferences([[1.0, 0.0], [0.0, 1.0]]):
            pass
        assert soup.preference.tolist() == [0.5, 0.5]


class TestFromPretrained:
    def test_backbones_of_different_bases_are_refused_showing_both(self, tmp_path) -> None:
        first, second = (save_base(tiny_llama(seed=seed), tmp_path / f"base{seed}") for seed in (0, 1))
        save_adapter(first, tmp_path / "backbone0", 1)
        save_adapter(second, tmp_path / "backbone1", 2)
        write_manifest(tmp_path, ["backbone0", "backbone1"], base="base0")
        with pytest.raises(SoupError, match=r"base0.*base1.*base_model="):
            BoneSoup.from_pretrained(tmp_path)
        assert BoneSoup.from_pretrained(tmp_path, base_model=second).coefficients.tolist() == [0.5, 0.5]

    def test_an_adapter_of_another_architecture_is_refused(self, tmp_path) -> None:
        folder = adapter_soup(tmp_path, [{}, {}])
        gpt2 = save_base(tiny_gpt2(), tmp_path / "gpt2")
        with pytest.raises(SoupError, match="does not fit the base model"):
            BoneSoup.from_pretrained(folder, base_model=gpt2)

    def test_embeddings_of_another_base_are_refused(self, tmp_path) -> None:
        folder = adapter_soup(tmp_path, [{"target_modules": ["embed_tokens"]}, {}])
        other = save_base(tiny_llama(seed=5), tmp_path / "other")
        with pytest.raises(SoupError, match=r"model\.embed_tokens differs"):
            BoneSoup.from_pretrained(folder, base_model=other)

    def test_dtype_is_that_of_the_checkpoint_unless_asked(self, tmp_path) -> None:
        folder = adapter_soup(tmp_path, [{"target_modules": LINEAR[:1]}] * 2, model=tiny_llama(dtype=torch.bfloat16))
        assert BoneSoup.from_pretrained(folder).model.dtype == torch.bfloat16
        assert BoneSoup.from_pretrained(folder, dtype=torch.float32).model.get_base_model().dtype == torch.float32
