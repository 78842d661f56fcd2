"""1,000 switches of preference with generation in between, memory flat: `pytest tests/stress/stress_serving.py -s`."""

import gc
from pathlib import Path

import pytest
import torch
from small_models import write_soup

from trl_bonesoup import BoneSoup

SWITCHES = 1000
SETTLED = 200
"""By then, allocators and caches have what they need."""


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_memory_is_flat_and_the_answers_stay_the_same(tmp_path: Path, kind: str) -> None:
    soup = BoneSoup.from_pretrained(write_soup(tmp_path / "soup", kind=kind))
    batch = soup.tokenizer(["the sea is", "a happy dog"], return_tensors="pt", padding=True, padding_side="left")
    rows = kind == "adapter"

    def answer(share: float, each: bool) -> torch.Tensor:
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
        if each:
            with soup.preferences([[share, 1.0 - share], [1.0 - share, share]]):
                return soup.model.generate(**batch, **options)
        soup.set_preference([share, 1.0 - share], extrapolation=0.2 if share < 0.1 else 0.0)
        return soup.model.generate(**batch, **options)

    first = {}
    sizes = []
    for switch in range(SWITCHES):
        share, each = (switch % 50) / 49, rows and switch % 3 == 0
        found = answer(share, each)
        expected = first.setdefault((share, each), found)
        assert torch.equal(found, expected), switch
        if switch % 100 == 99:
            gc.collect()
            sizes.append(resident_megabytes())
    print(f"\n{kind}: {len(first)} preferences, resident after each 100 switches: {[round(size) for size in sizes]} MB")
    settled = sizes[SETTLED // 100 - 1 :]
    assert max(settled) - min(settled) < 10.0
