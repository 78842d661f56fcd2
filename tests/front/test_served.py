"""Served models, on an endpoint of the loopback interface: what is sent, and what becomes of the replies."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from tiny_endpoint import TinyEndpoint, serving

from trl_bonesoup.endpoint import Endpoint
from trl_bonesoup.errors import ConfigurationError, EndpointError, WeightsError
from trl_bonesoup.front.evaluate import evaluate_policies
from trl_bonesoup.front.served import ServedPolicies
from trl_bonesoup.front.settings import EvaluationSettings

VERTICES = [[1.0, 0.0], [0.0, 1.0]]
TEXTS = ["one", "two", "three"]
CHATS = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in TEXTS]


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' offline mode would close the loopback interface to the client as well."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def server() -> Iterator[TinyEndpoint]:
    with serving() as server:
        yield server


def policies(server, **options):
    endpoint = Endpoint(server.url, backoff=0.01, **options.pop("endpoint", {}))
    return ServedPolicies(endpoint, ["seven", "nine"], VERTICES, ["good", "brief"], **options)


def measure(policies, prompts, rewards=None, **settings):
    settings = EvaluationSettings(**{"max_new_tokens": 8, "temperature": 0.7, "seed": 3, **settings})
    rewards = rewards or [number, number]
    return evaluate_policies(policies, prompts, rewards, settings, show_progress=False)


def number(completions, **columns):
    assert "completion_ids" not in columns
    return [float(c if isinstance(c, str) else c[0]["content"]) for c in completions]


def test_texts_are_completed_and_conversations_answered_by_the_model_of_each_preference(server):
    seven_or_nine = {"seven": "7", "nine": "9", "org/base": "1"}
    server.answer = lambda asked: seven_or_nine[(asked if isinstance(asked, dict) else server.requests[-1])["model"]]
    texts = measure(policies(server, markers={"base": "org/base"}), TEXTS)
    assert texts.rewards_KN.tolist() == [[7.0, 7.0], [9.0, 9.0]]
    assert texts.markers["base"].rewards_N.tolist() == [1.0, 1.0]
    assert texts.coefficients_KN is None
    assert texts.provenance["method"] == "endpoint"
    assert texts.provenance["models"] == ["seven", "nine", "org/base"]
    assert server.paths == {"/v1/completions"}
    assert {request["prompt"] for request in server.requests} == set(TEXTS)

    server.requests.clear()
    server.paths.clear()
    chats = measure(policies(server, endpoint={"concurrency": 1}), CHATS)
    assert chats.rewards_KN.tolist() == [[7.0, 7.0], [9.0, 9.0]]
    assert server.paths == {"/v1/chat/completions"}
    assert all(request["messages"] in CHATS for request in server.requests)


def test_each_request_says_how_to_decode_and_all_models_get_one_seed_per_prompt_and_sample(server):
    measure(policies(server, extra_body={"top_k": -1}), TEXTS, samples_per_prompt=2)
    assert len(server.requests) == 2 * 3 * 2
    seeds: dict[str, dict[str, list[int]]] = {}
    for request in server.requests:
        assert (request["max_tokens"], request["temperature"], request["top_p"], request["top_k"]) == (8, 0.7, 1.0, -1)
        assert 0 <= request["seed"] < 2**31
        seeds.setdefault(request["model"], {}).setdefault(request["prompt"], []).append(request["seed"])
    assert {k: sorted(v) for k, v in seeds["seven"].items()} == {k: sorted(v) for k, v in seeds["nine"].items()}
    assert len({seed for pair in seeds["seven"].values() for seed in pair}) == 6


def test_a_batch_is_sent_at_once_and_no_more_than_allowed(server):
    server.delay = 0.05
    measure(policies(server, endpoint={"concurrency": 3}), TEXTS, samples_per_prompt=2)
    assert server.most_open == 3
    server.most_open = 0
    measure(policies(server), TEXTS, batch_size=2)
    assert server.most_open == 2


def test_answers_come_back_in_order(server):
    server.answer = lambda asked: str(len(asked["prompt"]))
    seen = {}

    def spy(prompts, completions, **_):
        seen.update(zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    measure(policies(server), TEXTS, [spy, number])
    assert seen == {"one": "3", "two": "3", "three": "5"}


def test_what_may_pass_is_asked_again_and_a_refusal_stops_the_evaluation(server):
    left = [(500, "{}"), (200, "not json"), (200, '{"choices": []}')]
    server.answer = lambda asked: left.pop() if left else "4"
    assert measure(policies(server), TEXTS).rewards_KN.tolist() == [[4.0, 4.0]] * 2
    assert len(server.requests) == 6 + 3
    server.answer = lambda asked: (404, json.dumps({"error": "no model nine"}))
    with pytest.raises(EndpointError, match=r"endpoint at .* gave no reply in 1 attempt.*404"):
        measure(policies(server), TEXTS)


def test_an_empty_answer_is_one(server):
    server.answer = lambda asked: None
    lengths = [lambda completions, **_: [float(len(c[0]["content"])) for c in completions]] * 2
    assert measure(policies(server), CHATS, lengths).rewards_KN.tolist() == [[0.0, 0.0]] * 2


def test_the_key_is_sent_and_not_recorded(server, monkeypatch):
    monkeypatch.setenv("OWN_KEY", "sk-very-secret")
    front = measure(policies(server, endpoint={"api_key_env": "OWN_KEY"}), TEXTS)
    assert set(server.keys) == {"Bearer sk-very-secret"}
    assert "secret" not in json.dumps(front.provenance)
    monkeypatch.delenv("OWN_KEY")
    server.requests.clear()
    with pytest.raises(ConfigurationError, match="endpoint needs its key in the variable OWN_KEY"):
        measure(policies(server, endpoint={"api_key_env": "OWN_KEY"}), TEXTS)
    assert not server.requests


def test_an_address_alone_is_asked_under_its_version(server):
    plain = ServedPolicies(server.url.removesuffix("/v1"), ["m"], VERTICES[:1], ["good", "brief"])
    measure(plain, TEXTS)
    assert server.paths == {"/v1/completions"}
    assert server.keys == [None] * 3


def test_a_conversation_to_be_continued_needs_a_server_that_can(server):
    begun = [[*chat, {"role": "assistant", "content": "Well,"}] for chat in CHATS]
    with pytest.raises(ConfigurationError, match=r"Prompt 0 ends with a message of the assistant.*extra_body"):
        measure(policies(server), begun)
    assert not server.requests
    can = {"continue_final_message": True, "add_generation_prompt": False}
    assert measure(policies(server, extra_body=can), begun).rewards_KN.tolist() == [[7.0, 7.0]] * 2
    assert server.requests[0]["continue_final_message"] is True


def test_what_does_not_fit_is_refused(server):
    with pytest.raises(ConfigurationError, match="got 1 models and 2 preferences"):
        ServedPolicies(server.url, ["m"], VERTICES, ["good", "brief"])
    with pytest.raises(WeightsError, match="Unknown objective"):
        ServedPolicies(server.url, ["m"], [{"kind": 1.0}], ["good", "brief"])
    with pytest.raises(ConfigurationError, match="such as http"):
        ServedPolicies("localhost:8000", ["m"], VERTICES[:1], ["good", "brief"])
    with pytest.raises(ConfigurationError, match="Prompt 1 is empty"):
        measure(policies(server), ["one", ""])


def test_the_weights_order_is_that_of_the_objectives(server):
    named = ServedPolicies(server.url, ["a", "b"], [{"brief": 1}, {"good": 0.25, "brief": 0.75}], ["good", "brief"])
    np.testing.assert_array_equal(named.preferences_KN, [[0.0, 1.0], [0.25, 0.75]])
