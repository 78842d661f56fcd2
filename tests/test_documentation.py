"""The pages of docs/ say what is so: messages, tables of numbers, names in examples. `make docs` checks the links."""

import argparse
import ast
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from peft import LoraConfig, get_peft_model
from tiny import save_tiny, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from trl_bonesoup import BoneSoup
from trl_bonesoup.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def rows(page: Path) -> list[list[str]]:
    """Return the cells of every table of a page, as they are written."""
    lines = (line.strip() for line in page.read_text(encoding="utf-8").splitlines())
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]


def literals() -> list[str]:
    """Return every text in the source, with … for what is filled in."""
    found = []
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "mergekit_plugin").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
    return found


class TestTroubleshooting:
    @staticmethod
    def messages() -> list[str]:
        quoted = [re.fullmatch(r"`(.+)`", row[0]) for row in rows(DOCS / "troubleshooting.md")]
        return [match.group(1) for match in quoted if match]

    def test_most_rows_quote_a_message(self) -> None:
        assert len(self.messages()) > 50

    def test_every_message_exists(self) -> None:
        texts = literals()
        for message in self.messages():
            pattern = ".*".join(map(re.escape, message.split("…"))).replace(r"soup\.json", r"(soup\.json|…)")
            assert any(re.search(pattern, text, flags=re.DOTALL) for text in texts), message


class TestChoosing:
    def test_the_table_of_coefficients(self) -> None:
        """Each row against a linear solve, and the condition number that NumPy measures."""
        numbers = [row for row in rows(DOCS / "choosing.md") if re.fullmatch(r"[23]", row[0]) and len(row) == 5]
        assert len(numbers) == 7
        for n_text, beta_text, condition, coefficients, largest in numbers:
            n, beta = int(n_text), float(beta_text)
            weights = np.full((n, n), (1 - beta) / (n - 1))
            np.fill_diagonal(weights, beta)
            vertex = np.linalg.inv(weights)[:, 0]
            assert np.linalg.cond(weights) == pytest.approx(float(condition), abs=0.006)
            assert ast.literal_eval(coefficients) == pytest.approx(vertex, abs=6e-4)
            assert float(largest) == pytest.approx(vertex.max(), abs=6e-4)


def blocks(page: Path, language: str) -> list[str]:
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


@pytest.mark.parametrize("way", ["bash", "python", "json"])
def test_a_soup_of_models_that_you_have(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of docs/soups.md, on adapters that PEFT has saved: λ = μ."""
    page = (
        DOCS.joinpath("soups.md").read_text(encoding="utf-8").partition("## A soup of models")[2].partition("\n## ")[0]
    )
    (source,) = re.findall(rf"```{way}\n(.*?)```", page, re.DOTALL)
    base = save_tiny(tmp_path / "base")
    for name, scale in (("helpful-lora", 0.1), ("harmless-lora", 0.2)):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules="all-linear"))
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            parameter.data.fill_(scale)
        model.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    source = source.replace("org/sft", "../base" if way == "json" else "base")
    if way == "python":
        exec(source, {})
    elif way == "json":
        Path("soup").mkdir()
        Path("soup", "soup.json").write_text(source, encoding="utf-8")
    else:
        for line in source.splitlines():
            assert main(shlex.split(line)[1:]) == 0, line
    soup = BoneSoup.from_pretrained("soup")
    assert soup.set_preference({"helpful": 0.7, "harmless": 0.3}).tolist() == [0.7, 0.3]
    if way == "json":
        assert soup.set_preference("cautious").tolist() == [0.2, 0.8]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what docs/quickstart.md says to write, but for the models, the prompts and the size."""
    base = save_tiny(tmp_path / "sft")
    config = AutoConfig.from_pretrained(base, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "judge")
    tiny_tokenizer().save_pretrained(tmp_path / "judge")
    rewards, _ = blocks(DOCS / "quickstart.md", "python")
    (tmp_path / "my_rewards.py").write_text(rewards.replace("org/helpful-reward-model", "judge"), encoding="utf-8")
    settings = yaml.safe_load(blocks(DOCS / "quickstart.md", "yaml")[0])
    small = {"max_steps": 8, "save_steps": 4, "max_completion_length": 6}
    assert set(small) < set(settings["set"])
    changed = {**settings, "model": str(base), "set": {**settings["set"], **small, "use_cpu": True, "logging_steps": 1}}
    (tmp_path / "seek.yml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    for file in ("prompts.jsonl", "test.jsonl"):
        lines = "".join(f'{{"prompt": "w{i} w{i + 1}"}}\n' for i in range(16))
        (tmp_path / file).write_text(lines, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_rewards", None)
    yield tmp_path
    del sys.modules["my_rewards"]


def test_the_quickstart(work: Path) -> None:
    (commands,) = [block for block in blocks(DOCS / "quickstart.md", "bash") if "bonesoup seek" in block]
    for line in commands.splitlines():
        arguments = shlex.split(line, comments=True)
        assert arguments[0] == "bonesoup"
        if arguments[1] == "evaluate":
            arguments += ["--max-new-tokens", "6"]
        assert main(arguments[1:]) == 0, line
    assert {"adapter_model.safetensors", "README.md"} <= {file.name for file in (work / "out").iterdir()}
    assert (work / "curves.png").is_file() and (work / "front.png").is_file()


def test_the_settings_of_fronts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each YAML block of docs/fronts.md names its command, and that takes it as it is."""
    for block in blocks(DOCS / "fronts.md", "yaml"):
        command, file = re.match(r"# bonesoup (\S+) --config (\S+)\n", block).groups()
        (tmp_path / file).write_text(block, encoding="utf-8")
        taken: list[argparse.Namespace] = []
        module = importlib.import_module(f"trl_bonesoup.cli.{command.replace('-', '_')}")
        monkeypatch.setattr(module, "run", taken.append)
        assert main([command, "--config", str(tmp_path / file)]) == 0
        for name, value in yaml.safe_load(block).items():
            assert getattr(taken[0], name) in (value, [value])


def test_an_array_of_jobs(work: Path) -> None:
    """The jobs of docs/scaling.md, one after the other: one scale of the scores, both backbones to the end."""
    (script,) = [block for block in blocks(DOCS / "scaling.md", "bash") if "sbatch" in block]
    first, array, last = (shlex.split(job)[1:] for job in re.findall(r"bonesoup seek[^\"']*", script))
    assert main(first) == 0
    statistics = json.loads((work / "run" / "seek.json").read_text(encoding="utf-8"))["statistics"]
    assert len(statistics) == 2
    for job in ("0", "1"):
        assert main([word.replace("$SLURM_ARRAY_TASK_ID", job) for word in array]) == 0
    assert main(last) == 0
    soup = json.loads((work / "run" / "soup.json").read_text(encoding="utf-8"))
    assert [backbone["steps"] for backbone in soup["backbones"]] == [8, 8]
    assert [objective["normalization"] for objective in soup["objectives"]] == statistics


def markdown_pages() -> list[Path]:
    folders = [ROOT, DOCS, ROOT / "examples", ROOT / "benchmarks"]
    return sorted({file for folder in folders[1:] for file in folder.rglob("*.md")} | set(ROOT.glob("*.md")))


@pytest.mark.parametrize("page", markdown_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_name_what_exists(page: Path) -> None:
    """Blocks parse, and what they import from the package is there."""
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trl_bonesoup"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
