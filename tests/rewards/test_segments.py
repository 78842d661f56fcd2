"""Segments, their scores, and where the scores are."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_classifiers import WORDS, RecordingModel, W, ids, step_of_grpo, word_tokenizer
from tokenizers import processors
from transformers import BertConfig, BertForTokenClassification

from trl_bonesoup.errors import ConfigurationError, RewardError
from trl_bonesoup.rewards.dense import DenseScore
from trl_bonesoup.rewards.protocol import call_reward
from trl_bonesoup.rewards.segments import (
    SegmentedReward,
    SegmentReward,
    qa_completeness,
    qa_factuality,
    qa_relevance,
    split_sentences,
    split_subsentences,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two!  Three?", ["One.", " Two!", "  Three?"]),
        ("Dr. J. Smith paid 3.50 today. So did I. Fine.", ["Dr. J. Smith paid 3.50 today.", " So did I.", " Fine."]),
        ('He said "No." Then (why?) he left...', ['He said "No."', " Then (why?)", " he left..."]),
        ("1. Wash\n2. Dry. Fold\n\n- iron ", ["1. Wash", "\n2. Dry.", " Fold", "\n\n- iron "]),
        ("Use it, e.g. here. OK", ["Use it, e.g. here.", " OK"]),
        ("She said no. He left", ["She said no.", " He left"]),
        ("no end", ["no end"]),
        ("  lead. trail.  \n ", ["  lead.", " trail.  \n "]),
        ("", []),
        (" \n\t", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d e, f g h i j", ["a b c d e,", " f g h i j"]),
        ("a b c d, f g h i j", ["a b c d, f g h i j"]),
        ("a b c d e, f g h i", ["a b c d e, f g h i"]),
        ("a, b, c, d, e, f g h i j; k l m n o p", ["a, b, c, d, e,", " f g h i j;", " k l m n o p"]),
        ("a b c d e f 1,000 h i j k l m", ["a b c d e f 1,000 h i j k l m"]),
        ("a b c d e, f g h i j. k, l", ["a b c d e,", " f g h i j.", " k, l"]),
    ],
)
def test_subsentences(text: str, expected: list[str]) -> None:
    assert split_subsentences(text) == expected


def test_clauses_may_be_shorter() -> None:
    assert split_subsentences("a, b; c", min_words=1) == ["a,", " b;", " c"]


@given(st.text(alphabet="ab1 .,!?\n\"')…"))
def test_segments_are_the_whole_text_and_none_is_blank(text: str) -> None:
    for split in (split_sentences, split_subsentences):
        segments = split(text)
        assert "".join(segments) == (text if text.strip() else "")
        assert all(segment.strip() for segment in segments)


def score_by_length(prompt: str, segments: list[str]) -> list[float | None]:
    return [None if "skip" in segment else float(len(segment)) for segment in segments]


def test_a_function_of_segments_gives_dense_scores() -> None:
    reward = SegmentedReward(score_by_length)
    (first, second, third, fourth) = call_reward(
        reward, "lengths", prompts=["p"] * 4, completions=["Yes. No no.", "skip. Go.", "", "skip"]
    )
    assert isinstance(first, DenseScore) and isinstance(second, DenseScore)
    assert (first, first.segments) == (11.0, ((4, 4.0), (11, 7.0)))
    assert (second, second.segments) == (4.0, ((9, 4.0),))
    assert third is None and fourth is None
    assert pickle.loads(pickle.dumps(reward)).__name__ == "score_by_length"


def test_the_function_sees_prompt_and_segments_of_a_conversation() -> None:
    seen = []

    def score(prompt: str, segments: list[str]) -> list[float]:
        seen.append((prompt, segments))
        return [0.0] * len(segments)

    chat = [{"role": "user", "content": "Why?"}]
    SegmentedReward(score)(prompts=[chat], completions=[[{"role": "assistant", "content": "So. There."}]])
    SegmentedReward(score, prompt_column="question")(prompts=["p"], completions=["Yes."], question=["q"])
    assert seen == [("Why?", ["So.", " There."]), ("q", ["Yes."])]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_segments": lambda prompt, segments: [1.0]}, "1 scores were returned for 2 segments"),
        ({"score_segments": lambda prompt, segments: [1.0, math.inf]}, "must be finite, or None.*got inf"),
        ({"score_segments": score_by_length, "split": lambda text: text.split(".")}, "give the text again when joined"),
        ({"score_segments": score_by_length, "split": lambda text: []}, "give the text again when joined"),
    ],
)
def test_wrong_segments_and_scores_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        SegmentedReward(**settings)(prompts=["p"], completions=["Yes. No."])


class TokenModel(RecordingModel):
    """Calls each token's class by its position: position t has class t modulo the number of classes."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: Any) -> Any:
        output = super().forward(input_ids, attention_mask)
        output.logits = (
            torch.nn.functional.one_hot(torch.arange(input_ids.shape[1]) % 3, 3).float().expand(len(input_ids), -1, -1)
        )
        return output


