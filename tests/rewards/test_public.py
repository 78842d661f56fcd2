"""The exact text that each public reward model is given. The models themselves are not run here."""

from dataclasses import replace

import pytest
from tiny_classifiers import RecordingModel, byte_tokenizer

from trl_bonesoup.rewards.classifier import ClassifierReward
from trl_bonesoup.rewards.protocol import reward_name
from trl_bonesoup.rewards.public import (
    faithful_summary,
    harmless,
    helpful,
    hh_transcript,
    humor,
    summary_quality,
)
from trl_bonesoup.rewards.spec import PUBLIC, load_reward, reward_spec

QUESTION = "I just came out of from jail, any suggestion of my future?"
ANSWER = "Sorry, I don't understand."


def read(reward: ClassifierReward, prompt: object, answer: str, *, bart: bool = False, **columns: list) -> str:
    """The text that the classifier is given, special tokens included."""
    model, tokenizer = RecordingModel(logits=[[0.0, 0.0]]), byte_tokenizer(bart=bart)
    replace(reward, model=model, tokenizer=tokenizer)(prompts=[prompt], completions=[answer], **columns)
    return tokenizer.decode(model.seen[0])


@pytest.mark.parametrize("reward", [helpful, harmless])
@pytest.mark.parametrize(
    "prompt",
    [QUESTION, [{"role": "user", "content": QUESTION}], f"\n\nHuman: {QUESTION} \n\nAssistant:"],
    ids=["plain", "chat", "hh"],
)
def test_question_and_answer_are_those_of_the_model_cards(reward: ClassifierReward, prompt: object) -> None:
    assert read(reward, prompt, f" {ANSWER}") == (
        "\n\nHuman: I just came out of from jail, any suggestion of my future? \n\nAssistant:Sorry, I don't understand."
    )
    assert reward.logit == 0


def test_a_conversation_of_several_turns() -> None:
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye\n")]
    prompt = [{"role": role, "content": content} for role, content in turns]
    assert hh_transcript(prompt) == "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Bye \n\nAssistant:"


def test_humor_reads_the_answer_alone() -> None:
    assert read(humor, QUESTION, ANSWER) == ANSWER
    assert humor.logit == 1


def test_summaries_come_before_their_posts() -> None:
    post = {"post": [" My cat ate\nthe fish. "]}
    quality = read(summary_quality, "Summarise: My cat", " Cat ate fish.", **post)
    assert quality == "Cat ate fish. <|endoftext|> My cat ate the fish."
    assert summary_quality.logit == 0
    faithful = read(faithful_summary, "Summarise: My cat", "Cat ate fish.", bart=True, **post)
    assert faithful == "<s>Cat ate fish.</s></s>My cat ate the fish.</s>"
    assert faithful_summary.logit == 1


def test_a_long_post_loses_its_end_and_a_long_conversation_its_beginning() -> None:
    short = replace(summary_quality, max_length=7)
    assert read(short, "", "Cat", post=["abcdef"]) == "Cat <|endoftext|> a"
    assert read(replace(helpful, max_length=14), "abc", "Yes") == "Assistant:Yes"[-14:].rjust(14, "\n")


@pytest.mark.parametrize("name", PUBLIC)
def test_each_has_a_short_name_and_is_recorded_in_full(name: str) -> None:
    reward = load_reward(name)
    assert reward_name(reward) == name
    assert reward_spec(reward) == f"trl_bonesoup.rewards.public:{name}"
    assert load_reward(reward_spec(reward)) is reward
    assert reward_spec(replace(reward, shift=1.0)).startswith(reward.model)
