"""Which token a uniform number falls on, and the numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from stages.engines.draws import draw, uniforms
from stages.engines.protocol import Sampling

CODEC = SimpleNamespace(banned_ids=(0, 4))
LOGITS_V = torch.tensor([50.0, np.log(0.2), np.log(0.5), np.log(0.3), 50.0], dtype=torch.float64).float()
LAST = 1 - 2.0**-48


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 1), (0.199, 1), (0.201, 2), (0.699, 2), (0.701, 3), (LAST, 3)])
def test_a_number_falls_on_the_token_whose_share_of_the_line_it_lies_in(uniform, expected):
    drawn = draw(LOGITS_V[None], torch.tensor([uniform], dtype=torch.float64), CODEC, Sampling(1))
    assert drawn.ids_N.tolist() == [expected]
    assert drawn.logprobs_N.exp().item() == pytest.approx([0.2, 0.5, 0.3][expected - 1], abs=1e-6)


def test_temperature_flattens_the_line():
    """Square roots of 0.2, 0.5 and 0.3, of their sum: 0.263, 0.415, 0.322."""
    uniform_N = torch.tensor([0.25, 0.27, 0.67, 0.69], dtype=torch.float64)
    drawn = draw(LOGITS_V.expand(4, -1), uniform_N, CODEC, Sampling(1, temperature=2.0))
    assert drawn.ids_N.tolist() == [1, 2, 2, 3]
    assert drawn.logprobs_N.exp().tolist() == pytest.approx([0.2627, 0.4155, 0.4155, 0.3218], abs=1e-3)


def test_greedily_the_number_is_of_no_use():
    uniform_N = torch.tensor([0.0, LAST], dtype=torch.float64)
    drawn = draw(LOGITS_V.expand(2, -1), uniform_N, CODEC, Sampling(1, temperature=0))
    assert drawn.ids_N.tolist() == [2, 2]
    assert drawn.logprobs_N.exp().tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_many_distributions_are_drawn_from_in_parts(monkeypatch):
    logits_NV = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    uniform_N = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = draw(logits_NV, uniform_N, CODEC, Sampling(1))
    monkeypatch.setattr("stages.engines.draws.LOGITS_AT_ONCE", 60)
    parts = draw(logits_NV, uniform_N, CODEC, Sampling(1))
    assert torch.equal(parts.ids_N, whole.ids_N)
    assert torch.equal(parts.logprobs_N, whole.logprobs_N)


def test_a_large_vocabulary_is_drawn_from_evenly():
    """Tokens that sums in float32 would pass over: each of 2**18 as likely, the number decides to the last."""
    logits_NV = torch.zeros(3, 1 << 18)
    places = torch.tensor([5, 130_001, (1 << 18) - 2])
    drawn = draw(logits_NV, (places + 0.5) / (1 << 18), SimpleNamespace(banned_ids=()), Sampling(1))
    assert drawn.ids_N.tolist() == places.tolist()


def test_numbers_are_uniform_and_each_response_has_its_own():
    numbers = {key: uniforms(*key, 1000) for key in [(7, 0, 0), (7, 0, 1), (7, 1, 0), (8, 0, 0), (2**62, 5, 3)]}
    for values in numbers.values():
        assert values.min() >= 0
        assert values.max() < 1
        assert kstest(values, "uniform").pvalue > 1e-3
    assert len({values[0] for values in numbers.values()}) == 5
    correlations = np.corrcoef(list(numbers.values()))[np.triu_indices(5, 1)]
    assert np.abs(correlations).max() < 0.12


def test_numbers_of_a_longer_response_begin_alike():
    assert uniforms(3, 2, 1, 500)[:20].tolist() == uniforms(3, 2, 1, 20).tolist()
