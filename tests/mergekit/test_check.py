"""Refusals: the message, and that nothing is loaded or written. The models of most tests do not exist."""

import copy

import pytest
from mergekit.config import MergeConfiguration
from tiny_merges import soup

from mergekit_bonesoup.check import check_configuration
from mergekit_bonesoup.coefficients import MergeRefused

GOOD = {
    "merge_method": "bone_soup",
    "models": [
        {"model": "/no/helpful", "parameters": {"preference": 0.7}},
        {"model": "/no/harmless", "parameters": {"preference": 0.3}},
    ],
    "parameters": {"beta": 0.7},
    "dtype": "float32",
}


def changed(path, value):
    """GOOD with the entry at the dotted `path` set, or removed for `...`."""
    config = copy.deepcopy(GOOD)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    holder = config
    for key in parents:
        holder = holder[key]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return config


REFUSED = [
    ("models.1.parameters", ..., r"models\[1\].parameters.preference of /no/harmless is missing"),
    ("models.1.parameters.preference", [0.3, 0.7], r"models\[1\].parameters.preference of /no/harmless.*gradient"),
    ("models.1.parameters.preference", [], r"of /no/harmless must be one value; got the list \[\]"),
    ("models.1.parameters.preference", "0.3", r"/no/harmless must be a plain number such as 0.7; got '0.3'"),
    ("models.1.parameters.preference", True, "got True"),
    ("models.1.parameters.preference", float("nan"), "plain number"),
    ("models.1.parameters.preference", -0.3, r"/no/harmless must be in \[0, 1\]; got -0.3.*allow_negative_preference"),
    ("models.1.parameters.preference", 1.3, r"/no/harmless must be in \[0, 1\]; got 1.3.*allow_negative_preference"),
    ("models.1.parameters.preference", 40, r"/no/harmless must be in \[0, 1\]; got 40. For 40 % write 0.4.$"),
    ("models.1.parameters.preference", 2.5, r"got 2.5. For 2.5 % write 0.025.$"),
    ("models.1.parameters.preference", 0.4, "/no/helpful: 0.7, /no/harmless: 0.4, which sum to 1.1"),
    ("models.1.parameters.preference", 0.30001, "sum to 1.00001"),
    ("models.1.parameters.preference", {"value": [0.3, 0.7]}, "of /no/harmless must be one value.*gradient"),
    ("models.1.parameters.preference", [{"filter": "mlp", "value": "0.3"}, {"value": 0.3}], "got '0.3'"),
    ("models.1.parameters.weight", 0.3, "of /no/harmless has no parameter 'weight'; allowed here: preference"),
    ("models.1.parameters.prefrence", 0.3, "no parameter 'prefrence'; did you mean preference"),
    ("models.1.parameters.beta", 0.7, "beta is one for all models: move it to the top-level parameters"),
    ("models.1.model", "/no/helpful", "lists /no/helpful more than once"),
    ("models.1", ..., "at least 2 models besides base_model.*got 1"),
    ("parameters", ..., "exactly one of beta and combination_weights.*neither"),
    ("parameters.beta", 0.5, r"beta.*\(1/2, 1\].*got 0.5"),
    ("parameters.beta", 1.2, "^bone_soup: beta .the dominance β. must be in .*got 1.2"),
    ("parameters.beta", "0.7", "parameters.beta must be a plain number such as 0.7; got '0.7'"),
    ("parameters.beta", [0.6, 0.8], "parameters.beta must be one value; got the list"),
    ("parameters.combination_weights", "[[0.7, 0.3], [0.3, 0.7]]", "exactly one.*both"),
    ("parameters.combination_weights", 0.7, "combination_weights must be JSON text in quotes"),
    ("parameters.allow_negative_preference", "yes", "must be true or false; got 'yes'"),
    ("parameters.normalize", True, "parameters has no parameter 'normalize'"),
    ("parameters.extrapolation", 0.3, "give base_model"),
    ("parameters.extrapolation", [0.3, 0.1], "extrapolation must be one value.*own number"),
    ("models.1.parameters.extrapolation", 0.3, "give base_model"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_refused_in_one_line_before_anything_is_written(command, path, value, message):
    result, out = command(changed(path, value))
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if line.startswith("Error: bone_soup: ")]
    assert len(lines) == 1, result.output
    assert "Traceback" not in result.output
    with pytest.raises(MergeRefused, match=message):
        check_configuration(MergeConfiguration.model_validate(changed(path, value)))
    assert not out.exists()


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5])
def test_extrapolation_outside_its_range(value):
    config = {**changed("parameters.extrapolation", value), "base_model": "/no/base"}
    with pytest.raises(MergeRefused, match=rf"extrapolation of /no/helpful must be in \[0, 1\); got {value}"):
        check_configuration(MergeConfiguration.model_validate(config))


