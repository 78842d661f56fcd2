"""The card of one backbone: what the Hub reads of it, and that it says what was trained and measured, and no more."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from markdown_it import MarkdownIt
from tiny import count_word

from trl_bonesoup import MultiRewardPPOTrainer
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import Backbone, BaseModelRef, Objective, ScoreStatistics, SoupManifest
from trl_bonesoup.training.card import backbone_card
from trl_bonesoup.training.record import BackboneRecord, TrainedObjective

LOG = [
    {"loss": 1.0, "step": 1},
    {"rewards/helpful/mean": 0.125, "rewards/harmless/mean": -2.0, "step": 5},
    {"rewards/helpful/mean": 9.0, "rewards/harmless/mean": 9.0, "step": 10},
    {"rewards/helpful/mean": 0.5, "rewards/harmless/mean": None, "step": 20},
    {"train_loss": 0.1, "step": 20},
]
RECORD = BackboneRecord(
    base_model="org/sft",
    is_local=False,
    revision="abc123",
    objectives=(
        TrainedObjective("helpful", "my_rewards:helpful", 0.7, ScoreStatistics(mean=0.25, std=2.0)),
        TrainedObjective("harmless", "org/harmless-rm", 0.3),
    ),
    kind="adapter",
    steps=20,
    column=(0, 2),
    settings={"learning_rate": 1e-5},
    log=LOG,
    versions={"trl": "1.16.0"},
)


def text(**changes: Any) -> str:
    return str(backbone_card(dataclasses.replace(RECORD, **changes)))


def test_the_hub_reads_what_an_adapter_is_of() -> None:
    card = backbone_card(RECORD, license="apache-2.0", language="en", datasets="org/prompts", tags=["mine", "trl"])
    data = ModelCard(str(card)).data.to_dict()
    assert data == {
        "license": "apache-2.0",
        "language": ["en"],
        "base_model": "org/sft",
        "base_model_relation": "adapter",
        "datasets": ["org/prompts"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["bone-soup", "trl", "ppo", "rlhf", "multi-objective", "mine"],
    }


def test_the_hub_reads_what_a_full_model_is_of() -> None:
    data = ModelCard(text(kind="full")).data
    assert (data.library_name, data.base_model_relation) == ("transformers", "finetune")
    assert data.license is None and data.datasets is None and data.language is None


@pytest.mark.parametrize("where", [{"base_model": "/home/ann/sft"}, {"base_model": "models/sft", "is_local": True}])
def test_a_local_base_model_is_no_link_on_the_hub(where: dict[str, Any]) -> None:
    card = text(**where)
    assert not [line for line in card.splitlines() if line.startswith("base_model")]
    assert "This is `sft`, trained" in card and "`sft`, a local folder where this was trained" in card
    assert "ann" not in card and "models/" not in card
    assert 'from_pretrained("path/to/the/base/model")' in card
    named = backbone_card(dataclasses.replace(RECORD, **where), base_model="org/sft")
    assert named.data.base_model == "org/sft" and "path/to/the/base" not in str(named)


def test_the_text_says_which_mixture_it_was_trained_on() -> None:
    assert (
        "This is `org/sft`, trained with PPO on the reward mixture 0.7 `helpful` + 0.3 `harmless`: "
        "backbone 0 of the 2 of a soup" in text()
    )
    alone = text(column=None)
    assert "backbone 0" not in alone and "It is the model of that one mixture." in alone
    expert = text(objectives=RECORD.objectives[:1], column=None)
    assert "on the reward 0.7 `helpful`.\nIt is a single-reward expert" in expert


def test_each_reward_has_its_scale() -> None:
    card = text()
    assert "| `helpful` | 0.7 | `my_rewards:helpful` | (score - 0.25) / 2 |" in card
    assert "| `harmless` | 0.3 | `org/harmless-rm` | the score itself |" in card
    assert "moved with the scores" not in card and "moved with the scores" in text(running=True)


def test_training_rewards_are_the_first_and_the_last_of_the_log() -> None:
    card = text()
    assert "| Objective | Step 5 | Step 20 |" in card
    assert "| `helpful` | 0.125 | 0.5 |" in card
    assert "| `harmless` | -2 | not scored |" in card
    assert "They are on training prompts" in card and "model-index" not in card
    assert "in the one entry of its log" in text(log=LOG[:2])


def test_without_a_log_no_reward_is_claimed() -> None:
    card = text(log=[])
    assert "None were recorded." in card and "| Step" not in card


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"license": "MIT License"}, "'MIT License'"),
        ({"language": "english"}, "'english'"),
        ({"datasets": "/home/ann/prompts.jsonl"}, "prompts.jsonl"),
        ({"base_model": "../sft"}, "'../sft'"),
    ],
)
def test_metadata_that_the_hub_would_not_know_is_refused(settings: dict[str, str], given: str) -> None:
    with pytest.raises(ConfigurationError, match=given):
        backbone_card(RECORD, **settings)


def test_names_cannot_bring_markup_or_metadata() -> None:
    evil = "x](javascript:alert(1))\n---\nlicense: mit\n<script>{{ card_data }}"
    objective = TrainedObjective(evil, evil, 0.5)
    card = text(
        base_model=evil, objectives=(objective,), settings={evil: evil}, versions={evil: evil}, revision=evil, log=[]
    )
    named = str(backbone_card(RECORD, name=evil, tags=[evil]))
    for content in (card, named):
        assert ModelCard(content).data.license is None
        tokens = [child for token in MarkdownIt("gfm-like", {"linkify": False}).parse(ModelCard(content).text)
                  for child in [token, *(token.children or [])]]  # fmt: skip
        assert not [token for token in tokens if token.type.startswith("html")]
        links = {token.attrs["href"] for token in tokens if token.type == "link_open"}
        assert links == {"https://arxiv.org/abs/2502.10762"} or links == set()


def test_a_backbone_of_soup_json_says_the_same() -> None:
    manifest = SoupManifest(
        base_model=BaseModelRef(id="org/sft", revision="abc123"),
        objectives=(
            Objective(name="helpful", reward="my_rewards:helpful", normalization=ScoreStatistics(mean=0.25, std=2.0)),
            Objective(name="harmless", reward="org/harmless-rm"),
        ),
        combination_weights=((0.7, 0.4), (0.3, 0.6)),
        backbones=(Backbone(path="a", kind="adapter", steps=20), Backbone(path="b", kind="full", steps=30)),
        training={"learning_rate": 1e-5},
        versions={"trl": "1.16.0"},
    )
    assert BackboneRecord.from_manifest(manifest, 0, is_local=False, log=LOG) == RECORD
    other = BackboneRecord.from_manifest(manifest, 1, is_local=False)
    assert [objective.share for objective in other.objectives] == [0.4, 0.6]
    assert (other.kind, other.steps, other.column) == ("full", 30, (1, 2))


def test_the_trainer_tells_its_own_training(hub: LoopbackHub, base: str, settings: Any, tmp_path: Path) -> None:
    (Path(base) / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    trainer = MultiRewardPPOTrainer(
        base,
        [count_word("w1"), count_word("w2")],
        [[0.9, 0.2], [0.1, 0.8]],
        backbone=1,
        args=settings(
            max_steps=2, hub_model_id="org/one", score_normalization="fixed", score_mean=[1, 2], score_std=[3, 4]
        ),
        train_dataset=Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(16)]}),
    )
    trainer.train()
    trainer.push_to_hub()
    (Path(base) / "README.md").unlink()
    card = hub.files("org/one")["README.md"].decode()
    scores = trainer.state.log_history[0]
    assert ModelCard(card).data.license == "cc0-1.0"
    assert "mixture 0.2 `says_w1` + 0.8 `says_w2`: backbone 1 of the 2" in card
    assert "(score - 1) / 3 |" in card and "(score - 2) / 4 |" in card
    assert f"| `says_w1` | {scores['rewards/says_w1/mean']:.4g} |" in card
    assert "Trained for 2 optimizer steps; this is the full model" in card
    assert 'from_pretrained("org/one")' in card and "| `learning_rate` | `0.01` |" in card
