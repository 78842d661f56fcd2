"""seek.json as it lies in a folder: read strictly, since people edit it and other versions write it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trl_bonesoup.errors import ConfigurationError, ManifestError
from trl_bonesoup.manifest import FILE_NAME, BaseModelRef, ScoreStatistics, SoupManifest
from trl_bonesoup.strict_json import problems, read_json
from trl_bonesoup.weights import check_combination_weights

__all__ = ["FORMAT_VERSION", "RECORD", "SavedRun", "earlier_soup"]

RECORD = "seek.json"
FORMAT_VERSION = 1
_MAX_BYTES = 1_000_000

_Setting = bool | int | float | str | None
_Names = Annotated[list[str], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Request(_Strict):
    base_model: BaseModelRef
    base_files: str | None
    objectives: _Names
    rewards: _Names
    scores: dict[str, Any]
    combination_weights: list[list[float]] | None
    prompts: dict[str, int | str | None]
    kind: Literal["adapter", "full"]
    settings: dict[str, _Setting]
    adapter: dict[str, _Setting]

    @model_validator(mode="after")
    def _consistent(self) -> _Request:
        if len(self.rewards) != len(self.objectives):
            raise ValueError(f"{len(self.rewards)} rewards do not fit {len(self.objectives)} objectives")
        if self.combination_weights is not None:
            weights = check_combination_weights(self.combination_weights)
            if len(weights) != len(self.objectives):
                raise ValueError(f"{weights.shape} combination weights do not fit {len(self.objectives)} objectives")
        if "seed" not in self.settings:
            raise ValueError("settings lack 'seed'")
        return self


class SavedRun(_Strict):
    """What a run of `seek` was asked for, and the scale of the scores once it is measured."""

    format_version: Literal[1] = 1
    request: _Request
    statistics: list[ScoreStatistics] | None
    correlation: list[list[float]] | None

    @model_validator(mode="after")
    def _one_for_each(self) -> SavedRun:
        n = len(self.request.objectives)
        for name in ("statistics", "correlation"):
            found = getattr(self, name)
            if found is not None and len(found) != n:
                raise ValueError(f"{name} has {len(found)} entries for {n} objectives")
        return self

    @classmethod
    def load(cls, folder: Path) -> tuple[SavedRun, dict[str, Any]]:
        """Read the record in `folder`; return it with the request as it was written.

        Raises:
            ConfigurationError: if there is none, or it is not one of this format version.
        """
        file = folder / RECORD
        if not file.is_file():
            raise ConfigurationError(f"{folder} is not the folder of a run: it has no {RECORD}, which `seek` writes.")
        data = read_json(file, ConfigurationError, _MAX_BYTES)
        version = data.get("format_version", FORMAT_VERSION) if isinstance(data, dict) else None
        if isinstance(data, dict) and version != FORMAT_VERSION:
            raise ConfigurationError(
                f"{file} has format version {version!r}, and this version of trl-bonesoup continues runs of "
                f"{FORMAT_VERSION}. Continue it with the version that started it, or choose another folder."
            )
        try:
            return cls.model_validate(data), data["request"]
        except ValidationError as error:
            raise ConfigurationError(
                f"{file} is not a record that this version of `seek` wrote: {problems(error, 'record')}. "
                "Choose another folder."
            ) from error


def earlier_soup(folder: Path, request: dict[str, Any]) -> SoupManifest | None:
    """Return the soup.json that lies in the folder of a run already, or `None`.

    Raises:
        ConfigurationError: if it is of another run or cannot be read, since `seek` would replace it.
    """
    if not (folder / FILE_NAME).exists():
        return None
    advice = f"Choose another output_dir, or move {FILE_NAME} away, which `seek` would replace."
    try:
        found = SoupManifest.load(folder)
    except ManifestError as error:
        raise ConfigurationError(f"{error} {advice}") from error
    ours = {
        "objectives": request["objectives"],
        "combination weights": request["combination_weights"],
        "kind": request["kind"],
    }
    theirs = {
        "objectives": list(found.objective_names),
        "combination weights": found.weights.tolist(),
        "kind": found.backbones[0].kind,
    }
    different = [f"{key} {theirs[key]} there, {ours[key]} now" for key in ours if ours[key] != theirs[key]]
    if different:
        raise ConfigurationError(f"{folder} holds a soup of another run ({'; '.join(different)}). {advice}")
    return found
