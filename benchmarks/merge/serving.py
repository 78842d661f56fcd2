"""Soups in memory: the time of a new preference, and what rows with preferences of their own cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.merge.models import adapter_run, static_adapter

from trl_bonesoup import BoneSoup

BATCH = 8


def switches(work: Path, base: str, n: int, rank: int, repeats: int) -> dict[str, Any]:
    """Return milliseconds per `set_preference`, and the number of adapted layers."""
    soup = BoneSoup.from_pretrained(adapter_run(work, n, rank, base))
    preferences = np.random.default_rng(0).dirichlet(np.ones(n), size=repeats)
    times = []
    for preference in preferences:
        begin = time.perf_counter()
        soup.set_preference(preference)
        times.append(1000.0 * (time.perf_counter() - begin))
    return {"layers": len(soup.scales.layers), "backbones": n, "milliseconds": times}


def rows(work: Path, base: str, n: int, rank: int, prompt: int, new_tokens: int, repeats: int) -> dict[str, Any]:
    """Time a forward pass and generation of a batch: static adapters, one preference, and one for each row."""
    folder = adapter_run(work, n, rank, base)
    soup = BoneSoup.from_pretrained(folder)
    preferences_BN = np.random.default_rng(0).dirichlet(np.ones(n), size=BATCH)
    models = {
        f"one adapter of rank {rank}": (static_adapter(folder / "base", rank), nullcontext),
        f"one adapter of rank {n * rank}": (static_adapter(folder / "base", n * rank), nullcontext),
        "soup, one preference": (soup.model, nullcontext),
        "soup, a preference per row": (soup.model, lambda: soup.preferences(preferences_BN)),
    }
    ids_BT = torch.randint(2, 64, (BATCH, prompt), generator=torch.Generator().manual_seed(0))
    jobs = {
        "forward": lambda model: model(input_ids=ids_BT),
        "generate": lambda model: _generate(model, ids_BT, new_tokens),
    }
    times = {job: {name: [] for name in models} for job in jobs}
    for repeat in range(repeats + 1):
        turn = repeat % len(models)
        for name in [*list(models)[turn:], *list(models)[:turn]]:
            model, context = models[name]
            for job, action in jobs.items():
                with context():
                    seconds = _seconds(action, model)
                if repeat:  # the first warms up
                    times[job][name].append(seconds)
    return {"backbones": n, "batch": BATCH, "prompt": prompt, "new_tokens": new_tokens, "seconds": times}


def _generate(model: Any, ids_BT: torch.Tensor, new_tokens: int) -> None:
    model.generate(
        input_ids=ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        do_sample=False,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        pad_token_id=0,
    )


def _seconds(action: Callable[[Any], Any], model: Any) -> float:
    with torch.inference_mode():
        begin = time.perf_counter()
        action(model)
        return time.perf_counter() - begin
