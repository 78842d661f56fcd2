"""Secrets and paths of this machine: what is shown, saved and uploaded does not hold them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trl_bonesoup import MultiRewardPPOConfig
from trl_bonesoup.errors import HubError
from trl_bonesoup.privacy import check_private, portable_config, secrets_of, tokens_left_out
from trl_bonesoup.rewards.spec import reward_spec
from trl_bonesoup.training.request import seek_request
from trl_bonesoup.training.run import Run

TOKEN, NESTED = "hf_secretOfMine", "hf_secretInTheModelsArguments"


def config(**changes: Any) -> MultiRewardPPOConfig:
    settings = {"hub_token": TOKEN, "model_init_kwargs": {"token": NESTED, "revision": "main"}, **changes}
    return MultiRewardPPOConfig("unused", use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize(
    "shown", [repr, str, MultiRewardPPOConfig.to_json_string, lambda args: json.dumps(args.to_sanitized_dict())]
)
def test_settings_are_shown_without_tokens(shown: Callable[[MultiRewardPPOConfig], str]) -> None:
    args = config()
    text = shown(args)
    assert TOKEN not in text and NESTED not in text
    assert "HUB_TOKEN" in text and "kl_coef" in text and "main" in text
    assert args.hub_token == TOKEN and args.model_init_kwargs == {"token": NESTED, "revision": "main"}


def test_tokens_come_back_after_saving_even_if_it_fails() -> None:
    args = config()

    def save() -> None:
        with tokens_left_out(args):
            assert args.hub_token is None and args.model_init_kwargs == {"revision": "main"}
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save()
    assert args.hub_token == TOKEN and args.model_init_kwargs == {"token": NESTED, "revision": "main"}


def test_a_reward_is_recorded_without_its_key() -> None:
    def judged(completions: list[str], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    spec = reward_spec(functools.partial(judged, api_key="sk-secret", model="org/judge"))
    assert "sk-secret" not in spec and "model='org/judge'" in spec


def test_the_records_of_a_run_hold_no_token_and_name_the_critic_without_its_folder(tmp_path: Path) -> None:
    def judged(completions: list[str], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    rewards = [functools.partial(judged, api_key="sk-secret", model=model) for model in ("org/a", "org/b")]
    weights = np.array([[0.7, 0.3], [0.3, 0.7]])
    request = seek_request("org/sft", rewards, ["a", "b"], weights, config(), None, None, "/home/ann/critic")
    run = Run.open(tmp_path, request)
    run.manifest(weights, ["a", "b"], [1, 1]).save(tmp_path)
    recorded = (tmp_path / "seek.json").read_text() + (tmp_path / "soup.json").read_text()
    assert not [text for text in (TOKEN, NESTED, "sk-secret") if text in recorded]
    assert json.loads((tmp_path / "soup.json").read_text())["training"]["value_model"] == "critic"
    assert Run.open(tmp_path, request).request == request


def test_a_configuration_keeps_all_but_the_paths_of_this_machine() -> None:
    content = {
        "base_model_name_or_path": "/home/ann/sft",
        "revision": None,
        "eva_config": {"cache": ["/data/ann/cache.pt", 3]},
        "target_modules": r".*\.(q|v)_proj",
        "special": ["/", "~", "/think", "</s>", "a/b"],
    }
    assert portable_config("adapter_config.json", content, (None, None)) == {
        "base_model_name_or_path": None,
        "revision": None,
        "eva_config": {"cache": [None, 3]},
        "target_modules": r".*\.(q|v)_proj",
        "special": ["/", "~", "/think", "</s>", "a/b"],
    }
    on_hub = portable_config("adapter_config.json", content, ("org/sft", "abc"))
    assert (on_hub["base_model_name_or_path"], on_hub["revision"]) == ("org/sft", "abc")
    tokenizer = {"is_local": True, "local_files_only": True, "eos_token": "</s>"}
    assert portable_config("tokenizer_config.json", tokenizer, (None, None)) == {"eos_token": "</s>"}


def test_a_secret_is_found_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_loggedIn")
    secrets = secrets_of(TOKEN, None, folders={"the output folder": tmp_path, "a mount": Path("/data")})
    assert {TOKEN, "hf_loggedIn", str(tmp_path)} <= set(secrets) and "/data" not in secrets
    (tmp_path / "model.safetensors").write_bytes(b"{}" + TOKEN.encode())
    check_private({"a/README.md": b"nothing"}, secrets)
    for files in ({"a/README.md": f"see {tmp_path}/x".encode()}, {"model.safetensors": tmp_path / "model.safetensors"}):
        with pytest.raises(HubError, match=f"{next(iter(files))} holds .*, so nothing of it was sent") as caught:
            check_private(files, secrets)
        assert TOKEN not in str(caught.value)
