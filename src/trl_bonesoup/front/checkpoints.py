"""One trained model for each preference as policies: full checkpoints or adapters, loaded one after the other."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from trl_bonesoup.errors import SoupError
from trl_bonesoup.front.fingerprint import fingerprint
from trl_bonesoup.front.policies import Answer, Row, answer_with, preferences_of_models
from trl_bonesoup.front.prompts import EncodedPrompts, Prompts, encode_prompts
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.soup.adapters import CONFIG_FILE, read_config
from trl_bonesoup.soup.loading import load_model, load_tokenizer
from trl_bonesoup.soup.source import ModelRef
from trl_bonesoup.training.upstream import old_name_unmentioned
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    import torch

__all__ = ["CheckpointPolicies"]


class CheckpointPolicies:
    """One model for each of K preferences, such as MORLHF's: a policy trained on the reward Σ_i μ_i r_i itself.

    One model is in memory at a time. Each answers with its own tokenizer and chat template.

    Args:
        models: K folders or Hub ids, of full checkpoints or of adapters.
        preferences: shape (K, N), or K preferences by objective name: what each model is for.
        objectives: names of the N objectives.
        markers: more models, by label: {"base": "org/sft"}.
        base_model: of the adapters; by default what each names itself.
        dtype: of the weights; by default that of the checkpoint, for an adapter that of its base.
        device: where to put the models; by default where transformers puts them.

    Raises:
        ConfigurationError: if there is not one preference for each model.
        SoupError: if a model is neither a folder nor on the Hub, or has no safetensors.
        WeightsError: for an invalid preference.
        FrontError: if preferences repeat.
    """

    coefficients_KN: FloatArray | None = None

    def __init__(
        self,
        models: Sequence[str | Path],
        preferences: ArrayLike | Sequence[Mapping[str, float]],
        objectives: Sequence[str],
        *,
        markers: Mapping[str, str | Path] | None = None,
        base_model: str | Path | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.objectives: tuple[str, ...] = tuple(objectives)
        self.preferences_KN: FloatArray = preferences_of_models(models, preferences, self.objectives)
        self.markers: tuple[str, ...] = tuple(markers or ())
        self.dtype, self.device = dtype, device
        base = None if base_model is None else ModelRef.named(base_model)
        self.models = [_Trained.find(name, base) for name in (*models, *(markers or {}).values())]

    @contextlib.contextmanager
    def answering(self, prompts: Prompts, settings: EvaluationSettings) -> Iterator[_OneModelAnswering]:
        """Encode the prompts for every model; the models follow when their turn comes."""
        encoded = [encode_prompts(prompts, model.tokenizer()) for model in self.models]
        yield _OneModelAnswering(self, encoded, settings)

    def provenance(self) -> dict[str, Any]:
        """Return which models there are, by the content of their files."""
        return {
            "method": "checkpoints",
            "models": [model.record() for model in self.models],
            "device": str(self.device or "cpu"),
            "dtype": str(self.dtype or "of the checkpoints").removeprefix("torch."),
        }


@dataclass(frozen=True)
class _Trained:
    """A full checkpoint, or an adapter with its base."""

    name: str
    folder: Path
    base: ModelRef | None

    @classmethod
    def find(cls, name: str | Path, base: ModelRef | None) -> _Trained:
        """Follow a path or Hub id, fetching what lies on the Hub."""
        model = ModelRef.named(name)
        if not model.is_local:
            model = ModelRef.on_hub(model.id, model.revision, "model of a preference", "a folder here")
        folder = model.folder()
        if not (folder / CONFIG_FILE).is_file():
            if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
                raise SoupError(
                    f"{name} is neither a full checkpoint (config.json and safetensors) nor an adapter "
                    f"({CONFIG_FILE}); weights of other formats are not read."
                )
            return cls(str(name), folder, None)
        config = read_config(folder)
        if base is None and not config.get("base_model_name_or_path"):
            raise SoupError(f"The adapter {folder} names no base model; pass base_model= (--base-model).")
        return cls(str(name), folder, base or _base_of(model, config))

    def tokenizer(self) -> Any:
        return load_tokenizer(self.folder, self.base or ModelRef(str(self.folder)))

    def load(self, dtype: Any, device: Any) -> Any:
        if self.base is None:
            return load_model(ModelRef(str(self.folder)), dtype=dtype, device=device)
        from peft import PeftModel

        model = load_model(self.base, dtype=dtype, device=device)
        with old_name_unmentioned(), warnings.catch_warnings():
            # PEFT would go on without what is missing, and the base would be measured in the adapter's name.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            try:
                return PeftModel.from_pretrained(model, str(self.folder)).eval()
            except (RuntimeError, ValueError, UserWarning) as error:
                raise SoupError(
                    f"The adapter {self.folder} does not fit the base model {self.base.id}: {error}"
                ) from error

    def record(self) -> dict[str, Any]:
        own = {"model": self.name, "fingerprint": fingerprint(ModelRef(str(self.folder)))}
        if self.base is None:
            return own
        return {**own, "base_model": self.base.id, "base_fingerprint": fingerprint(self.base)}


def _base_of(adapter: ModelRef, config: dict[str, Any]) -> ModelRef:
    name, revision = config["base_model_name_or_path"], config.get("revision")
    if adapter.is_local:
        return ModelRef.named(name, revision)
    named_by = "given as base_model= (--base-model)"
    return ModelRef.on_hub(name, revision, f"base model of the adapter {adapter.id}", named_by)


class _OneModelAnswering:
    def __init__(
        self, policies: CheckpointPolicies, prompts: Sequence[EncodedPrompts], settings: EvaluationSettings
    ) -> None:
        self._policies, self._prompts, self._settings = policies, prompts, settings
        self._current: int | None = None
        self._model: Any = None
        self.groups: Sequence[Sequence[int]] = [[model] for model in range(len(policies.models))]
        self.order: Sequence[int] = prompts[0].by_length()
        self.texts: Sequence[str] = prompts[0].texts

    def __call__(self, batch: Sequence[Row], seeds: Sequence[int]) -> list[Answer]:
        wanted = batch[0].model
        if self._current != wanted:
            self._model = None  # before the next one is loaded
            self._model = self._policies.models[wanted].load(self._policies.dtype, self._policies.device)
            self._current = wanted
        return answer_with(self._model, self._prompts[wanted], batch, seeds, self._settings)
