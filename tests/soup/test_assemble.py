"""A soup.json for models that exist: what is recorded, what is refused, and what is said of every backbone."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_soups import files_of
from loopback_hub import LoopbackHub
from tiny_soups import save_adapter, save_base, tiny_llama

from trl_bonesoup import SoupManifest, assemble, merge, to_full
from trl_bonesoup.errors import BoneSoupError, HubError, ManifestError, SoupError, WeightsError
from trl_bonesoup.soup.assemble import Assembly


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and adapters of several kinds on it, as somebody has them."""
    folder = tmp_path_factory.mktemp("trained")
    base = save_base(tiny_llama(), folder / "base")
    options: dict[str, dict[str, Any]] = {
        "friendly": {"r": 4},
        "concise": {"r": 8, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]},
        "uneven": {"r": 2, "rank_pattern": {"q_proj": 6}, "target_modules": ["q_proj", "v_proj"]},
        "dora": {"use_dora": True},
        "biased": {"modules_to_save": ["lm_head"]},
    }
    for seed, (name, option) in enumerate(options.items()):
        save_adapter(base, folder / "adapters" / name, seed=seed, **option)
    return folder


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, as the working directory; the adapters name the base by the path from there."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("adapters/*/adapter_config.json"):
        change(file.parent, base_model_name_or_path="base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(adapter: Path, **settings: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def soup_of(*names: str, out: str = "soup", **options: Any) -> Assembly:
    return assemble({name: f"adapters/{name}" for name in names}, out, **options)


class TestRecord:
    def test_adapters_become_a_soup_that_merges(self, work: Path) -> None:
        made = soup_of("friendly", "concise")
        assert made.path == work / "soup" / "soup.json"
        assert SoupManifest.load("soup") == made.manifest
        assert made.manifest.objective_names == ("friendly", "concise")
        assert [backbone.path for backbone in made.manifest.backbones] == [
            "../adapters/friendly",
            "../adapters/concise",
        ]
        assert [backbone.kind for backbone in made.manifest.backbones] == ["adapter", "adapter"]
        np.testing.assert_array_equal(made.manifest.weights, np.eye(2))
        np.testing.assert_array_equal(merge("soup", "out", [0.7, 0.3]).coefficients, [0.7, 0.3])

    def test_the_rank_is_that_of_the_adapter_that_is_written(self, work: Path) -> None:
        """q_proj has 4 + 8 + 6, up_proj 4 + 8 and v_proj 4 + 2."""
        made = soup_of("friendly", "concise", "uneven")
        assert made.rank == 18
        merge("soup", "out", "equal")
        assert json.loads((work / "out" / "adapter_config.json").read_text())["r"] == 18

    @pytest.mark.parametrize("out", ["soup", "soup/soup.json", ".", "adapters/friendly/soup"])
    def test_paths_count_from_the_folder_of_soup_json(self, work: Path, out: str) -> None:
        path = soup_of("friendly", "concise", out=out).path
        found = [path.parent / backbone.path for backbone in SoupManifest.load(path).backbones]
        assert [folder.resolve() for folder in found] == [work / "adapters/friendly", work / "adapters/concise"]

    def test_a_base_inside_the_folder_moves_with_it_and_another_stays_where_it_is(self, work: Path) -> None:
        assert soup_of("friendly", "concise", out=".").manifest.base_model.id == "base"
        assert soup_of("friendly", "concise", base_model="base").manifest.base_model.id == str(work / "base")

    def test_other_combination_weights(self, work: Path) -> None:
        made = soup_of("friendly", "concise", combination_weights=[[0.8, 0.3], [0.2, 0.7]])
        np.testing.assert_array_equal(made.manifest.weights, [[0.8, 0.3], [0.2, 0.7]])

    def test_presets(self, work: Path) -> None:
        soup_of("friendly", "concise", presets={"blunt": {"concise": 0.8, "friendly": 0.2}})
        assert SoupManifest.load("soup").presets == {"blunt": {"friendly": 0.2, "concise": 0.8}}
        with pytest.raises(WeightsError, match="sum to 1"):
            soup_of("friendly", "concise", out="other", presets={"much": [0.9, 0.9]})
        assert not (work / "other").exists()

    def test_full_checkpoints(self, work: Path) -> None:
        for name in ("one", "other"):
            save_base(tiny_llama(), work / name)
        made = assemble({"one": "one", "other": work / "other"}, "soup", base_model="base")
        assert [backbone.kind for backbone in made.manifest.backbones] == ["full", "full"]
        assert made.rank is None

    def test_models_on_the_hub_are_recorded_by_id_and_commit(self, work: Path, hub: LoopbackHub) -> None:
        change(work / "adapters" / "friendly", base_model_name_or_path="org/sft")
        commit = hub.put("org/friendly-lora", files_of(work / "adapters" / "friendly"))
        models = {"friendly": "org/friendly-lora", "concise": "adapters/concise"}
        made = assemble(models, "soup", base_model="org/sft")
        assert made.manifest.base_model.id == "org/sft"
        assert (made.manifest.backbones[0].path, made.manifest.backbones[0].revision) == ("org/friendly-lora", commit)
        assert made.rank == 12

    def test_the_base_that_all_adapters_name(self, work: Path) -> None:
        for name in ("friendly", "concise"):
            change(work / "adapters" / name, base_model_name_or_path="org/sft", revision="v1")
        base = soup_of("friendly", "concise").manifest.base_model
        assert (base.id, base.revision) == ("org/sft", "v1")


class TestReport:
    def test_what_each_backbone_is(self, work: Path) -> None:
        friendly, concise, uneven = soup_of("friendly", "concise", "uneven").parts
        assert (friendly.what, friendly.obstacle) == ("LoRA adapter of rank 4", None)
        assert concise.what == "rsLoRA adapter of rank 8"
        assert uneven.what == "LoRA adapter of rank 6"

    def test_every_backbone_that_does_not_mix_is_told(self, work: Path) -> None:
        made = soup_of("dora", "friendly", "biased")
        assert [backbone.obstacle is None for backbone in made.parts] == [False, True, False]
        assert "DoRA" in str(made.parts[0].obstacle) and "to-full" in str(made.parts[0].obstacle)
        assert "modules_to_save" in str(made.parts[2].obstacle)
        assert made.rank is None
        assert len(to_full("soup", "full").rounding_losses) == 3

    def test_adapters_beside_full_checkpoints(self, work: Path) -> None:
        save_base(tiny_llama(), work / "whole")
        made = assemble({"friendly": "adapters/friendly", "whole": "whole"}, "soup")
        assert "of one kind" in str(made.parts[0].obstacle)
        assert made.parts[1].what == "full checkpoint"
        assert made.parts[1].obstacle is None

    def test_a_base_that_the_adapters_do_not_name_has_to_be_given_again(self, work: Path) -> None:
        for name, base in (("friendly", "/a/sft"), ("concise", "/b/sft")):
            change(work / "adapters" / name, base_model_name_or_path=base)
        made = soup_of("friendly", "concise", base_model="base")
        assert "different base models" in str(made.other_base)
        assert len(made.manifest.backbones) == 2
        merge("soup", "out", "equal", base_model="base")

    def test_a_base_on_the_hub_that_the_adapters_do_not_name(self, work: Path) -> None:
        for name in ("friendly", "concise"):
            change(work / "adapters" / name, base_model_name_or_path="org/sft")
        assert "'org/sft'" in str(soup_of("friendly", "concise", base_model="org/copy").other_base)
        assert soup_of("friendly", "concise", base_model="org/sft", overwrite=True).other_base is None


class TestRefuses:
    def test_to_replace_a_soup_json_unasked(self, work: Path) -> None:
        soup_of("friendly", "concise")
        with pytest.raises(ManifestError, match=r"soup/soup\.json is there already.*--overwrite"):
            soup_of("concise", "friendly")
        assert SoupManifest.load("soup").objective_names == ("friendly", "concise")
        assert soup_of("concise", "friendly", overwrite=True).manifest.objective_names == ("concise", "friendly")

    def test_one_model(self, work: Path) -> None:
        with pytest.raises(ManifestError, match=r"two backbones or more; got \['friendly'\]"):
            soup_of("friendly")

    @pytest.mark.parametrize(
        ("path", "error", "message"),
        [
            ("adapters/nope", HubError, r"could not be fetched.*no folder .*/adapters/nope"),
            ("./adapters/nope", SoupError, r"backbone 'odd' is './adapters/nope', which is neither a folder on this"),
            ("adapters", SoupError, r"The folder .*/adapters holds no model: no adapter_config\.json and no config"),
        ],
    )
    def test_what_is_no_model(self, work: Path, path: str, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            assemble({"friendly": "adapters/friendly", "odd": path}, "soup", base_model="base")
        assert not (work / "soup").exists()

    def test_what_has_no_soup_of_any_kind_and_tells_of_all(self, work: Path) -> None:
        change(work / "adapters" / "friendly", alora_invocation_tokens=[1])
        (work / "adapters" / "concise" / "adapter_model.safetensors").rename(
            work / "adapters/concise/adapter_model.bin"
        )
        with pytest.raises(SoupError, match=r"(?s)friendly: .*aLoRA.*plain LoRA.*concise: .*Pickled adapters"):
            soup_of("friendly", "concise", "dora")
        assert not (work / "soup").exists()

    def test_adapters_of_different_bases(self, work: Path) -> None:
        change(work / "adapters" / "concise", base_model_name_or_path="org/other")
        with pytest.raises(SoupError, match=r"different base models.*'org/other'.*--base-model"):
            soup_of("friendly", "concise")

    def test_a_base_that_nobody_names(self, work: Path) -> None:
        with pytest.raises(SoupError, match="--base-model"):
            assemble({"one": "base", "other": "base"}, "soup")
        for name in ("friendly", "concise"):
            change(work / "adapters" / name, base_model_name_or_path="/home/somebody/sft")
        with pytest.raises(SoupError, match=r"'/home/somebody/sft', which is neither .*--base-model"):
            soup_of("friendly", "concise")

    @pytest.mark.parametrize(
        "weights", [[[0.5, 0.5], [0.5, 0.5]], np.eye(3), [[1.0]], "x", [0.5, 0.5], [[1.0, 0.0], [1.0]]]
    )
    def test_combination_weights_that_do_not_fit(self, work: Path, weights: Any) -> None:
        with pytest.raises(BoneSoupError):
            soup_of("friendly", "concise", combination_weights=weights)
        assert not (work / "soup").exists()

    def test_a_name_that_no_objective_may_have(self, work: Path) -> None:
        with pytest.raises(ManifestError, match="objectives"):
            assemble({"": "adapters/friendly", "concise": "adapters/concise"}, "soup")

    def test_a_folder_that_cannot_be_made(self, work: Path) -> None:
        with pytest.raises(BoneSoupError, match=r"base/config\.json"):
            soup_of("friendly", "concise", out="base/config.json/soup")
