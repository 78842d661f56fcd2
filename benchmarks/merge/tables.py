"""The measurements as tables: medians with their ranges, and ratios within each repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.report import spread, table

Table = tuple[list[str], list[list[str]]]


def tables(measured: dict[str, list[dict[str, Any]]], markdown: bool) -> str:
    """Return every measured part as tables under its title, and what it was measured on."""
    texts = []
    for part, found in measured.items():
        title, lay_out = _PARTS[part]
        texts.append(f"{'### ' if markdown else ''}{title}")
        texts.extend(table(header, rows, markdown) for header, rows in lay_out(found))
        for machine, numbers in {each["machine"]: each["versions"] for each in found}.items():
            texts.append(f"{machine}; {', '.join(f'{name} {number}' for name, number in numbers.items())}.")
    return "\n\n".join(texts)


def _one(measured: list[dict[str, Any]]) -> Iterator[Table]:
    for each in measured:
        copies = [taken["inside"] for taken in each["results"]["copy"]]
        rows = []
        for name, all_taken in each["results"].items():
            seconds = [taken["inside"] or taken["seconds"] for taken in all_taken]
            rows.append(
                [
                    name,
                    spread(seconds),
                    spread([own / copy for own, copy in zip(seconds, copies, strict=True)]),
                    spread([taken["peak_mib"] for taken in all_taken], ".0f"),
                ]
            )
        yield [f"two {each['settings']['size']} checkpoints", "seconds", "in copies", "peak RSS, MiB"], rows


def _many(measured: list[dict[str, Any]]) -> Iterator[Table]:
    for each in measured:
        settings, found = each["settings"], each["results"]
        checkpoints = f"{settings['n']} {settings['size']} checkpoints"
        yield _one_pass(f"{found['soups']} soups of {checkpoints}, {found['bytes'] / 1e9:.1f} GB", found["runs"])


def _adapters(measured: list[dict[str, Any]]) -> Iterator[Table]:
    for each in measured:
        settings, found = each["settings"], each["results"]
        adapters = f"{settings['n']} adapters of rank {settings['rank']} on {settings['base']}"
        yield _one_pass(f"{found['soups']} soups of {adapters}, {found['bytes'] / 1e9:.1f} GB", found["runs"])


def _one_pass(what: str, runs: dict[str, Any]) -> Table:
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


def _growth(measured: list[dict[str, Any]]) -> Iterator[Table]:
    rows = [
        [
            case["size"],
            str(case["backbones"]),
            str(case["soups"]),
            spread([taken["inside"] for taken in case["runs"]]),
            spread([taken["peak_mib"] for taken in case["runs"]], ".0f"),
        ]
        for each in measured
        for case in each["results"]
    ]
    yield ["size", "backbones", "soups", "seconds, imported", "peak RSS, MiB"], rows


def _switch(measured: list[dict[str, Any]]) -> Iterator[Table]:
    found = [each["results"] for each in measured]
    rows = [[str(each["layers"]), str(each["backbones"]), spread(each["milliseconds"], ".3f")] for each in found]
    yield ["adapted layers", "backbones", "milliseconds"], rows


def _rows(measured: list[dict[str, Any]]) -> Iterator[Table]:
    for each in measured:
        found = each["results"]
        first, same_rank, *_ = found["seconds"]["forward"]
        rows = []
        for name in found["seconds"]["forward"]:
            cells = [name]
            for job in ("forward", "generate"):
                times = found["seconds"][job]
                cells.append(spread(times[name]))
                cells += [
                    spread([own / other for own, other in zip(times[name], times[against], strict=True)])
                    for against in (first, same_rank)
                ]
            rows.append(cells)
        backbones = f"{found['backbones']} backbones of rank {each['settings']['rank']}"
        work = f"{found['batch']} rows of {found['prompt']} tokens, {backbones}"
        ratios = ["in the first", "in the second"]
        yield [work, "forward, s", *ratios, f"{found['new_tokens']} new tokens, s", *ratios], rows


_PARTS: dict[str, tuple[str, Callable[[list[dict[str, Any]]], Iterator[Table]]]] = {
    "one": ("One soup of two checkpoints", _one),
    "many": ("Many soups in one pass", _many),
    "growth": ("Growth of one pass", _growth),
    "adapters": ("Many adapters in one pass", _adapters),
    "switch": ("A new preference in memory", _switch),
    "rows": ("A preference for each row of a batch", _rows),
}
