"""Backbones whose tokenizers differ: which row of each model enters the soup of a token, worked out by hand."""

import json

import pytest
import torch
from tiny_merges import soup, tensors_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<unk>", "<eos>", "one", "two"]
ADDED = {
    "base": ["<base-a>"],
    "a": ["<a-b>", "<only-a>", "<base-a>"],
    "b": ["<only-b>", "<a-b>"],
    "c": ["<only-c>"],
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
ROWS = ("model.embed_tokens.weight", "lm_head.weight")
# β = .6, α = .2, μ = (.7, .3, 0): 1.25·(1.25, .25, -.5), and the share of the base
SHARES = {"a": 1.5625, "b": 0.3125, "c": -0.625, "base": -0.25}


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    """Folder of four models, each with the words and added tokens of its own; rows[model][token] in float64."""
    folder, rows = tmp_path_factory.mktemp("vocabularies"), {}
    for seed, (name, added) in enumerate(ADDED.items()):
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")
        tokenizer.add_tokens(added)
        tokenizer.save_pretrained(folder / name)
        torch.manual_seed(seed)
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=1.0, **sizes))
        model.save_pretrained(folder / name)
        tensors, vocabulary = model.state_dict(), tokenizer.get_vocab()
        rows[name] = {key: {word: tensors[key][i].double() for word, i in vocabulary.items()} for key in ROWS}
    return folder, rows


def config(folder, shares=(0.7, 0.3, 0.0), **rest):
    preference = {folder / name: share for name, share in zip("abc", shares, strict=True)}
    parameters = {"beta": 0.6, "extrapolation": 0.2}
    return soup(preference, parameters, base_model=str(folder / "base"), **rest)


@pytest.fixture
def merged_rows(command):
    """Merge, and return {tensor: {token: row}} as written, with the tokenizer."""

    def merged_rows(configuration):
        result, out = command(configuration, "--quiet")
        assert result.exit_code == 0, result.output or result.exception
        tokenizer, tensors = AutoTokenizer.from_pretrained(out), tensors_of(out)
        size = json.loads((out / "config.json").read_text())["vocab_size"]
        assert {len(tensors[key]) for key in ROWS} == {size}
        return {key: {word: tensors[key][i] for word, i in tokenizer.get_vocab().items()} for key in ROWS}, tokenizer

    return merged_rows


def assert_rows(merged, rows, donors):
    """Every token's row is Σ share·row over the models, each with its own row or that of its donor."""
    for key in ROWS:
        assert set(merged[key]) == set(donors)
        for word, donor in donors.items():
            total = sum(share * donor(name, rows, key) for name, share in SHARES.items())
            torch.testing.assert_close(merged[key][word].double(), total, rtol=0, atol=1e-5, msg=f"{key} {word}")


def row(word, **donor_of):
    """The row of a word in each model, or in the model that `donor_of` names for it."""
    return lambda name, rows, key: rows[donor_of.get(name, name)][key][word]


def mean_where_missing(word, *having):
    def pick(name, rows, key):
        own = name if name in having else None
        return rows[own][key][word] if own else sum(rows[other][key][word] for other in having) / len(having)

    return pick


UNION = {
    **{word: row(word) for word in WORDS},
    # The base knows it, so that the base's row stands in for b and c, with extrapolation or without.
    "<base-a>": row("<base-a>", b="base", c="base"),
    # a and b know it, the base does not: the mean of the two stands in for c and for the base.
    "<a-b>": mean_where_missing("<a-b>", "a", "b"),
    # One model knows it, so that every model gets that row, and as the shares sum to 1 so does the soup.
    **{f"<only-{name}>": row(f"<only-{name}>", a=name, b=name, c=name, base=name) for name in "abc"},
}


