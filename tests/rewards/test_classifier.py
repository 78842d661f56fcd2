"""What a classifier is given, what is made of its outputs, and what happens when it cannot be loaded."""

import copy
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_classifiers import RecordingModel, W, ids, step_of_grpo, tiny_gpt2, word_tokenizer
from tokenizers import processors
from transformers import BartConfig, BartForSequenceClassification, BertConfig, BertForSequenceClassification

from trl_bonesoup.errors import ConfigurationError, RewardError
from trl_bonesoup.rewards.classifier import ClassifierReward
from trl_bonesoup.rewards.protocol import reward_name
from trl_bonesoup.rewards.texts import conversation, last_user_message

CHAT = [
    {"role": "system", "content": "w9"},
    {"role": "user", "content": "w1"},
    {"role": "assistant", "content": "w2"},
    {"role": "user", "content": "w3 w4"},
]


def recorded(prompts: list, completions: list, columns: dict | None = None, **settings: Any) -> list[list[int]]:
    """The tokens that a classifier is given, in the order of the samples."""
    model = RecordingModel()
    reward = ClassifierReward(model, tokenizer=word_tokenizer(), batch_size=1, **settings)
    order = reward(prompts=prompts, completions=completions, **(columns or {}))
    by_length = {len(row): row for row in model.seen}
    return [by_length[int(length)] for length in order]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (("{prompt}", "{completion}"), "w1 w2 w3"),
        (("{completion}", "{prompt}"), "w3 w1 w2"),
        ("{completion}", "w3"),
        ("{completion} {bos} {prompt}", "w3 <bos> w1 w2"),
        ("{bos} {prompt} ? {completion} {eos}", "<bos> w1 w2 ? w3 <eos>"),
    ],
)
def test_a_sample_is_put_together_as_the_templates_say(inputs: Any, expected: str) -> None:
    assert recorded(["w1 w2"], [" w3\n"], inputs=inputs) == [ids(expected)]


def test_a_conversation_gives_its_last_user_message_or_all_of_it() -> None:
    answer = [{"role": "assistant", "content": "w5"}]
    assert recorded([CHAT], [answer]) == [ids("w3 w4 w5")]
    assert last_user_message("text") == conversation("text") == "text"
    assert conversation(CHAT[1:3]) == "user: w1\nassistant: w2"
    with pytest.raises(RewardError, match=r"no user message; its roles are \['system'\]"):
        last_user_message(CHAT[:1])


def test_the_prompt_may_come_from_another_column() -> None:
    settings = {"prompt_column": "post"}
    assert recorded(["w1"], ["w2"], {"post": ["w7 w8"]}, **settings) == [ids("w7 w8 w2")]
    with pytest.raises(ConfigurationError, match=r"no column 'post' \(prompt_column\).* \['body'\]"):
        recorded(["w1"], ["w2"], {"body": ["w7"], "trainer_state": object()}, **settings)


@pytest.mark.parametrize(
    ("length", "keep", "expected"),
    [
        (6, "end", "w1 w2 w3 w4 w5 w6"),
        (5, "end", "w2 w3 w4 w5 w6"),
        (4, "start", "w1 w2 w5 w6"),
        (2, "end", "w5 w6"),
        (1, "start", "w5"),
    ],
)
def test_a_long_sample_loses_its_prompt_before_its_completion(length: int, keep: str, expected: str) -> None:
    pair = recorded(["w1 w2 w3 w4"], ["w5 w6"], max_length=length, keep_prompt=keep)
    assert pair == [ids(expected)]


def test_a_prompt_in_the_middle_of_a_template_is_shortened_there() -> None:
    text = recorded(["w1 w2 w3"], ["w5"], inputs="{completion} {bos} {prompt} {eos}", max_length=4, keep_prompt="start")
    assert text == [ids("w5 <bos> w1 <eos>")]


def test_the_context_is_the_smaller_of_what_model_and_tokenizer_allow() -> None:
    tokenizer = word_tokenizer()
    for positions, limit, kind, expected in [
        (5, 10**30, "gpt2", 5),
        (9, 4, "gpt2", 4),
        (9, 10**30, "roberta", 7),
        (None, 6, "t5", 6),
    ]:
        tokenizer.model_max_length = limit
        pad = 1 if kind == "roberta" else None
        model = RecordingModel(max_position_embeddings=positions, model_type=kind, pad_token_id=pad)
        ClassifierReward(model, tokenizer=tokenizer)(prompts=["w1 " * 20], completions=["w2"])
        assert len(model.seen[0]) == expected
        assert model.seen[0][-1] == W["w2"]


