"""Runs the commands of a recipe's README on one CPU, offline, with stand-ins for what they download.

    python examples/smoke.py helpful_assistant FOLDER

Models and data sets are looked for on the disk before they are looked for on the Hub. So FOLDER gets tiny random models
and small data sets at the paths that the recipe names, and the recipe's own files are used as they are; only steps and
sizes are set lower. What comes out shows that the pieces fit, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

EXAMPLES = Path(__file__).resolve().parent
RECIPES = ("helpful_assistant", "reddit_summary", "long_form_qa", "small_instruct")

_SMALL = (
    "max_steps=4 per_device_train_batch_size=4 gradient_accumulation_steps=1 num_mini_batches=1 num_iterations=2",
    "max_completion_length=8 learning_rate=0.02 warmup_steps=0 use_cpu=true use_vllm=false disable_tqdm=true",
)
_TRAINING = "--limit 8 --lora-r 4 " + " ".join(f"--set {setting}" for setting in " ".join(_SMALL).split())
ADDED = {
    "trl sft": "--max_steps 2 --logging_steps 1 --use_cpu true --bf16 false --dtype float32 --disable_tqdm true",
    "mergekit-yaml": "--no-write-model-card",  # which asks the Hub
    "bonesoup seek": _TRAINING,
    "bonesoup select-dominance": f"--dominances 0.7,0.8 --fraction 0.5 --grid 0.5 {_TRAINING}",
    "bonesoup extrapolate": "--alphas 0,0.1 --limit 2 --max-new-tokens 8",
    "bonesoup evaluate": "--grid 0.5 --limit 4 --max-new-tokens 8 --device cpu",
}
"""To the commands, so that they are done in seconds and offline."""

TAKES_THE_HUB = "bonesoup push"


def main(recipe: str, folder: str, *added: str) -> None:
    """Run a recipe in a folder, with arguments `added` to the commands that train."""
    work = Path(folder).resolve()
    work.mkdir(parents=True, exist_ok=True)
    make_stand_ins(recipe, work)
    if not (work / "examples").exists():
        (work / "examples").symlink_to(EXAMPLES)
    with contextlib.chdir(work):
        for command in commands(EXAMPLES / recipe / "README.md"):
            name = " ".join(command[:2])
            if name == TAKES_THE_HUB:
                continue
            extra = shlex.split(ADDED.get(name, ADDED.get(command[0], "")))
            extra += added if "--set" in extra else ()
            print(f"\n$ {shlex.join([*command, *extra])}", flush=True)
            run([chosen(argument) for argument in command] + extra)


def commands(readme: Path) -> list[list[str]]:
    """Return the commands of a README in order, without `accelerate launch` and `git` in front of them."""
    blocks = re.findall(r"^```bash\n(.*?)^```", readme.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").replace("$(command -v bonesoup)", "bonesoup").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        starts = [i for i, word in enumerate(words) if word in ("bonesoup", "trl", "mergekit-yaml")]
        if starts:
            found.append(words[starts[0] :])
    return found


def chosen(argument: str) -> str:
    """Put the β that was selected in place of the one that the README has as an example."""
    folder, found, _ = argument.partition("/beta-")
    return f"{folder}/{json.loads(Path(folder, 'dominance.json').read_text())['soup']}" if found else argument


def run(command: list[str]) -> None:
    """Run a command in this process, which spares the imports."""
    program, arguments = command[0], command[1:]
    if program == "bonesoup":
        from trl_bonesoup.cli import main as bonesoup

        status = bonesoup(arguments)
    elif program == "mergekit-yaml":
        from mergekit.scripts.run_yaml import main as mergekit

        status = mergekit(arguments, standalone_mode=False)
    else:
        from trl.scripts import sft

        sft.main(*sft.make_parser().parse_args_and_config(arguments[1:]))
        status = 0
    if status:
        sys.exit(f"{shlex.join(command)} failed.")


# The stand-ins


def make_stand_ins(recipe: str, work: Path) -> None:
    """Write the models and data sets that a recipe names."""
    tokenizer = byte_tokenizer()
    make_data: dict[str, Callable[[Path], None]] = {
        "helpful_assistant": make_hh_rlhf,
        "reddit_summary": make_comparisons,
        "long_form_qa": make_qa_feedback,
        "small_instruct": make_ultrafeedback,
    }
    make_data[recipe](work)
    qa = "FineGrainedRLHF/tasks/qa_feedback/model_outputs"
    models = {
        "helpful_assistant": {
            "meta-llama/Llama-2-7b-hf": "policy",
            "Ray2333/gpt2-large-helpful-reward_model": 1,
            "Ray2333/gpt2-large-harmless-reward_model": 1,
            "mohameddhiab/humor-no-humor": 2,
        },
        "reddit_summary": {
            "meta-llama/Llama-2-7b-hf": "policy",
            "CogComp/bart-faithful-summary-detector": 2,
            "Tristan/gpt2_reward_summarization": 1,
        },
        "long_form_qa": {
            "Qwen/Qwen2.5-0.5B": "policy",
            f"{qa}/fact_rm": "tokens",
            f"{qa}/rel_rm": "tokens",
            f"{qa}/comp_rm": 1,
        },
        "small_instruct": {
            "Qwen/Qwen3-4B-Instruct-2507": "policy",
            "Ray2333/gpt2-large-helpful-reward_model": 1,
        },
    }
    for seed, (name, kind) in enumerate(models[recipe].items()):
        tiny_model(kind, seed).save_pretrained(work / name)
        tokenizer.save_pretrained(work / name)


def byte_tokenizer() -> Any:
    """Return a tokenizer for any text, one token per byte; like Llama's, it has no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    chat = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    special = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat, **special)


