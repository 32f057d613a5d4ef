"""Which token a uniform number falls on, and the numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from stages.engines.draws import draw, uniforms
from stages.engines.protocol import Sampling

CODEC = SimpleNamespace(banned_ids=(0, 4))
LOGITS_V = torch.tensor([50.0, np.log(0.2), np.log(0.5), np.log(0.3), 50.0], dtype=torch.float64).float()
LAST = 1 - 2.0**-32


def nothing(count):
    """No token is expected."""
    return torch.full((count,), -1)


@pytest.mark.parametrize(
    ("uniform", "expected"),
    [
        # Two stretches, of tokens 0 to 2 and of 3 and 4, have 0.7 and 0.3.
        ((0.0, 0.0), 1), ((0.699, 0.285), 1), ((0.0, 0.287), 2),
        ((0.699, LAST), 2), ((0.701, 0.0), 3), ((LAST, LAST), 3),
    ],
)  # fmt: skip
def test_numbers_fall_on_the_token_whose_share_of_the_line_they_lie_in(uniform, expected):
    drawn = draw(LOGITS_V[None], torch.tensor([uniform], dtype=torch.float64), nothing(1), CODEC, Sampling(1))
    assert drawn.ids_N.tolist() == [expected]
    assert drawn.logprobs_N.exp().item() == pytest.approx([0.2, 0.5, 0.3][expected - 1], abs=1e-6)


def test_temperature_flattens_the_line():
    """Square roots of 0.2, 0.5 and 0.3, of their sum: 0.2627, 0.4154, 0.3218; of the first two: 0.387."""
    uniform_N2 = torch.tensor([[0.1, 0.38], [0.1, 0.39], [0.677, 0.9], [0.679, 0.9]], dtype=torch.float64)
    drawn = draw(LOGITS_V.expand(4, -1), uniform_N2, nothing(4), CODEC, Sampling(1, temperature=2.0))
    assert drawn.ids_N.tolist() == [1, 2, 2, 3]
    assert drawn.logprobs_N.exp().tolist() == pytest.approx([0.2627, 0.4154, 0.4154, 0.3218], abs=1e-3)


@pytest.mark.parametrize("vocabulary", [2, 3, 9, 10, 356])
def test_every_token_is_drawn_as_often_as_it_is_likely(vocabulary):
    """Whole stretches and a last one that is cut; two tokens are banned where there are more."""
    rng = np.random.default_rng(vocabulary)
    banned = (1, vocabulary - 1) if vocabulary > 3 else ()
    logits_V = torch.from_numpy(rng.standard_normal(vocabulary)).float()
    drawn = draw(
        logits_V.expand(40_000, -1), torch.from_numpy(rng.random((40_000, 2))), nothing(40_000),
        SimpleNamespace(banned_ids=banned), Sampling(1),
    )  # fmt: skip
    chances_V = logits_V.double().numpy()
    chances_V[list(banned)] = -np.inf
    chances_V = np.exp(chances_V) / np.exp(chances_V).sum()
    counts_V = np.bincount(drawn.ids_N.numpy(), minlength=vocabulary)
    assert counts_V[list(banned)].sum() == 0
    allowed = chances_V > 0
    assert chisquare(counts_V[allowed], chances_V[allowed] * 40_000).pvalue > 1e-3


def test_greedily_the_number_is_of_no_use():
    uniform_N2 = torch.tensor([[0.0, 0.0], [LAST, LAST]], dtype=torch.float64)
    drawn = draw(LOGITS_V.expand(2, -1), uniform_N2, nothing(2), CODEC, Sampling(1, temperature=0))
    assert drawn.ids_N.tolist() == [2, 2]
    assert drawn.logprobs_N.exp().tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


@pytest.mark.parametrize(
    ("expected", "keep", "found"),
    [(3, 0.29, 3), (3, 0.31, 2), (1, 0.29, 2), (1, 0.19, 1), (2, 1.0, 2), (-1, 0.01, 2), (0, 1e-9, 2)],
)
def test_an_expected_token_is_taken_where_it_is_likely_enough(expected, keep, found):
    """Tokens 1, 2, 3 have 0.2, 0.5, 0.3, tokens 0 and 4 are banned; the number falls on token 2."""
    uniform_N2 = torch.tensor([[0.1, 0.5]], dtype=torch.float64)
    drawn = draw(LOGITS_V[None], uniform_N2, torch.tensor([expected]), CODEC, Sampling(1, keep=keep))
    assert drawn.ids_N.tolist() == [found]
    assert drawn.logprobs_N.exp().item() == pytest.approx([0.2, 0.5, 0.3][found - 1], abs=1e-6)


@pytest.mark.parametrize(("temperature", "found"), [(1.0, 2), (2.0, 1)])
def test_how_likely_an_expected_token_is_depends_on_the_temperature(temperature, found):
    """Token 1 has 0.2, and 0.2627 at temperature 2, where the number falls on token 2 too."""
    uniform_N2 = torch.tensor([[0.1, 0.5]], dtype=torch.float64)
    drawn = draw(LOGITS_V[None], uniform_N2, torch.tensor([1]), CODEC, Sampling(1, temperature=temperature, keep=0.25))
    assert drawn.ids_N.tolist() == [found]


def test_many_distributions_are_drawn_from_in_parts(monkeypatch):
    logits_NV = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    uniform_N2 = torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    asked = logits_NV, uniform_N2, torch.arange(50) % 20, CODEC, Sampling(1, keep=0.1)
    whole = draw(*asked)
    monkeypatch.setattr("stages.engines.draws.LOGITS_AT_ONCE", 60)
    parts = draw(*asked)
    assert torch.equal(parts.ids_N, whole.ids_N)
    assert torch.equal(parts.logprobs_N, whole.logprobs_N)


def test_a_rounding_moves_hardly_any_draw():
    """Logits of 32,000 tokens that differ by what another order of summing does, 1e-6."""
    generator = torch.Generator().manual_seed(0)
    logits_NV = torch.randn(2000, 32_000, generator=generator)
    uniform_N2 = torch.rand(2000, 2, dtype=torch.float64, generator=generator)
    codec = SimpleNamespace(banned_ids=())
    first, second = (
        draw(logits, uniform_N2, nothing(2000), codec, Sampling(1))
        for logits in (logits_NV, logits_NV + 1e-6 * torch.randn(2000, 32_000, generator=generator))
    )
    assert (first.ids_N != second.ids_N).sum() <= 1


def test_numbers_are_uniform_and_each_response_has_its_own():
    numbers = {key: uniforms(*key, 500).ravel() for key in [(7, 0, 0), (7, 0, 1), (7, 1, 0), (8, 0, 0), (2**62, 5, 3)]}
    for values in numbers.values():
        assert values.min() >= 0
        assert values.max() < 1
        assert kstest(values, "uniform").pvalue > 1e-3
    assert len({values[0] for values in numbers.values()}) == 5
    correlations = np.corrcoef(list(numbers.values()))[np.triu_indices(5, 1)]
    assert np.abs(correlations).max() < 0.12


def test_numbers_of_a_longer_response_begin_alike():
    assert uniforms(3, 2, 1, 500)[:20].tolist() == uniforms(3, 2, 1, 20).tolist()
