"""soup.json: the one record of what was trained, from which merging, sweeps, evaluation and cards start."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from trl_bonesoup.errors import ManifestError, WeightsError
from trl_bonesoup.strict_json import parse_json, problems, read_json, shown
from trl_bonesoup.weights import (
    FloatArray,
    check_combination_weights,
    check_preference,
    merging_coefficients,
)

FORMAT_VERSION = 1
FILE_NAME = "soup.json"
MAX_BYTES = 1_000_000
"""A soup.json of more than a megabyte is not one of ours."""
MAX_OBJECTIVES = 64
"""Each takes a backbone of its own; papers have up to five."""
MAX_ENTRIES = 256
"""Of each of the lists by name: presets, settings, versions."""

MODELS = {"adapter_config.json": "adapter", "config.json": "full"}
"""Which kind of backbone a folder holds, by the first of these files in it."""

_GUIDE = "docs/soups.md#a-soup-of-models-that-you-have"

EQUAL = "equal"
"""The preset that weighs every objective alike; every soup has it, and one for each objective by its name."""

Preference = str | Mapping[str, float] | Sequence[float] | ArrayLike

__all__ = ["Backbone", "BaseModelRef", "Objective", "Preference", "ScoreStatistics", "SoupManifest"]

_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
_Text = Annotated[str, Field(max_length=10_000)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class BaseModelRef(_Record):
    """The model that every backbone started from."""

    id: _Name
    """Hub id, absolute path, or a path relative to the folder of soup.json."""
    revision: _Name | None = None
    """Commit hash on the Hub, if the model came from there."""


class ScoreStatistics(_Record):
    """Mean and standard deviation by which an objective's scores were normalised before weighting."""

    mean: float
    std: Annotated[float, Field(gt=0)]


class Objective(_Record):
    """Something that users care about, measured by one reward function."""

    name: _Name
    reward: _Name
    """Where the reward function is found: `module:attribute`, a Hub id, or its own name."""
    normalization: ScoreStatistics | None = None