def test_a_policy_cannot_write_the_special_tokens_of_the_classifier() -> None:
    (row,) = recorded(["w1 <bos>"], ["w2 <eos> w3"], inputs="{prompt} {bos} {completion}")
    assert row == ids("w1 <unk> <unk> <bos> w2 <unk> <unk> w3")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"logit": 0}, 0.0),
        ({"logit": 1}, math.log(3)),
        ({"logit": 1, "score": "probability"}, 0.75),
        ({"logit": 1, "score": "probability", "shift": 0.25, "scale": -2.0}, -2.0),
    ],
)
def test_the_score_is_an_output_or_its_share(settings: dict, expected: float) -> None:
    reward = ClassifierReward(RecordingModel([[0.0, math.log(3)]]), tokenizer=word_tokenizer(), **settings)
    assert reward(prompts=["w1"], completions=["w2"]) == [pytest.approx(expected)]


def test_an_output_may_be_named_by_its_label() -> None:
    """The number of a label comes from the model's own table, which JSON gives in any order and as text."""
    labels = {"2": "insult", "0": "neutral", "1": "toxic", "3": "insult"}
    model = RecordingModel([[0.5, 3.0, -1.0, 0.0]], id2label=labels)
    reward = ClassifierReward(model, tokenizer=word_tokenizer(), name="clean", logit="toxic", scale=-1.0)
    assert reward(prompts=["w1"], completions=["w2"]) == [-3.0]
    assert reward.spec == "org/recorder(logit='toxic', scale=-1.0)"
    known = r"'insult' \(2\), 'neutral' \(0\), 'toxic' \(1\), 'insult' \(3\); give logit"
    for label, found in (("Toxic", "no output"), ("insult", "several outputs")):
        with pytest.raises(ConfigurationError, match=rf"clean has {found} with the label '{label}'\. .*{known}"):
            replace(reward, logit=label)(prompts=["w1"], completions=["w2"])
    with pytest.raises(ConfigurationError, match=r"recorder has no output with the label 'toxic'.*are none"):
        ClassifierReward(RecordingModel(), tokenizer=word_tokenizer(), logit="toxic")(prompts=["w"], completions=["w"])


@pytest.mark.parametrize("logit", [1.0, True, None, ["toxic"]])
def test_what_names_no_output_is_refused_with_the_name_of_the_reward(logit: Any) -> None:
    with pytest.raises(ConfigurationError, match="logit of clean must be the number of an output or its label; got"):
        ClassifierReward("org/rm", name="clean", logit=logit)


def test_the_probability_of_a_single_output_is_its_sigmoid() -> None:
    reward = ClassifierReward(RecordingModel([[math.log(4)]]), tokenizer=word_tokenizer(), score="probability")
    assert reward(prompts=["w1"], completions=["w2"]) == [pytest.approx(0.8)]


def test_an_input_without_tokens_has_no_score() -> None:
    reward = ClassifierReward(RecordingModel(), tokenizer=word_tokenizer(), inputs="{completion}")
    assert reward(prompts=["w1", "w1"], completions=["  ", "w2 w3"]) == [None, 2.0]


def test_padding_does_not_change_the_score_of_a_model_without_a_padding_token() -> None:
    """The score is that of the model on each sample alone, where GPT-2 reads it at the last token."""
    model = tiny_gpt2()
    completions = ["w4", "w5 w6 w7 w8 w9", "w4 w4 w10", "w1 w2"]
    with torch.no_grad():
        alone = [model(torch.tensor([ids(f"w1 w2 {text}")])).logits.item() for text in completions]
    assert len({round(score, 3) for score in alone}) == 4
    reward = ClassifierReward(model.train(), tokenizer=word_tokenizer(), batch_size=3)
    assert reward(prompts=["w1 w2"] * 4, completions=completions) == pytest.approx(alone, abs=1e-5)
    assert not model.training


def test_segments_of_a_pair_reach_models_that_have_them() -> None:
    tokenizer = word_tokenizer(cls_token="<bos>", sep_token="<sep>", pad_token="<pad>")
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <sep>", pair="<bos> $A <sep> $B:1 <sep>:1", special_tokens=[("<bos>", 2), ("<sep>", 3)]
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(W), num_labels=2, max_position_embeddings=32, initializer_range=0.5, **size)
    ).eval()
    row = torch.tensor([ids("<bos> w1 w2 <sep> w3 <sep>")])
    with torch.no_grad():
        expected = model(row, token_type_ids=torch.tensor([[0, 0, 0, 0, 1, 1]])).logits[0, 1].item()
        flat = model(row).logits[0, 1].item()
    assert abs(expected - flat) > 1e-3
    reward = ClassifierReward(model, tokenizer=tokenizer, logit=1)
    scores = reward(prompts=["w1 w2", "w1"], completions=["w3", "w4 w5 w6"])
    assert scores[0] == pytest.approx(expected, abs=1e-5)


