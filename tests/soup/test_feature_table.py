"""The table in docs/soups.md, row by row: what it calls exact is compared with explicit float64 weights."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import explicit
import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_soups import LINEAR, adapter_soup, logits_of, tiny_gpt2, tiny_llama, tiny_mixtral, weights_of
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_bonesoup import BoneSoup
from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.to_full import to_full

DOCS = Path(__file__).parents[2] / "docs" / "soups.md"
PREFERENCES = {(1.0, 0.0): [1.75, -0.75], (0.25, 0.75): [-0.125, 1.125]}  # β = .7

CONV1D = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
PATTERNS = {"rank_pattern": {"q_proj": 2, "o_proj": 6}, "alpha_pattern": {"q_proj": 10, "up_proj": 1}}
EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj"], "target_modules": ["q_proj"]}
EVERY_METHOD = [
    {"method": peft.AdaLoraConfig, "target_modules": LINEAR, "init_r": 4, "total_step": 10},
    {"method": peft.IA3Config, "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    {"method": peft.LoHaConfig, "target_modules": LINEAR, "r": 4},
    {"method": peft.LoKrConfig, "target_modules": LINEAR, "r": 4},
    {"method": peft.OFTConfig, "target_modules": LINEAR, "oft_block_size": 4},
    {"method": peft.VeraConfig, "target_modules": ["q_proj"], "r": 4},
]


@dataclass(frozen=True)
class Case:
    """One row: soups to make, or why there is none."""

    options: list[dict[str, Any]]
    model: Any = tiny_llama
    mixes: bool = True
    merges: bool = True
    refusal: str = "bonesoup to-full"
    formula: bool = True


def only_full(*options: dict[str, Any], **settings: Any) -> Case:
    return Case(list(options), mixes=False, **settings)


def nowhere(refusal: str, *settings: dict[str, Any]) -> Case:
    return Case([{"changed": change} for change in settings], mixes=False, merges=False, refusal=refusal)


CASES: dict[str, list[Case]] = {
    "different ranks and alphas": [Case([{"r": 2, "lora_alpha": 3}, {"r": 8, "lora_alpha": 5}])],
    "rsLoRA, in all adapters or some": [
        Case([{"use_rslora": True, "r": 9}, {"use_rslora": True}]),
        Case([{"use_rslora": True}, {}]),
    ],
    "`rank_pattern`, `alpha_pattern`": [Case([PATTERNS, {}])],
    "different `target_modules`": [Case([{"target_modules": ["q_proj"]}, {"target_modules": ["up_proj", "v_proj"]}])],
    "`layers_to_transform`": [Case([{"layers_to_transform": [0]}, {}])],
    "embeddings": [Case([{"target_modules": ["embed_tokens"]}, {}])],
    "`lm_head`": [Case([{"target_modules": ["lm_head"]}, {}])],
    "tied embeddings, without adapters on them": [Case([{}, {}], model=lambda: tiny_llama(tied=True))],
    "`Conv1D` layers (GPT-2)": [Case([CONV1D, {**CONV1D, "r": 3}], model=tiny_gpt2)],
    "a base model in bfloat16": [Case([{}, {}], model=lambda: tiny_llama(dtype=torch.bfloat16))],
    "initialised as gaussian, orthogonal, EVA or MiCA": [
        Case([{"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"}]),
        Case([{"init_lora_weights": "eva"}, {"init_lora_weights": "mica"}]),
    ],
    "`modules_to_save`": [only_full({"modules_to_save": ["lm_head"]}, {})],
    "DoRA": [only_full({"use_dora": True}, {"use_dora": True, "r": 2})],
    "`bias`: `all`, `lora_only`": [
        only_full({"bias": "all"}, {"bias": "lora_only"}, model=lambda: tiny_llama(biased=True))
    ],
    "`lora_bias`": [only_full({"lora_bias": True}, {}, model=lambda: tiny_llama(biased=True))],
    "`trainable_token_indices`": [only_full({"trainable_token_indices": [3, 5]}, {})],
    "`target_parameters`": [only_full(EXPERTS, {"target_modules": ["v_proj"]}, model=tiny_mixtral, formula=False)],
    "initialised by PiSSA or OLoRA": [only_full({"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"})],
    "AdaLoRA, IA³, LoHa, LoKr, OFT, VeRA": [only_full(*EVERY_METHOD[k : k + 2], formula=False) for k in (0, 2, 4)],
    "initialised by `pissa_niter_…`, CorDA, LoftQ or LoRA-GA": [
        nowhere(
            "path_initial_model_for_weight_conversion",
            *({"init_lora_weights": name} for name in ("pissa_niter_4", "corda", "loftq", "lora_ga")),
        )
    ],
    "aLoRA": [nowhere("aLoRA.*plain LoRA", {"alora_invocation_tokens": [1]})],
    "`layer_replication`": [nowhere("depth.*base model of its own", {"layer_replication": [[0, 2], [1, 2]]})],
    "QA-LoRA": [nowhere("QA-LoRA.*unquantized base model", {"use_qalora": True})],
    "`ensure_weight_tying`": [nowhere("ensure_weight_tying.*not tied", {"ensure_weight_tying": True})],
    "other variants of LoRA (KaSA, VeLoRA, …)": [
        nowhere("the LoRA variant", {"kasa_config": {"a": 1}}, {"velora_config": {"a": 1}}, {"arrow_config": {"a": 1}})
    ],
    "Megatron layers": [nowhere("Megatron layers", {"megatron_config": {"a": 1}})],
    "other methods (prompt tuning, X-LoRA, …)": [
        nowhere("method .* not tested.*Train with LoRA", {"peft_type": "PROMPT_TUNING"}, {"peft_type": "XLORA"})
    ],
}
IDS = [(name, case) for name, cases in CASES.items() for case in cases]
EXACT = [pytest.param(case, id=name) for name, case in IDS if case.merges]
MIXES = [pytest.param(case, id=name) for name, case in IDS if case.mixes]
REFUSED = [pytest.param(case, id=name) for name, case in IDS if not case.mixes]

pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")


def make(case: Case, folder: Path) -> Path:
    return adapter_soup(folder, case.options, model=case.model())


def untied(base: Path, folder: Path) -> Path:
    """Untie a base model as docs/soups.md says."""
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "tie_word" in code]
    exec(block.replace("org/sft", str(base)).replace("sft-untied", str(folder)), {})
    return folder


def assert_weights(folder: Path, expected: explicit.Weights) -> None:
    got = weights_of(folder)
    for name in got:
        torch.testing.assert_close(got[name].double(), torch.tensor(expected[name]), atol=1e-5, rtol=1e-5, msg=name)
    assert set(expected) - set(got) <= {"lm_head.weight"}  # not stored where embeddings are tied


@pytest.mark.parametrize("case", MIXES)
def test_exact_in_adapter_space(case: Case, tmp_path: Path, batch) -> None:
    run = make(case, tmp_path / "run")
    backbones = [explicit.backbone(run / "base", run / f"backbone{j}") for j in range(2)]
    soup = BoneSoup.from_pretrained(run, dtype=torch.float32)
    for preference, coefficients in PREFERENCES.items():
        expected = explicit.soup(run / "base", backbones, coefficients)
        soup.set_preference(preference)
        with torch.no_grad():
            live = soup.model(**batch).logits.double()
        torch.testing.assert_close(live, logits_of(run / "base", expected, batch), atol=3e-5, rtol=1e-5)
        out = merge(run, tmp_path / str(preference), preference, full=True, dtype="float32").path
        assert_weights(out, expected)


@pytest.mark.parametrize("case", EXACT)
def test_exact_through_to_full(case: Case, tmp_path: Path, batch) -> None:
    run = make(case, tmp_path / "run")
    full = to_full(run, tmp_path / "full", dtype="float32").path
    for j in range(2):
        live = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(run / "base", dtype=torch.float32), run / f"backbone{j}"
        ).eval()
        with torch.no_grad():
            expected, got = (model(**batch).logits for model in (live, reload(full / f"backbone{j}")))
        torch.testing.assert_close(got, expected, atol=3e-5, rtol=1e-5)
        assert (got - reload(run / "base")(**batch).logits).detach().norm() > 1e-2
    theta = explicit.backbone if case.formula else lambda base, folder: explicit.float64_weights(full / folder.name)
    backbones = [theta(run / "base", run / f"backbone{j}") for j in range(2)]
    for (preference, coefficients), alpha in zip(PREFERENCES.items(), (0.2, 0.0), strict=True):
        out = merge(full, tmp_path / str(preference), preference, extrapolation=alpha).path
        scaled = [coefficient / (1.0 - alpha) for coefficient in coefficients]
        assert_weights(out, explicit.soup(run / "base", backbones, scaled))


def reload(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name_with_what_to_do(case: Case, tmp_path: Path, two_adapters: Path) -> None:
    if case.merges:
        assert_refused(make(case, tmp_path / "run"), case)
        return
    for k, option in enumerate(case.options):
        run = Path(shutil.copytree(two_adapters, tmp_path / str(k) / "run"))
        file = run / "backbone1" / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **option["changed"]}))
        assert_refused(run, case)


def assert_refused(run: Path, case: Case) -> None:
    message, out = rf"backbone\d .*{case.refusal}", run.parent / "out"
    with pytest.raises(SoupError, match=message):
        merge(run, out, [0.5, 0.5])
    with pytest.raises(SoupError, match=message):
        BoneSoup.from_pretrained(run)
    if not case.merges:
        with pytest.raises(SoupError, match=message):
            to_full(run, out)
    assert [path.name for path in run.parent.iterdir()] == ["run"]


ONE_SIDE = {
    "LoRA on lm_head": {"target_modules": ["lm_head", "q_proj"]},
    "LoRA on embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "lm_head as a whole": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", ONE_SIDE.values(), ids=ONE_SIDE)
def test_tied_embeddings_with_an_adapter_on_one_side(tmp_path: Path, batch, options: dict[str, Any]) -> None:
    run = adapter_soup(tmp_path / "run", [{}, options], model=tiny_llama(tied=True))
    with pytest.raises(SoupError, match=r"backbone1 trains (lm_head|model.embed_tokens), .*tied.*base_model="):
        to_full(run, tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]

    base = untied(run / "base", tmp_path / "untied")
    theta = [explicit.backbone(base, run / f"backbone{j}") for j in range(2)]
    expected = explicit.soup(base, theta, [1.75, -0.75])
    full = to_full(run, tmp_path / "full", base_model=base).path
    assert_weights(merge(full, tmp_path / "soup", [1.0, 0.0]).path, expected)
    if "modules_to_save" in options:
        return
    soup = BoneSoup.from_pretrained(run)
    soup.set_preference([1.0, 0.0])
    live = soup.model(**batch).logits.detach().double()
    torch.testing.assert_close(live, logits_of(base, expected, batch), atol=3e-5, rtol=1e-5)
    with pytest.raises(SoupError, match=r"tied.*base_model="):
        merge(run, tmp_path / "tied", [1.0, 0.0], full=True)
    assert_weights(merge(run, tmp_path / "merged", [1.0, 0.0], full=True, base_model=base).path, expected)


def test_embeddings_saved_beside_the_factors(tmp_path: Path, batch) -> None:
    run = adapter_soup(tmp_path / "run", [{}, {}])
    file = run / "backbone0" / "adapter_model.safetensors"
    name = "base_model.model.model.embed_tokens.weight"
    embeddings = weights_of(run / "base")["model.embed_tokens.weight"] + 0.1 * torch.randn(24, 16)
    save_file({**load_file(file), name: embeddings}, file)
    with pytest.raises(SoupError, match=r"embed_tokens.*not a LoRA factor.*to-full"):
        merge(run, tmp_path / "out", [0.5, 0.5])
    full = to_full(run, tmp_path / "full").path
    theta = [explicit.backbone(run / "base", run / f"backbone{j}") for j in range(2)]
    assert_weights(merge(full, tmp_path / "out", [1.0, 0.0]).path, explicit.soup(run / "base", theta, [1.75, -0.75]))


def test_a_quantized_base_model(two_adapters: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(two_adapters, tmp_path / "run"))
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    quantized = AutoModelForCausalLM.from_pretrained(run / "base", quantization_config=nf4, device_map="cpu")
    shutil.rmtree(run / "base")
    quantized.save_pretrained(run / "base")
    with pytest.raises(SoupError, match=r"Linear4bit.*Load the base model unquantized"):
        merge(run, tmp_path / "out", [0.5, 0.5], full=True)
    with pytest.raises(SoupError, match=r"is quantized.*quantized from with base_model="):
        to_full(run, tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not merge(run, tmp_path / "out", [0.5, 0.5]).full
    assert merge(run, tmp_path / "full", [0.5, 0.5], full=True, base_model=two_adapters / "base").full


def test_pickled_adapters(two_adapters: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(two_adapters, tmp_path / "run"))
    file = run / "backbone1" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    for write in (merge, lambda run, out, mu: to_full(run, out)):
        with pytest.raises(SoupError, match=r"Pickled adapters \(\.bin\).*safe_serialization=True"):
            write(run, tmp_path / "out", [0.5, 0.5])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


SPECIAL = {
    "tied embeddings, with an adapter on one side": test_tied_embeddings_with_an_adapter_on_one_side,
    "embeddings saved beside the factors (`save_embedding_layers`)": test_embeddings_saved_beside_the_factors,
    "a quantized base model": test_a_quantized_base_model,
    "pickled adapters (`.bin`)": test_pickled_adapters,
}
WORDS = {True: "exact", False: "refused"}


def test_every_row_of_the_documentation_is_a_test_and_says_what_it_shows() -> None:
    section = DOCS.read_text().split("## Which adapters can be mixed")[1]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    rows = {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}
    assert len(rows) == len(lines)
    assert set(rows) == {*CASES, *SPECIAL}
    for name, (mixes, merges, remedy) in rows.items():
        if name in CASES:
            assert (mixes, merges) == (WORDS[CASES[name][0].mixes], WORDS[CASES[name][0].merges]), name
            assert len({(case.mixes, case.merges) for case in CASES[name]}) == 1
        assert bool(remedy) == ("refused" in (mixes, merges)), name
        assert ("`to-full`" in remedy) == ((mixes, merges) == ("refused", "exact")), name
