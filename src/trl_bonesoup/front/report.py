"""A comparison as text, CSV, JSON and figures."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import io
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

import trl_bonesoup
from trl_bonesoup.front.bootstrap import RESAMPLES, Estimate
from trl_bonesoup.front.checks import write_json
from trl_bonesoup.front.front import BASE_LABEL, Marker
from trl_bonesoup.front.methods import SoupMethod
from trl_bonesoup.front.table import markdown_table

if TYPE_CHECKING:
    from trl_bonesoup.front.results import ComparisonResult, MethodResult

FORMAT_VERSION = 1
RECORD, TEXT, TABLE = "compare.json", "compare.md", "compare.csv"
_LIBRARIES = ("torch", "transformers", "trl", "peft", "numpy", "moocore")

__all__ = ["comparison_csv", "comparison_record", "comparison_text", "write_report"]


def comparison_text(result: ComparisonResult) -> str:
    """Return the tables of a comparison in Markdown, with what is needed to read them."""
    parts = [_metrics_table(result), _how_to_read(result)]
    if table := _differences_table(result):
        parts.append(table)
    return "\n\n".join(parts)


def comparison_record(result: ComparisonResult) -> dict[str, Any]:
    """Return everything about a comparison, in what JSON can hold."""
    return {
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "objectives": list(result.objectives),
        "reference": dict(zip(result.objectives, result.raw_reference_N.tolist(), strict=True)),
        "scale": {name: entry.model_dump() for name, entry in result.scale.items()},
        "seeds": list(result.seeds),
        "steps_per_policy": result.steps_per_policy,
        "against": result.against,
        "methods": [_method_record(result, each) for each in result.methods],
        "intervals": f"95 % bootstrap over {len(result.seeds)} seeds and the test prompts, {RESAMPLES} resamples",
        "cost": dict(result.cost),
        "request": dict(result.request),
        "machine": {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count()},
        "versions": {
            "trl-bonesoup": trl_bonesoup.__version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
    }


def comparison_csv(result: ComparisonResult) -> str:
    """Return a row for each method: every number of the tables, with the ends of its interval in columns of their own.

    What a method has no number for is empty.
    """
    rows = [_row(_method_record(result, each)) for each in result.methods]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    estimates = {
        **record["over_seeds"],
        **{f"{name}_ahead": record["ahead"].get(name) for name in ("hypervolume", "inner_product")},
        "share_of_oracle": record["share_of_oracle"],
    }
    row = {"method": record["name"], **{name: record[name] for name in ("folder", "policies", "steps")}}
    row["preferences"] = len(record["preferences"])
    for name, estimate in estimates.items():
        ends = {"": "value", "_low": "lower", "_high": "upper"}
        row |= {f"{name}{end}": "" if estimate is None else estimate[key] for end, key in ends.items()}
    return row | {name: _mean(record["by_seed"], name) for name in ("length_of_front", "sparsity", "spacing")}


def write_report(result: ComparisonResult) -> None:
    """Write compare.json, compare.md, compare.csv and the figures into the folder of a comparison."""
    write_json(result.folder / RECORD, comparison_record(result))
    (result.folder / TEXT).write_text(comparison_text(result) + "\n", encoding="utf-8")
    (result.folder / TABLE).write_text(comparison_csv(result), encoding="utf-8")
    _draw(result)


def _draw(result: ComparisonResult) -> None:
    """Draw the mean fronts, with the base as a marker in all of them."""
    from trl_bonesoup.front.plots import plot
    from trl_bonesoup.front.plots.style import save

    base = next((each.mean_front() for each in result.measured if not each.method.mixtures), None)
    markers = {} if base is None else {BASE_LABEL: Marker(base.rewards_KN[0], base.intervals_KN2[0])}
    several = {each.method.name: each.mean_front(markers) for each in result.measured if _is_line(each)}
    for kind in ("front", "preference") if several else ():
        figure = plot(several, result.folder / f"{kind}.png", kind=kind)
        save(figure, result.folder / f"{kind}.svg")


def _is_line(each: MethodResult) -> bool:
    """Whether a method belongs into the figures: random matrices would hide the others, the base is one point."""
    return bool(each.method.mixtures) and not each.method.slug.startswith("random-b")


def _metrics_table(result: ComparisonResult) -> str:
    header = ["method", "μ", "policies", "steps", "hypervolume", "inner product", "controllability", "length",
              "sparsity", "spacing"]  # fmt: skip
    rows = [header]
    for each in result.methods:
        estimates, metrics = result.estimates(each), result.metrics(each)
        policies = len(each.method.mixtures)
        rows.append(
            [
                each.method.name,
                str(len(each.preferences_KN)),
                str(policies),
                str(policies * result.steps_per_policy),
                *(_with_interval(estimates[name]) for name in ("hypervolume", "inner_product", "controllability")),
                f"{_mean(metrics, 'length_of_front'):.3g}",
                f"{_mean(metrics, 'sparsity'):.3g}",
                f"{_mean(metrics, 'spacing'):.3g}",
            ]
        )
    return markdown_table(rows)


def _how_to_read(result: ComparisonResult) -> str:
    reference = zip(result.objectives, result.raw_reference_N, strict=True)
    point = ", ".join(f"{name} {value:.4g}" for name, value in reference)
    seeds = ", ".join(map(str, result.seeds))
    over = f"seeds and test prompts ({len(result.seeds)} seeds: {seeds})" if len(result.seeds) > 1 else (
        f"test prompts alone (one seed: {seeds})"
    )  # fmt: skip
    answers = result.request["answers"]
    return (
        f"Means over seeds, with 95 % intervals over {over}. {_units(result)}Hypervolumes are above {point} for every "
        f"method. Every policy was trained for {result.steps_per_policy} optimizer steps; policies and steps are those "
        f"that a method needs for one seed. All methods answered the same {result.request['test_prompts']['rows']} "
        f"prompts {_times(answers['samples_per_prompt'])}, with the same random numbers. μ is the number of "
        "preferences at which a method was measured: the more, the larger its hypervolume and length, so methods with "
        "different numbers are compared below, at the same ones."
    )


def _units(result: ComparisonResult) -> str:
    if not result.scale:
        return ""
    entries = ", ".join(f"{name} {entry.mean:.3g} ± {entry.std:.3g}" for name, entry in result.scale.items())
    if result.request["scores"]["normalization"] == "fixed":
        return f"Metrics count rewards as training did, in the mean and units that its settings gave ({entries}). "
    return f"Metrics count rewards in standard deviations from the mean of the base's answers ({entries}). "


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _differences_table(result: ComparisonResult) -> str:
    """Return how far each method is from the one that is compared with, and from MORLHF; empty if there is neither."""
    names = {each.method.slug: each.method.name for each in result.methods}
    rows, any_ahead, any_share = [], False, False
    for each in result.methods:
        ahead, share = result.ahead(each), result.share_of_oracle(each)
        any_ahead, any_share = any_ahead or bool(ahead), any_share or share is not None
        cells = [_with_interval(ahead[name]) if name in ahead else "" for name in ("hypervolume", "inner_product")]
        rows.append([each.method.name, *cells, "" if share is None else _with_interval(share)])
    if not any_ahead and not any_share:
        return ""
    other = names.get(result.against or "", "")
    header = ["method", f"hypervolume above {other}", f"inner product above {other}", "share of MORLHF's hypervolume"]
    columns = [0, *([1, 2] if any_ahead else []), *([3] if any_share else [])]
    table = markdown_table([[row[column] for column in columns] for row in [header, *rows]])
    at = " The share of MORLHF's hypervolume is at MORLHF's preferences alone." if any_share else ""
    return f"{table}\n\nDifferences and shares are paired: the same seeds and the same prompts on both sides.{at}"


def _method_record(result: ComparisonResult, each: MethodResult) -> dict[str, Any]:
    share = result.share_of_oracle(each)
    record: dict[str, Any] = {
        "name": each.method.name,
        "folder": each.method.slug,
        "policies": len(each.method.mixtures),
        "steps": len(each.method.mixtures) * result.steps_per_policy,
        "mixtures": [mixture.tolist() for mixture in each.method.mixtures],
        "preferences": each.preferences_KN.tolist(),
        "by_seed": [
            {"seed": seed, **metrics} for seed, metrics in zip(result.seeds, result.metrics(each), strict=True)
        ],
        "over_seeds": {name: asdict(estimate) for name, estimate in result.estimates(each).items()},
        "ahead": {name: asdict(estimate) for name, estimate in result.ahead(each).items()},
        "share_of_oracle": None if share is None else asdict(share),
    }
    if isinstance(each.method, SoupMethod):
        record["combination_weights"] = each.method.weights.tolist()
        record["condition"] = float(np.linalg.cond(each.method.weights))
    return record


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.4g} ({estimate.lower:.3g} to {estimate.upper:.3g})"


def _mean(metrics: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([each[name] for each in metrics]))
