"""One trained model per preference, against the soups that have the very same models as backbones."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from small_models import make_model, make_tokenizer

from trl_bonesoup.errors import ConfigurationError, FrontError, SoupError, WeightsError
from trl_bonesoup.front import checkpoints
from trl_bonesoup.front.checkpoints import CheckpointPolicies
from trl_bonesoup.front.evaluate import evaluate_front, evaluate_policies
from trl_bonesoup.front.policies import Row
from trl_bonesoup.front.prompts import read_prompts
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.soup.lora import BoneSoup

PROMPTS = ["the cat", "a happy dog runs and the sun is good .", "sad", "the sea was cold and bad ."]
VERTICES = [[1.0, 0.0], [0.0, 1.0]]
SETTINGS = EvaluationSettings(max_new_tokens=8, seed=3, batch_size=3)


def lengths(completions, **_):
    return [float(len(text)) for text in completions]


def letters(completions, **_):
    return [float(sum(map(ord, text))) for text in completions]


def measure(policies):
    return evaluate_policies(policies, PROMPTS, [lengths, letters], SETTINGS, show_progress=False)


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_each_model_answers_as_it_does_as_a_backbone(soup_folder, kind):
    folder = soup_folder(kind=kind)
    base = {"base_model": folder / "base"} if kind == "adapter" else {}
    policies = CheckpointPolicies(
        [folder / "b1", folder / "b0"], VERTICES[::-1], ["good", "brief"], markers={"start": folder / "base"}, **base
    )
    front = measure(policies)
    soups = evaluate_front(
        BoneSoup.from_pretrained(folder), PROMPTS, [lengths, letters], VERTICES, max_new_tokens=8, seed=3,
        show_progress=False,
    )  # fmt: skip
    expected = [soups.markers["backbone brief"].rewards_N, soups.markers["backbone good"].rewards_N]
    np.testing.assert_array_equal(front.rewards_KN, expected)
    np.testing.assert_array_equal(front.markers["start"].rewards_N, soups.markers["base"].rewards_N)
    np.testing.assert_array_equal(front.preferences_KN, VERTICES[::-1])
    assert front.coefficients_KN is None
    assert len({tuple(row) for row in [*expected, soups.markers["base"].rewards_N]}) == 3


def test_models_are_loaded_one_after_the_other(soup_folder, monkeypatch):
    folder, loaded = soup_folder(kind="adapter"), []

    def load(ref, **options):
        loaded.append(ref.id)
        return load_model(ref, **options)

    load_model = checkpoints.load_model
    monkeypatch.setattr(checkpoints, "load_model", load)
    policies = CheckpointPolicies(
        [{"a": folder / "b0", "b": folder / "b1"}[n] for n in "ab"], VERTICES, ["good", "brief"],
        markers={"start": folder / "base"}, base_model=folder / "base",
    )  # fmt: skip
    with policies.answering(read_prompts(PROMPTS), SETTINGS) as answering:
        assert answering.groups == [[0], [1], [2]]
        assert loaded == []
        for model in (0, 0, 1, 2, 2):
            answering([Row(model, 0, 0), Row(model, 2, 0)], [1, 2])
    assert loaded == [str(folder / "base")] * 3


def test_loading_an_adapter_shows_nothing_that_is_meant_for_peft(soup_folder):
    folder = soup_folder(kind="adapter")
    policies = CheckpointPolicies([folder / "b0"], [[1.0, 0.0]], ["good", "brief"], base_model=folder / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        policies.models[0].load(None, None)


def test_an_adapter_names_its_base_itself(soup_folder, tmp_path):
    folder = shutil.copytree(soup_folder(kind="adapter"), tmp_path / "run")
    config = json.loads((folder / "b0" / "adapter_config.json").read_text())
    with pytest.raises(SoupError, match="names no base model; pass base_model="):
        CheckpointPolicies([folder / "b0"], [[1.0, 0.0]], ["good", "brief"])
    config["base_model_name_or_path"] = str(folder / "base")
    (folder / "b0" / "adapter_config.json").write_text(json.dumps(config))
    named = measure(CheckpointPolicies([folder / "b0"], [[1.0, 0.0]], ["good", "brief"]))
    given = CheckpointPolicies([folder / "b0"], [{"good": 1}], ["good", "brief"], base_model=folder / "base")
    np.testing.assert_array_equal(named.rewards_KN, measure(given).rewards_KN)


def test_an_adapter_that_no_soup_could_hold_is_measured(tmp_path, soup_folder):
    """DoRA is not linear in its factors; here nothing is scaled."""
    from peft import LoraConfig, get_peft_model

    base = soup_folder(kind="adapter") / "base"
    model = get_peft_model(make_model(0), LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)).eval()
    torch.nn.init.normal_(model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight, std=2.0)
    model.save_pretrained(tmp_path / "dora")
    policies = CheckpointPolicies([tmp_path / "dora"], [[1.0, 0.0]], ["good", "brief"], base_model=base)
    loaded = policies.models[0].load(None, None)
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert not torch.allclose(loaded(ids).logits, make_model(0)(ids).logits, atol=0.1)


def test_each_model_uses_its_own_tokenizer(tmp_path):
    for name in ("plain", "marked"):
        make_model(0).save_pretrained(tmp_path / name)
        tokenizer = make_tokenizer()
        if name == "marked":
            tokenizer.chat_template = "<user> " + tokenizer.chat_template
        tokenizer.save_pretrained(tmp_path / name)
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    policies = CheckpointPolicies([tmp_path / "plain", tmp_path / "marked"], VERTICES, ["good", "brief"])
    with policies.answering(read_prompts(chats), SETTINGS) as answering:
        plain, marked = (answering([Row(m, p, 0) for p in range(4)], [1, 2, 3, 4]) for m in (0, 1))
    again = CheckpointPolicies([tmp_path / "marked"], VERTICES[:1], ["good", "brief"])
    with again.answering(read_prompts(chats), SETTINGS) as answering:
        assert answering([Row(0, p, 0) for p in range(4)], [1, 2, 3, 4]) == marked != plain


def test_the_record_changes_with_the_files(soup_folder, tmp_path):
    folder = shutil.copytree(soup_folder(kind="adapter"), tmp_path / "run")

    def record():
        policies = CheckpointPolicies([folder / "b0"], [[1.0, 0.0]], ["good", "brief"], base_model=folder / "base")
        return policies.provenance()

    first = record()
    assert first["models"][0]["model"] == str(folder / "b0")
    (folder / "b0" / "README.md").write_text("words")
    assert record() == first
    weights = folder / "b0" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    second = record()
    assert second["models"][0].pop("fingerprint") != first["models"][0].pop("fingerprint")
    assert second == first
    weights = folder / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert record()["models"][0]["base_fingerprint"] != first["models"][0]["base_fingerprint"]


def test_an_adapter_on_a_wrong_base_is_refused(soup_folder, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 21, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(hidden_size=16, num_hidden_layers=3, **sizes)).save_pretrained(tmp_path / "deeper")
    LlamaForCausalLM(LlamaConfig(hidden_size=8, num_hidden_layers=2, **sizes)).save_pretrained(tmp_path / "narrower")
    for base in ("deeper", "narrower"):
        policies = CheckpointPolicies(
            [soup_folder(kind="adapter") / "b0"], [[1.0, 0.0]], ["good", "brief"], base_model=tmp_path / base
        )
        with pytest.raises(SoupError, match=f"b0 does not fit the base model .*{base}"):
            policies.models[0].load(None, None)


@pytest.mark.parametrize(
    ("models", "preferences", "error", "message"),
    [
        (["b0"], VERTICES, ConfigurationError, "got 1 models and 2 preferences"),
        (["b0", "b1"], [[1, 0], [1, 0]], FrontError, "once"),
        (["b0"], [{"kind": 1.0}], WeightsError, r"Unknown objective\(s\) \['kind'\].*\['good', 'brief'\]"),
        (["b0"], [[0.5, 0.4]], WeightsError, "sum to 1"),
        (["b0"], {"good": 1.0}, ConfigurationError, "list of at least one"),
        (["nowhere at all"], [[1.0, 0.0]], SoupError, "nowhere at all"),
        (["."], [[1.0, 0.0]], SoupError, "neither a full checkpoint .* nor an adapter"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(soup_folder, models, preferences, error, message):
    folder = soup_folder(kind="full")
    with pytest.raises(error, match=message):
        CheckpointPolicies([folder / name for name in models], preferences, ["good", "brief"])