class Backbone(_Record):
    """One policy, trained on one column of the combination weights."""

    path: _Name
    """Hub id, or a path relative to the folder of soup.json."""
    kind: Literal["adapter", "full"]
    steps: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Optimizer steps it was trained for."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    """In the range of torch's."""
    revision: _Name | None = None
    """Commit hash, tag or branch, if `path` is a Hub id; a commit hash is what keeps a soup as it is."""

    @model_serializer(mode="wrap")
    def _without_null_revision(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data = handler(self)
        if self.revision is None:
            del data["revision"]  # so that a file that needs no newer reader has none
        return data


class SoupManifest(_Record):
    """What was trained, in the order that preferences and columns of B refer to.

    `combination_weights` is B row by row; column j belongs to `backbones[j]`.

    A file is read strictly, wherever it comes from: no unknown key, no key twice, no type but the
    written one, names of at most 200 characters without control characters, at most `MAX_OBJECTIVES`
    objectives, `MAX_ENTRIES` presets, settings and versions, and `MAX_BYTES` in all. Keys that may be
    left out are added within a format version, and a reader that does not know one refuses the file;
    the version goes up when the same file would be read differently.
    """

    format_version: Literal[1] = 1
    base_model: BaseModelRef
    objectives: Annotated[tuple[Objective, ...], Field(min_length=2, max_length=MAX_OBJECTIVES)]
    combination_weights: Annotated[tuple[tuple[float, ...], ...], Field(max_length=MAX_OBJECTIVES)]
    backbones: Annotated[tuple[Backbone, ...], Field(max_length=MAX_OBJECTIVES)]
    presets: Annotated[dict[_Name, dict[_Name, float]], Field(max_length=MAX_ENTRIES)] = {}
    """Named preferences, each by objective name; see `with_preset`."""
    training: Annotated[dict[_Name, bool | int | float | _Text | None], Field(max_length=MAX_ENTRIES)] = {}
    """The trainer settings that differ between recipes, for people to read."""
    versions: Annotated[dict[_Name, _Name], Field(max_length=MAX_ENTRIES)] = {}
    """Versions of the libraries that trained it."""

    @field_validator("objectives", "combination_weights", "backbones", mode="before")
    @classmethod
    def _tuples(cls, value: object) -> object:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, list):
            return tuple(tuple(item) if isinstance(item, list) else item for item in value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SoupManifest:
        names = self.objective_names
        if len(set(names)) != len(names):
            raise ValueError(f"objective names must differ; got {list(names)}")
        weights = check_combination_weights(self.combination_weights)
        if not len(weights) == len(names) == len(self.backbones):
            raise ValueError(
                f"{len(names)} objectives, {len(self.backbones)} backbones and {weights.shape} combination weights "
                "do not fit together: there is one column and one backbone for each objective"
            )
        for preset, preference in self.presets.items():
            if preset in (EQUAL, *names):
                raise ValueError(f"a preset may not be called {preset!r}, which every soup has already")
            self.preference(preference)
        return self

    @property
    def objective_names(self) -> tuple[str, ...]:
        """Names of the objectives, in order."""
        return tuple(objective.name for objective in self.objectives)

    @property
    def weights(self) -> FloatArray:
        """B as an array of shape (N, N)."""
        return np.array(self.combination_weights, dtype=np.float64)

    def preference(self, preference: Preference) -> FloatArray:
        """Return μ as an array, from numbers in the order of the objectives, a dict by name, or a preset.

        Args:
            preference: shape (N,) or (K, N); a mapping in which missing objectives count as 0; or the name
                of a preset. Besides those in `presets`, the name of an objective puts all weight on it,
                and "equal" weighs all alike.

        Raises:
            WeightsError: for an unknown name or a preference off the simplex.
        """
        if isinstance(preference, str):
            preference = self._preset(preference)
        if isinstance(preference, Mapping):
            unknown = set(preference) - set(self.objective_names)
            if unknown:
                raise WeightsError(
                    f"Unknown objective(s) {sorted(unknown, key=str)} in the preference; "
                    f"this soup has {list(self.objective_names)}."
                )
            preference = [preference.get(name, 0.0) for name in self.objective_names]
        return check_preference(preference, len(self.objectives))

    def coefficients(self, preference: Preference, extrapolation: float | Sequence[float] = 0.0) -> FloatArray:
        """Return the merging coefficients λ of a preference; see `trl_bonesoup.merging_coefficients`."""
        return merging_coefficients(self.weights, self.preference(preference), extrapolation)

    def with_preset(self, name: str, preference: Preference) -> SoupManifest:
        """Return the same record with a named preference added or changed; `save` it to keep it.

        Raises:
            WeightsError: for a preference off the simplex.
            ManifestError: for a name that is not allowed, or that a command could not tell from shares.
        """
        mu_N = self.preference(preference)
        named = dict(zip(self.objective_names, mu_N.tolist(), strict=True))
        if not _is_a_word(name):
            raise ManifestError(
                f"The preset {name!r} cannot be added: --preference takes numbers, commas and = for shares, and leaves "
                "out spaces at the ends. Choose another name."
            )
        try:
            return self.model_validate({**self.model_dump(), "presets": {**self.presets, name: named}})
        except ValidationError as error:
            raise ManifestError(f"The preset {name!r} cannot be added: {problems(error, 'soup')}.") from error

    def save(self, folder: str | Path) -> Path:
        """Write soup.json, given as its folder or as the file, completely or not at all, and return its path."""
        target = Path(folder)
        if target.name != FILE_NAME or target.is_dir():
            target = target / FILE_NAME
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{FILE_NAME}.{os.getpid()}")
        beside.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        beside.replace(target)
        return target

    @classmethod
    def load(cls, path: str | Path) -> SoupManifest:
        """Read a soup.json, given as the file or as its folder.

        Raises:
            ManifestError: if there is none, or it is not a valid one of this format version.
        """
        file = Path(path)
        if os.path.isdir(file):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
            file = file / FILE_NAME
        if not os.path.isfile(file):  # noqa: PTH113 - as above
            raise ManifestError(
                f"There is no {FILE_NAME} at {file}. It is written when `seek` has trained every backbone: "
                f"run the same `seek` again to finish, or check the path.{_for_models_in(file)}"
            )
        return cls._checked(read_json(file, ManifestError, MAX_BYTES), str(file))

    @classmethod
    def from_json(cls, content: bytes) -> SoupManifest:
        """Read the text of a soup.json.

        Raises:
            ManifestError: if it is not a valid one of this format version.
        """
        return cls._checked(parse_json(content, FILE_NAME, ManifestError), FILE_NAME)

    @classmethod
    def _checked(cls, data: Any, where: str) -> SoupManifest:
        version = data.get("format_version") if isinstance(data, dict) else None
        if type(version) is not int or version != FORMAT_VERSION:
            raise ManifestError(
                f"{where} has format version {shown(repr(version))}; this version of trl-bonesoup reads "
                f"{FORMAT_VERSION}. {_other_version(version, data)}"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            unknown = any(item["type"] == "extra_forbidden" for item in error.errors())
            hint = " An unknown key is a typing error, or of a newer trl-bonesoup." if unknown else ""
            raise ManifestError(f"{where} is not a valid {FILE_NAME}: {problems(error, 'soup')}.{hint}") from error

    def _preset(self, name: str) -> Mapping[str, float]:
        names = self.objective_names
        if name in names:
            return {name: 1.0}
        if name == EQUAL:
            return dict.fromkeys(names, 1.0 / len(names))
        if name in self.presets:
            return self.presets[name]
        raise WeightsError(
            f"Unknown preset {name!r}; this soup has {[EQUAL, *names, *self.presets]}. A preference of your own is "
            "shares by name (helpful=0.7,harmless=0.3; in Python a dict), or shares in order (0.7,0.3; a list)."
        )


def _is_a_word(name: str) -> bool:
    """Return whether a name can be told from shares where both are text."""
    try:
        float(name)
    except ValueError:
        return name == name.strip() and not set(name) & set(",=")
    return False


def _for_models_in(file: Path) -> str:
    """Return what to do where there is no soup.json, but models that one could be about."""
    if file.name != FILE_NAME or not os.path.isdir(file.parent):  # noqa: PTH112 - Path.is_dir raises for a long name
        return ""
    patterns = [f"{where}{name}" for where in ("", "*/") for name in MODELS]
    if not any(True for pattern in patterns for _ in file.parent.glob(pattern)):
        return ""
    return f" For models that were trained elsewhere, `bonesoup manifest` writes one: {_GUIDE}."


def _other_version(version: object, data: Any) -> str:
    if version is None and isinstance(data, dict) and "backbones" in data:
        return f'If it was written by hand, add `"format_version": {FORMAT_VERSION}`.'
    if type(version) is not int:
        return f"Either it is no {FILE_NAME} of trl-bonesoup, or it was changed by hand."
    if version > FORMAT_VERSION:
        return (
            f"Format version {version} is newer: `pip install --upgrade trl-bonesoup`, or ask its author for an older."
        )
    return f"There is no format version {version}: the file was changed by hand."
