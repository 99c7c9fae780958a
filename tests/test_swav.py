"""SwAV: agreement with a plain loop, limits, bad inputs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponderlearn.contrastive.swav import soft_weights


def plain(scores, temperature):
    "The formula for one row of scores."
    powers = [torch.exp(s / temperature) for s in scores]
    return torch.stack([p / sum(powers) for p in powers])


@given(st.integers(1, 6), st.floats(0.2, 5), st.integers(0, 10**6))
def test_agrees_with_a_plain_loop(n, temperature, seed):
    scores = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(soft_weights(scores, temperature=temperature), plain(scores, temperature))


def test_gradcheck():
    scores = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(soft_weights, (scores,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    scores = torch.randn(2, 3).to(dtype)
    wanted = soft_weights(scores.float())
    assert torch.allclose(soft_weights(scores).float(), wanted, atol=1e-2)


def test_bad_inputs():
    with pytest.raises(ValueError, match="temperature must"):
        soft_weights(torch.zeros(2), temperature=0)
