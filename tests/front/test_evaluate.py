import contextlib
import json

import numpy as np
import pytest
import torch

from trl_bonesoup.errors import ConfigurationError, FrontError, RewardError, WeightsError
from trl_bonesoup.front.evaluate import evaluate_front, evaluate_policies
from trl_bonesoup.front.policies import Answer
from trl_bonesoup.front.sampling import generate, row_seed
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.soup.lora import BoneSoup

PROMPTS = ["the cat", "a happy dog runs and the sun is good .", "sad", "the sea was cold and bad .", "good"]
GRID = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])


def good(completions, **_):
    return [sum(word in {"good", "happy", "sun"} for word in text.split()) for text in completions]


def brief(completions, **_):
    return [-0.1 * len(text.split()) for text in completions]


REWARDS = [good, brief]


def evaluate(soup, prompts=PROMPTS, reward_funcs=REWARDS, preferences=GRID, **options):
    options = {"max_new_tokens": 8, "show_progress": False, "seed": 3, **options}
    return evaluate_front(soup, prompts, reward_funcs, preferences, **options)


def read_samples(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def one_answer(soup, coefficients, prompt_ids, seed, temperature=1.0):
    """Answer one prompt by itself, with the whole model set to one λ."""
    soup.set_coefficients(coefficients)
    (ids,) = generate(soup.model, soup.tokenizer, [prompt_ids], [seed], max_new_tokens=8, temperature=temperature)
    return soup.tokenizer.decode(ids, skip_special_tokens=True)


# β = .75, N = 2: λ = (2μ - .5), worked out by hand
COEFFICIENTS = [[1.5, -0.5], [0.5, 0.5], [-0.5, 1.5], [0, 0], [1, 0], [0, 1]]
LABELS = ["base", "backbone good", "backbone brief"]


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_answers_and_means_equal_every_model_run_by_itself(soup_folder, tmp_path, kind):
    soup = BoneSoup.from_pretrained(soup_folder(kind=kind))
    front = evaluate(soup, samples_per_prompt=2, batch_size=7, samples_path=tmp_path / "samples.jsonl")
    np.testing.assert_allclose(front.coefficients_KN, COEFFICIENTS[:3], atol=1e-12)
    assert list(front.markers) == LABELS
    got = np.array([s["completion"] for s in read_samples(tmp_path / "samples.jsonl")]).reshape(6, len(PROMPTS), 2)
    assert len({*got.ravel()}) > 10

    other = BoneSoup.from_pretrained(soup_folder(kind=kind))
    means = []
    for m, coefficients in enumerate(COEFFICIENTS):
        for p, prompt in enumerate(PROMPTS):
            ids = other.tokenizer(prompt)["input_ids"]
            assert [one_answer(other, coefficients, ids, row_seed(3, p, s)) for s in range(2)] == got[m, p].tolist()
        texts = got[m].ravel().tolist()
        means.append([np.mean(good(texts)), np.mean(brief(texts))])
    np.testing.assert_allclose(front.rewards_KN, means[:3])
    np.testing.assert_allclose([front.markers[label].rewards_N for label in LABELS], means[3:])
    assert (front.n_samples_KN == 10).all()


def test_nothing_depends_on_batches_or_on_what_else_is_evaluated(soup):
    front = evaluate(soup, batch_size=100)
    small = evaluate(soup, batch_size=2)
    np.testing.assert_array_equal(front.rewards_KN, small.rewards_KN)
    np.testing.assert_array_equal(front.intervals_KN2, small.intervals_KN2)
    alone = evaluate(soup, preferences=GRID[1:2], include_markers=False)
    np.testing.assert_array_equal(alone.rewards_KN[0], front.rewards_KN[1])
    assert alone.markers == {}


def test_preferences_share_their_random_numbers(soup_folder):
    """With two equal backbones every λ that sums to 1 is the same model, so all must answer alike."""
    front = evaluate(BoneSoup.from_pretrained(soup_folder(same=True)))
    for rewards_N in [*front.rewards_KN, front.markers["backbone good"].rewards_N]:
        np.testing.assert_array_equal(rewards_N, front.rewards_KN[0])
    assert (front.markers["base"].rewards_N != front.rewards_KN[0]).any()


def test_the_seed_decides_the_answers(soup):
    assert (evaluate(soup).rewards_KN == evaluate(soup).rewards_KN).all()
    assert (evaluate(soup).rewards_KN != evaluate(soup, seed=4).rewards_KN).any()


def test_answers_are_those_of_training_where_it_is_recorded(soup, monkeypatch):
    recorded = soup.manifest.model_copy(update={"training": {"max_completion_length": 6, "temperature": 0.5}})
    monkeypatch.setattr(type(soup), "manifest", property(lambda _: recorded))
    front = evaluate(soup, max_new_tokens=None)
    assert front.provenance["decoding"] == {"max_new_tokens": 6, "temperature": 0.5}
    front = evaluate(soup, max_new_tokens=7, temperature=1)
    assert front.provenance["decoding"] == {"max_new_tokens": 7, "temperature": 1.0}


@pytest.mark.parametrize("training", [{}, {"max_completion_length": None}, {"max_completion_length": 0},
                                      {"max_completion_length": True, "temperature": False},
                                      {"max_completion_length": 6.5, "temperature": -1.0},
                                      {"max_completion_length": "six", "temperature": "hot"},
                                      {"temperature": 1e400}])  # fmt: skip
def test_what_training_records_is_taken_only_if_it_can_be(training):
    assert EvaluationSettings.of_training(training, seed=2) == EvaluationSettings(seed=2)


def test_temperature_zero_ignores_the_seed(soup):
    greedy = evaluate(soup, temperature=0.0)
    np.testing.assert_array_equal(greedy.rewards_KN, evaluate(soup, temperature=0, seed=4).rewards_KN)


def test_extrapolation_reaches_the_coefficients(soup):
    front = evaluate(soup, extrapolation=0.5, include_markers=False)  # k = 2: twice λ
    np.testing.assert_allclose(front.coefficients_KN, [[3, -1], [1, 1], [-1, 3]], atol=1e-12)
    assert front.provenance["extrapolation"] == 0.5
    assert (front.rewards_KN != evaluate(soup, include_markers=False).rewards_KN).any()


def test_preferences_by_name_and_rewards_by_name(soup):
    by_name = evaluate(
        soup, preferences=[{"good": 1.0}, {"brief": 0.5, "good": 0.5}, {"brief": 1}],
        reward_funcs={"brief": brief, "good": good},
    )  # fmt: skip
    plain = evaluate(soup)
    np.testing.assert_array_equal(by_name.preferences_KN, GRID)
    np.testing.assert_array_equal(by_name.rewards_KN, plain.rewards_KN)
    assert by_name.objectives == ("good", "brief")


def test_other_names_for_other_rewards(soup):
    assert evaluate(soup, objective_names=["quality", "length"]).objectives == ("quality", "length")


# any policies


class Scripted:
    """Two policies and a marker that answer with their own name, the prompt and the sample, and tell no tokens."""

    objectives = ("good", "brief")
    preferences_KN = np.array([[0.25, 0.75], [1.0, 0.0]])
    coefficients_KN = None
    markers = ("other",)
    groups = ((2, 0), (1,))
    order = (1, 2, 0)
    texts = ("p0", "p1", "p2")

    def __init__(self):
        self.batches, self.seeds = [], {}

    @contextlib.contextmanager
    def answering(self, prompts, settings):
        assert prompts.given == list(self.texts)
        yield self

    def __call__(self, batch, seeds):
        self.batches.append([(row.model, row.prompt, row.sample) for row in batch])
        for row, seed in zip(batch, seeds, strict=True):
            self.seeds.setdefault((row.prompt, row.sample), set()).add(seed)
        return [Answer(f"{row.model} {row.prompt} {row.sample}", None) for row in batch]

    def provenance(self):
        return {"method": "scripted"}


def test_any_policies_are_measured_in_their_groups_and_order():
    policies = Scripted()
    settings = EvaluationSettings(samples_per_prompt=2, batch_size=5, seed=9)

    def score(prompts, completions, **columns):
        assert "completion_ids" not in columns
        assert [prompt[1] for prompt in prompts] == [text[2] for text in completions]
        return [100 * int(text[0]) + 10 * int(text[2]) + int(text[4]) for text in completions]

    front = evaluate_policies(
        policies, ["p0", "p1", "p2"], {"brief": lambda completions, **_: [-1.0] * len(completions), "good": score},
        settings, show_progress=False,
    )  # fmt: skip
    rows = [(m, p, s) for p in (1, 2, 0) for s in (0, 1) for m in (2, 0)]
    assert policies.batches == [rows[:5], rows[5:10], rows[10:], [(1, p, s) for p in (1, 2, 0) for s in (0, 1)][:5],
                                [(1, 0, 1)]]  # fmt: skip
    # every model gave prompt 0..2 and sample 0..1: the mean of 10 p + s is 10.5
    np.testing.assert_allclose(front.rewards_KN, [[10.5, -1.0], [110.5, -1.0]])
    np.testing.assert_allclose(front.markers["other"].rewards_N, [210.5, -1.0])
    np.testing.assert_array_equal(front.preferences_KN, Scripted.preferences_KN)
    assert front.coefficients_KN is None
    assert front.provenance["method"] == "scripted"
    assert policies.seeds == {(p, s): {row_seed(9, p, s)} for p in range(3) for s in range(2)}


# what reward functions see


def test_text_rewards_get_prompts_completions_ids_and_columns(soup):
    from datasets import Dataset

    seen = []

    def spy(prompts, completions, completion_ids, topic, **columns):
        assert columns == {}
        seen.extend(zip(prompts, completions, completion_ids, topic, strict=True))
        return [0.0] * len(prompts)

    topics = [f"topic {i}" for i in range(5)]
    data = Dataset.from_dict({"prompt": PROMPTS, "topic": topics, "completion": ["unused"] * 5})
    evaluate(soup, data, [spy, brief], samples_per_prompt=2)
    assert len(seen) == 6 * 5 * 2
    for prompt, completion, ids, topic in seen:
        assert topic == topics[PROMPTS.index(prompt)]
        assert completion == soup.tokenizer.decode(ids, skip_special_tokens=True)


def test_conversations_go_through_the_chat_template_and_come_back_as_messages(soup, tmp_path):
    seen = []

    def spy(prompts, completions, **_):
        seen.extend(zip(prompts, completions, strict=True))
        return [float(len(c[0]["content"])) for c in completions]

    chats = [
        [{"role": "user", "content": "the cat"}],
        [{"role": "user", "content": "is"}, {"role": "assistant", "content": "the sea"}],
    ]
    evaluate(soup, chats, [spy, spy], samples_path=tmp_path / "s.jsonl", include_markers=False)
    samples = read_samples(tmp_path / "s.jsonl")
    texts = {0: "<user> the cat <eos> <assistant> ", 1: "<user> is <eos> <assistant> the sea"}
    for sample in samples:
        assert sample["prompt"].strip() == texts[sample["prompt_index"]].strip()
        message = [{"role": "assistant", "content": sample["completion"]}]
        assert (chats[sample["prompt_index"]], message) in seen


def test_async_rewards(soup):
    async def slow(completions, **_):
        return brief(completions)

    np.testing.assert_array_equal(evaluate(soup, reward_funcs=[good, slow]).rewards_KN, evaluate(soup).rewards_KN)


def test_none_is_left_out_of_that_objectives_mean_and_counted(soup, tmp_path):
    def picky(prompts, completions, **_):
        return [None if p == "sad" else s for p, s in zip(prompts, brief(completions), strict=True)]

    front = evaluate(soup, reward_funcs=[good, picky], samples_path=tmp_path / "s.jsonl")
    assert (front.n_samples_KN == [5, 4]).all()
    samples = read_samples(tmp_path / "s.jsonl")
    first = [s["scores"]["brief"] for s in samples if s["preference_index"] == 0]
    assert first.count(None) == 1
    assert front.rewards_KN[0, 1] == pytest.approx(np.mean([v for v in first if v is not None]))
    np.testing.assert_array_equal(front.rewards_KN[:, 0], evaluate(soup).rewards_KN[:, 0])


def test_none_for_every_answer_is_an_error(soup):
    with pytest.raises(FrontError, match=r"'brief' returned None for every answer of \[1\.0, 0\.0\]"):
        evaluate(soup, reward_funcs=[good, lambda completions, **_: [None] * len(completions)])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda n: [0.0] * (n - 1), "scores for"),
        (lambda n: [float("nan")] * n, "finite"),
        (lambda n: [float("inf")] * n, "finite"),
        (lambda n: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_broken_reward_is_named_and_the_soup_is_put_back(soup, scores, message):
    soup.set_preference([0.3, 0.7])
    before = soup.coefficients.copy()
    with pytest.raises(RewardError, match=rf"'brief' .*{message}"):
        evaluate(soup, reward_funcs=[good, lambda completions, **_: scores(len(completions))])
    np.testing.assert_array_equal(soup.coefficients, before)


# the soup afterwards


@pytest.mark.parametrize("kind", ["adapter", "full"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_soup_is_as_it_was(soup_folder, kind, fails):
    soup = BoneSoup.from_pretrained(soup_folder(kind=kind))
    soup.set_preference([0.3, 0.7])
    soup.model.train()
    ids = torch.tensor([[5, 6, 7]])
    before = soup.model(ids).logits
    calls = []

    def second_call_fails(completions, **_):
        calls.append(None)
        return None if fails and len(calls) == 2 else brief(completions)

    if fails:
        with pytest.raises(RewardError):
            evaluate(soup, reward_funcs=[good, second_call_fails], batch_size=4)
    else:
        evaluate(soup, reward_funcs=[good, second_call_fails], batch_size=4)
    np.testing.assert_array_equal(soup.preference, [0.3, 0.7])
    np.testing.assert_allclose(soup.coefficients, [0.1, 0.9])
    torch.testing.assert_close(soup.model(ids).logits, before)
    assert soup.model.training


def test_full_checkpoints_are_merged_once_per_model(soup_folder, monkeypatch):
    soup = BoneSoup.from_pretrained(soup_folder(kind="full"))
    merged = []
    monkeypatch.setattr(soup, "set_coefficients", lambda c, f=soup.set_coefficients: (merged.append(list(c)), f(c)))
    evaluate(soup, batch_size=2)
    np.testing.assert_allclose(merged[:6], COEFFICIENTS, atol=1e-12)
    assert len(merged) == 7  # and once to put back


# records


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_every_answer_is_written(soup, tmp_path, ending):
    path = tmp_path / "new" / f"samples.{ending}"
    front = evaluate(soup, samples_per_prompt=2, samples_path=path)
    if ending == "parquet":
        import pyarrow.parquet

        samples = pyarrow.parquet.read_table(path).to_pylist()
    else:
        samples = read_samples(path)
    assert [(s["preference_index"], s["marker"], s["prompt_index"], s["sample_index"]) for s in samples] == [
        (m if m < 3 else None, None if m < 3 else LABELS[m - 3], p, s)
        for m in range(6) for p in range(5) for s in range(2)
    ]  # fmt: skip
    assert samples[10]["preference"] == [0.5, 0.5]
    assert samples[30]["preference"] is None
    for i, name in enumerate(front.objectives):
        mean = np.mean([s["scores"][name] for s in samples if s["preference_index"] == 2])
        assert front.rewards_KN[2, i] == pytest.approx(mean)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_provenance_says_how_to_measure_again(soup):
    record = evaluate(soup, samples_per_prompt=2).provenance
    assert record["base_model"] == {"id": "base", "revision": None}
    assert [backbone["path"] for backbone in record["backbones"]] == ["b0", "b1"]
    assert record["combination_weights"] == [[0.75, 0.25], [0.25, 0.75]]
    assert (record["prompts"], record["samples_per_prompt"], record["seed"]) == (5, 2, 3)
    assert record["decoding"] == {"max_new_tokens": 8, "temperature": 1.0}
    assert record["rewards"] == {"good": "test_evaluate:good", "brief": "test_evaluate:brief"}
    assert record["prompts_source"] is None
    assert evaluate(soup, preferences=GRID[:1], prompts_source="org/set").provenance["prompts_source"] == "org/set"
    assert set(record["versions"]) == {"trl-bonesoup", "torch", "transformers", "peft", "numpy", "python"}
    assert set(record["machine"]) == {"system", "processor", "threads", "accelerators"}
    assert record["machine"]["processor"]
    assert record["prompts_sha256"] == evaluate(soup, preferences=GRID[:1]).provenance["prompts_sha256"]
    assert record["prompts_sha256"] != evaluate(soup, PROMPTS[::-1]).provenance["prompts_sha256"]


def test_progress_counts_answers(soup, capsys):
    evaluate(soup, show_progress=True)
    assert "30/30" in capsys.readouterr().err
    evaluate(soup)
    assert capsys.readouterr().err == ""


# errors come before any answer is generated


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompts": ["one"]}, ConfigurationError, "At least 2 prompts"),
        ({"reward_funcs": [good]}, ConfigurationError, "got 1 functions"),
        ({"reward_funcs": {"good": good, "other": brief}}, ConfigurationError, "as keys"),
        ({"reward_funcs": [good, "brief"]}, ConfigurationError, "'brief' must be callable"),
        ({"objective_names": ["brief", "good"]}, ConfigurationError, "another order"),
        ({"objective_names": ["good"]}, ConfigurationError, "different names"),
        ({"preferences": []}, ConfigurationError, "at least one preference"),
        ({"preferences": {"good": 1.0}}, ConfigurationError, "list of at least one"),
        ({"preferences": [[0.5, 0.4]]}, WeightsError, "sum to 1"),
        ({"preferences": [[1, 0], [1, 0]]}, FrontError, "once"),
        ({"extrapolation": 1.0}, WeightsError, "extrapolation"),
        ({"samples_per_prompt": 0}, ConfigurationError, "samples_per_prompt"),
        ({"max_new_tokens": 1.5}, ConfigurationError, "max_new_tokens"),
        ({"batch_size": True}, ConfigurationError, "batch_size"),
        ({"seed": -1}, ConfigurationError, "seed"),
        ({"temperature": -1.0}, ConfigurationError, "temperature"),
        ({"samples_path": "samples.csv"}, ConfigurationError, r"\.jsonl or \.parquet"),
    ],
)
def test_what_does_not_fit_is_refused_first(soup, monkeypatch, options, error, message):
    monkeypatch.setattr(type(soup.model), "generate", lambda *_, **__: pytest.fail("generated already"))
    with pytest.raises(error, match=message):
        evaluate(soup, **options)


def test_the_front_of_an_evaluation_survives_json(soup, tmp_path):
    from trl_bonesoup.front.front import Front

    front = evaluate(soup, preferences=GRID[:1], extrapolation=[0.1, 0.0])
    assert Front.from_json(front.to_json(tmp_path / "front.json")) == front
