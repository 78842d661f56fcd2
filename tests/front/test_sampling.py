import numpy as np
import pytest
import torch

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.sampling import SeededSampler, generate, gumbel_noise, row_seed

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])


def sampled(logits_BV, seeds, *, step=0, temperature=1.0):
    input_ids = torch.zeros(len(seeds), 3 + step, dtype=torch.long)
    sampler = SeededSampler(seeds, prompt_length=3, temperature=temperature)
    return sampler(input_ids, logits_BV).argmax(dim=-1).tolist()


def chi_square(counts, probabilities) -> float:
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_follow_the_softmax_at_the_temperature(temperature):
    tokens = sampled(LOGITS.expand(4000, -1), list(range(4000)), temperature=temperature)
    counts = np.bincount(tokens, minlength=5)
    weights = np.exp(LOGITS.double().numpy() / temperature)
    assert chi_square(counts, weights / weights.sum()) < 18.47  # .999 quantile at 4 degrees of freedom
    other = np.exp(LOGITS.double().numpy() / (1.5 * temperature))
    assert chi_square(counts, other / other.sum()) > 18.47  # the test can tell a wrong temperature


def test_tokens_of_one_row_follow_the_softmax_over_its_steps():
    counts = np.bincount([sampled(LOGITS[None], [11], step=t)[0] for t in range(3000)], minlength=5)
    assert chi_square(counts, torch.softmax(LOGITS.double(), 0).numpy()) < 18.47


def test_noise_has_the_moments_of_a_gumbel():
    noise = gumbel_noise(3, 0, 200_000)
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert noise.var() == pytest.approx(np.pi**2 / 6, rel=0.02)


def test_noise_depends_on_seed_and_step_alone():
    np.testing.assert_array_equal(gumbel_noise(5, 2, 10), gumbel_noise(5, 2, 10))
    for other in (gumbel_noise(6, 2, 10), gumbel_noise(5, 3, 10), gumbel_noise(2, 5, 10)):
        assert not np.isin(other, gumbel_noise(5, 2, 10)).any()


def test_rows_with_one_seed_share_their_noise_and_others_do_not():
    scores = SeededSampler([8, 9, 8], prompt_length=1)(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 50))
    assert torch.equal(scores[0], scores[2])
    assert not torch.equal(scores[0], scores[1])
    np.testing.assert_allclose(scores[1], gumbel_noise(9, 0, 50), rtol=1e-6)


def test_noise_is_drawn_once_per_distinct_seed(monkeypatch):
    from trl_bonesoup.front import sampling

    drawn = []
    monkeypatch.setattr(sampling, "gumbel_noise", lambda seed, step, size: drawn.append((seed, step)) or np.zeros(size))
    SeededSampler([4, 4, 7, 4], prompt_length=2)(torch.zeros(4, 5, dtype=torch.long), torch.zeros(4, 6))
    assert drawn == [(4, 3), (7, 3)]


def test_temperature_zero_is_greedy():
    assert sampled(torch.stack([LOGITS, -LOGITS]), [1, 2], temperature=0.0) == [0, 3]


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_other_temperatures_are_refused(temperature):
    with pytest.raises(ConfigurationError, match="0 is greedy"):
        SeededSampler([1], 1, temperature)


def test_seeds_must_fit_the_batch():
    with pytest.raises(ConfigurationError, match="seeds for 1 rows but the batch has 2"):
        SeededSampler([1], 1)(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 4))
    with pytest.raises(ConfigurationError, match=r"2\*\*64"):
        SeededSampler([-1], 1)


def test_row_seeds_differ_by_seed_prompt_and_sample():
    seeds = {row_seed(s, p, k) for s in range(3) for p in range(20) for k in range(4)}
    assert len(seeds) == 240
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert row_seed(0, 1, 2) == row_seed(0, 1, 2)


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15], [5, 5, 5, 5]]
SEEDS = [100, 101, 102, 103, 104]


@pytest.fixture
def answers(tokenizer):
    def answer(model, prompts, seeds, temperature=1.0, tokens=12):
        return generate(model, tokenizer, prompts, seeds, max_new_tokens=tokens, temperature=temperature)

    return answer


@torch.no_grad()
def one_by_one(model, prompt, seed, temperature, tokens=12):
    """Sample without cache, padding, batch or generate()."""
    ids = list(prompt)
    for step in range(tokens):
        logits = model(torch.tensor([ids])).logits[0, -1].double().numpy()
        noisy = logits if temperature == 0 else logits / temperature + gumbel_noise(seed, step, len(logits))
        token = int(noisy.argmax())
        if token == 1:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_a_batch_equals_a_plain_loop_over_each_row(model, answers, temperature):
    expected = [one_by_one(model, p, s, temperature) for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert answers(model, PROMPTS, SEEDS, temperature) == expected
    assert len({tuple(answer) for answer in expected}) > 1


def test_an_answer_does_not_depend_on_the_rows_beside_it(model, answers):
    together = answers(model, PROMPTS, SEEDS)
    assert answers(model, PROMPTS[::-1], SEEDS[::-1]) == together[::-1]
    assert [answers(model, [p], [s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)] == together
    assert any(len(answer) < 12 for answer in together)  # some stop early, so that stopped rows were in the batch


def test_the_models_own_sampling_settings_do_not_bend_the_distribution(model, answers):
    expected = answers(model, PROMPTS, SEEDS)
    model.generation_config.update(
        do_sample=True, top_k=1, top_p=0.1, temperature=0.1, repetition_penalty=5.0, no_repeat_ngram_size=1
    )
    assert answers(model, PROMPTS, SEEDS) == expected


def test_answers_end_before_any_of_the_models_end_tokens(model, answers):
    free = answers(model, PROMPTS, SEEDS)
    stop = free[2][1]
    model.generation_config.eos_token_id = [1, stop]
    for answer, longer in zip(answers(model, PROMPTS, SEEDS), free, strict=True):
        assert answer == longer[: longer.index(stop) if stop in longer else None]
