"""A full soup in memory: exact in bf16, tied where the model ties, refused where names do not fit."""

import pytest
import torch
from tiny_soups import full_soup, tiny_gpt2, weights_of

from trl_bonesoup import BoneSoup
from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.full import FullParameters
from trl_bonesoup.soup.source import ModelRef


def test_bf16_parameters_do_not_drift_however_often_they_are_set(tmp_path) -> None:
    folder = full_soup(tmp_path, 2, dtype=torch.bfloat16)
    soup = BoneSoup.from_pretrained(folder)
    models = [weights_of(folder / f"backbone{j}") for j in range(2)]
    for preference in ([1.0, 0.0], [0.1, 0.9], [0.0, 1.0], [1.0, 0.0]):
        soup.set_preference(preference)
    for name, value in soup.model.state_dict().items():
        exact = 1.75 * models[0][name].float() - 0.75 * models[1][name].float()
        torch.testing.assert_close(value, exact.to(torch.bfloat16), rtol=2**-8, atol=1e-6)


def test_tied_embeddings_stay_tied(tmp_path) -> None:
    folder = full_soup(tmp_path, 2, tied=True)
    soup = BoneSoup.from_pretrained(folder)
    soup.set_preference([0.0, 1.0])
    first, second = (weights_of(folder / f"backbone{j}")["model.embed_tokens.weight"] for j in range(2))
    torch.testing.assert_close(soup.model.lm_head.weight, -0.75 * first + 1.75 * second)


def test_zeros_are_the_base(tmp_path) -> None:
    folder = full_soup(tmp_path, 2)
    soup = BoneSoup.from_pretrained(folder)
    soup.set_coefficients([0.0, 0.0])
    base = weights_of(folder / "base")
    assert all(torch.equal(value, base[name]) for name, value in soup.model.state_dict().items())


def test_a_model_of_other_tensors_is_refused(two_full) -> None:
    folders = [two_full / "backbone0", two_full / "backbone1"]
    with pytest.raises(SoupError, match=r"not those of the loaded model.*bonesoup merge"):
        FullParameters(tiny_gpt2(), folders, ModelRef(str(two_full / "base")))
