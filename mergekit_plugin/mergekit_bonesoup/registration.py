"""What happens once a module of mergekit has been imported: methods are registered, entry points guarded."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from mergekit_bonesoup import METHOD_NAME

ENTRY_POINT_GROUP = "mergekit.merge_methods"
"""Group in which a distribution declares merge methods: `name = "module:method_object"`."""

_OWN_MODULE = "mergekit_bonesoup.method"

_GUARDED = {
    "mergekit.merge": (("run_merge", "merge_config"),),
    "mergekit.plan": (("MergePlanner.plan_to_disk", "self"), ("MergePlanner.plan_in_memory", "self")),
    "mergekit.scripts.merge_raw_pytorch": (("plan_flat_merge", "config"),),
}
"""Per module the functions to check before and after, and the argument that is or has the configuration."""


def after_import(module: ModuleType) -> None:
    """Do what is due for a module of mergekit that was just imported; never let it fail mergekit."""
    try:
        register_methods()
        for path, argument in _GUARDED.get(module.__name__, ()):
            _guard(module, path, argument)
        _order_models(module)
    except Exception as error:
        _warn(f"mergekit_bonesoup could not be set up in {module.__name__}", error)


def register_methods() -> None:
    """Register `bone_soup` and every merge method that an installed distribution declares.

    A name that mergekit knows already keeps its method. What cannot be loaded is left out with a
    RuntimeWarning that names it. A module that is being imported right now, which is how mergekit
    came to be imported, has its turn when mergekit's next module is: before any merge is planned.
    """
    if not _is_loading(_OWN_MODULE):
        _register("mergekit_bonesoup", _own_method)
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if not _is_loading(entry_point.module):
            _register(_describe(entry_point), entry_point.load)


def _own_method() -> Any:
    return importlib.import_module(_OWN_MODULE).bone_soup


def _is_loading(module: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(module), "__spec__", None), "_initializing", False))


def _register(origin: str, load: Callable[[], Any]) -> None:
    registry = importlib.import_module("mergekit.merge_methods.registry")
    try:
        method = load()
        known = {other.spec.name: other for other in registry.registered_methods()}
        if method.spec.name not in known:
            registry.register(method)
        elif known[method.spec.name] is not method:
            raise ValueError(f"mergekit already has a merge method named {method.spec.name!r}")
    except Exception as error:
        _warn(f"The merge method of {origin} is left out", error)


def _describe(entry_point: EntryPoint) -> str:
    distribution = entry_point.dist.name if entry_point.dist else "an unknown distribution"
    return f"{distribution} (entry point {entry_point.name} = {entry_point.value})"


def _guard(module: ModuleType, path: str, argument: str) -> None:
    """Check `bone_soup` configurations around the function at `path`, if this mergekit has it.

    Where it is missing or shaped differently, the checks of the method itself remain.
    """
    *class_name, name = path.split(".")
    holder = getattr(module, class_name[0], None) if class_name else module
    original = getattr(holder, name, None)
    if original is None or hasattr(original, "_checks_bone_soup"):
        return
    signature = inspect.signature(original)
    if argument not in signature.parameters:
        return

    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        config = signature.bind(*args, **kwargs).arguments[argument]
        if argument == "self":
            config = config.config
        if getattr(config, "merge_method", None) != METHOD_NAME:
            return original(*args, **kwargs)
        from mergekit_bonesoup.check import check_configuration, check_planned

        check_configuration(config)
        if name == "run_merge":
            return _run_merge(original, signature.bind(*args, **kwargs), config)
        planned = original(*args, **kwargs)
        check_planned(planned)
        return planned

    guarded._checks_bone_soup = True  # type: ignore[attr-defined]
    setattr(holder, name, guarded)


def _run_merge(original: Callable[..., Any], call: inspect.BoundArguments, config: Any) -> Any:
    """Run a whole merge whose files have been looked at, into a folder that takes its place at the end."""
    from mergekit_bonesoup import files
    from mergekit_bonesoup.output import complete_output

    models, out_path, options = config.referenced_models(), call.arguments["out_path"], call.arguments.get("options")
    files.check_present(models)
    files.check_output(models, out_path)
    files.check_checkpoints(models)
    files.check_cached_adapters(models, getattr(options, "lora_merge_cache", None))
    if getattr(options, "write_model_card", False):
        files.check_card(models)
    with complete_output(out_path) as folder:
        call.arguments["out_path"] = folder
        return original(*call.args, **call.kwargs)


def _order_models(module: ModuleType) -> None:
    """Give the models of a `bone_soup` in the order in which they are written.

    mergekit keeps them in a set and takes config and tokenizer from the first, if there is no base_model.
    """
    configuration = getattr(module, "MergeConfiguration", None)
    original = getattr(configuration, "referenced_models", None)
    if original is None or hasattr(original, "_orders_bone_soup"):
        return

    @functools.wraps(original)
    def ordered(self: Any) -> Any:
        if self.merge_method != METHOD_NAME:
            return original(self)
        from mergekit_bonesoup.check import listed_models

        models, listed = original(self), listed_models(self)
        return sorted(models, key=lambda model: listed.index(model) if model in listed else len(listed))

    ordered._orders_bone_soup = True  # type: ignore[attr-defined]
    configuration.referenced_models = ordered  # type: ignore[union-attr]


def _warn(what: str, error: Exception) -> None:
    warnings.warn(f"{what}: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
