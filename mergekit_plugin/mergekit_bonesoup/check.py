"""Refuses a `bone_soup` configuration before mergekit downloads, merges or writes anything.

mergekit takes a YAML list for a gradient over the layers and ignores names it does not know, so
neither reaches the method: `check_configuration` reads what the user wrote. With per-module filters
the values differ from tensor to tensor: `check_planned` looks at each of them once they are resolved.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mergekit.config import ConditionalParameter

from mergekit_bonesoup import METHOD_NAME
from mergekit_bonesoup.coefficients import MergeParameters, MergeRefused, combination_weights, soup_coefficients
from mergekit_bonesoup.files import same_place
from mergekit_bonesoup.method import bone_soup
from mergekit_bonesoup.recorded import check_recorded

_PER_MODEL = tuple(parameter.name for parameter in bone_soup.spec.input_parameters)
_SHARED = tuple(parameter.name for parameter in bone_soup.spec.shared_parameters)
_SOLVED = tuple(name for name in _SHARED if name in MergeParameters.__dataclass_fields__)
"""The shared parameters from which the coefficients are solved."""

_NUMBERS = (*_PER_MODEL, "beta")

_NO_SHARE = 1e-9
"""|λ| below which a model has no share in the soup: what the rounding of the solve leaves."""

_LOG = logging.getLogger(__name__)

_DEFAULTS = {parameter.name: parameter.default for parameter in bone_soup.spec.parameters}


@dataclass(frozen=True)
class _Scope:
    """One `parameters:` block and the place in the YAML that it belongs to."""

    where: str
    settings: Mapping[str, Any]
    model: Any = None

    @property
    def label(self) -> str:
        return f"{self.where}parameters"


@dataclass(frozen=True)
class _Merge:
    """Models that are merged with one another, and the blocks that apply to all, the strongest first."""

    where: str
    base: Any
    models: tuple[_Scope, ...]
    shared: tuple[_Scope, ...]
    adds_base: bool
    """Whether mergekit adds the base itself when it is not listed."""


def check_configuration(config: Any) -> None:
    """Check a whole configuration as the user wrote it (`models`, `slices` or `modules`).

    Raises:
        MergeRefused: for the first problem, naming the model and the YAML key.
    """
    for merge in _merges(config):
        for scope in merge.shared:
            _check_settings(scope, allowed=(*_SHARED, *_PER_MODEL))
        for scope in merge.models:
            _check_settings(scope, allowed=_PER_MODEL)
        _check_models(merge)
        _check_resolved(merge)


def check_planned(tasks: Iterable[Any] | None) -> None:
    """Check the parameters resolved for every tensor of a finished plan, before any of it is executed.

    The merging coefficients are logged, at the level INFO, which mergekit's commands show with -v.

    Raises:
        MergeRefused: naming the tensor.
    """
    tensors: dict[tuple[tuple[str, float], ...], list[str]] = {}
    for task in tasks or ():
        merge: Any = getattr(task, "tensor_task", None)
        if getattr(merge, "method_name", None) != METHOD_NAME:
            continue
        backbones = [model for model in merge.model_order if model != merge.base_model]
        values: dict[str, Any] = {name: merge.parameters[name] for name in _SOLVED}
        for name in _PER_MODEL:
            values[name] = tuple(merge.input_parameters[model][name] for model in backbones)
        names = tuple(str(model) for model in backbones)
        try:
            coefficients, share = soup_coefficients(
                MergeParameters(models=names, has_base=merge.base_model is not None, **values)
            )
        except MergeRefused as error:
            raise MergeRefused(f"{_without_prefix(error)} (In tensor {merge.output_weight.name}.)") from error
        terms = [
            *zip(names, coefficients, strict=True),
            *([(f"base_model {merge.base_model}", share)] if share else []),
        ]
        tensors.setdefault(tuple(terms), []).append(merge.output_weight.name)
    _log(tensors)


def _log(tensors: Mapping[tuple[tuple[str, float], ...], list[str]]) -> None:
    """Log each λ with the tensors that have it, and the models that no tensor is made of."""
    total = sum(map(len, tensors.values()))
    unused: dict[str, bool] = {}
    for terms, names in tensors.items():
        for model, value in terms:
            unused[model] = unused.get(model, True) and abs(value) < _NO_SHARE
        shown = ", ".join(f"{0.0 if abs(value) < _NO_SHARE else value:.4g} ({model})" for model, value in terms)
        where = f" in {len(names)} of {total} tensors, such as {names[0]}" if len(tensors) > 1 else ""
        _LOG.info("%s: λ = %s%s", METHOD_NAME, shown, where)
    for model in (model for model, is_unused in unused.items() if is_unused):
        _LOG.info("%s: %s is not used at this preference, its λ is 0.", METHOD_NAME, model)


def _merges(config: Any) -> Iterator[_Merge]:
    top = _scope("", config)
    yield from _merges_in("", config, config.base_model, (top,))
    for name, module in (getattr(config, "modules", None) or {}).items():
        where = f"modules.{name}."
        yield from _merges_in(where, module, config.base_model, (_scope(where, module), top))


def _merges_in(where: str, holder: Any, base: Any, shared: tuple[_Scope, ...]) -> Iterator[_Merge]:
    if holder.models:
        models = tuple(_scope(f"{where}models[{i}].", item) for i, item in enumerate(holder.models))
        yield _Merge(f"{where}models", base, models, shared, adds_base=True)
    for i, piece in enumerate(getattr(holder, "slices", None) or ()):
        here = f"{where}slices[{i}]."
        sources = tuple(_scope(f"{here}sources[{j}].", item) for j, item in enumerate(piece.sources))
        scopes = (_scope(here, piece), *shared)
        yield _Merge(f"{here}sources", piece.base_model or base, sources, scopes, adds_base=False)


def _scope(where: str, holder: Any) -> _Scope:
    return _Scope(where, holder.parameters or {}, getattr(holder, "model", None))


def _check_settings(scope: _Scope, allowed: tuple[str, ...]) -> None:
    for name, setting in scope.settings.items():
        if name not in allowed:
            if name in _SHARED:
                hint = f"{name} is one for all models: move it to the top-level parameters"
            else:
                near = difflib.get_close_matches(name, allowed, n=1)
                hint = f"did you mean {near[0]}?" if near else f"allowed here: {', '.join(allowed)}"
            raise MergeRefused(f"{scope.label}{_of(scope)} has no parameter {name!r}; {hint}")
        for value in _values(setting):
            _check_value(scope, name, value)


def _values(setting: Any) -> Iterator[Any]:
    """Yield the values that a setting can take; with filters, each of theirs."""
    if isinstance(setting, ConditionalParameter):
        yield setting.value
    elif isinstance(setting, list) and setting and isinstance(setting[0], ConditionalParameter):
        for condition in setting:
            yield condition.value
    else:
        yield setting


def _check_value(scope: _Scope, name: str, value: Any) -> None:
    key = f"{scope.label}.{name}{_of(scope)}"
    if isinstance(value, list):
        raise MergeRefused(
            f"{key} must be one value; got the list {value}, which mergekit takes for a gradient over the layers."
            + (" Give each model its own number." if name in _PER_MODEL else "")
        )
    if name in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise MergeRefused(f"{key} must be a plain number such as 0.7; got {value!r}.")
    elif name == "combination_weights":
        if not isinstance(value, str):
            raise MergeRefused(f"{key} must be JSON text in quotes; got {value!r}.")
    elif not isinstance(value, bool):
        raise MergeRefused(f"{key} must be true or false; got {value!r}.")


def _check_models(merge: _Merge) -> None:
    listed = [scope.model for scope in merge.models]
    places = [same_place(model) for model in listed]
    for scope, place in zip(merge.models, places, strict=True):
        if places.count(place) > 1:
            raise MergeRefused(f"{merge.where} lists {scope.model} more than once; each backbone has one objective.")
        if merge.base is not None and scope.model == merge.base and scope.settings:
            raise MergeRefused(
                f"{scope.where[:-1]} is {scope.model}, the base_model, which has no "
                f"{' or '.join(scope.settings)} of its own. If it is a backbone, leave it out of base_model; "
                "if it is the base, leave out its parameters."
            )
    if merge.base is not None and merge.base not in listed and not merge.adds_base:
        raise MergeRefused(f"{merge.where} must also list the base_model {merge.base}, without parameters.")


def _check_resolved(merge: _Merge) -> None:
    """Check the values that hold for every tensor; with filters, `check_planned` has to."""
    backbones = [scope for scope in merge.models if merge.base is None or scope.model != merge.base]
    values: dict[str, Any] = {name: _resolve(name, merge.shared) for name in _SOLVED}
    for name in _PER_MODEL:
        values[name] = tuple(_resolve(name, (scope, *merge.shared), scope) for scope in backbones)
    models = [scope.model for scope in backbones]
    if any(_has_filter(value) for value in values.values()):
        check_recorded(models, None)
        return
    parameters = MergeParameters(models=tuple(map(str, models)), has_base=merge.base is not None, **values)
    soup_coefficients(parameters)
    check_recorded(models, combination_weights(parameters))


def listed_models(config: Any) -> list[Any]:
    """Return every model of a configuration once, in the order in which they are written, the base first."""
    merges = list(_merges(config))
    bases = [merge.base for merge in merges if merge.base is not None]
    return list(dict.fromkeys([*bases, *(scope.model for merge in merges for scope in merge.models)]))


def _resolve(name: str, scopes: tuple[_Scope, ...], backbone: _Scope | None = None) -> Any:
    for scope in scopes:
        if name in scope.settings:
            return scope.settings[name]
    if name == "preference" and backbone is not None:
        raise MergeRefused(f"{backbone.label}.preference of {backbone.model} is missing; give a number in [0, 1].")
    return _DEFAULTS[name]


def _has_filter(setting: Any) -> bool:
    if isinstance(setting, tuple):
        return any(_has_filter(value) for value in setting)
    return isinstance(setting, (list, ConditionalParameter))


def _of(scope: _Scope) -> str:
    return f" of {scope.model}" if scope.model is not None else ""


def _without_prefix(error: MergeRefused) -> str:
    return error.message.removeprefix(f"{METHOD_NAME}: ")
