"""seek.json and soup.json that other versions wrote or people edited, in the folder that `seek` is to continue in."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from peft import LoraConfig
from tiny import count_word

from trl_bonesoup import MultiRewardPPOConfig, SoupManifest, circulant_weights, seek
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.training.run import Run

REWARDS = [count_word("w5"), count_word("w7")]
B = circulant_weights(2, beta=0.7)
PROMPTS = Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(16)]})


def lora() -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM")


def call(base: str, folder: Path, **changes: Any) -> SoupManifest | None:
    args = MultiRewardPPOConfig(
        str(folder), per_device_train_batch_size=4, num_iterations=1, max_completion_length=3, max_steps=1,
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, activation_checkpointing=False,
    )  # fmt: skip
    given = {"combination_weights": B, "peft_config": lora(), "calibration_samples": 4, **changes}
    return seek(base, REWARDS, args=args, train_dataset=PROMPTS, **given)


@pytest.fixture(scope="module")
def trained(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    call(base, folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format_version=2), "has format version 2, and this version .* continues runs of 1"),
        (lambda r: r.update(format_version=0), "has format version 0"),
        (lambda r: r.update(format_version="1"), "has format version '1'"),
        (lambda r: r.update(later=1), "later: Extra inputs are not permitted"),
        (lambda r: r["request"].update(later=1), r"request\.later: Extra inputs are not permitted"),
        (lambda r: r["request"].pop("prompts"), r"request\.prompts: Field required"),
        (lambda r: r["request"]["combination_weights"][0].__setitem__(0, 0.8), "must sum to 1"),
        (lambda r: r["request"].update(combination_weights=[[1.0]]), "combination weights|at least 2"),
        (lambda r: r["request"]["rewards"].pop(), "1 rewards do not fit 2 objectives"),
        (lambda r: r["request"]["settings"].pop("seed"), "settings lack 'seed'"),
        (lambda r: r["statistics"][0].update(std=0.0), r"statistics\.0\.std: Input should be greater than 0"),
        (lambda r: r["statistics"].pop(), "statistics has 1 entries for 2 objectives"),
        (lambda r: r.update(correlation=[[1.0]]), "correlation has 1 entries for 2 objectives"),
    ],
)
def test_a_seek_json_that_is_not_ours_is_refused_and_nothing_is_touched(
    base: str, run: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edit(run / "seek.json", change)
    before = contents(run)
    with pytest.raises(ConfigurationError, match=rf"seek\.json .*({message})"):
        call(base, run)
    assert contents(run) == before


def test_a_seek_json_from_before_versions_were_written_is_continued(base: str, run: Path) -> None:
    edit(run / "seek.json", lambda record: record.pop("format_version"))
    assert call(base, run) == SoupManifest.load(run)


@examples(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_seek_json_loads_or_is_a_configuration_error(trained: Path, tmp_path: Path, data: Any) -> None:
    whole = (trained / "seek.json").read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    junk = data.draw(
        st.one_of(st.binary(max_size=8), st.sampled_from([b"null", b"[]", b'"x"', b"{}", b"NaN", b"1e999"]))
    )
    tail = data.draw(st.booleans())
    (tmp_path / "seek.json").write_bytes(whole[:cut] + junk + (whole[cut:] if tail else b""))
    try:
        found = Run.load(tmp_path)
    except ConfigurationError:
        return
    found.save()
    assert Run.load(tmp_path) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format_version=2), "has format version 2"),
        (lambda r: r.update(format_version=0), "has format version 0"),
        (lambda r: r.update(later=1), "later"),
        (lambda r: r["combination_weights"][0].__setitem__(0, 0.8), "must sum to 1"),
        (lambda r: r.update(combination_weights=[[0.8, 0.2], [0.2, 0.8]]),
         r"a soup of another run \(combination weights \[\[0\.8, 0\.2\].* there, \[\[0\.7.* now"),
        (lambda r: r["objectives"][0].update(name="other"), r"objectives \['other', 'says_w7'\] there"),
        (lambda r: [backbone.update(kind="full") for backbone in r["backbones"]], "kind full there, adapter now"),
    ],
)  # fmt: skip
def test_a_soup_json_that_is_not_this_runs_is_not_replaced(
    base: str, run: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    """Neither by continuing the run, nor by starting one in a folder with a soup from elsewhere."""
    edit(run / "soup.json", change)
    for _ in range(2):
        before = contents(run)
        with pytest.raises(ConfigurationError, match=rf"{message}.*move soup\.json away"):
            call(base, run)
        assert contents(run) == before
        (run / "seek.json").unlink(missing_ok=True)


def test_a_further_call_keeps_the_presets_and_the_versions_of_soup_json(base: str, run: Path) -> None:
    manifest = SoupManifest.load(run).with_preset("mild", [0.6, 0.4])
    manifest.model_copy(update={"versions": {"trl": "1.16.0", "torch": "0.1"}}).save(run)
    before = contents(run)
    found = call(base, run)
    assert found is not None
    assert found.presets == {"mild": {"says_w5": 0.6, "says_w7": 0.4}}
    assert found.versions == {"trl": "1.16.0", "torch": "0.1"}
    assert contents(run) == before
