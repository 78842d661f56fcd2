"""What lies on the disk: inputs that mergekit would misread, and outputs that appear complete or not at all."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from mergekit.config import MergeConfiguration
from safetensors.torch import load_file, save_file
from tiny_merges import assert_same_bits, soup, tensors_of
from transformers import AutoModelForCausalLM

from mergekit_bonesoup import files

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def models(checkpoints, tmp_path):
    """Copies of two checkpoints, to be spoilt."""
    return [Path(shutil.copytree(checkpoints / name, tmp_path / name)) for name in "ab"]


@pytest.fixture
def config(models):
    return soup({models[0]: 1.0, models[1]: 0.0}, {"beta": 0.6})


@pytest.fixture
def refused(command):
    """Run a configuration that is refused in one line, with nothing left behind; return the line."""

    def refused(config, *arguments, out="out"):
        result, folder = command(config, "--quiet", *arguments, out=out)
        assert result.exit_code == 1
        (line,) = [line for line in result.output.splitlines() if line.startswith("Error: bone_soup: ")]
        assert "Traceback" not in result.output
        assert not list(folder.parent.glob(".*merging*"))
        return line

    return refused


def shards(folder):
    """Split a checkpoint into two shards."""
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, half in halves.items():
        save_file({name: tensors[name] for name in half}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, half in halves.items() for name in half}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


class TestInputs:
    def test_a_checkpoint_cut_short(self, models, config, refused):
        file = models[1] / SINGLE
        file.write_bytes(file.read_bytes()[:-100])
        assert f"{file} is not a complete safetensors file" in refused(config)

    def test_a_shard_that_is_missing(self, models, config, refused):
        shards(models[1])
        (models[1] / SINGLE).unlink()
        (models[1] / "model-00002-of-00002.safetensors").unlink()
        assert f"{models[1]} lacks model-00002-of-00002.safetensors" in refused(config)

    def test_two_checkpoints_in_one_folder(self, models, config, refused):
        shards(models[1])
        assert f"{models[1]} holds two checkpoints" in refused(config)

    def test_an_index_that_leaves_its_folder(self, models, config, refused):
        weight_map = shards(models[1])
        (models[1] / SINGLE).rename(models[1].parent / "secret.safetensors")
        (models[1] / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, "../secret.safetensors")}))
        assert "names the file '../secret.safetensors', which is not in its own folder" in refused(config)

    @pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
    def test_a_broken_index(self, models, config, refused, text):
        (models[1] / INDEX).write_text(text)
        assert "is not a valid index" in refused(config)

    @pytest.mark.parametrize("name", ["./hramless", "../none", "~/none", "/none", "run/2/none"])
    @pytest.mark.parametrize("adapter", [False, True])
    def test_a_folder_that_is_not_there(self, models, refused, name, adapter):
        model = f"{models[1]}+{name}" if adapter else name
        line = refused(soup({models[0]: 0.6, model: 0.4}, {"beta": 0.7}), "--lora-merge-cache", "cache")
        assert line == f"Error: bone_soup: there is no folder {name}."

    def test_a_folder_in_the_home_directory(self, models, refused, monkeypatch):
        """mergekit takes ~ as it stands."""
        monkeypatch.setenv("HOME", str(models[0].parent))
        line = refused(soup({models[0]: 0.6, "~/b": 0.4}, {"beta": 0.7}))
        assert line == f"Error: bone_soup: there is no folder ~/b. mergekit does not know ~: write {models[1]}."

    @pytest.mark.parametrize("way", ["link", "a/", "b/../a"])
    def test_a_backbone_listed_twice_in_other_words(self, models, refused, way):
        (models[0].parent / "link").symlink_to(models[0], target_is_directory=True)
        twice = soup({models[0]: 1.0, f"{models[0].parent}/{way}": 0.0}, {"beta": 0.6})
        assert "more than once" in refused(twice)

    @pytest.mark.parametrize("out", ["a", "b", "b/", "a/../b", "link"])
    def test_an_output_that_is_an_input(self, models, config, refused, out):
        (models[0].parent / "link").symlink_to(models[0], target_is_directory=True)
        before = [(model / SINGLE).read_bytes() for model in models]
        assert "which is merged; choose another one" in refused(config, out=out)
        assert [(model / SINGLE).read_bytes() for model in models] == before


class TestValues:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_model_that_is_not_finite_is_named_or_let_through(self, models, config, refused, command, value):
        tensors = load_file(models[1] / SINGLE)
        tensors["model.norm.weight"][3] = value
        save_file(tensors, models[1] / SINGLE, metadata={"format": "pt"})
        line = refused(config)
        assert f"tensor model.norm.weight of {models[1]} contains NaN or infinity; set allow_nan: true" in line
        config["parameters"]["allow_nan"] = True
        result, out = command(config, "--quiet")
        assert result.exit_code == 0, result.output
        odd = {name: (~torch.isfinite(t)).nonzero().flatten().tolist() for name, t in tensors_of(out).items()}
        assert {name: places for name, places in odd.items() if places} == {"model.norm.weight": [3]}

    @pytest.mark.parametrize("allow_nan", [False, True])
    def test_a_soup_beyond_float16(self, models, config, refused, allow_nan):
        """λ = 3: 30000 becomes 90000, and float16 ends at 65504."""
        tensors = load_file(models[0] / SINGLE)
        tensors["model.norm.weight"][3] = 30000.0
        save_file(tensors, models[0] / SINGLE, metadata={"format": "pt"})
        config |= {"dtype": "float16"}
        config["parameters"]["allow_nan"] = allow_nan
        assert "model.norm.weight of the soup exceeds the range of torch.float16; set out_dtype" in refused(config)

    def test_a_model_without_a_share_may_be_anything(self, models, command, constant, checkpoints):
        config = soup({models[0]: 1.0, constant(checkpoints, float("nan")): 0.0}, {"beta": 1.0})
        result, _ = command(config, "--quiet")
        assert result.exit_code == 0, result.output


class TestOutput:
    def test_shards_replace_a_single_file_and_the_other_way_round(self, models, config, command):
        """Else transformers would load the older soup, and the index would name shards of both."""
        first, out = command(config, "--quiet")
        config["models"][0]["parameters"], config["models"][1]["parameters"] = {"preference": 0.0}, {"preference": 1.0}
        second, _ = command(config, "--quiet", "--out-shard-size", "1k")
        third, fresh = command(config, "--quiet", out="fresh")
        assert [first.exit_code, second.exit_code, third.exit_code] == [0, 0, 0]
        assert not (out / SINGLE).exists()
        expected = AutoModelForCausalLM.from_pretrained(fresh).state_dict()
        assert_same_bits(dict(AutoModelForCausalLM.from_pretrained(out).state_dict()), dict(expected))
        command(config, "--quiet")
        assert [file.name for file in out.glob("*.safetensors*")] == [SINGLE]

    def test_other_files_in_the_folder_stay(self, config, command):
        _, out = command(config, "--quiet")
        (out / "notes.txt").write_text("mine")
        result, _ = command(config, "--quiet")
        assert result.exit_code == 0
        assert (out / "notes.txt").read_text() == "mine"

    def test_the_card_has_the_name_of_the_folder(self, config, command):
        _, out = command(config, "--quiet", out="my-soup")
        assert "# my-soup" in (out / "README.md").read_text()

    def test_an_adapter_is_not_covered_by_a_checkpoint(self, config, refused, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "adapter_config.json").write_text("{}")
        assert "holds an adapter, which would be loaded too" in refused(config)

    def test_a_file_in_the_way(self, config, refused, tmp_path):
        (tmp_path / "out").write_text("mine")
        assert "is a file" in refused(config)
        assert (tmp_path / "out").read_text() == "mine"

    def test_a_failure_halfway_leaves_the_older_soup(self, config, command, monkeypatch):
        _, out = command(config, "--quiet")
        before = {file.name: file.read_bytes() for file in out.iterdir()}
        monkeypatch.setattr("mergekit.merge._copy_tagalong_files", fail_with(RuntimeError("halfway")))
        result, _ = command(config, "--quiet")
        assert result.exit_code == 1
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before
        assert not list(out.parent.glob(".*merging*"))

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_a_disk_that_is_full_for_the_tokenizer_alone(self, config, refused, monkeypatch, number, tmp_path):
        """mergekit only logs what goes wrong there, and exits with 0."""
        monkeypatch.setattr("mergekit.merge._copy_tokenizer", fail_with(OSError(number, os.strerror(number))))
        assert "there is no room for the soup in" in refused(config)
        assert not (tmp_path / "out").exists()

    def test_a_model_without_tokenizer_is_merged_as_ever(self, config, command):
        result, out = command(config, "--quiet")
        assert result.exit_code == 0
        assert not (out / "tokenizer.json").exists()

    def test_what_a_killed_merge_left_is_removed(self, config, command, tmp_path):
        (tmp_path / f".out.merging-{2**22 + 1}-0123abcd" / "out").mkdir(parents=True)
        running = tmp_path / f".out.merging-{os.getppid()}-0123abcd"
        running.mkdir()
        command(config, "--quiet")
        assert [folder.name for folder in tmp_path.glob(".out*")] == [running.name]

    def test_other_methods_write_where_they_did(self, models, command, tmp_path, monkeypatch):
        entries = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
        monkeypatch.setattr("mergekit.merge._copy_tagalong_files", fail_with(RuntimeError("halfway")))
        command({"merge_method": "linear", "models": entries}, "--quiet")
        assert (tmp_path / "out" / SINGLE).is_file()


def fail_with(error):
    def fail(*args, **kwargs):
        raise error

    return fail


class TestTheCard:
    """mergekit asks the Hub whether `org/name` is a repository of it, also where it is a folder, after the merge."""

    @pytest.fixture
    def relative(self, models, monkeypatch, tmp_path):
        """A soup of two folders named like repositories, and one named like a repository of the first days."""
        (tmp_path / "org").mkdir()
        for model in models:
            model.rename(tmp_path / "org" / model.name)
        shutil.copytree(tmp_path / "org" / "a", tmp_path / "sft")
        monkeypatch.chdir(tmp_path)
        return lambda *names: soup(dict(zip(names, (0.6, 0.4), strict=True)), {"beta": 0.7}, base_model="./sft")

    @pytest.mark.parametrize("name", ["org/b", "sft"])
    def test_without_the_hub_it_is_refused_before_the_merge(self, relative, refused, name, tmp_path):
        line = refused({**relative("./org/a", "./org/b"), "base_model": name})
        assert f"the Hub cannot be asked for the model card whether {name} is a repository there" in line
        assert f"write ./{name} or the whole path for the folder here, or give --no-write-model-card" in line
        assert not (tmp_path / "out").exists()

    def test_an_adapter_is_asked_for_too(self, relative, adapters, refused, tmp_path):
        shutil.copytree(adapters[0][0], tmp_path / "org" / "adapter")
        config = relative("./sft+org/adapter", "./org/b")
        assert "whether org/adapter is a repository there" in refused(config, "--lora-merge-cache", "cache")

    @pytest.mark.parametrize("way", ["dots", "absolute", "no card"])
    def test_what_the_refusal_proposes_works(self, relative, command, way, tmp_path):
        folder = {"dots": "./", "absolute": f"{tmp_path}/", "no card": ""}[way]
        arguments = ["--no-write-model-card"] if way == "no card" else []
        result, out = command(relative(f"{folder}org/a", f"{folder}org/b"), "--quiet", *arguments)
        assert result.exit_code == 0, result.output
        assert (out / "README.md").exists() == (way != "no card")

    def test_a_hub_that_answers_is_asked_about_folders_alone(self, relative, command, monkeypatch):
        asked = []
        monkeypatch.setattr("huggingface_hub.repo_exists", lambda path, **_: asked.append(path) or True)
        files.check_card(MergeConfiguration.model_validate(relative("org/a", "elsewhere/b")).referenced_models())
        assert asked == ["./sft", "org/a"]  # the first is no name of a repository: the client asks nobody
        result, out = command(relative("org/a", "org/b"), "--quiet")
        assert result.exit_code == 0, result.output
        assert "[org/a](https://huggingface.co/org/a)" in (out / "README.md").read_text()


class TestAdaptersThatMergekitKeepsMerged:
    @pytest.fixture
    def config(self, checkpoints, adapters, tmp_path):
        """A soup of two adapters, of which the first is a copy that can be trained again."""
        folders = [Path(shutil.copytree(adapters[0][0], tmp_path / "adapter")), adapters[0][1]]
        base = checkpoints / "base"
        return soup(
            {f"{base}+{folders[0]}": 1.0, f"{base}+{folders[1]}": 0.0}, {"beta": 0.6}, base_model=str(base), dtype=None
        )

    def test_an_adapter_trained_again_is_not_taken_from_the_cache(self, config, command, refused, tmp_path):
        cache = ("--lora-merge-cache", str(tmp_path / "cache"))
        first, _ = command(config, "--quiet", *cache)
        assert first.exit_code == 0, first.output
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        later = file.stat().st_mtime + 3600
        os.utime(file, (later, later))
        line = refused(config, *cache)
        assert "is older than the adapter: delete that folder" in line
        shutil.rmtree(next(path for path in (tmp_path / "cache").iterdir() if str(path) in line))
        again, _ = command(config, "--quiet", *cache)
        assert again.exit_code == 0, again.output

    def test_without_a_cache_they_are_refused_before_anything_is_read(self, config, refused, checkpoints, tmp_path):
        line = refused(config)
        assert f"{checkpoints / 'base'}+{tmp_path / 'adapter'} has an adapter, which mergekit merges first" in line
        assert "say with --lora-merge-cache DIR where" in line
        assert not (tmp_path / "out").exists()

    def test_one_that_was_interrupted_is_not_used(self, config, command, refused, tmp_path):
        cache = ("--lora-merge-cache", str(tmp_path / "cache"))
        command(config, "--quiet", *cache)
        for merged in (tmp_path / "cache").iterdir():
            os.truncate(merged / SINGLE, 2000)
        line = refused(config, *cache)
        assert "where mergekit keeps" in line
        assert "is not a complete safetensors file" in line
        for merged in (tmp_path / "cache").iterdir():
            (merged / SINGLE).unlink()
        assert "is unfinished: delete that folder" in refused(config, *cache)


class TestOrder:
    """mergekit takes config and tokenizer from the first model if there is no base, and keeps the models in a set."""

    def test_models_come_in_the_order_in_which_they_are_written(self):
        names = [f"/no/{name}" for name in "qwertyuiopasdfghjklzxcvbnm"]
        preference = {name: 1.0 if name == names[0] else 0.0 for name in names}
        config = MergeConfiguration.model_validate(soup(preference, {"beta": 0.6}))
        assert [str(model) for model in config.referenced_models()] == names
        config = MergeConfiguration.model_validate(soup(preference, {"beta": 0.6}, base_model="/no/base"))
        assert [str(model) for model in config.referenced_models()] == ["/no/base", *names]

    def test_of_slices_and_modules_too(self):
        names = [f"/no/{name}" for name in "qwertyuiop"]
        sources = [{"model": name, "layer_range": [0, 1], "parameters": {"preference": 0.1}} for name in names]
        config = {"merge_method": "bone_soup", "slices": [{"sources": sources}], "parameters": {"beta": 0.6}}
        assert [str(m) for m in MergeConfiguration.model_validate(config).referenced_models()] == names
        config = {"merge_method": "bone_soup", "modules": {"default": {"slices": config["slices"]}}}
        assert [str(m) for m in MergeConfiguration.model_validate(config).referenced_models()] == names

    def test_other_methods_keep_their_set(self):
        config = {"merge_method": "linear", "models": [{"model": "/no/a"}, {"model": "/no/b"}]}
        assert {str(m) for m in MergeConfiguration.model_validate(config).referenced_models()} == {"/no/a", "/no/b"}


class TestTheRecordBesideTheBackbones:
    @pytest.fixture
    def run(self, models):
        """The soup.json of the two backbones, trained with β = .6; a function that makes their configuration."""
        record = {"backbones": [{"path": "a"}, {"path": "b"}], "combination_weights": [[0.6, 0.4], [0.4, 0.6]]}
        (models[0].parent / "soup.json").write_text(json.dumps(record))
        return lambda *order, **parameters: soup(
            {models[0].parent / name: share for name, share in zip(order, (0.7, 0.3), strict=True)}, parameters
        )

    def test_its_order_and_its_b_are_accepted(self, run, command):
        for parameters in ({"beta": 0.6}, {"combination_weights": "[[0.6, 0.4], [0.4, 0.6]]"}):
            result, _ = command(run("a", "b", **parameters), "--quiet")
            assert result.exit_code == 0, result.output

    def test_another_order_is_refused(self, run, refused):
        line = refused(run("b", "a", beta=0.6))
        assert "has the backbones ['a', 'b']" in line
        assert "the models are ['b', 'a']" in line

    def test_another_b_is_refused(self, run, refused):
        line = refused(run("a", "b", beta=0.7))
        assert "has [[0.6, 0.4], [0.4, 0.6]], and [[0.7, 0.3], [0.3, 0.7]] are given" in line
        assert "trained on other combination weights" in refused(
            run("a", "b", combination_weights="[[0.6, 0.5], [0.4, 0.5]]")
        )

    def test_adapters_are_found_by_their_own_folder(self, checkpoints, adapters, refused):
        folders, _ = adapters
        record = {
            "backbones": [{"path": folder.name} for folder in folders[:2]],
            "combination_weights": [[0.6, 0.4], [0.4, 0.6]],
        }
        (checkpoints / "soup.json").write_text(json.dumps(record))
        try:
            base = checkpoints / "base"
            config = soup(
                {f"{base}+{folders[1]}": 0.7, f"{base}+{folders[0]}": 0.3}, {"beta": 0.6}, base_model=str(base)
            )
            assert "the models are ['adapter-1', 'adapter-0']" in refused(config)
        finally:
            (checkpoints / "soup.json").unlink()

    @pytest.mark.parametrize("text", ["{", "[]", '{"backbones": 3}', '{"backbones": [{"path": "x"}]}'])
    def test_a_record_that_says_nothing_of_them_is_passed_over(self, models, run, command, text):
        (models[0].parent / "soup.json").write_text(text)
        result, _ = command(run("b", "a", beta=0.7), "--quiet")
        assert result.exit_code == 0, result.output

    def test_the_recipe_of_a_run_is_in_its_order(self, models, command):
        from trl_bonesoup import SoupManifest, circulant_weights
        from trl_bonesoup.soup.recipe import mergekit_yaml

        manifest = SoupManifest.model_validate(
            {
                "base_model": {"id": str(models[0])},
                "objectives": [{"name": name, "reward": "r"} for name in "xy"],
                "combination_weights": circulant_weights(2, 1 / 3 + 1 / 3),
                "backbones": [{"path": name, "kind": "full"} for name in "ab"],
            }
        )
        manifest.save(models[0].parent)
        recipe = yaml.safe_load(mergekit_yaml(manifest, models[0].parent, [0.7, 0.3]))
        recipe.pop("base_model")
        result, _ = command(recipe, "--quiet")
        assert result.exit_code == 0, result.output