def bert_tokenizer() -> Any:
    """[CLS] is <bos>, and like BERT's it adds the separator at the end, too."""
    tokenizer = word_tokenizer(cls_token="<bos>", sep_token="<sep>", pad_token="<pad>")
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <sep>", special_tokens=[("<bos>", 2), ("<sep>", 3)]
    )
    return tokenizer


def words(text: str) -> list[str]:
    """Each word is a segment."""
    parts = text.split(" ")
    return [part if i == 0 else f" {part}" for i, part in enumerate(parts)] if text.strip() else []


VALUES = {0: 10.0, 1: 20.0, 2: 30.0}


def test_each_segment_is_scored_at_the_separator_before_it() -> None:
    model = TokenModel()
    reward = SegmentReward(model, VALUES, split=words, prefix="? {prompt}", tokenizer=bert_tokenizer(), batch_size=1)
    scores = reward(prompts=["w1", "w1 w2"], completions=["w3 w4", "w5"])
    assert model.seen == [ids("<bos> ? w1 w2 <sep> w5 <sep>"), ids("<bos> ? w1 <sep> w3 <sep> w4 <sep>")]
    # Separators at tokens 3 and 5: classes 0 and 2; at token 4: class 1.
    assert [score.segments for score in scores if score is not None] == [((2, 10.0), (5, 30.0)), ((2, 20.0),)]
    assert scores == [40.0, 20.0]


def test_only_the_named_classes_count() -> None:
    """Class 1 is the most likely one at every separator, and does not count."""
    model = RecordingModel()
    model.forward = lambda **batch: type("Output", (), {"logits": torch.tensor([[[0.2, 0.9, 0.1]] * 8])})()
    reward = SegmentReward(model, {0: -0.5, 2: 0.5}, split=words, tokenizer=bert_tokenizer())
    assert reward(prompts=["w1"], completions=["w3"]) == [-0.5]


def test_an_empty_completion_has_no_score() -> None:
    reward = SegmentReward(TokenModel(), VALUES, tokenizer=bert_tokenizer())
    assert reward(prompts=["w1", "w1"], completions=["", "w2"])[0] is None


def test_a_long_prompt_is_cut_and_segments_beyond_the_context_have_no_score() -> None:
    settings = {"split": words, "prefix": "{prompt}", "tokenizer": bert_tokenizer()}
    model = TokenModel()
    (score,) = SegmentReward(model, VALUES, max_length=7, **settings)(prompts=["w1 w2 w3"], completions=["w4 w5"])
    assert model.seen == [ids("<bos> w3 <sep> w4 <sep> w5 <sep>")]
    assert score.segments == ((2, 30.0), (5, 20.0))
    model = TokenModel()
    (score, none) = SegmentReward(model, VALUES, max_length=4, batch_size=1, **settings)(
        prompts=["w1", "w1"], completions=["w4 w5 w6", "w4 w5 w6"]
    )
    # The separator that the tokenizer adds at the end is not the one before w5.
    assert model.seen[0] == ids("<bos> <sep> w4 <sep>")
    assert score.segments == none.segments == ((2, 20.0),)
    assert SegmentReward(TokenModel(), VALUES, max_length=2, **settings)(prompts=["w1"], completions=["w4"]) == [None]