def test_an_encoder_decoder_is_loaded_from_a_folder_and_scores_pairs(tmp_path: Path) -> None:
    size = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 8)
    layers = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    labels = {"id2label": {0: "HALLUCINATED", 1: "FAITHFUL"}, "label2id": {"HALLUCINATED": 0, "FAITHFUL": 1}}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 1}
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(W), max_position_embeddings=32, init_std=0.5, **size, **layers, **labels, **tokens
    )
    model = BartForSequenceClassification(config).eval()
    tokenizer = word_tokenizer(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <eos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with torch.no_grad():
        rows = ["<bos> w3 <eos> <eos> w1 w2 <eos>", "<bos> w4 w5 w6 <eos> <eos> w1 <eos>"]
        expected = [model(torch.tensor([ids(row)])).logits[0, 1].item() for row in rows]
    reward = ClassifierReward(str(tmp_path), inputs=["{completion}", "{prompt}"], logit=1)
    assert reward(prompts=["w1 w2", "w1"], completions=["w3", "w4 w5 w6"]) == pytest.approx(expected, abs=1e-5)


def saved(folder: Path, model: Any = None) -> str:
    (model or tiny_gpt2()).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def test_an_instance_is_copied_and_pickled_without_the_model_it_loaded(tmp_path: Path) -> None:
    reward = ClassifierReward(saved(tmp_path / "org-judge"), dtype="float64")
    batch = {"prompts": ["w1", "w2"], "completions": ["w3", "w4 w5"]}
    before = pickle.dumps(reward)
    scores = reward(**batch)
    assert len(pickle.dumps(reward)) == len(before)
    for again in (pickle.loads(before), copy.deepcopy(reward), replace(reward, batch_size=1)):
        assert again._loaded is None
        assert reward_name(again) == again.__name__ == "org-judge"
        assert again(**batch) == pytest.approx(scores, abs=1e-12)


def test_the_spec_says_what_changes_scores() -> None:
    assert ClassifierReward("org/rm").spec == "org/rm"
    changed = ClassifierReward("org/rm", name="kind", inputs="{completion}", logit=1, batch_size=2, device="cpu")
    assert changed.spec == "org/rm(inputs=('{completion}',), logit=1)"
    assert ClassifierReward("org/rm", prompt_text=conversation).spec == "org/rm(prompt_text=conversation)"
    assert changed.__name__ == "kind"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"inputs": "{prompt}"},
            r"with \{completion\} and other fields among bos, cls, completion.*got \['{prompt}'\]",
        ),
        ({"inputs": ("{completion}", "{answer}")}, "got .*answer"),
        ({"inputs": ("a", "b", "{completion}")}, "one text or a pair"),
        ({"score": "rank"}, "score must be one of logit, probability; got 'rank'"),
        ({"keep_prompt": "middle"}, "keep_prompt must be one of start, end"),
    ],
)
def test_settings_are_checked_at_once(settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ClassifierReward("org/rm", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logit": 1}, "recorder has outputs 0 to 0; got logit=1"),
        ({"inputs": "{completion} {sep}"}, r"org/recorder has no sep token.*it has <bos>, <eos>, <unk>"),
        ({"tokenizer": None}, r"needs its tokenizer"),
    ],
)
def test_what_the_model_lacks_is_said_at_the_first_call(settings: dict, message: str) -> None:
    reward = ClassifierReward(RecordingModel(), **{"tokenizer": word_tokenizer(), **settings})
    with pytest.raises(ConfigurationError, match=message):
        reward(prompts=["w1"], completions=["w2"])


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    weights = tmp_path / "model.safetensors"
    torch.save(tiny_gpt2().state_dict(), tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ConfigurationError, match=r"(?s)safetensors files only.*refs/pr/<number>"):
        ClassifierReward(folder)(prompts=["w1"], completions=["w2"])


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    folder = saved(tmp_path, GPT2LMHeadModel(tiny_gpt2().config))
    with pytest.raises(ConfigurationError, match=r"no trained weights for score.weight: its scores would be random"):
        ClassifierReward(folder)(prompts=["w1"], completions=["w2"])


def test_trl_trains_on_two_classifiers(tmp_path: Path) -> None:
    kind = ClassifierReward(saved(tmp_path / "rm"), name="kind")
    brief = ClassifierReward(tiny_gpt2(), inputs="{completion} ?", tokenizer=word_tokenizer(), name="brief")
    logged = step_of_grpo(tmp_path, [kind, brief], ["w1 w2", "w3"])
    means = [logged[f"rewards/{name}/mean"] for name in ("kind", "brief")]
    assert all(map(math.isfinite, means))
    assert means[0] != means[1]
