"""One example call a public name of `performer`."""

import torch
from mistakes import Call, ok
from torch import nn

from ponderlearn.architectures.performer import (
    FavorAttention,
    favor_attention,
    linear_attention,
    linear_attention_step,
    orthogonal_gaussian,
    redraw_projections,
    relu_features,
    softmax_features,
    softmax_kernel_mse,
)


def g():
    return torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.rand(*shape, generator=g())


def mask(*shape):
    m = torch.rand(*shape, generator=g()) < 0.7
    m[..., 0] = True
    return m


def favor(**more):
    torch.manual_seed(0)
    return FavorAttention(8, 2, 6, generator=g(), **more)


def made():
    x = rand(3, 5, 8)
    call = Call(
        FavorAttention,
        embed_dim=8,
        num_heads=2,
        n_features=ok(6, None),
        kind="positive",
        bias=True,
        is_causal=False,
        orthogonal=True,
        generator=g(),
    )
    return call.then(lambda layer: layer.to_empty(device="cpu")(x).shape)


def redrawn():
    layer = favor()
    return Call(redraw_projections, model=nn.Sequential(layer), generator=g()).then(
        lambda _: layer.projection
    )


EXAMPLES = {
    "softmax_kernel_mse": lambda: Call(
        softmax_kernel_mse,
        x=ok(rand(3, 4), "axis fewer", "axis more"),
        y=ok(rand(3, 4) / 2, "axis fewer", "axis more"),
        n_projections=2,
        kind="positive",
    ),
    "orthogonal_gaussian": lambda: Call(
        orthogonal_gaussian,
        n_projections=5,
        dim=3,
        batch_shape=ok((2,), "empty", "entry less"),
        kind="chi",
        generator=g(),
        device=ok("cpu", "number"),
        dtype=torch.float32,
    ),
    "softmax_features": lambda: Call(
        softmax_features,
        x=rand(3, 5, 4),
        projection=rand(6, 4),
        kind="positive",
        role="key",
        is_causal=False,
        scale=ok(0.5, 1.5, 10**30),
        stabilize=True,
        mask=mask(3, 5),
    ),
    "relu_features": lambda: Call(
        relu_features,
        x=ok(rand(3, 5, 4), "axis fewer", "axis more"),
        projection=rand(6, 4),
        epsilon=ok(0.1, 0, 1.5, 10**30),
    ),
    "linear_attention": lambda: Call(
        linear_attention,
        q_features=rand(3, 5, 4),
        k_features=rand(3, 5, 4) + 0.1,
        value=ok(rand(3, 5, 2), "width"),
        is_causal=False,
        key_mask=mask(3, 5),
        chunk_size=ok(2, 1, 10**9),
    ),
    "linear_attention_step": lambda: Call(
        linear_attention_step,
        state=ok((rand(3, 4, 2), rand(3, 4)), None),
        q_features=rand(3, 4),
        k_features=rand(3, 4) + 0.1,
        value=rand(3, 2),
    ),
    "favor_attention": lambda: Call(
        favor_attention,
        query=rand(3, 2, 5, 4),
        key=rand(3, 2, 7, 4) + 0.1,
        value=ok(rand(3, 2, 7, 6), "width"),
        projection=rand(9, 4),
        kind="positive",
        is_causal=False,
        key_mask=mask(3, 7),
        scale=ok(0.5, 1.5, 10**30),
        chunk_size=ok(2, 1),
    ),
    "FavorAttention": made,
    "FavorAttention.forward": lambda: Call(
        favor(), x=rand(3, 5, 8), context=ok(rand(3, 7, 8) + 0.1, None), key_mask=mask(3, 7)
    ),
    "FavorAttention.load_mha": lambda: Call(favor().load_mha, mha=nn.MultiheadAttention(8, 2)).then(
        lambda layer: layer.query.weight.sum() * 0
    ),
    "FavorAttention.redraw_": lambda: Call(favor().redraw_, generator=g()).then(
        lambda layer: layer.projection
    ),
    "redraw_projections": redrawn,
}
ALLOWED = {}