@pytest.mark.parametrize(
    "asked", [{"tokenizer_source": "union"}, {"tokenizer": {"source": "union"}}], ids=["old", "new"]
)
def test_union(vocabularies, merged_rows, asked):
    folder, rows = vocabularies
    merged, _ = merged_rows(config(folder, **asked))
    assert_rows(merged, rows, UNION)


def test_a_token_of_one_backbone_keeps_its_row_at_every_preference(vocabularies, merged_rows):
    folder, rows = vocabularies
    merged, _ = merged_rows(config(folder, shares=(0, 0, 1), tokenizer={"source": "union"}))
    for key in ROWS:
        torch.testing.assert_close(merged[key]["<only-b>"].double(), rows["b"][key]["<only-b>"], rtol=0, atol=1e-5)


def test_the_tokenizer_of_the_base(vocabularies, merged_rows):
    folder, rows = vocabularies
    merged, tokenizer = merged_rows(config(folder, tokenizer_source="base"))
    assert_rows(merged, rows, {word: UNION[word] for word in (*WORDS, "<base-a>")})
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(folder / "base").get_vocab()


def test_the_tokenizer_of_a_backbone(vocabularies, merged_rows):
    folder, rows = vocabularies
    merged, tokenizer = merged_rows(config(folder, tokenizer_source=str(folder / "a")))
    assert_rows(merged, rows, {word: UNION[word] for word in (*WORDS, *ADDED["a"])})
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(folder / "a").get_vocab()


def test_tokens_with_a_source_of_their_own(vocabularies, merged_rows):
    folder, rows = vocabularies
    tokens = {
        "two": {"source": str(folder / "b"), "force": True},
        "<a-b>": {"source": str(folder / "b")},
        "<new>": {"source": {"kind": "model_token", "model": str(folder / "c"), "token": "one"}},
    }
    merged, _ = merged_rows(config(folder, tokenizer={"source": "union", "tokens": tokens}))
    everyone = dict.fromkeys(SHARES)
    expected = {
        **UNION,
        "two": row("two", **dict.fromkeys(everyone, "b")),
        "<a-b>": row("<a-b>", c="b", base="b"),
        "<new>": row("one", **dict.fromkeys(everyone, "c")),
    }
    assert_rows(merged, rows, expected)


def test_padding_is_the_mean_row(vocabularies, command):
    folder, _ = vocabularies
    result, out = command(config(folder, tokenizer={"source": "base", "pad_to_multiple_of": 8}), "--quiet")
    assert result.exit_code == 0, result.output
    for key in ROWS:
        written = tensors_of(out)[key]
        assert len(written) == 8
        torch.testing.assert_close(written[5:], written[:5].mean(0).expand(3, -1), rtol=0, atol=1e-5)


def test_truncated_vocabularies_match_by_row_number(vocabularies, command):
    folder, _ = vocabularies
    result, out = command(config(folder), "--unsafe-truncate-embeddings", "--quiet")
    assert result.exit_code == 0, result.output
    for key in ROWS:
        expected = sum(share * tensors_of(folder / name)[key][:5].double() for name, share in SHARES.items())
        torch.testing.assert_close(tensors_of(out)[key].double(), expected, rtol=0, atol=1e-5)


def test_different_vocabularies_are_refused_without_a_tokenizer(vocabularies, command):
    folder, _ = vocabularies
    result, _ = command(config(folder), "--quiet")
    assert result.exit_code == 1
    assert "Tensor size mismatch for lm_head.weight" in str(result.exception)
    assert "tokenizer" in str(result.exception)


@pytest.mark.parametrize(
    ("asked", "expected"), [(TEMPLATE, TEMPLATE), ("chatml", "<|im_start|>")], ids=["text", "name"]
)
def test_chat_template(vocabularies, command, asked, expected):
    folder, _ = vocabularies
    result, out = command(config(folder, tokenizer_source="base", chat_template=asked), "--quiet")
    assert result.exit_code == 0, result.output
    assert expected in AutoTokenizer.from_pretrained(out).chat_template
