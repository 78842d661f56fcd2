"""Entry points of other authors, and mergekits that are not the one we know."""

import sys
import types
import warnings

import pytest
from mergekit.merge_methods import merge_tensors, registry

from mergekit_bonesoup import bone_soup, registration

METHOD = '''
import torch
from mergekit.merge_methods import TensorGroup, merge_method, register

@merge_method(name={name!r})
def method(group: TensorGroup) -> torch.Tensor:
    """The first input."""
    return group.tensors[0]
'''


@pytest.fixture
def registered(monkeypatch):
    """A registry of which the test may change its own copy."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    return registry


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Install a distribution of another author: its entry points, and its module's source."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(entry_points, source="", module="other_author"):
        folder = tmp_path / f"{module}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[mergekit.merge_methods]\n{entry_points}\n")
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def test_bone_soup_is_registered_and_a_second_time_changes_nothing(registered):
    assert registered.get("bone_soup") is bone_soup
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registration.register_methods()
    assert registered.get("bone_soup") is bone_soup


def test_a_method_of_another_author_is_registered(registered, distribution):
    import torch

    distribution("first = other_author:method", METHOD.format(name="first_of_other_author"))
    registration.register_methods()
    merged = merge_tensors([torch.ones(2), torch.zeros(2)], "first_of_other_author")
    assert torch.equal(merged, torch.ones(2))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('broken on import')", "RuntimeError: broken on import"),
        ("", "AttributeError"),
        ("method = print", "AttributeError"),
    ],
)
def test_a_broken_entry_point_is_named_and_the_rest_still_works(registered, distribution, source, reason):
    del registered._METHODS["bone_soup"]
    distribution("first = other_author:method", source)
    with pytest.warns(RuntimeWarning, match=rf"other-author \(entry point first = other_author:method\).*{reason}"):
        registration.register_methods()
    assert registered.get("bone_soup") is bone_soup


def test_a_name_that_is_taken_keeps_its_method(registered, distribution):
    linear = registered.get("linear")
    distribution("linear = other_author:method", METHOD.format(name="linear"))
    with pytest.warns(RuntimeWarning, match="other-author.*already has a merge method named 'linear'"):
        registration.register_methods()
    assert registered.get("linear") is linear


def test_a_mergekit_without_the_guarded_functions_is_left_as_it_is():
    for name in registration._GUARDED:
        module = types.ModuleType(name)
        before = dict(vars(module))
        registration.after_import(module)
        assert vars(module) == before


def test_a_guarded_function_of_another_shape_is_left_as_it_is():
    module = types.ModuleType("mergekit.merge")
    module.run_merge = original = lambda other: other
    registration.after_import(module)
    assert module.run_merge is original


def test_a_function_is_guarded_once_and_stays_callable_by_keyword():
    module = types.ModuleType("mergekit.merge")
    module.run_merge = lambda merge_config, out_path: (merge_config, out_path)
    registration.after_import(module)
    guarded = module.run_merge
    registration.after_import(module)
    assert module.run_merge is guarded
    config = types.SimpleNamespace(merge_method="linear")
    assert guarded(out_path="out", merge_config=config) == (config, "out")


def test_what_fails_during_the_set_up_is_a_warning(monkeypatch):
    def fail():
        raise RuntimeError("not this one")

    monkeypatch.setattr(registration, "register_methods", fail)
    with pytest.warns(RuntimeWarning, match="mergekit.merge_methods: RuntimeError: not this one"):
        registration.after_import(types.ModuleType("mergekit.merge_methods"))
