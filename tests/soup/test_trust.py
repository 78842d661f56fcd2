"""What a stranger's soup can do: no code runs, nothing is unpickled, no file outside is read, and nobody is asked."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hub_soups import downloaded, files_of, publish
from loopback_hub import LoopbackHub

from trl_bonesoup.errors import SoupError
from trl_bonesoup.front.checkpoints import CheckpointPolicies
from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.loading import load_model, load_tokenizer
from trl_bonesoup.soup.lora import BoneSoup
from trl_bonesoup.soup.source import ModelRef, open_soup
from trl_bonesoup.soup.to_full import to_full

MODEL_CODE = b"""
import os, pathlib
pathlib.Path(os.environ["RAN"]).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OddConfig(LlamaConfig):
    model_type = "odd"
class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig
"""
TOKENIZER_CODE = b"""
import os, pathlib
pathlib.Path(os.environ["RAN"]).touch()
from transformers import PreTrainedTokenizerFast
class OddTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(autouse=True)
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that code from the Hub would make; whoever asks on the terminal fails the test."""
    mark = tmp_path / "ran"
    monkeypatch.setenv("RAN", str(mark))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked on the terminal"))
    return mark


class TouchesWhenUnpickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {os.environ['RAN']}",)


def changed(file: Path, **settings: Any) -> bytes:
    return json.dumps({**json.loads(file.read_text()), **settings}).encode()


def odd_base(two_adapters: Path) -> dict[str, bytes]:
    auto_map = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"}
    config = changed(two_adapters / "base/config.json", model_type="odd", auto_map=auto_map)
    return {"base/config.json": config, "base/odd.py": MODEL_CODE}


class TestCode:
    def test_of_a_model_does_not_run(self, hub: LoopbackHub, two_adapters: Path, ran: Path) -> None:
        publish(hub, two_adapters, more=odd_base(two_adapters))
        with pytest.raises(SoupError, match=r"ships code of its own.*trust_remote_code=True"):
            BoneSoup.from_pretrained("org/soup")
        assert not ran.exists()
        assert "base/odd.py" not in downloaded(hub)

    def test_of_a_model_runs_when_asked_for(self, hub: LoopbackHub, two_adapters: Path, ran: Path) -> None:
        publish(hub, two_adapters, more=odd_base(two_adapters))
        soup = BoneSoup.from_pretrained("org/soup", trust_remote_code=True)
        assert type(soup.model.get_base_model()).__name__ == "OddForCausalLM"
        assert ran.exists()

    def test_that_replaces_a_known_architecture_does_not_run(
        self, hub: LoopbackHub, two_adapters: Path, ran: Path
    ) -> None:
        known = changed(two_adapters / "base/config.json", auto_map={"AutoModelForCausalLM": "odd.OddForCausalLM"})
        publish(hub, two_adapters, more={"base/config.json": known, "base/odd.py": MODEL_CODE})
        BoneSoup.from_pretrained("org/soup")
        assert not ran.exists()

    @pytest.mark.parametrize("place", ["base", "backbone0"])
    def test_of_a_tokenizer_does_not_run(self, hub: LoopbackHub, two_adapters: Path, ran: Path, place: str) -> None:
        files = files_of(two_adapters / "base")
        config = changed(
            two_adapters / "base/tokenizer_config.json",
            tokenizer_class="OddTokenizer",
            auto_map={"AutoTokenizer": [None, "odd.OddTokenizer"]},
        )
        more = {f"{place}/tokenizer.json": files["tokenizer.json"], f"{place}/tokenizer_config.json": config}
        publish(hub, two_adapters, more={**more, f"{place}/odd.py": TOKENIZER_CODE})
        try:
            BoneSoup.from_pretrained("org/soup")
        except SoupError as error:
            assert "trust_remote_code=True" in str(error)  # noqa: PT017 - either will do
        assert not ran.exists()
        BoneSoup.from_pretrained("org/soup", trust_remote_code=True)

    def test_of_a_full_backbone_does_not_run(self, hub: LoopbackHub, two_full: Path, ran: Path) -> None:
        auto_map = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"}
        config = changed(two_full / "backbone0/config.json", model_type="odd", auto_map=auto_map)
        names = [f"{name}/{file}" for name in ("backbone0", "backbone1", "base") for file in ("config.json", "odd.py")]
        publish(hub, two_full, more={name: MODEL_CODE if name.endswith("py") else config for name in names})
        with pytest.raises(SoupError, match="trust_remote_code"):
            BoneSoup.from_pretrained("org/soup")
        assert not ran.exists()
        BoneSoup.from_pretrained("org/soup", trust_remote_code=True)
        assert ran.exists()

    def test_of_a_chat_template_is_confined(self, hub: LoopbackHub, two_adapters: Path, ran: Path) -> None:
        template = f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{% set x = open('{ran}', 'w') %}}"
        publish(hub, two_adapters, more={"base/chat_template.jinja": template.encode()})
        tokenizer = BoneSoup.from_pretrained("org/soup").tokenizer
        assert tokenizer is not None
        with pytest.raises(jinja2.exceptions.SecurityError):
            tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        assert not ran.exists()


class TestPickles:
    def test_of_an_adapter_are_not_read(self, hub: LoopbackHub, two_adapters: Path, ran: Path) -> None:
        files = {
            path: data for path, data in files_of(two_adapters).items() if path != "backbone1/adapter_model.safetensors"
        }
        hub.put("org/soup", {**files, "backbone1/adapter_model.bin": pickle.dumps(TouchesWhenUnpickled())})
        with pytest.raises(SoupError, match=r"has no adapter_model\.safetensors.*save it again"):
            BoneSoup.from_pretrained("org/soup")
        assert not ran.exists()
        assert not [path for path in downloaded(hub) if path.endswith(".bin")]

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
    def test_of_a_base_are_not_read(self, hub: LoopbackHub, two_adapters: Path, ran: Path, name: str) -> None:
        files = {path: data for path, data in files_of(two_adapters).items() if path != "base/model.safetensors"}
        hub.put("org/soup", {**files, f"base/{name}": pickle.dumps(TouchesWhenUnpickled())})
        with pytest.raises(SoupError, match="read from safetensors alone"):
            BoneSoup.from_pretrained("org/soup")
        assert not ran.exists()

    def test_of_a_full_backbone_are_not_read_from_a_folder_either(
        self, two_full: Path, tmp_path: Path, ran: Path
    ) -> None:
        run = Path(shutil.copytree(two_full, tmp_path / "run"))
        for name in ("backbone0", "backbone1"):
            (run / name / "model.safetensors").unlink()
            (run / name / "pytorch_model.bin").write_bytes(pickle.dumps(TouchesWhenUnpickled()))
        for load in (BoneSoup.from_pretrained, lambda folder: merge(folder, tmp_path / "out", [0.5, 0.5])):
            with pytest.raises(SoupError, match="safetensors"):
                load(run)
        assert not ran.exists()


class TestPaths:
    @pytest.mark.parametrize("name", ["../elsewhere/model.safetensors", "{outside}/model.safetensors", "model.bin"])
    @pytest.mark.parametrize("kind", ["two_adapters", "two_full"])
    def test_an_index_names_files_beside_it_only(
        self, hub: LoopbackHub, request: pytest.FixtureRequest, tmp_path: Path, name: str, kind: str
    ) -> None:
        folder = request.getfixturevalue(kind)
        outside = Path(shutil.copytree(folder / "base", tmp_path / "outside"))
        model = "base" if kind == "two_adapters" else "backbone0"
        files = {path: data for path, data in files_of(folder).items() if path != f"{model}/model.safetensors"}
        index = {"metadata": {}, "weight_map": {"lm_head.weight": name.format(outside=outside)}}
        hub.put("org/soup", {**files, f"{model}/model.safetensors.index.json": json.dumps(index).encode()})
        with pytest.raises(SoupError, match="not a safetensors file in its own folder"):
            BoneSoup.from_pretrained("org/soup")

    def test_a_base_that_is_an_adapter_is_not_followed_to_its_own_base(
        self, hub: LoopbackHub, two_adapters: Path
    ) -> None:
        config = changed(two_adapters / "backbone0/adapter_config.json", base_model_name_or_path="/etc/../anywhere")
        publish(hub, two_adapters, more={"base/adapter_config.json": config})
        with pytest.raises(SoupError, match=r"is an adapter .* where a whole model is needed"):
            BoneSoup.from_pretrained("org/soup")

    @pytest.mark.parametrize("path", ["/somewhere", "../base", "C:\\models"])
    def test_an_adapter_from_the_hub_is_not_followed_to_a_path(
        self, hub: LoopbackHub, two_adapters: Path, path: str
    ) -> None:
        config = changed(two_adapters / "backbone0/adapter_config.json", base_model_name_or_path=path)
        publish(hub, two_adapters / "backbone0", "org/one", more={"adapter_config.json": config})
        with pytest.raises(SoupError, match=r"base model of the adapter org/one is .*neither given as base_model="):
            CheckpointPolicies(["org/one"], [[0.5, 0.5]], ["a", "b"])

    def test_its_name_of_a_base_is_only_compared_in_a_soup(
        self, hub: LoopbackHub, two_adapters: Path, tmp_path: Path
    ) -> None:
        more = {
            f"backbone{j}/adapter_config.json": changed(
                two_adapters / f"backbone{j}/adapter_config.json", base_model_name_or_path=str(tmp_path / "anywhere")
            )
            for j in range(2)
        }
        publish(hub, two_adapters, more=more)
        source = open_soup("org/soup", base_model=two_adapters / "base")
        soup = BoneSoup.from_source(source)
        assert soup.model.peft_config["soup"].base_model_name_or_path == str(two_adapters / "base")


def test_every_call_says_no_to_code(two_adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on the terminal where nothing is said."""
    import transformers

    answers: list[Any] = []
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "AutoConfig"):
        auto = getattr(transformers, name)
        original = auto.from_pretrained

        def record(*args: Any, _original: Any = original, **options: Any) -> Any:
            answers.append(options.get("trust_remote_code"))
            return _original(*args, **options)

        monkeypatch.setattr(auto, "from_pretrained", record)
    base = ModelRef(str(two_adapters / "base"))
    load_model(base)
    load_tokenizer(two_adapters / "backbone0", base)
    to_full(two_adapters, tmp_path / "full")
    assert answers
    assert all(answer is False for answer in answers)