def test_a_preference_left_empty_is_refused_by_mergekit_itself(command):
    result, out = command(changed("models.1.parameters.preference", None))
    assert result.exit_code == 1
    assert "models.1.parameters.preference" in str(result.exception)
    assert not out.exists()


def test_a_backbone_that_is_also_the_base_is_ambiguous():
    config = {**GOOD, "base_model": "/no/harmless"}
    with pytest.raises(MergeRefused, match=r"models\[1\] is /no/harmless, the base_model, which has no preference"):
        check_configuration(MergeConfiguration.model_validate(config))


@pytest.mark.parametrize(
    "config",
    [
        GOOD,
        {**GOOD, "base_model": "/no/base"},
        changed("models.1.parameters.preference", 0.3000005),
        {**changed("parameters.extrapolation", 0.3), "base_model": "/no/base"},
        {**changed("models.1.parameters.extrapolation", 0.3), "base_model": "/no/base"},
        {**GOOD, "parameters": {"beta": 0.7, "preference": 0.5}, "models": [{"model": "/no/a"}, {"model": "/no/b"}]},
    ],
)
def test_accepted(config):
    check_configuration(MergeConfiguration.model_validate(config))


def sliced(**source):
    def slice_of(*sources):
        return {"sources": [{"model": m, "layer_range": [0, 1], "parameters": p} for m, p in sources]}

    good = slice_of(("/no/a", {"preference": 0.7}), ("/no/b", {"preference": 0.3}))
    bad = slice_of(("/no/a", {"preference": 0.7}), ("/no/b", source))
    return {"merge_method": "bone_soup", "slices": [good, bad], "parameters": {"beta": 0.7}}


def test_slices_are_checked():
    with pytest.raises(MergeRefused, match=r"slices\[1\].sources\[1\].parameters.preference of /no/b is missing"):
        check_configuration(MergeConfiguration.model_validate(sliced()))
    with pytest.raises(MergeRefused, match=r"which sum to 1\.1"):
        check_configuration(MergeConfiguration.model_validate(sliced(preference=0.4)))
    check_configuration(MergeConfiguration.model_validate(sliced(preference=0.3)))


def test_a_slice_has_to_list_the_base():
    config = {**sliced(preference=0.3), "base_model": "/no/base"}
    with pytest.raises(MergeRefused, match=r"slices\[0\].sources must also list the base_model /no/base"):
        check_configuration(MergeConfiguration.model_validate(config))


def test_parameters_of_a_slice_win_over_those_of_the_whole():
    config = sliced(preference=0.3)
    config["slices"][1]["parameters"] = {"beta": 0.4}
    with pytest.raises(MergeRefused, match=r"beta.*got 0\.4"):
        check_configuration(MergeConfiguration.model_validate(config))


def test_modules_are_checked():
    config = {**GOOD, "modules": {"default": {"models": changed("models.1.parameters", {})["models"]}}}
    del config["models"]
    with pytest.raises(MergeRefused, match=r"modules.default.models\[1\].parameters.preference of /no/harmless"):
        check_configuration(MergeConfiguration.model_validate(config))
    config["modules"]["default"]["parameters"] = {"preference": 0.5, "bata": 0.7}
    with pytest.raises(MergeRefused, match=r"modules.default.parameters has no parameter 'bata'; did you mean beta"):
        check_configuration(MergeConfiguration.model_validate(config))


