"""The trainer's side of the Hub: our card, and uploads that hold what loading or resuming needs and nothing private."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils.hub import PushInProgress, hf_api
from trl import GRPOTrainer

from trl_bonesoup.card_metadata import hub_id
from trl_bonesoup.errors import BoneSoupError, ConfigurationError, HubError
from trl_bonesoup.hub_failures import cause_of, explained
from trl_bonesoup.manifest import ScoreStatistics
from trl_bonesoup.privacy import check_private, secrets_of, tokens_left_out
from trl_bonesoup.training.backbone import is_sharded
from trl_bonesoup.training.card import backbone_card, base_license
from trl_bonesoup.training.config import MultiRewardPPOConfig
from trl_bonesoup.training.record import BackboneRecord
from trl_bonesoup.training.scoring import Scoring
from trl_bonesoup.training.staging import add_checkpoint, add_model

logger = logging.getLogger(__name__)

_STAGES = "_hub"
"""Folder inside of the output folder for what is being uploaded."""
_WITH_CHECKPOINT = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)


class Publishing(GRPOTrainer):
    """A `GRPOTrainer` that uploads a folder of its own choice, where `Trainer` uploads all of its output folder.

    At the end of training and with every `hub_strategy`, one commit holds the weights in safetensors, the
    configurations, the tokenizer and our card; with "checkpoint" and "all_checkpoints" also a folder to
    resume from. What each file may hold is decided in `training.staging`. The output folder and its
    checkpoints are left as they are.

    Subclasses set `scoring`, and `_record` to what is known of the backbone before it is trained.
    """

    args: MultiRewardPPOConfig
    scoring: Scoring
    _record: BackboneRecord

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository or find it there, as in `Trainer`.

        Raises:
            HubError: if the Hub refuses or cannot be reached, with what to do.
        """
        try:
            super().init_hf_repo(token, private)
        except Exception as error:  # of the client, of the connection under it, or of the operating system
            raise HubError(
                f"The repository {self._repo_name()} could not be created or opened: {_explained(error)}"
            ) from error

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | Sequence[str] | None = None,
        tags: str | Sequence[str] | None = None,
        *,
        license: str | None = None,
        language: str | Sequence[str] | None = None,
        base_model: str | None = None,
    ) -> None:
        """Write the card of this backbone into the output folder.

        Args:
            model_name: what to call it.
            dataset_name: Hub ids of the data sets whose prompts were trained on.
            tags: beside those that every backbone has.
            license, language, base_model: see `backbone_card`.
        """
        if not self.is_world_process_zero():
            return
        own = [tags] if isinstance(tags, str) else list(tags or ())
        card = backbone_card(
            self._current_record(),
            name=model_name,
            repo_id=self.hub_model_id or self.args.hub_model_id,
            license=license,
            language=language,
            datasets=dataset_name,
            base_model=base_model,
            tags=[*own, *(getattr(self.model, "model_tags", None) or ())],
        )
        card.save(Path(self.args.output_dir) / "README.md")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model into the output folder, then upload it with its tokenizer and its card.

        Args:
            commit_message, blocking, token, revision, private: as in `Trainer.push_to_hub`.
            kwargs: for `create_model_card`. The license is that of the base model's own card by default.

        Raises:
            HubError: if the upload fails. The message names the folder that holds all of it, and the command that
                uploads this folder.
            ConfigurationError: for metadata that the Hub would not know.
        """
        self._finish_current_push()
        self.save_model(_internal_call=True)  # first, so that no failure of the Hub loses it
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        refused: HubError | None = None
        if self.hub_model_id is None:
            try:
                self.init_hf_repo(token=token, private=private)
            except HubError as error:
                refused = error
        if not self.is_world_process_zero():
            return None
        stage = self._stage("final", Path(self.args.output_dir), token, **kwargs)
        revision = revision if revision is not None else self.args.hub_revision
        if refused is not None:
            raise HubError(f"{refused} {self._what_is_kept(stage, revision)}") from refused
        job = (stage, commit_message, token, revision)
        if blocking:
            return self._upload(*job)
        future = hf_api().run_as_future(self._upload, *job)
        self.push_in_progress = PushInProgress([future])
        return future

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload a checkpoint while training goes on, as `hub_strategy` says; no failure ends the training."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint, token, step = Path(checkpoint_folder), self.args.hub_token, self.state.global_step
        try:
            stage = self._stage(f"step-{step}", checkpoint, token)
            if self.args.hub_strategy in _WITH_CHECKPOINT:
                last = self.args.hub_strategy == HubStrategy.CHECKPOINT
                add_checkpoint(
                    stage / ("last-checkpoint" if last else checkpoint.name), checkpoint, self._base_on_hub()
                )
                self._check(stage, token)
        except (BoneSoupError, OSError) as error:
            logger.warning("The checkpoint of step %d is not uploaded, and training goes on: %s", step, error)
            shutil.rmtree(self._stage_folder(f"step-{step}"), ignore_errors=True)
            return
        by_step = self.args.save_strategy == SaveStrategy.STEPS
        progress = f"step {step}" if by_step else f"epoch {int(self.state.epoch or 0)}"
        message = f"Training in progress, {progress}"
        job = hf_api().run_as_future(self._upload_or_warn, stage, message, token, self.args.hub_revision)
        running = [] if self.push_in_progress is None else [j for j in self.push_in_progress.jobs if not j.done()]
        self.push_in_progress = PushInProgress([*running, job])

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save as `Trainer` does, but leave tokens out of training_args.bin."""
        with tokens_left_out(self.args):
            super()._save(output_dir, state_dict)

    def _stage(self, folder: str, saved: Path, token: str | None, **kwargs: Any) -> Path:
        """Lay out what is uploaded of a saved model, with a new card, and return the folder."""
        stage = self._stage_folder(folder)
        shutil.rmtree(stage, ignore_errors=True)
        license = kwargs.pop("license", None) or base_license(self._base_name(), token)
        kwargs.setdefault("model_name", self._repo_name().split("/")[-1])
        self.create_model_card(license=license, **kwargs)
        named = kwargs.get("base_model")
        add_model(stage, saved, self.processing_class, (named, None) if named else self._base_on_hub())
        shutil.copyfile(Path(self.args.output_dir) / "README.md", stage / "README.md")
        self._check(stage, token)
        return stage

    def _stage_folder(self, folder: str) -> Path:
        return Path(self.args.output_dir) / _STAGES / folder

    def _check(self, stage: Path, token: str | None) -> None:
        folders = {"the output folder": Path(self.args.output_dir)}
        if Path(self._base_name()).is_dir():
            folders["the base model"] = Path(self._base_name())
        own_token = (self.args.model_init_kwargs or {}).get("token")
        secrets = secrets_of(token, self.args.hub_token, own_token, folders=folders)
        try:
            check_private({str(f.relative_to(stage)): f for f in stage.rglob("*") if f.is_file()}, secrets)
        except HubError:
            shutil.rmtree(stage)  # so that nobody uploads it by hand
            raise

    def _upload(self, stage: Path, message: str | None, token: str | None, revision: str | None) -> Any:
        try:
            commit = hf_api().upload_folder(
                repo_id=self.hub_model_id,
                folder_path=stage,
                commit_message=message,
                token=token,
                revision=revision,
            )
        except Exception as error:  # of the client, of the connection under it, or of the operating system
            kept = self._what_is_kept(stage, revision)
            raise HubError(f"The upload to {self.hub_model_id} failed: {_explained(error)} {kept}") from error
        shutil.rmtree(stage, ignore_errors=True)
        return commit

    def _upload_or_warn(self, stage: Path, message: str, token: str | None, revision: str | None) -> Any:
        try:
            return self._upload(stage, message, token, revision)
        except HubError as error:
            logger.warning("A checkpoint is not on the Hub, and training goes on: %s", error.__cause__)
            shutil.rmtree(stage, ignore_errors=True)  # the checkpoint itself stays where it is
            return None

    def _what_is_kept(self, stage: Path, revision: str | None) -> str:
        words = ["hf", "upload", self._repo_name(), str(stage)]
        words += ["--revision", revision] if revision else []
        return (
            f"The trained model is saved in {self.args.output_dir}. Call push_to_hub() again, or, if this program has "
            f"ended, upload what it prepared: {shlex.join(words)}"
        )

    def _repo_name(self) -> str:
        return self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name

    def _base_name(self) -> str:
        return str(getattr(self.accelerator.unwrap_model(self.model).config, "_name_or_path", ""))

    def _base_on_hub(self) -> tuple[str | None, str | None]:
        """Return id and revision of the base model, None for one that is only on this machine."""
        name = self._base_name()
        if hub_id(name) is None or Path(name).is_dir():
            return None, None
        return name, self._current_record().revision

    def _current_record(self) -> BackboneRecord:
        policy, name, normalizer = self.accelerator.unwrap_model(self.model), self._base_name(), self.scoring.normalizer
        scales: list[ScoreStatistics | None] = [None] * len(self._record.objectives)
        if normalizer.mode != "none":
            scales = [
                ScoreStatistics(mean=mean, std=std)
                for mean, std in zip(normalizer.mean_N.tolist(), normalizer.std_N.tolist(), strict=True)
            ]
        return dataclasses.replace(
            self._record,
            base_model=name,
            is_local=Path(name).is_dir(),
            revision=getattr(policy.config, "_commit_hash", None),
            kind="adapter" if hasattr(policy, "peft_config") else "full",
            objectives=tuple(
                dataclasses.replace(objective, scale=scale)
                for objective, scale in zip(self._record.objectives, scales, strict=True)
            ),
            steps=self.state.global_step,
            running=normalizer.mode == "running",
            log=self.state.log_history,
        )


def check_publishing(args: MultiRewardPPOConfig) -> None:
    """Raise `ConfigurationError` if checkpoints shall be uploaded whose files nothing can be promised about."""
    if args.push_to_hub and args.hub_strategy in _WITH_CHECKPOINT and is_sharded(args):
        raise ConfigurationError(
            f'hub_strategy="{HubStrategy(args.hub_strategy).value}" is not offered with FSDP and DeepSpeed, whose '
            'checkpoints hold their own configuration in files that cannot be searched; use "every_save" or "end".'
        )


def _explained(error: Exception) -> str:
    return explained(
        cause_of(error),
        hf_api().endpoint,
        token="hub_token or HF_TOKEN",
        place="hub_model_id or hub_revision",
        again="Check the connection and status.huggingface.co.",
    )
