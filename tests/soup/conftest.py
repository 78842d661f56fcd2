"""Fixtures: a tiny soup of two adapters, one of two full checkpoints, and a padded batch."""

from pathlib import Path

import pytest
import torch
from tiny_soups import adapter_soup, full_soup, tiny_tokenizer


@pytest.fixture(scope="session")
def two_adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A soup of two plain adapters of rank 4 and alpha 8, β = .7, on a tiny Llama."""
    return adapter_soup(tmp_path_factory.mktemp("two"), [{}, {}])


@pytest.fixture(scope="session")
def two_full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A soup of two full float32 checkpoints, β = .7."""
    return full_soup(tmp_path_factory.mktemp("full"), 2)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three prompts of different lengths, padded on the left."""
    return dict(
        tiny_tokenizer()(
            ["the cat sat on the mat", "a dog ran", "the bird was over the tree"],
            return_tensors="pt",
            padding=True,
            return_token_type_ids=False,
        )
    )