def test_filters_are_checked_tensor_by_tensor_before_anything_is_written(checkpoints, command):
    filtered = [{"filter": "mlp", "value": 0.4}, {"value": 0.3}]
    config = changed("models.1.parameters.preference", filtered)
    for entry, name in zip(config["models"], "ab", strict=True):
        entry["model"] = str(checkpoints / name)
    result, out = command(config)
    assert result.exit_code == 1
    assert "sum to 1.1" in result.output
    assert "(In tensor model.layers.0.mlp." in result.output
    assert not out.exists()


def test_the_planner_checks_even_where_run_merge_is_not_guarded(checkpoints, tmp_path):
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = changed("models.1.parameters.preference", [0.3, 0.7])
    config["models"][0]["parameters"]["preference"] = [0.7, 0.3]
    for entry, name in zip(config["models"], "ab", strict=True):
        entry["model"] = str(checkpoints / name)
    out = tmp_path / "out"
    with pytest.raises(MergeRefused, match="gradient"):
        run_merge.__wrapped__(MergeConfiguration.model_validate(config), str(out), MergeOptions(quiet=True))
    assert not out.exists()


class TestCoefficientsInTheLog:
    """mergekit shows what is logged at INFO with -v. λ of β = .6 is (3μ₀ - 2μ₁, 3μ₁ - 2μ₀)."""

    @pytest.fixture
    def logged(self, checkpoints, command, caplog):
        def logged(preferences, **rest):
            caplog.set_level("INFO", "mergekit_bonesoup")
            config = soup(dict(zip((checkpoints / "a", checkpoints / "b"), preferences, strict=True)), **rest)
            result, _ = command(config, "--quiet", "-v")
            assert result.exit_code == 0, result.output
            lines = [r.getMessage() for r in caplog.records if r.name.startswith("mergekit_bonesoup")]
            assert all(record.levelname == "INFO" for record in caplog.records if record.name.startswith("mergekit_b"))
            return [line.replace(f"{checkpoints}/", "") for line in lines]

        return logged

    def test_once(self, logged):
        assert logged((0.7, 0.3), parameters={"beta": 0.6}) == ["bone_soup: λ = 1.5 (a), -0.5 (b)"]

    def test_with_the_share_of_the_base(self, logged, checkpoints):
        lines = logged((0.7, 0.3), parameters={"beta": 0.6, "extrapolation": 0.2}, base_model=str(checkpoints / "base"))
        assert lines == ["bone_soup: λ = 1.875 (a), -0.625 (b), -0.25 (base_model base)"]

    @pytest.mark.parametrize("beta", [0.6, 0.7])
    def test_a_model_without_a_share_is_named(self, logged, beta):
        """For β = .7 the solve leaves -1e-16."""
        assert logged((beta, 1 - beta), parameters={"beta": beta}) == [
            "bone_soup: λ = 1 (a), 0 (b)",
            "bone_soup: b is not used at this preference, its λ is 0.",
        ]

    def test_each_that_filters_make(self, logged):
        """Of 21 tensors 2·3 are of mlp; b is used in the others."""
        filtered = [{"preference": [{"filter": "mlp", "value": x}, {"value": y}]} for x, y in ((0.6, 0.7), (0.4, 0.3))]
        assert logged(filtered, parameters={"beta": 0.6}) == [
            "bone_soup: λ = 1.5 (a), -0.5 (b) in 15 of 21 tensors, such as model.embed_tokens.weight",
            "bone_soup: λ = 1 (a), 0 (b) in 6 of 21 tensors, such as model.layers.0.mlp.up_proj.weight",
        ]


def test_raw_pytorch_merges_are_checked(tmp_path):
    import yaml
    from click.testing import CliRunner
    from mergekit.scripts.merge_raw_pytorch import main

    file, out = tmp_path / "raw.yml", tmp_path / "out"
    file.write_text(yaml.safe_dump(changed("models.0.parameters.preference", [0.7, 0.3])))
    result = CliRunner().invoke(main, [str(file), str(out)])
    assert "Error: bone_soup: models[0].parameters.preference of /no/helpful must be one value" in result.output
    assert not out.exists()


def test_other_methods_are_left_alone(checkpoints, merge):
    models = [{"model": str(checkpoints / name), "parameters": {"weight": [0.2, 0.8]}} for name in "ab"]
    merge({"merge_method": "linear", "models": models, "parameters": {"anything": 1}})
