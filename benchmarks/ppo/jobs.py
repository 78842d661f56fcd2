"""Runs contestants in fresh processes, one at a time, and keeps finished results."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.ppo.work import Work

from trl_bonesoup.cli.demo_model import embedded_model
from trl_bonesoup.cli.demo_prompts import TRAINING_TOPICS, conversations

HERE = Path(__file__).resolve().parent
WORKERS = {"bonesoup": "worker_bonesoup.py", "trl-ppo": "worker_trl_ppo.py", "grpo": "worker_grpo.py"}
TITLES = {"bonesoup": "trl-bonesoup", "trl-ppo": "TRL 1.12 PPOTrainer", "grpo": "TRL 1.16 GRPOTrainer (no critic)"}


def add_arguments(parser: argparse.ArgumentParser, steps: int, contestants: list[str]) -> None:
    """Add the options that the timing and the learning curves share."""
    parser.add_argument(
        "--trl-python",
        metavar="PATH",
        type=Path,
        default=HERE / ".venv" / "bin" / "python",
        help="the interpreter of the environment with TRL 1.12 (benchmarks/ppo/.venv/bin/python)",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/benchmark-ppo"), help="%(default)s")
    parser.add_argument("--model", metavar="DIR", help="another chat model (default: the demo's SmolLM2-135M-Instruct)")
    parser.add_argument("--contestants", nargs="+", choices=WORKERS, default=contestants, help="%(default)s")
    parser.add_argument("--steps", type=int, default=steps, help="rollout batches per run (%(default)s)")
    parser.add_argument("--completions", type=int, default=16, help="completions in a rollout batch (%(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="the longest completion (%(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="PPO epochs per rollout batch (%(default)s)")
    parser.add_argument("--kl-coef", type=float, default=0.05, help="weight of the KL penalty (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of torch (default: one per core)")
    parser.add_argument("--markdown", action="store_true", help="print the results as Markdown")


def work_from(arguments: argparse.Namespace, **changes: Any) -> Work:
    """Return the work that the options describe."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "model": arguments.model or str(embedded_model(arguments.out.resolve() / "base")),
        "prompts": conversations(TRAINING_TOPICS),
        "steps": arguments.steps,
        "warm_up": 0,
        "completions": arguments.completions,
        "tokens": arguments.tokens,
        "fixed_length": False,
        "epochs": arguments.epochs,
        "kl_coef": arguments.kl_coef,
        "learning_rate": 1e-4,
        "lora_rank": 16,
        "threads": arguments.threads,
        "seed": 0,
    }
    return Work(**{**settings, **changes})


def run_job(contestant: str, work: Work, path: Path, trl_python: Path) -> dict[str, Any]:
    """Return the result of one run: the kept one if it did the same work, else that of a new process."""
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["work"] == work.record():
            return kept
    python = trl_python if contestant == "trl-ppo" else Path(sys.executable)
    if not python.exists():
        raise SystemExit(f"{python} does not exist. README.md says how to make the environment with TRL 1.12.")
    print(f"{TITLES[contestant]}, seed {work.seed} ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        task, result = Path(folder, "work.json"), Path(folder, "result.json")
        task.write_text(json.dumps(asdict(work)), encoding="utf-8")
        log = path.with_suffix(".log")
        with log.open("w", encoding="utf-8") as output:
            done = subprocess.run(
                [python, HERE / WORKERS[contestant], task, result],
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            raise SystemExit(f"{WORKERS[contestant]} failed; see {log}")
        path.write_bytes(result.read_bytes())
    return json.loads(path.read_text(encoding="utf-8"))


def provenance(results: dict[str, Any]) -> str:
    """Return one line on the machine and one per set of versions."""
    lines = [f"Machine: {results['machine']}."]
    for contestant, runs in results["runs"].items():
        versions = ", ".join(f"{name} {number}" for name, number in runs[0]["versions"].items())
        lines.append(f"{TITLES[contestant]}: {versions}; {runs[0]['threads']} threads.")
    return "\n".join(lines)
