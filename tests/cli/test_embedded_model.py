"""The embedded model in a run's folder; a small file stands for its weights in the user's cache."""

import pytest

from trl_bonesoup.cli.demo_model import embedded_model, model_or_embedded


@pytest.fixture(autouse=True)
def cached_model(tmp_path, monkeypatch):
    cached = tmp_path / "cache" / "trl-bonesoup" / "smollm2-135m-instruct"
    cached.mkdir(parents=True)
    (cached / "model.safetensors").write_text("weights")
    (cached / "config.json").write_text("{}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_folder_holds_the_model_and_nothing_else(tmp_path):
    folder = embedded_model(tmp_path / "run" / "base")

    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [file.name for file in folder.parent.iterdir()] == ["base"]


def test_results_of_a_comparison_may_be_in_the_folder_already(tmp_path):
    # A comparison keeps the fronts of the method `base` in the folder `base`, and they outlive the model when copied.
    front = tmp_path / "run" / "base" / "seed-0" / "front.json"
    front.parent.mkdir(parents=True)
    front.write_text("measured")

    model = model_or_embedded("embedded", tmp_path / "run")

    assert front.read_text() == "measured"
    assert (tmp_path / "run" / "base" / "model.safetensors").read_text() == "weights"
    assert model == str(tmp_path / "run" / "base")


def test_a_half_copied_model_is_completed(tmp_path):
    (tmp_path / "run" / "base").mkdir(parents=True)
    (tmp_path / "run" / "base" / "config.json").write_text("half")

    folder = embedded_model(tmp_path / "run" / "base")

    assert (folder / "config.json").read_text() == "{}"
    assert (folder / "model.safetensors").exists()


def test_other_models_are_left_as_they_were_named(tmp_path):
    assert model_or_embedded("org/sft", tmp_path) == "org/sft"
