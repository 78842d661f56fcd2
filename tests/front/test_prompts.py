import pytest

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.prompts import encode_prompts, read_prompts

CHAT = [{"role": "user", "content": "the cat"}]


def test_texts_are_encoded_as_they_are(tokenizer):
    prompts = read_prompts(["the cat", "a sea"])
    assert encode_prompts(prompts, tokenizer).token_ids == [
        tokenizer.convert_tokens_to_ids(t.split()) for t in ("the cat", "a sea")
    ]
    assert prompts.completion("is good") == "is good"
    assert prompts.columns == {}


def test_special_tokens_are_added_to_texts_but_not_twice_to_conversations(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    assert encode_prompts(read_prompts(["the", "a"]), tokenizer).token_ids[0][0] == 1
    assert encode_prompts(read_prompts([CHAT, CHAT]), tokenizer).token_ids[0] == tokenizer.convert_tokens_to_ids(
        ["<user>", "the", "cat", "<eos>", "<assistant>"]
    )


def test_a_conversation_is_answered_or_continued(tokenizer):
    prompts = read_prompts([CHAT, [*CHAT, {"role": "assistant", "content": "is"}]])
    texts = encode_prompts(prompts, tokenizer).texts
    assert texts[0].endswith("<assistant> ")
    assert texts[1].rstrip().endswith("<assistant> is")
    assert prompts.completion("happy") == [{"role": "assistant", "content": "happy"}]


def test_answers_are_decoded_without_special_tokens(tokenizer):
    prompts = encode_prompts(read_prompts(["the", "a"]), tokenizer)
    assert prompts.decode([tokenizer.convert_tokens_to_ids(["good", "<eos>", "<pad>"]), []]) == ["good", ""]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("the cat", "must be a list"),
        (CHAT[0], "must be a list"),
        ([], "got 0"),
        (["the", CHAT], "mix texts and conversations"),
        (["the", 7], "Prompt 1 must be"),
        (["the", None], "Prompt 1 must be"),
        ([CHAT, []], "Prompt 1 must be"),
        ([CHAT, [{"role": "user"}]], "Prompt 1 must be"),
        (["the", ""], "Prompt 1 is empty"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(tokenizer, prompts, message):
    with pytest.raises(ConfigurationError, match=message):
        encode_prompts(read_prompts(prompts), tokenizer)


def test_data_sets_need_a_prompt_column_and_one_split():
    from datasets import Dataset, DatasetDict

    data = Dataset.from_dict({"question": ["the", "a"]})
    with pytest.raises(ConfigurationError, match=r'column "prompt"; it has \[\'question\'\]'):
        read_prompts(data)
    with pytest.raises(ConfigurationError, match="one split"):
        read_prompts(DatasetDict(train=data))
    with pytest.raises(ConfigurationError, match="in memory"):
        read_prompts(data.to_iterable_dataset())


def test_missing_tokenizer_or_chat_template(tokenizer):
    with pytest.raises(ConfigurationError, match="no tokenizer"):
        encode_prompts(read_prompts(["the", "a"]), None)
    tokenizer.chat_template = None
    with pytest.raises(ConfigurationError, match="no chat template"):
        encode_prompts(read_prompts([CHAT, CHAT]), tokenizer)