def tiny_model(kind: str | int, seed: int) -> Any:
    """Return a random model: a "policy", one that classifies "tokens", or texts with so many outputs."""
    import torch
    import transformers as t

    sizes = {"vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 1536}
    torch.manual_seed(seed)
    if kind == "policy":
        return t.LlamaForCausalLM(t.LlamaConfig(**sizes, bos_token_id=0, eos_token_id=1, initializer_range=0.2))
    if kind == "tokens":
        return t.BertForTokenClassification(t.BertConfig(**sizes, num_labels=3, initializer_range=0.5))
    return t.BertForSequenceClassification(t.BertConfig(**sizes, num_labels=kind, initializer_range=0.5))


def make_hh_rlhf(work: Path) -> None:
    """Write dialogues in the form of Anthropic/hh-rlhf: chosen and rejected, some of them too long."""
    for split, count in (("train", 801), ("test", 24)):
        rows = []
        for i in range(count):
            talk = f"\n\nHuman: What is {i} and {i}?\n\nAssistant: Do you mean the sum?\n\nHuman: {split}, yes."
            talk = talk * (4 if i % 10 == 7 else 1)
            rows.append({"chosen": f"{talk}\n\nAssistant: {2 * i}.", "rejected": f"{talk}\n\nAssistant: No idea."})
        write_lines(work / "Anthropic/hh-rlhf" / f"{split}.jsonl", rows)


def make_comparisons(work: Path) -> None:
    """Write comparisons in the form of openai/summarize_from_feedback: two of each post, and one of an article."""
    folder = work / "openai/summarize_from_feedback"
    for split, count in (("train", 230), ("validation", 6)):
        rows = []
        for i in range(2 * count):
            post = f"On day {i // 2} I lost my keys.\n" + f"I looked in {split} room {i // 2}, and they were gone. " * 2
            rows.append(comparison(f"t3_{i // 2}", post, ["Lost\nmy keys.", f"Day {i // 2}: no keys."], i % 2))
        rows.append(comparison("cnn", None, ["News.", "No news."], 0))
        write_lines(folder / "comparisons" / f"{split}.jsonl", rows)
    files = "".join(f"  - {{split: {s}, path: comparisons/{s}.jsonl}}\n" for s in ("train", "validation"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: comparisons\n  data_files:\n{files}---\n")


def comparison(post_id: str, post: str | None, summaries: list[str], choice: int) -> dict[str, Any]:
    """Return a row of openai/summarize_from_feedback."""
    info = {"id": post_id, "post": post, "title": None, "subreddit": None, "site": None, "article": None}
    texts = [{"text": text, "policy": "sup", "note": None} for text in summaries]
    return {"info": info, "summaries": texts, "choice": choice, "worker": "w", "batch": "b", "split": "s", "extra": {}}


def make_qa_feedback(work: Path) -> None:
    """Write questions in the form of QA-Feedback."""
    folder = work / "FineGrainedRLHF/tasks/qa_feedback/data"
    for name, count in (("train", 16), ("train_1k", 8), ("dev", 4), ("test", 4)):
        rows = []
        for i in range(count):
            question, passage = f"Who won race {i} of {name}?", f"Race {i} was won by number {i + 3}. It was close."
            text = f"question: {question} context: wikipage: Race {i} text: {passage}"
            passages = [{"title": f"Race {i}", "content": passage}]
            rows.append({"text": text, "answer": [f"Number {i + 3} won."], "passages": passages, "question": question})
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(rows))


def make_ultrafeedback(work: Path) -> None:
    """Write questions in the form of UltraFeedback."""
    for split, count in (("train", 60), ("test", 24)):
        rows = [{"prompt": f"Say {i} in {split}.", "prompt_id": str(i)} for i in range(count)]
        write_lines(work / "HuggingFaceH4/ultrafeedback_binarized/data" / f"{split}_prefs.jsonl", rows)
    files = "".join(f"  - {{split: {s}_prefs, path: data/{s}_prefs.jsonl}}\n" for s in ("train", "test"))
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n"
    (work / "HuggingFaceH4/ultrafeedback_binarized/README.md").write_text(card)


def write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in RECIPES:
        sys.exit(f"usage: python examples/smoke.py {'|'.join(RECIPES)} FOLDER")
    sys.path.insert(0, str(EXAMPLES / sys.argv[1]))  # the PYTHONPATH of its README
    main(*sys.argv[1:])
