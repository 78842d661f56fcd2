"""The measurements as tables: medians with their ranges, and ratios within each repeat."""

from __future__ import annotations

from typing import Any

from benchmarks.report import spread, table


def tables(results: dict[str, Any], markdown: bool) -> str:
    """Return every measured part as a table under its title, and what it was measured on."""
    parts = {
        "one": ("One soup of two checkpoints", _one),
        "many": ("Many soups in one pass", _many),
        "growth": ("Growth of one pass", _growth),
        "adapters": ("Many adapters in one pass", _adapters),
        "switch": ("A new preference in memory", _switch),
        "rows": ("A preference for each row of a batch", _rows),
    }
    texts = []
    for part, measured in results.items():
        title, lay_out = parts[part]
        found = measured["results"]
        texts.append(f"{'### ' if markdown else ''}{title}")
        texts.extend(table(header, rows, markdown) for header, rows in lay_out(measured["settings"], found))
        numbers = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
        texts.append(f"{measured['machine']}; {numbers}.")
    return "\n\n".join(texts)


def _one(settings: Any, runs: dict[str, Any]) -> Any:
    copies = [taken["inside"] for taken in runs["copy"]]
    rows = []
    for name, all_taken in runs.items():
        seconds = [taken["inside"] or taken["seconds"] for taken in all_taken]
        rows.append(
            [
                name,
                spread(seconds),
                spread([own / copy for own, copy in zip(seconds, copies, strict=True)]),
                spread([taken["peak_mib"] for taken in all_taken], ".0f"),
            ]
        )
    yield [f"two {settings['size']} checkpoints", "seconds", "in copies", "peak RSS, MiB"], rows


def _many(settings: Any, measured: list[dict[str, Any]]) -> Any:
    for each, found in zip(settings, measured, strict=True):
        what = f"{found['soups']} soups of {each['n']} {each['size']} checkpoints, {found['bytes'] / 1e9:.1f} GB"
        yield _one_pass(what, found["runs"])


def _adapters(settings: Any, found: dict[str, Any]) -> Any:
    what = (
        f"{found['soups']} soups of {settings['n']} adapters of rank {settings['rank']}, {found['bytes'] / 1e9:.1f} GB"
    )
    yield _one_pass(what, found["runs"])


def _one_pass(what: str, runs: dict[str, Any]) -> Any:
    copies = [taken["inside"] for taken in runs["copy"]]
    sweep = [taken["seconds"] for taken in runs["bonesoup sweep"]]
    rows = []
    for name, all_taken in runs.items():
        seconds = [taken["inside"] or taken["seconds"] for taken in all_taken]
        rows.append(
            [
                name,
                spread(seconds),
                spread([own / copy for own, copy in zip(seconds, copies, strict=False)]),
                spread([own / other for own, other in zip(seconds, sweep, strict=False)]),
                spread([taken["peak_mib"] for taken in all_taken], ".0f"),
            ]
        )
    return [what, "seconds", "in copies", "in commands `bonesoup sweep`", "peak RSS, MiB"], rows


def _growth(settings: Any, measured: list[dict[str, Any]]) -> Any:
    rows = [
        [
            case["size"],
            str(case["backbones"]),
            str(case["soups"]),
            spread([taken["inside"] for taken in case["runs"]]),
            spread([taken["peak_mib"] for taken in case["runs"]], ".0f"),
        ]
        for case in measured
    ]
    yield ["size", "backbones", "soups", "seconds, imported", "peak RSS, MiB"], rows


def _switch(settings: Any, measured: list[dict[str, Any]]) -> Any:
    rows = [[str(found["layers"]), str(found["backbones"]), spread(found["milliseconds"], ".3f")] for found in measured]
    yield ["adapted layers", "backbones", "milliseconds"], rows


def _rows(settings: Any, measured: list[dict[str, Any]]) -> Any:
    for each, found in zip(settings, measured, strict=True):
        first, same_rank, *_ = found["seconds"]["forward"]
        rows = []
        for name in found["seconds"]["forward"]:
            cells = [name]
            for job in ("forward", "generate"):
                times = found["seconds"][job]
                cells.append(spread(times[name], ".3f"))
                cells += [
                    spread([own / other for own, other in zip(times[name], times[against], strict=True)])
                    for against in (first, same_rank)
                ]
            rows.append(cells)
        work = (
            f"{found['batch']} rows of {found['prompt']} tokens, {found['backbones']} backbones of rank {each['rank']}"
        )
        ratios = ["in the first", "in the second"]
        yield [work, "forward, s", *ratios, f"{found['new_tokens']} new tokens, s", *ratios], rows
