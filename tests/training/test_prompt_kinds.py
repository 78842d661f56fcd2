"""Prompts that cannot be trained on are refused before anything is generated, and odd ones that can are trained on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig
from tiny import count_word, tiny_tokenizer

from trl_bonesoup import MultiRewardPPOTrainer, circulant_weights, seek
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.training.prompt_kinds import check_kinds, check_rows, first_rows

CHAT = [{"role": "user", "content": "w3"}]


def make(base: str, rows: Any, args: Any, **kwargs: Any) -> MultiRewardPPOTrainer:
    return MultiRewardPPOTrainer(base, count_word("w5"), args=args, train_dataset=rows, **kwargs)


def stream(rows: list[dict[str, Any]]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize(
    ("prompts", "template", "message"),
    [
        (["w1", CHAT], True, r"row 1 is a conversation and that in row 0 is a text.*\{'role': 'user', 'content': t\}"),
        ([CHAT, "w1"], True, "row 1 is a text and that in row 0 is a conversation"),
        (["w1", None], True, "row 1 is None; a prompt is a text, or a list of messages"),
        (["w1", 7], True, "row 1 is int '7'"),
        ([CHAT, []], True, "row 1 is list"),
        ([[{"content": "w1"}]], True, "row 0 is list .*'role'"),
        ([["w1", "w2"]], True, "row 0 is list"),
        ([CHAT], False, "no chat template to render them with"),
    ],
)
def test_what_is_no_usable_prompt(prompts: list, template: bool, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_kinds(prompts, has_template=template)
    with pytest.raises(ConfigurationError, match=message):
        check_rows([{"prompt": prompt} for prompt in prompts], has_template=template)


def test_texts_need_no_template_and_empty_ones_are_left_to_the_tokenizer() -> None:
    check_kinds(["w1", "", "w2"], has_template=False)
    check_kinds([CHAT, [*CHAT, {"role": "assistant", "content": None}]], has_template=True)
    check_kinds([], has_template=False)


def test_a_row_without_a_prompt_names_what_it_has() -> None:
    with pytest.raises(ConfigurationError, match=r"needs a 'prompt'; one has \['text'\]"):
        check_rows([{"prompt": "w1"}, {"text": "w1"}], has_template=True)


def test_the_first_rows_begin_again_where_there_are_fewer() -> None:
    rows = [{"prompt": "w1"}, {"prompt": "w2"}]
    expected = ["w1", "w2", "w1", "w2", "w1"]
    for dataset in (Dataset.from_list(rows), stream(rows)):
        assert [row["prompt"] for row in first_rows(dataset, 5)] == expected
    with pytest.raises(ConfigurationError, match="has no rows"):
        first_rows(stream([]), 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Dataset.from_dict({"prompt": []}), "0 prompts, fewer than the 8"),
        (stream([]), "has no rows"),
        (stream([{"text": "w1"}]), r"column 'prompt'; its first row has \['text'\]"),
    ],
)
def test_data_without_prompts_is_refused_before_a_model_is_loaded(settings: Any, rows: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make("no/such-model", rows, settings())


class Prompts(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> dict[str, str]:
        return {"prompt": f"w{row}"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Prompts(), r"test_prompt_kinds\.Prompts\..*Dataset\.from_list\(rows\)"),
        (torch.utils.data.DataLoader(Prompts()), r"torch.*\.DataLoader\..*Of a torch Dataset"),
        ([{"prompt": "w1"}] * 8, r"builtins\.list\."),
        ({"prompt": ["w1"] * 8}, r"builtins\.dict\."),
        (DatasetDict(test=Dataset.from_list([{"prompt": "w1"}] * 8)), r"DatasetDict\. Pass .*train_dataset\['test'\]"),
    ],
    ids=["torch", "loader", "list", "dict", "splits"],
)
def test_what_is_no_dataset_is_told_how_to_become_one(settings: Any, rows: Any, message: str) -> None:
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ConfigurationError, match=rf"must be a datasets\.Dataset or .*; got .*{message}"):
        make("no/such-model", rows, settings())
    with pytest.raises(ConfigurationError, match=message):
        seek("no/such-model", [count_word("w5"), count_word("w7")], circulant_weights(2, 0.7), settings(), rows,
             peft_config=lora)  # fmt: skip
    assert not Path(settings().output_dir).exists()


def test_refused_when_the_trainer_is_made(base: str, settings: Any) -> None:
    """Not in the first rollout: no reward function is called, nothing is generated."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigurationError, match="no chat template"):
        make(base, Dataset.from_dict({"prompt": [CHAT] * 8}), settings(), processing_class=tokenizer)
    with pytest.raises(ConfigurationError, match="row 3 is None"):
        make(base, Dataset.from_dict({"prompt": ["w1"] * 3 + [None] * 5}), settings())


def test_a_stream_that_changes_its_kind_is_refused_where_it_does(base: str, settings: Any) -> None:
    rows = [{"prompt": "w1"}] * 12 + [{"prompt": CHAT}] * 4
    with pytest.raises(ConfigurationError, match=r"row \d is a .* and that in row 0 is a .*Train on one kind"):
        make(base, stream(rows), settings(max_steps=8)).train()


def test_a_stream_of_prompts_makes_a_soup(base: str, settings: Any) -> None:
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    rewards = [count_word("w5"), count_word("w7")]
    rows = [{"prompt": f"w{i}"} for i in range(20)]
    manifest = seek(base, rewards, circulant_weights(2, 0.7), settings(max_steps=2), stream(rows), peft_config=lora)
    assert manifest is not None
    assert [backbone.steps for backbone in manifest.backbones] == [2, 2]


def test_completions_that_are_all_cut_off_and_masked_teach_nothing_and_say_so(base: str, settings: Any) -> None:
    """No completion ends within its 3 tokens; with mask_truncated_completions none of them counts."""
    rows = Dataset.from_dict({"prompt": [f"w{i}" for i in range(8)]})
    args = settings(max_completion_length=3, max_steps=2, mask_truncated_completions=True, weight_decay=0.0)
    trainer = make(base, rows, args)
    never = [trainer.processing_class.eos_token_id]
    trainer.generation_config.suppress_tokens = never
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "completions/clipped_ratio" in entry]
    assert [entry["completions/clipped_ratio"] for entry in logs] == [1.0]
    assert all(entry["grad_norm"] == 0.0 for entry in trainer.state.log_history if "grad_norm" in entry)
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, before[name]), name