def test_ends_count_the_characters_of_the_completion_as_it_is() -> None:
    """White space and spelled-out special tokens change what the classifier reads, not where segments end."""
    model = TokenModel()
    reward = SegmentReward(model, VALUES, prefix="{prompt}", tokenizer=bert_tokenizer())
    text = "  w1 <sep> w2.  w3. "
    (score,) = reward(prompts=["w9"], completions=[text])
    assert model.seen == [ids("<bos> w9 <sep> w1 <unk> <unk> <unk> <sep> <unk> <sep>")]
    assert [end for end, _ in score.segments] == [len("  w1 <sep> w2."), len(text)]


def test_a_real_model_scores_padded_batches_as_single_samples(tmp_path: Path) -> None:
    torch.manual_seed(2)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForTokenClassification(
        BertConfig(
            vocab_size=len(WORDS),
            num_labels=3,
            max_position_embeddings=64,
            initializer_range=1.0,
            pad_token_id=0,
            **size,
        )
    ).eval()
    model.save_pretrained(tmp_path)
    bert_tokenizer().save_pretrained(tmp_path)
    rows = ["? w1 <sep> w2 <sep> w3 <sep> w4", "? w1 <sep> w5 <sep> w6"]
    expected = []
    for row in rows:
        tokens = torch.tensor([ids(f"<bos> {row} <sep>")])
        with torch.no_grad():
            classes = model(tokens).logits[0].argmax(dim=-1)
        expected.append([VALUES[c] for t, c in zip(tokens[0, :-1], classes.tolist(), strict=False) if t == W["<sep>"]])
    assert len({value for row in expected for value in row}) > 1
    reward = SegmentReward(str(tmp_path), VALUES, split=words, prefix="? {prompt}")
    scores = reward(prompts=["w1", "w1"], completions=["w2 w3 w4", "w5 w6"])
    assert [[part for _, part in score.segments] for score in scores] == expected


def test_the_rewards_of_qa_feedback() -> None:
    """Values of FineGrainedRLHF's fine_grained_config.yml; positions as worked out in the comments."""
    batch = {"prompts": ["w1"], "completions": ["w2 w3"], "question": ["w8"]}
    model = TokenModel()
    # <bos> w1 answer: <sep>: the separator is token 3, class 0, an error.
    assert qa_factuality(model, tokenizer=bert_tokenizer())(**batch) == [-0.5]
    assert model.seen == [ids("<bos> w1 <unk> <sep> w2 w3 <sep>")]
    model = TokenModel()
    # <bos> question: w8 answer: <sep>: token 4, class 1, irrelevant.
    assert qa_relevance(model, tokenizer=bert_tokenizer())(**batch) == [-0.3]
    assert model.seen == [ids("<bos> <unk> w8 <unk> <sep> w2 w3 <sep>")]
    model = RecordingModel([[2.0]])
    completeness = qa_completeness(model, tokenizer=word_tokenizer())(**batch)
    assert model.seen == [ids("w1 <unk> w2 w3")]
    assert completeness == [pytest.approx(0.088426, abs=1e-6)]  # (2 + .446777) / 8.301161 · .3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"values": {0: 1.0}}, "at least 2 classes"),
        ({"values": {0: 1.0, 1: math.nan}}, "finite reward"),
        ({"prefix": "{question}"}, r"the field \{prompt\} and no other"),
        ({"separator": "[sep]"}, "separator must be one of sep, eos, cls, bos"),
    ],
)
def test_settings_of_segment_rewards_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SegmentReward("org/rm", **{"values": VALUES, **settings})


def test_classes_that_the_model_lacks_are_named() -> None:
    reward = SegmentReward(TokenModel(), {0: 1.0, 7: 2.0}, tokenizer=bert_tokenizer())
    with pytest.raises(ConfigurationError, match=r"classes 0 to 2; values name \[0, 7\]"):
        reward(prompts=["w1"], completions=["w2"])


def test_trl_trains_on_segments(tmp_path: Path) -> None:
    lengths = SegmentedReward(score_by_length, split=words, name="lengths")
    classes = SegmentReward(TokenModel(), VALUES, split=words, tokenizer=bert_tokenizer(), name="classes")
    logged = step_of_grpo(tmp_path, [lengths, classes], ["w1 w2", "w3"])
    assert logged["rewards/lengths/mean"] > 0
    assert logged["rewards/classes/mean"] >= 10
