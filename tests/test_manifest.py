"""soup.json: what is written is read back, and nothing else is accepted."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trl_bonesoup.errors import ManifestError, WeightsError
from trl_bonesoup.manifest import (
    FILE_NAME,
    MAX_BYTES,
    MAX_ENTRIES,
    MAX_OBJECTIVES,
    Backbone,
    BaseModelRef,
    Objective,
    ScoreStatistics,
    SoupManifest,
)
from trl_bonesoup.weights import circulant_weights


@pytest.fixture
def manifest():
    return SoupManifest(
        base_model=BaseModelRef(id="org/sft", revision="0123abc"),
        objectives=(
            Objective(name="helpful", reward="org/helpful-rm", normalization=ScoreStatistics(mean=-0.25, std=1.5)),
            Objective(name="harmless", reward="rewards:harmless"),
        ),
        combination_weights=circulant_weights(2, 0.7),
        backbones=(
            Backbone(path="helpful", kind="adapter", steps=40, seed=7),
            Backbone(path="harmless", kind="adapter", steps=41, seed=8),
        ),
        training={"kl_coef": 0.2, "num_iterations": 4, "bf16": False, "algorithm": "ppo", "warmup": None},
        versions={"trl": "1.16.0"},
    )


def valid_data(n=2):
    """A soup.json as the JSON objects that a program in another language would write."""
    return {
        "format_version": 1,
        "base_model": {"id": "org/sft"},
        "objectives": [{"name": f"objective {i}", "reward": f"rewards:r{i}"} for i in range(n)],
        "combination_weights": circulant_weights(n, 0.75).tolist(),
        "backbones": [{"path": f"backbone-{i}", "kind": "adapter"} for i in range(n)],
    }


def write(folder: Path, data) -> Path:
    file = folder / FILE_NAME
    file.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return file


def changed(path: str, value, n=2):
    """`valid_data` with the entry at a dotted path replaced."""
    data = valid_data(n)
    *parents, last = path.split(".")
    entry = data
    for key in parents:
        entry = entry[int(key) if key.isdigit() else key]
    entry[int(last) if last.isdigit() else last] = value
    return data


class TestRoundTrip:
    @pytest.mark.parametrize("as_folder", [True, False])
    def test_load_returns_what_was_saved(self, manifest, tmp_path, as_folder):
        file = manifest.save(tmp_path)
        assert file == tmp_path / FILE_NAME
        assert SoupManifest.load(tmp_path if as_folder else file) == manifest

    def test_the_file_says_what_was_trained(self, manifest, tmp_path):
        data = json.loads(manifest.save(tmp_path).read_text(encoding="utf-8"))
        assert data["format_version"] == 1
        assert data["base_model"] == {"id": "org/sft", "revision": "0123abc"}
        assert [objective["name"] for objective in data["objectives"]] == ["helpful", "harmless"]
        assert data["objectives"][0]["normalization"] == {"mean": -0.25, "std": 1.5}
        assert data["combination_weights"] == circulant_weights(2, 0.7).tolist()
        assert data["backbones"][1] == {"path": "harmless", "kind": "adapter", "steps": 41, "seed": 8}
        assert data["training"]["kl_coef"] == 0.2

    def test_weights_survive_to_the_last_bit(self, manifest, tmp_path):
        thirds = np.array([[2 / 3, 1 / 7], [1 / 3, 6 / 7]])
        manifest = manifest.model_copy(update={"combination_weights": tuple(map(tuple, thirds.tolist()))})
        manifest.save(tmp_path)
        np.testing.assert_array_equal(SoupManifest.load(tmp_path).weights, thirds)

    def test_columns_are_not_transposed(self, tmp_path):
        write(tmp_path, changed("combination_weights", [[0.9, 0.4], [0.1, 0.6]]))
        manifest = SoupManifest.load(tmp_path)
        np.testing.assert_array_equal(manifest.weights[:, 0], [0.9, 0.1])
        np.testing.assert_allclose(manifest.coefficients([1.0, 0.0]), [1.2, -0.2], atol=1e-12)

    def test_names_in_any_script(self, tmp_path):
        write(tmp_path, changed("objectives.0.name", "有用 «полезно» 🍲"))
        manifest = SoupManifest.load(tmp_path)
        manifest.save(tmp_path / "again")
        assert SoupManifest.load(tmp_path / "again").objective_names == ("有用 «полезно» 🍲", "objective 1")

    def test_optional_entries_have_defaults(self, tmp_path):
        write(tmp_path, valid_data(3))
        manifest = SoupManifest.load(tmp_path)
        assert manifest.base_model.revision is None
        assert manifest.backbones[2].steps == 0
        assert manifest.training == {}

    def test_the_revision_of_a_backbone_is_kept_and_left_out_where_there_is_none(self, tmp_path):
        write(tmp_path, changed("backbones.1", {"path": "org/harmless", "kind": "adapter", "revision": "v1.0"}))
        manifest = SoupManifest.load(tmp_path)
        assert [backbone.revision for backbone in manifest.backbones] == [None, "v1.0"]
        data = json.loads(manifest.save(tmp_path).read_text(encoding="utf-8"))
        assert ["revision" in backbone for backbone in data["backbones"]] == [False, True]
        assert SoupManifest.load(tmp_path) == manifest

    def test_cannot_be_changed_in_place(self, manifest):
        with pytest.raises(ValidationError, match="frozen"):
            manifest.base_model = BaseModelRef(id="other")


class TestSave:
    def test_makes_the_folder(self, manifest, tmp_path):
        assert manifest.save(tmp_path / "a" / "b").is_file()

    def test_replaces_the_old_file(self, manifest, tmp_path):
        write(tmp_path, "old")
        manifest.save(tmp_path)
        assert SoupManifest.load(tmp_path) == manifest

    def test_leaves_nothing_else_behind(self, manifest, tmp_path):
        manifest.save(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]

    def test_a_write_that_fails_leaves_the_old_file(self, manifest, tmp_path, monkeypatch):
        write(tmp_path, "old")
        write_text = Path.write_text

        def disk_full(path, text, **kwargs):
            write_text(path, text[:20], **kwargs)
            raise OSError("No space left on device")

        monkeypatch.setattr(Path, "write_text", disk_full)
        with pytest.raises(OSError, match="No space left"):
            manifest.save(tmp_path)
        assert (tmp_path / FILE_NAME).read_text(encoding="utf-8") == "old"

    @pytest.mark.parametrize("name", ["new", f"new/{FILE_NAME}"])
    def test_takes_what_load_takes(self, manifest, tmp_path, name):
        assert manifest.save(tmp_path / name) == tmp_path / "new" / FILE_NAME
        assert SoupManifest.load(tmp_path / name) == manifest

    def test_a_folder_may_be_called_soup_json(self, manifest, tmp_path):
        (tmp_path / FILE_NAME).mkdir()
        assert manifest.save(tmp_path / FILE_NAME) == tmp_path / FILE_NAME / FILE_NAME
        assert SoupManifest.load(tmp_path / FILE_NAME) == manifest


class TestLoadRefuses:
    @pytest.mark.parametrize("name", ["", FILE_NAME, "missing", "missing/soup.json"])
    def test_a_missing_file(self, tmp_path, name):
        with pytest.raises(ManifestError, match=r"There is no soup\.json at .* run the same `seek` again"):
            SoupManifest.load(tmp_path / name)

    @pytest.mark.parametrize("model", ["adapter_config.json", "helpful/adapter_config.json", "helpful/config.json"])
    @pytest.mark.parametrize("name", ["", FILE_NAME])
    def test_a_missing_file_beside_models_says_how_to_write_one(self, tmp_path, model, name):
        (tmp_path / model).parent.mkdir(exist_ok=True)
        (tmp_path / model).touch()
        with pytest.raises(ManifestError, match=r"`bonesoup manifest`.*#a-soup-of-models-that-you-have"):
            SoupManifest.load(tmp_path / name)

    def test_a_missing_file_beside_other_things_does_not(self, tmp_path):
        (tmp_path / "data" / "deeper").mkdir(parents=True)
        (tmp_path / "data" / "deeper" / "config.json").touch()
        (tmp_path / "notes.txt").touch()
        with pytest.raises(ManifestError) as caught:
            SoupManifest.load(tmp_path)
        assert "bonesoup manifest" not in str(caught.value)

    @pytest.mark.parametrize("text", ["", "{", "not json", '{"format_version": 1,}', "[" * 100_000])
    def test_what_is_not_json(self, tmp_path, text):
        write(tmp_path, text)
        with pytest.raises(ManifestError, match="is not valid JSON"):
            SoupManifest.load(tmp_path)

    def test_what_is_not_utf_8(self, tmp_path):
        (tmp_path / FILE_NAME).write_bytes(b'{"format_version": 1, "x": "\xff"}')
        with pytest.raises(ManifestError, match="is not valid JSON"):
            SoupManifest.load(tmp_path)

    @pytest.mark.parametrize("data", ["[]", "null", "1", '"text"', "{}"])
    def test_json_that_is_no_soup(self, tmp_path, data):
        write(tmp_path, data)
        with pytest.raises(ManifestError, match="has format version None"):
            SoupManifest.load(tmp_path)

    @pytest.mark.parametrize("version", [0, 2, "1", None, [1], 1.5, 1.0, True])
    def test_another_format_version(self, tmp_path, version):
        write(tmp_path, changed("format_version", version))
        with pytest.raises(ManifestError, match="this version of trl-bonesoup reads 1") as caught:
            SoupManifest.load(tmp_path)
        assert repr(version) in str(caught.value)

    @pytest.mark.parametrize(
        ("version", "advice"),
        [
            (2, r"Format version 2 is newer.*pip install --upgrade trl-bonesoup"),
            (10**6, r"Format version 1000000 is newer"),
            (0, r"There is no format version 0.*changed by hand"),
            (-1, r"There is no format version -1"),
            ("1", r"Either it is no soup\.json of trl-bonesoup, or it was changed by hand"),
        ],
    )
    def test_what_to_do_about_another_format_version(self, tmp_path, version, advice):
        write(tmp_path, changed("format_version", version))
        with pytest.raises(ManifestError, match=advice):
            SoupManifest.load(tmp_path)

    def test_a_file_by_hand_without_its_format_version(self, tmp_path):
        data = valid_data()
        del data["format_version"]
        write(tmp_path, data)
        with pytest.raises(ManifestError, match=r'has format version None.*by hand.*add `"format_version": 1`'):
            SoupManifest.load(tmp_path)

    def test_an_unknown_key_may_be_of_a_newer_version(self, tmp_path):
        write(tmp_path, changed("backbones.0.rotation", 3))
        with pytest.raises(
            ManifestError, match=r"backbones\.0\.rotation: .*a typing error, or of a newer trl-bonesoup"
        ):
            SoupManifest.load(tmp_path)

    def test_a_key_given_twice(self, tmp_path):
        text = json.dumps(valid_data())
        write(tmp_path, text.replace('"format_version": 1', '"format_version": 1, "format_version": 1'))
        with pytest.raises(ManifestError, match="'format_version' is given twice"):
            SoupManifest.load(tmp_path)

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
    def test_numbers_that_json_has_not(self, tmp_path, number):
        write(tmp_path, json.dumps(changed("training", {"lr": 0.25})).replace("0.25}", f"{number}}}"))
        with pytest.raises(ManifestError, match=f"{number} is not a finite number"):
            SoupManifest.load(tmp_path)

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_numbers_that_json_has_not_from_python(self, number):
        for mean, std in ((number, 1.0), (0.0, number)):
            with pytest.raises(ValidationError, match="finite number"):
                ScoreStatistics(mean=mean, std=std)

    def test_more_objectives_than_anyone_trains(self, tmp_path):
        write(tmp_path, valid_data(MAX_OBJECTIVES))
        assert len(SoupManifest.load(tmp_path).backbones) == MAX_OBJECTIVES
        write(tmp_path, valid_data(MAX_OBJECTIVES + 1))
        with pytest.raises(ManifestError, match=rf"objectives: Tuple should have at most {MAX_OBJECTIVES} items"):
            SoupManifest.load(tmp_path)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("training", {f"setting {i}": i for i in range(MAX_ENTRIES + 1)}),
            ("training", {"x" * 201: 1}),
            ("training", {"notes": "x" * 10_001}),
            ("versions", {f"library {i}": "1" for i in range(MAX_ENTRIES + 1)}),
            ("versions", {"trl": "1\n2"}),
            ("presets", {f"preset {i}": {"objective 0": 1.0} for i in range(MAX_ENTRIES + 1)}),
            ("combination_weights", [[0.0] * 70] * 70),
            ("backbones.0.steps", 2**63),
            ("backbones.0.seed", 2**64),
            ("backbones.0.seed", -(2**63) - 1),
            ("backbones.0.revision", "two\nlines"),
            ("backbones.0.revision", 5),
            ("objectives.0.name", "8-bit control \x9b2J"),
        ],
    )
    def test_more_of_anything_than_a_soup_has(self, tmp_path, path, value):
        write(tmp_path, changed(path, value))
        with pytest.raises(ManifestError, match=rf"is not a valid soup\.json: {path}"):
            SoupManifest.load(tmp_path)

    def test_keys_cannot_steer_a_terminal_or_fill_it(self, tmp_path):
        write(tmp_path, {**valid_data(), "\x1b[2J": 1, **{str(i) * 500: i for i in range(1, 9)}})
        with pytest.raises(ManifestError) as caught:
            SoupManifest.load(tmp_path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 3000

    @pytest.mark.parametrize("path", ["x" * 300, "nul\0", "有" * 200 + "/soup.json"])
    def test_paths_that_no_file_system_has(self, path):
        with pytest.raises(ManifestError, match=r"There is no soup\.json"):
            SoupManifest.load(path)

    def test_a_file_too_large_before_reading_it(self, tmp_path):
        write(tmp_path, json.dumps(valid_data()) + " " * MAX_BYTES)
        with pytest.raises(ManifestError, match=rf"at most {MAX_BYTES}"):
            SoupManifest.load(tmp_path)

    @pytest.mark.parametrize("path", ["unknown", "base_model.unknown", "objectives.0.unknown", "backbones.1.unknown"])
    def test_unknown_keys(self, tmp_path, path):
        write(tmp_path, changed(path, 1))
        with pytest.raises(ManifestError, match=rf"{path}: Extra inputs are not permitted"):
            SoupManifest.load(tmp_path)

    @pytest.mark.parametrize("key", ["base_model", "objectives", "combination_weights", "backbones"])
    def test_missing_keys(self, tmp_path, key):
        data = valid_data()
        del data[key]
        write(tmp_path, data)
        with pytest.raises(ManifestError, match=rf"{key}: Field required"):
            SoupManifest.load(tmp_path)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("base_model", "org/sft"),
            ("base_model.id", 3),
            ("base_model.id", ""),
            ("base_model.id", "x" * 201),
            ("base_model.id", "two\nlines"),
            ("base_model.revision", "two\nlines"),
            ("objectives.0.name", None),
            ("objectives.0.name", "nul\x00"),
            ("objectives.0.reward", ""),
            ("objectives.0.normalization", {"mean": 0.0, "std": 0.0}),
            ("backbones.0.kind", "pickle"),
            ("backbones.0.steps", -1),
            ("backbones.0.steps", 1.5),
            ("backbones.0.seed", "7"),
            ("combination_weights.0.0", "0.75"),
            ("combination_weights.0.0", True),
            ("training", {"nested": {"a": 1}}),
            ("versions", {"trl": 1}),
            ("versions", []),
        ],
    )
    def test_wrong_values(self, tmp_path, path, value):
        write(tmp_path, changed(path, value))
        with pytest.raises(ManifestError, match=rf"is not a valid soup\.json: {path}"):
            SoupManifest.load(tmp_path)

    def test_text_that_no_file_can_hold(self, tmp_path):
        write(tmp_path, changed("versions", {"trl": "\ud800"}))
        with pytest.raises(ManifestError):
            SoupManifest.load(tmp_path)

    @pytest.mark.parametrize(
        ("weights", "complaint"),
        [
            ([[float("nan"), 0.3], [0.3, 0.7]], "finite number"),
            ([[0.7, 0.3], [0.4, 0.7]], r"column 0 .* sums to 1\.1"),
            ([[1.2, 0.3], [-0.2, 0.7]], r"column 0 .* may be negative"),
            ([[0.5, 0.5], [0.5, 0.5]], "must be invertible"),
            ([[0.7, 0.3]], "square matrix"),
            ([[0.7, 0.3], [0.3]], "must be numbers"),
            ([], "square matrix"),
            ([0.7, 0.3], "combination_weights"),
        ],
    )
    def test_bad_combination_weights(self, tmp_path, weights, complaint):
        write(tmp_path, changed("combination_weights", weights))
        with pytest.raises(ManifestError, match=complaint):
            SoupManifest.load(tmp_path)

    @pytest.mark.parametrize("key", ["objectives", "combination_weights", "backbones"])
    def test_sizes_that_do_not_fit_together(self, tmp_path, key):
        write(tmp_path, changed(key, valid_data(3)[key]))
        with pytest.raises(ManifestError, match="one column and one backbone for each objective") as caught:
            SoupManifest.load(tmp_path)
        assert "3" in str(caught.value)

    def test_a_single_objective(self, tmp_path):
        write(tmp_path, changed("objectives", valid_data()["objectives"][:1]))
        with pytest.raises(ManifestError, match="objectives"):
            SoupManifest.load(tmp_path)

    def test_two_objectives_of_one_name(self, tmp_path):
        write(tmp_path, changed("objectives.1.name", "objective 0"))
        with pytest.raises(ManifestError, match=r"names must differ; got \['objective 0', 'objective 0'\]"):
            SoupManifest.load(tmp_path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=10), children, max_size=4),
    max_leaves=12,
)
_PATHS = [
    "format_version",
    "base_model",
    "base_model.id",
    "base_model.revision",
    "objectives",
    "objectives.0",
    "objectives.1.name",
    "objectives.0.normalization",
    "combination_weights",
    "combination_weights.0",
    "combination_weights.1.1",
    "backbones",
    "backbones.0",
    "backbones.1.steps",
    "backbones.1.revision",
    "presets",
    "training",
    "versions",
    "surplus",
]


class TestFuzz:
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
    @given(st.sampled_from(_PATHS), _JSON)
    @example("combination_weights.0.0", 10**400)
    @example("training", {"\ud800": 1})
    def test_a_replaced_entry_loads_or_is_a_manifest_error(self, tmp_path, path, value):
        write(tmp_path, changed(path, value))
        try:
            manifest = SoupManifest.load(tmp_path)
        except ManifestError:
            return
        manifest.save(tmp_path / "again")
        assert SoupManifest.load(tmp_path / "again") == manifest

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
    def test_any_bytes_are_a_manifest_error(self, tmp_path, content):
        (tmp_path / FILE_NAME).write_bytes(content)
        with pytest.raises(ManifestError):
            SoupManifest.load(tmp_path)

    @given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 40), st.binary(max_size=6)), max_size=4))
    @example([(0, 1000, json.dumps(valid_data(), indent=1).encode())])
    def test_bytes_exchanged_here_and_there_load_or_are_a_manifest_error(self, exchanges):
        content = json.dumps(valid_data(3)).encode()
        for position, length, new in exchanges:
            start = position % (len(content) + 1)
            content = content[:start] + new + content[start + length :]
        try:
            manifest = SoupManifest.from_json(content)
        except ManifestError:
            return
        assert SoupManifest.from_json(manifest.model_dump_json().encode()) == manifest

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_a_truncated_file_is_a_manifest_error(self, tmp_path, data):
        text = json.dumps(valid_data())
        write(tmp_path, text[: data.draw(st.integers(0, len(text) - 1))])
        with pytest.raises(ManifestError):
            SoupManifest.load(tmp_path)


class TestPreference:
    def test_by_position(self, manifest):
        np.testing.assert_array_equal(manifest.preference([0.8, 0.2]), [0.8, 0.2])

    def test_by_name_in_any_order(self, manifest):
        np.testing.assert_array_equal(manifest.preference({"harmless": 0.2, "helpful": 0.8}), [0.8, 0.2])

    def test_an_objective_left_out_counts_as_zero(self, manifest):
        np.testing.assert_array_equal(manifest.preference({"harmless": 1.0}), [0.0, 1.0])

    def test_many_at_once(self, manifest):
        assert manifest.preference([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]).shape == (3, 2)

    @pytest.mark.parametrize("unknown", [{"humour": 0.5, "helpful": 0.5}, {1: 0.5, "humour": 0.5}])
    def test_refuses_an_unknown_objective_and_names_the_known(self, manifest, unknown):
        with pytest.raises(WeightsError, match=r"Unknown objective.*humour.*has \['helpful', 'harmless'\]"):
            manifest.preference(unknown)

    @pytest.mark.parametrize("preference", [{}, {"helpful": 0.5}, [0.5, 0.4], [1.0], {"helpful": "all"}, "most"])
    def test_refuses_what_is_off_the_simplex_or_no_numbers(self, manifest, preference):
        with pytest.raises(WeightsError, match="preference"):
            manifest.preference(preference)

    @pytest.mark.parametrize(
        ("preset", "expected"),
        [("equal", [0.5, 0.5]), ("helpful", [1.0, 0.0]), ("harmless", [0.0, 1.0]), ("cautious", [0.1, 0.9])],
    )
    def test_by_the_name_of_a_preset(self, manifest, preset, expected):
        manifest = manifest.with_preset("cautious", {"harmless": 0.9, "helpful": 0.1})
        np.testing.assert_array_equal(manifest.preference(preset), expected)

    def test_an_unknown_preset_names_the_known(self, manifest):
        manifest = manifest.with_preset("cautious", [0.1, 0.9])
        known = r"\['equal', 'helpful', 'harmless', 'cautious'\]"
        with pytest.raises(WeightsError, match=rf"Unknown preset 'Cautious'; this soup has {known}"):
            manifest.preference("Cautious")

    def test_presets_are_kept_in_the_file(self, manifest, tmp_path):
        manifest.with_preset("cautious", "harmless").save(tmp_path)
        assert SoupManifest.load(tmp_path).presets == {"cautious": {"helpful": 0.0, "harmless": 1.0}}
        assert manifest.presets == {}

    @pytest.mark.parametrize("name", ["equal", "helpful", "", "two\nlines"])
    def test_names_that_a_preset_may_not_have(self, manifest, name):
        with pytest.raises(ManifestError, match="cannot be added"):
            manifest.with_preset(name, [0.5, 0.5])

    @pytest.mark.parametrize("name", ["Acme, Inc.", "a=b", "0.5", "1e3", "nan", " cautious", "cautious "])
    def test_a_preset_is_a_name_that_a_command_line_can_tell_from_shares(self, manifest, name, tmp_path):
        with pytest.raises(ManifestError, match=r"cannot be added: .*--preference"):
            manifest.with_preset(name, [0.5, 0.5])
        write(tmp_path, {**valid_data(), "presets": {name: {"objective 0": 1.0}}})
        np.testing.assert_array_equal(SoupManifest.load(tmp_path).preference(name), [1.0, 0.0])

    def test_a_preset_off_the_simplex_is_refused(self, manifest, tmp_path):
        with pytest.raises(WeightsError, match="sum to 1"):
            manifest.with_preset("much", [0.9, 0.9])
        write(tmp_path, {**valid_data(), "presets": {"much": {"objective 0": 0.9}}})
        with pytest.raises(ManifestError, match="sum to 1"):
            SoupManifest.load(tmp_path)

    def test_coefficients_by_name_and_position_agree(self, manifest):
        expected = [1.75, -0.75]
        np.testing.assert_allclose(manifest.coefficients([1.0, 0.0]), expected, atol=1e-12)
        np.testing.assert_allclose(manifest.coefficients({"helpful": 1.0}), expected, atol=1e-12)

    def test_coefficients_with_extrapolation_per_objective(self, manifest):
        result = manifest.coefficients({"helpful": 0.5, "harmless": 0.5}, extrapolation=[0.5, 0.2])
        np.testing.assert_allclose(result, [1.28125, 0.34375], atol=1e-12)
