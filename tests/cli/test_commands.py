"""The commands, run as a user would: from two rewards to a merged model with its card, on a tiny base."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from loopback_hub import LoopbackHub
from tiny import save_tiny
from transformers import AutoModelForCausalLM

from trl_bonesoup import BoneSoup, Front, SoupManifest
from trl_bonesoup.cli import main

COMMANDS = ("demo", "seek", "select-dominance", "merge", "sweep", "to-full", "evaluate", "extrapolate", "compare",
            "plot", "card", "push")  # fmt: skip
REWARDS = """
from trl_bonesoup.rewards.protocol import completion_texts
def says(word):
    def reward(completions, **columns):
        return [float(text.split().count(word)) for text in completion_texts(completions)]
    return reward
five, seven = says("w5"), says("w7")
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, prompts and a module of rewards, as a user would have them."""
    folder = tmp_path_factory.mktemp("work")
    save_tiny(folder / "sft")
    (folder / "tiny_cli_rewards.py").write_text(REWARDS)
    (folder / "prompts.txt").write_text("\n".join(f"w{i} w{i + 1}" for i in range(16)) + "\n\n")
    return folder


@pytest.fixture(scope="module")
def run(work: Path) -> Path:
    """A soup that `bonesoup seek` trained from a YAML file."""
    settings = {
        "model": str(work / "sft"),
        "reward": ["five=tiny_cli_rewards:five", "seven=tiny_cli_rewards:seven"],
        "dominance": 0.8,
        "prompts": str(work / "prompts.txt"),
        "output-dir": str(work / "run"),
        "lora_r": 4,
        "set": {"max_steps": 8, "max_completion_length": 6, "learning_rate": 1e-2, "num_iterations": 2,
                "save_strategy": "no", "use_cpu": True, "logging_steps": 1},
    }  # fmt: skip
    (work / "seek.yml").write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(work))
        assert main(["seek", "--config", str(work / "seek.yml")]) == 0
    return work / "run"


@pytest.fixture(autouse=True)
def importable(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(work))


def test_help_is_fast_and_loads_nothing_heavy() -> None:
    code = "import sys; from trl_bonesoup.cli import main; main(['seek', '--help'])"
    started = time.monotonic()
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 5.0  # under 1 s on a quiet machine; this one runs tests
    assert "--dominance" in shown.stdout
    code = code.replace("main(['seek', '--help'])", "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "--config FILE" in capsys.readouterr().out


def test_seek_takes_yaml_and_flags_override_it(run: Path, work: Path, capsys: pytest.CaptureFixture) -> None:
    manifest = SoupManifest.load(run)
    assert manifest.objective_names == ("five", "seven")
    assert manifest.weights[0].tolist() == pytest.approx([0.8, 0.2])
    assert manifest.training["lora_r"] == 4
    assert main(["seek", "--config", str(work / "seek.yml"), "--dominance", "0.7"]) == 2
    assert "other settings (combination_weights" in capsys.readouterr().err


def test_seek_says_what_comes_next_and_whether_anything_was_trained(
    run: Path, work: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["seek", "--config", str(work / "seek.yml")]) == 0
    shown = capsys.readouterr().out
    assert f"All 2 backbones in {run} were finished already: nothing was trained. Next:" in shown
    assert "Wrote" not in shown
    assert shown.splitlines()[-3:] == [
        f"  bonesoup plot {run} curves.png --kind training",
        f"  bonesoup evaluate {run} --prompts TEST --reward five=tiny_cli_rewards:five "
        "--reward seven=tiny_cli_rewards:seven",
        f"  bonesoup merge {run} out --preference five=0.5,seven=0.5",
    ]
    (run / "soup.json").rename(work / "soup.json")
    assert main(["seek", "--gather", str(run), "--output-dir", str(work / "gathered")]) == 0
    (work / "soup.json").rename(run / "soup.json")
    assert f"Wrote {work}/gathered/soup.json. Next:" in (shown := capsys.readouterr().out)
    assert "--prompts TEST --reward five=MODULE:ATTRIBUTE" in shown  # a closure, of which only a name is recorded


@pytest.mark.parametrize(("shares", "warned"), [([0.1, 1.0, 1.0, 1.0, 1.0, 0.6], "five 92%"), ([1.0] * 5 + [0.4], "")])
def test_answers_that_were_nearly_all_cut_off_are_told_once(
    run: Path, work: Path, tmp_path: Path, shares: list[float], warned: str, capsys: pytest.CaptureFixture
) -> None:
    """The last five rollouts count: (1 + 1 + 1 + 1 + .6) / 5 = .92, and (4 + .4) / 5 = .88."""
    copied = shutil.copytree(run, tmp_path / "run")
    entries = [{"completions/clipped_ratio": share, "step": 2 * k} for k, share in enumerate(shares)]
    log = [entry for pair in zip(entries, [{"step": 1}] * 6, strict=True) for entry in pair]  # epochs have no rollout
    (copied / "logs" / "five.json").write_text(json.dumps({"steps": 8, "log": log}))
    (copied / "logs" / "seven.json").write_text(json.dumps({"steps": 8, "log": [{"step": 1}]}))
    assert main(["seek", "--config", str(work / "seek.yml"), "--output-dir", str(copied)]) == 0
    warning = capsys.readouterr().err
    assert warning.count("cut off at max_completion_length") == bool(warned)
    assert f"({warned})" in warning or not warned


def test_merge_writes_an_adapter_and_a_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["merge", str(run), str(tmp_path / "adapter"), "--preference", "five=0.9,seven=0.1"]) == 0
    # β = .8: λ = ((N-1)μ - (1-β)) / (Nβ - 1) = (.9 - .2)/.6, (.1 - .2)/.6
    assert "five 0.9 (λ +1.167), seven 0.1 (λ -0.1667)" in capsys.readouterr().out
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= names_in(tmp_path / "adapter")
    assert "+1.1667" in (tmp_path / "adapter" / "README.md").read_text()
    assert main(["merge", str(run), str(tmp_path / "full"), "--preference", "0.9,0.1", "--full"]) == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert main(["merge", str(run), str(tmp_path / "full"), "--preference", "0.5,0.5", "--full"]) == 2
    assert str(tmp_path / "full") in capsys.readouterr().err


def test_merge_compresses_and_says_what_that_loses(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["merge", str(run), str(tmp_path / "out"), "--preference", "0.9,0.1", "--rank"]
    assert main([*arguments, "0"]) == 2
    assert "The rank of an adapter is a whole number from 1; got 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "2"]) == 0
    error = json.loads((tmp_path / "out" / "soup_export.json").read_text())["compression_error"]
    assert f"Compressing it to rank 2 loses {error:.2%} of the soup's effect." in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2


@pytest.mark.parametrize("kind", ["merge", "sweep"])
def test_a_card_that_is_written_later_still_tells_what_was_lost(run: Path, tmp_path: Path, kind: str) -> None:
    if kind == "merge":
        folder, options = tmp_path / "out", ["--rank", "2"]
    else:
        folder, options = tmp_path / "out" / "mu-0.90-0.10", ["--full"]
    assert main([kind, str(run), str(tmp_path / "out"), "--preference", "0.9,0.1", *options]) == 0
    assert main(["card", str(run), str(folder), "--preference", "0.9,0.1"]) == 0
    precision = (folder / "README.md").read_text().split("## Precision")[1].split("##")[0]
    assert ("compressed to rank 2" if kind == "merge" else "Rounding the weights") in precision
    assert main(["card", str(run), str(folder), "--preference", "0.5,0.5"]) == 0  # no such soup is in there
    assert "## Precision" not in (folder / "README.md").read_text()


def test_to_full_merges_every_backbone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["to-full", str(run), str(tmp_path / "full"), "--dtype", "bfloat16"]) == 0
    shown = capsys.readouterr().out
    assert "five: rounding to its dtype loses" in shown
    assert f"Wrote 2 full checkpoints and their soup.json to {tmp_path / 'full'}." in shown
    assert {backbone.kind for backbone in SoupManifest.load(tmp_path / "full").backbones} == {"full"}
    assert main(["merge", str(tmp_path / "full"), str(tmp_path / "out"), "--preference", "0.9,0.1"]) == 0
    assert main(["to-full", str(tmp_path / "full"), str(tmp_path / "again")]) == 2
    assert "full checkpoints already" in capsys.readouterr().err


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_merge_prints_a_recipe(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["merge", str(run), "--preference", "0.25,0.75", "--extrapolation", "0.2", "--print-yaml"]) == 0
    recipe = yaml.safe_load(capsys.readouterr().out)
    assert recipe["merge_method"] == "bone_soup"
    assert [model["parameters"]["preference"] for model in recipe["models"]] == [0.25, 0.75]
    assert recipe["parameters"] == {"beta": 0.8, "extrapolation": 0.2}


def test_a_preference_may_be_the_name_of_a_preset(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["merge", str(run), "--preference", "seven", "--print-yaml"]) == 0
    recipe = yaml.safe_load(capsys.readouterr().out)
    assert [model["parameters"]["preference"] for model in recipe["models"]] == [0.0, 1.0]
    assert main(["merge", str(run), "--preference", "eight", "--print-yaml"]) == 2
    assert "Unknown preset 'eight'; this soup has ['equal', 'five', 'seven']" in capsys.readouterr().err


def test_sweep_writes_every_point(run: Path, tmp_path: Path) -> None:
    assert main(["sweep", str(run), str(tmp_path), "--grid", "0.5"]) == 0
    assert names_in(tmp_path) == {"mu-1.00-0.00", "mu-0.50-0.50", "mu-0.00-1.00"}


def test_sweep_names_folders_after_presets_and_counts_them(run: Path, tmp_path: Path, capsys) -> None:
    folder = run.parent / "named"  # beside the run, so that its base is found
    if not folder.exists():
        shutil.copytree(run, folder)
    SoupManifest.load(run).with_preset("ann", [0.2, 0.8]).with_preset("bob", [0.2, 0.8]).save(folder)
    asked = [word for name in ("ann", "bob", "0.2,0.8", "five=0.2,seven=0.8") for word in ("--preference", name)]
    assert main(["sweep", str(folder), str(tmp_path / "many"), *asked, "--rank", "2"]) == 0
    assert names_in(tmp_path / "many") == {"ann", "bob", "mu-0.20-0.80"}
    assert json.loads((tmp_path / "many" / "bob" / "adapter_config.json").read_text())["r"] == 2
    assert f"3 soups in {tmp_path / 'many'}, from ann to mu-0.20-0.80." in capsys.readouterr().out
    assert main(["sweep", str(folder), str(tmp_path / "one"), *asked[:2], "--full", "--dtype", "bf16"]) == 0
    assert f"1 soup in {tmp_path / 'one'}: ann." in capsys.readouterr().out
    assert json.loads((tmp_path / "one" / "ann" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_dtype_may_have_its_short_name_everywhere(run: Path, tmp_path: Path, capsys) -> None:
    arguments = ["merge", str(run), str(tmp_path / "out"), "--preference", "0.9,0.1", "--dtype", "bf16"]
    assert main([*arguments, "--print-yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["out_dtype"] == "bfloat16"
    assert main(arguments) == 2
    assert "dtype=bfloat16 (--dtype) is for a full checkpoint" in capsys.readouterr().err
    assert main([*arguments, "--full"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_evaluate_plot_and_card(run: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    front, rewards = tmp_path / "front.json", ["--reward", "five=tiny_cli_rewards:five"]
    rewards += ["--reward", "seven=tiny_cli_rewards:seven"]
    arguments = ["--prompts", str(work / "prompts.txt"), "--grid", "0.5", "--max-new-tokens", "6", "--out", str(front)]
    assert main(["evaluate", str(run), *arguments, *rewards]) == 0
    assert "hypervolume" in capsys.readouterr().out
    measured = Front.from_json(front)
    assert measured.preferences_KN.tolist() == [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]

    assert main(["plot", str(front), str(tmp_path / "front.svg")]) == 0
    assert (tmp_path / "front.svg").read_text().startswith("<?xml")

    assert main(["merge", str(run), str(tmp_path / "soup"), "--preference", "0.5,0.5"]) == 0
    assert "were not measured" in (tmp_path / "soup" / "README.md").read_text()
    card = ["card", str(run), str(tmp_path / "soup"), "--preference", "0.5,0.5", "--front", str(front)]
    assert main([*card, "--name", "org/soup", "--license", "mit"]) == 0
    text = (tmp_path / "soup" / "README.md").read_text()
    assert f"{measured.rewards_KN[1, 0]:.4g}" in text
    assert "license: mit" in text


def test_rewards_of_a_soup_are_not_run_unless_named(
    run: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["evaluate", str(run), "--prompts", str(work / "prompts.txt")]) == 2
    shown = capsys.readouterr().err
    assert "Add: --reward five=MODULE:ATTRIBUTE --reward seven=MODULE:ATTRIBUTE\n" in shown
    assert "What it records of five, seven has no such name: fill one in." in shown

    record = json.loads((run / "soup.json").read_text())
    record["objectives"][0].update(name="a five", reward="tiny_cli_rewards:five")
    record["objectives"][1]["reward"] = "org/model(logit=1)"
    shutil.copytree(run, tmp_path / "named")
    (tmp_path / "named" / "soup.json").write_text(json.dumps(record))
    assert main(["evaluate", str(tmp_path / "named"), "--prompts", str(work / "prompts.txt")]) == 2
    shown = capsys.readouterr().err
    assert "Add: --reward 'a five=tiny_cli_rewards:five' --reward seven=MODULE:ATTRIBUTE\n" in shown
    assert "What it records of seven has" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge", "RUN", "out", "--preference", "five=0.9"], "must sum to 1"),
        (["merge", "RUN", "out", "--preference", "five=0.9,six=0.1"], "six"),
        (["merge", "RUN", "out", "--preference", "0.5,a lot"], "is not a number"),
        (["merge", "RUN", "--preference", "0.5,0.5"], "OUT is missing"),
        (["merge", "no-such-folder", "out", "--preference", "0.5,0.5"], "no-such-folder"),
        (["sweep", "RUN", "out", "--grid", "0.3"], "divide 1 evenly"),
        (["sweep", "RUN", "out", "--grid", "0.5", "--preference", "five"], "--grid and --preference each say which"),
        (["sweep", "RUN", "out", "--grid", "0.5", "--sample", "5"], "--grid and --sample each say which"),
        (["sweep", "RUN", "out", "--rank", "4", "--full"], "rank=4 (--rank) compresses an adapter"),
        (["sweep", "RUN", "out", "--dtype", "fp16"], "is for a full checkpoint"),
        (["evaluate", "RUN", "--prompts", "missing.txt", "--reward", "five=tiny_cli_rewards:five",
          "--reward", "seven=tiny_cli_rewards:seven"], "missing.txt"),
        (["plot", "missing.json", "out.png"], "missing.json"),
        (["seek", "--model", "m", "--reward", "positivity", "--reward", "brevity", "--prompts", "PROMPTS",
          "--output-dir", "out", "--set", "learning_rat=1"], "no field learning_rat"),
        (["seek", "--model", "m", "--reward", "kindness", "--prompts", "p", "--output-dir", "out"], "kindness"),
        (["seek", "--model", "m", "--reward", "positivity", "--prompts", "p", "--output-dir", "out"],
         "--reward is needed at least twice, once for each objective to balance; got positivity alone."),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(
    run: Path, work: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(run), "PROMPTS": str(work / "prompts.txt")}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert names_in(tmp_path) == set()


def test_a_repeated_flag_replaces_the_list_of_the_settings_file(work: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["seek", "--config", str(work / "seek.yml"), "--output-dir", str(work / "other")]
    assert main([*arguments, "--reward", "a=no_such_module:x", "--reward", "b=no_such_module:y"]) == 2
    assert "no_such_module:x" in capsys.readouterr().err


def test_unknown_settings_in_yaml_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "seek.yml").write_text("model: m\ndominanze: 0.7\n")
    arguments = ["seek", "--config", str(tmp_path / "seek.yml"), "--model", "m", "--reward", "brevity"]
    assert main([*arguments, "--prompts", "p", "--output-dir", "out"]) == 2
    assert "unknown setting 'dominanze'; did you mean 'dominance'? Known: " in capsys.readouterr().err
    (tmp_path / "select.yml").write_text("dominance: [0.6, 0.7]\n")
    assert main(["select-dominance", "--config", str(tmp_path / "select.yml")]) == 2
    assert "did you mean 'dominances'?" in capsys.readouterr().err
    (tmp_path / "select.yml").write_text("qqq: 1\n")
    assert main(["select-dominance", "--config", str(tmp_path / "select.yml")]) == 2
    assert "unknown setting 'qqq'. Known: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [("save_strategy=no", "YAML reads no and off as false"), ("optim=sgdd", "sgdd"), ("bf16=true", "bf16")],
)
def test_settings_that_the_trainer_does_not_take_are_told_in_a_line(
    setting: str, message: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["seek", "--model", str(work / "sft"), "--reward", "positivity", "--reward", "brevity"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w1 w2\n", encoding="utf-8")
    out = tmp_path / "out"
    assert main([*arguments, "--prompts", str(prompts), "--output-dir", str(out), "--set", setting]) == 2
    shown = capsys.readouterr().err
    assert "bonesoup: --set: " in shown
    assert message in shown
    assert not out.exists()


def test_a_demo_that_is_interrupted_while_it_measures_keeps_its_answers(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["demo", "--model", str(work / "sft"), "--out", str(tmp_path / "demo"), "--rollouts", "1"]
    arguments += ["--objective", "five=tiny_cli_rewards:five", "--objective", "seven=tiny_cli_rewards:seven"]
    arguments += ["--rollout-size", "8", "--answer-tokens", "6", "--test-prompts", "4"]
    with monkeypatch.context() as patched:
        patched.setattr(Front, "to_json", Mock(side_effect=KeyboardInterrupt))
        assert main(arguments) == 130
    assert main(arguments) == 0
    front = Front.from_json(tmp_path / "demo" / "front.json")
    assert front.provenance["kept_answers"] == 4 * (11 + 3)  # prompts; soups, the base and the backbones


def test_the_demo_goes_from_rewards_to_a_merged_model_that_can_be_published(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture, hub: LoopbackHub
) -> None:
    """All stages on a tiny model, with the stock mergekit-yaml; a second call repeats only the cheap ones."""
    arguments = ["demo", "--model", str(work / "sft"), "--out", str(tmp_path / "demo"), "--rollouts", "1"]
    arguments += ["--objective", "five=tiny_cli_rewards:five", "--objective", "seven=tiny_cli_rewards:seven"]
    arguments += ["--rollout-size", "8", "--answer-tokens", "6", "--test-prompts", "4"]
    assert main(arguments) == 0
    out = tmp_path / "demo"
    shown = capsys.readouterr().out
    assert "correlation of five and seven" in shown
    assert {"front.png", "steering.png", "front.json", "samples.jsonl", "soup.json", "bonesoup.yml", "merged"} <= (
        names_in(out)
    )
    assert not [name for name in names_in(out) if name.startswith(".")]
    assert len(Front.from_json(out / "front.json")) == 11
    AutoModelForCausalLM.from_pretrained(out / "merged")
    assert "## Measured rewards" in (out / "merged" / "README.md").read_text()
    before = (out / "front.json").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (out / "front.json").stat().st_mtime_ns == before
    assert main([*arguments, "--test-prompts", "5"]) == 0  # the measurement is another one now
    assert Front.from_json(out / "front.json").provenance["prompts"] == 5
    assert json.loads((out / "logs" / "five.json").read_text())["steps"] == 2

    (offered,) = [line for line in shown.splitlines() if " push " in line]
    words = shlex.split(offered.replace("YOU/", "ann/"), comments=True)[1:]
    assert words[-1] == "--dry-run" and main(words) == 0
    assert not hub.repos and "Nothing was sent." in capsys.readouterr().out
    assert main(words[:-1]) == 0
    assert 'BoneSoup.from_pretrained("ann/bonesoup-demo")' in capsys.readouterr().out
    here, there = BoneSoup.from_pretrained(out), BoneSoup.from_pretrained("ann/bonesoup-demo")
    ids = torch.arange(3, 11)[None]
    for preference in ([1.0, 0.0], [0.5, 0.5], [0.2, 0.8]):
        here.set_preference(preference)
        there.set_preference(preference)
        assert torch.equal(here.model(ids).logits, there.model(ids).logits)
    sent = b"".join(hub.files("ann/bonesoup-demo").values())
    assert str(tmp_path).encode() not in sent and str(work).encode() not in sent
