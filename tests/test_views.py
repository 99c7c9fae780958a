"""Views: the map by hand, independence, dtypes, pure batches; the encoder."""

import doctest
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from ponderlearn import views
from ponderlearn.views import random_view, small_encoder, two_views

NOTHING = dict.fromkeys(("rotation", "scaling", "shear", "shift", "noise"), 0.0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def picture(n=3, size=14):
    "Smooth images, so that interpolation matters little."
    x = F.interpolate(torch.rand(n, 1, 4, 4, generator=seeded(0)), size=size, mode="bicubic")
    return x.clamp(0, 1)


def test_examples_in_docstrings():
    assert doctest.testmod(views).failed == 0


def test_against_scipy():
    x = picture(n=4).double()
    drawn = 2 * torch.rand(5, 4, generator=seeded(3)) - 1
    found = random_view(x, noise=0, generator=seeded(3))
    c = (14 - 1) / 2
    for image, view, u in zip(x, found, drawn.T.double().numpy(), strict=True):
        a, s, k = math.radians(25) * u[0], 1 + 0.25 * u[1], 0.3 * u[2]
        turn = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
        matrix = (turn @ [[1, k], [0, 1]] / s)[::-1, ::-1]  # rows first
        offset = c - matrix @ [c, c] + 14 * 0.15 * u[[4, 3]]
        wanted = ndimage.affine_transform(
            image[0].numpy(), matrix, offset, order=1, mode="grid-constant"
        )
        assert torch.allclose(view[0], torch.from_numpy(wanted), atol=1e-5)


def test_strengths_bound_what_happens():
    x = picture(200)
    assert torch.allclose(random_view(x, **NOTHING), x, atol=1e-5)
    noisy = random_view(torch.full((50, 1, 14, 14), 0.5), **NOTHING | {"noise": 0.05})
    assert noisy.std().item() == pytest.approx(0.05, rel=0.05)
    view = random_view(x, generator=seeded(1))
    assert view.min() >= 0 and view.max() <= 1
    moved = random_view(torch.ones(500, 1, 20, 20), **NOTHING | {"shift": 0.25})
    assert (moved[:, 0, 9:11, 9:11] > 0.999).all()
    assert 0.5 < (moved[:, 0, 0, 0] < 0.5).float().mean() < 0.9


def test_each_image_has_its_own_draw_and_each_call_too():
    x = picture(1).expand(6, 1, 14, 14)
    view = random_view(x, noise=0, generator=seeded(2))
    assert len({tuple(v.flatten().tolist()) for v in view}) == 6
    g = seeded(2)
    assert torch.equal(random_view(x, noise=0, generator=g), view)
    assert not torch.equal(random_view(x, noise=0, generator=g), view)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    x = picture()
    a, b = (random_view(t, generator=seeded(0)) for t in (x, x.to(dtype)))
    assert b.dtype == dtype and torch.allclose(a, b.float(), atol=0.05)


def test_two_views_are_pure_and_of_the_same_images():
    x = picture(30)
    batches = two_views(x, 8, **NOTHING)
    a, b = batches(3, seeded(5))
    assert torch.allclose(a, b, atol=1e-5) and a.shape == (8, 1, 14, 14)
    batches = two_views(x, 8)
    (a, b), (c, d) = batches(3, seeded(5)), batches(3, seeded(5))
    assert torch.equal(a, c) and torch.equal(b, d) and not torch.equal(a, b)


@pytest.mark.parametrize("size, channels", [(14, 1), (8, 3), (28, 1), (5, 2)])
def test_small_encoder(size, channels):
    nets = [small_encoder(7, size=size, channels=channels, seed=s) for s in (1, 1, 2)]
    x = torch.rand(4, channels, size, size)
    a, b, c = (net(x) for net in nets)
    assert a.shape == (4, 7) and torch.equal(a, b) and not torch.equal(a, c)
    assert nets[0][:-1](x).shape == (4, 128)


def test_small_encoder_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    small_encoder(3, seed=1)
    assert torch.equal(before, torch.get_rng_state())
