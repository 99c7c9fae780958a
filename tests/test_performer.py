"""Performers: hand cases, closed forms, projections, attention by matrices, layers, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import hyp0f1, hyp1f1
from torch import nn

from ponderlearn.architectures import performer
from ponderlearn.architectures.performer import (
    _KINDS,
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

D = torch.float64
every_kind = pytest.mark.parametrize("kind", _KINDS)
both = pytest.mark.parametrize("causal", [False, True])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*size, seed=0, dtype=D):
    return torch.randn(*size, generator=generator(seed), dtype=dtype)


def bare(x, omega, kind):
    "The features that the formulas speak of."
    return softmax_features(x, omega, kind=kind, scale=1.0, stabilize=False)


def by_matrix(q, k, v, omega, kind, causal=False, mask=None):
    "Attention with the explicit matrix of bare features in float64."
    scale = q.shape[-1] ** -0.25
    A = (
        bare(scale * q.double(), omega.double(), kind)
        @ bare(scale * k.double(), omega.double(), kind).mT
    )
    A = A.tril() if causal else A
    A = A if mask is None else A * mask[:, None, None]
    return A @ v.double() / A.sum(-1, keepdim=True)


def says(error, words, f, *args, **kwargs):
    with pytest.raises(error, match=words):
        f(*args, **kwargs)


def test_docstrings_name_equations_and_errors():
    for name in performer.__all__:
        x = getattr(performer, name)
        if callable(x):
            for text in [x.__doc__, *([x.forward.__doc__] if isinstance(x, type) else [])]:
                assert ">>> " in text and "(perf-" in text and "Error" in text, name


# --- one entry


def test_features_by_hand():
    x, y = torch.tensor([[0.5, 0.0]], dtype=D), torch.tensor([[0.0, 0.5]], dtype=D)
    eye = torch.eye(2, dtype=D)
    phi = bare(x, eye, "positive")
    assert torch.allclose(phi, torch.tensor([[1.028834, 0.624020]], dtype=D), atol=1e-6)
    for kind, value in {"positive": 1.284025, "hyperbolic": 0.878196, "trig": 1.126838}.items():
        found = bare(x, eye, kind) @ bare(y, eye, kind).T
        assert abs(found.item() - value) < 1e-6
    keys = torch.cat([x, y])
    out = favor_attention(x, keys, torch.eye(2, dtype=D), eye, scale=1.0)
    assert abs(out[0, 0].item() - 0.529993) < 1e-6


@every_kind
@pytest.mark.parametrize("m", [3, 4, 10])
def test_right_on_average(kind, m):
    x, y = 0.4 * normal(2, 1, 4, seed=1)
    omega = orthogonal_gaussian(m, 4, batch_shape=(20_000,), generator=generator(), dtype=D)
    x_, y_ = (t.expand(20_000, 1, 4) for t in (x, y))
    found = (bare(x_, omega, kind) * bare(y_, omega, kind)).sum((1, 2))
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - (x @ y.T).exp()) < 4 * error


def test_closed_forms_by_hand():
    a, b = torch.tensor([0.5, 0.0], dtype=D), torch.tensor([0.0, 0.5], dtype=D)
    one = torch.tensor([1.0, 0.0], dtype=D)
    for x, y, wanted in (
        (a, b, (0.648721, 0.127626, 0.127626)),
        (one, one, (396.039737, 194.393008, 0.0)),
        (one, -one, (0.0, 0.0, 3.560432)),
    ):
        found = [softmax_kernel_mse(x, y, kind=kind).item() for kind in _KINDS]
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-9)
    assert softmax_kernel_mse(a, b, 4) == softmax_kernel_mse(a, b) / 4


@every_kind
def test_closed_forms_by_draws(kind):
    x, y = 0.5 * normal(2, 1, 4, seed=2)
    omega = normal(200_000, 4, seed=3)
    each = (bare(x, omega, kind) * bare(y, omega, kind)).view(-1, 200_000).sum(0) * 200_000
    found = (each - (x @ y.T).exp()).square()
    wanted = softmax_kernel_mse(x[0], y[0], kind=kind)
    assert abs(found.mean() - wanted) < 4 * found.std() / math.sqrt(200_000)


@given(st.floats(0.1, 2), st.floats(0, math.pi), st.integers(1, 100))
@settings(max_examples=30, deadline=None)
def test_hyperbolic_is_never_worse_at_equal_features(length, angle, m):
    x = torch.tensor([length, 0.0], dtype=D)
    y = length * torch.tensor([math.cos(angle), math.sin(angle)], dtype=D)
    two = softmax_kernel_mse(x, y, m, kind="hyperbolic")
    assert two <= softmax_kernel_mse(x, y, 2 * m) * (1 + 1e-9)


def test_orthogonal_error_is_that_of_the_exact_formula():
    "For m <= d: Lambda^2 1F1(d; d/2; |x + y|^2 / 2) per pair of orthogonal rows."
    d = m = 16
    x, y = torch.eye(d, dtype=D)[:2]
    omega = orthogonal_gaussian(m, d, batch_shape=(8000,), generator=generator(), dtype=D)
    pair = {
        "positive": math.exp(-2) * hyp1f1(d, d / 2, 1.0),
        "trig": math.exp(2) * hyp1f1(d, d / 2, -1.0),
    }
    for kind, wanted in (("positive", 0.315797), ("trig", 0.049048), ("hyperbolic", 0.089118)):
        phi = [bare(t.expand(8000, 1, d), omega, kind) for t in (x, y)]
        found = ((phi[0] * phi[1]).sum((1, 2)) - 1).square()
        assert abs(found.mean() - wanted) < 4 * found.std() / math.sqrt(8000)
        if kind in pair:
            exact = softmax_kernel_mse(x, y, m, kind=kind).item() + (m - 1) / m * (pair[kind] - 1)
            assert exact == pytest.approx(wanted, abs=2e-6)
    assert 0.315797 < softmax_kernel_mse(x, y, m) - 2 * 15 / (16 * 18) * (1 - math.exp(-1)) ** 2


@pytest.mark.parametrize(
    ("d", "square", "wanted"),
    [(2, 0.5, 0.986013), (4, 1, 0.964770), (16, 1, 0.987048), (64, 4, 0.945248)],
)
def test_fixed_lengths_give_the_regularized_kernel(d, square, wanted):
    assert hyp0f1(d / 2, d * square / 4) * math.exp(-square / 2) == pytest.approx(wanted, abs=1e-6)
    omega = orthogonal_gaussian(
        min(d, 4), d, batch_shape=(8000,), kind="fixed", generator=generator(), dtype=D
    )
    found = (omega[:, 0, 0] * math.sqrt(square)).exp() * math.exp(-square / 2)
    assert abs(found.mean() - wanted) < 4 * found.std() / math.sqrt(8000)
    assert (omega.norm(dim=-1) - math.sqrt(d)).abs().max() < 1e-9


# --- projections


@pytest.mark.parametrize("m", [1, 5, 8, 19])
def test_projections(m):
    omega = orthogonal_gaussian(m, 8, batch_shape=(2000, 2), generator=generator())
    assert omega.shape == (2000, 2, m, 8)
    for start in range(0, m, 8):
        part = omega[:50, 0, start : start + 8]
        product = part @ part.mT
        assert (product - torch.diag_embed(product.diagonal(dim1=1, dim2=2))).abs().max() < 1e-4
    sizes = omega.square().sum(-1)
    assert abs(sizes.mean() - 8) < 4 * 4 / math.sqrt(sizes.numel())
    flat = omega.flatten(0, 1)
    assert (flat.mean(0).abs() < 5 / math.sqrt(len(flat))).all()  # without sign: -0.8
    assert (flat.var(0) - 1).abs().max() < 0.15
    again = orthogonal_gaussian(m, 8, batch_shape=(2000, 2), generator=generator())
    assert torch.equal(omega, again)


def test_projections_in_other_dtypes():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert orthogonal_gaussian(4, 3, dtype=dtype).dtype == dtype


# --- features and sums


@every_kind
@both
@pytest.mark.parametrize("s", [0.3, 2.0])
def test_attention_is_that_of_the_explicit_matrix(kind, causal, s):
    q, k = s * normal(2, 2, 3, 37, 16)
    v, omega = normal(2, 3, 37, 5, seed=1), normal(3, 24, 16, seed=2)
    wanted = by_matrix(q, k, v, omega, kind, causal)
    for chunk_size in (1, 8, 37, 128):
        found = favor_attention(q, k, v, omega, kind=kind, is_causal=causal, chunk_size=chunk_size)
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6)


@every_kind
def test_step_by_step(kind):
    q, k, v = normal(3, 2, 3, 20, 8)
    omega, state, outs = normal(6, 8, seed=1), None, []
    a = softmax_features(q, omega, kind=kind, role="query", is_causal=True)
    b = softmax_features(k, omega, kind=kind, is_causal=True)
    for t in range(20):
        out, state = linear_attention_step(state, a[:, :, t], b[:, :, t], v[:, :, t])
        outs.append(out)
    found = favor_attention(q, k, v, omega, kind=kind, is_causal=True)
    assert torch.allclose(torch.stack(outs, 2), found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["positive", "hyperbolic", "relu"])
@both
def test_convex_combinations(kind, causal):
    q, k = normal(2, 2, 3, 30, 8, dtype=torch.float32)
    omega = normal(12, 8, seed=1, dtype=torch.float32)
    how = {"kind": kind, "is_causal": causal}
    same = favor_attention(q, k, torch.full_like(v := q, 2.5), omega, **how)
    assert torch.allclose(same, torch.full_like(same, 2.5), atol=1e-4)
    out = favor_attention(q, k, v, omega, **how)
    assert (out <= v.amax(2, keepdim=True) + 1e-4).all()
    assert (out >= v.amin(2, keepdim=True) - 1e-4).all()
    if causal:
        assert torch.allclose(out[:, :, 0], v[:, :, 0], atol=1e-6)
    one = favor_attention(q, k[:, :, :1], v[:, :, :1], omega, kind=kind)
    assert torch.allclose(one, v[:, :, :1].expand_as(one), atol=1e-6)


@pytest.mark.parametrize("kind", [*_KINDS, "relu"])
@pytest.mark.parametrize("t", [5, 8, 19])
def test_nothing_leaks_from_the_future(kind, t):
    q, k, v = normal(3, 1, 2, 20, 8, dtype=torch.float32)
    omega = normal(12, 8, seed=1, dtype=torch.float32)
    how = {"kind": kind, "is_causal": True, "chunk_size": 8}
    before = favor_attention(q, k, v, omega, **how)[:, :, :t]
    for x in (q, k, v):
        x[:, :, t:] *= 40 if x is not k else 5
    assert torch.equal(before, favor_attention(q, k, v, omega, **how)[:, :, :t])


@pytest.mark.parametrize("kind", [*_KINDS, "relu"])
@pytest.mark.parametrize("bad", [0.0, 50.0, math.nan, math.inf])
def test_padding_is_as_good_as_cut_off(kind, bad):
    q, k, v = normal(3, 2, 3, 10, 8)
    omega, mask = normal(12, 8, seed=1), torch.arange(10) < torch.tensor([[10], [6]])
    k, v = (torch.where(mask[:, None, :, None], t, bad).requires_grad_() for t in (k, v))
    out = favor_attention(q, k, v, omega, kind=kind, key_mask=mask)
    cut = favor_attention(q[1:], k[1:, :, :6], v[1:, :, :6], omega, kind=kind)
    assert torch.allclose(out[1:], cut) and out.isfinite().all()
    for gradient in torch.autograd.grad(out.sum(), (k, v)):
        assert gradient.isfinite().all() and (gradient[1, :, 6:] == 0).all()
    full = mask[:, None].expand(2, 3, 10)
    assert torch.equal(out, favor_attention(q, k, v, omega, kind=kind, key_mask=full))


@pytest.mark.parametrize("kind", [*_KINDS, "relu"])
@both
def test_no_real_key_gives_zero(kind, causal):
    q, k, v = normal(3, 2, 3, 10, 8).unbind(0)
    mask = torch.tensor([[True] * 10, [False] * 10])
    q = q.clone().requires_grad_()
    out = favor_attention(
        q, k, v, normal(12, 8, seed=1), kind=kind, is_causal=causal, key_mask=mask
    )
    assert (out[1] == 0).all() and (out[0] != 0).any()
    assert torch.autograd.grad(out.sum(), q)[0].isfinite().all()


def test_orders():
    q, k, v = normal(3, 1, 1, 12, 8)
    omega, order = normal(12, 8, seed=1), torch.randperm(12, generator=generator())
    out = favor_attention(q, k, v, omega)
    assert torch.allclose(out, favor_attention(q, k[:, :, order], v[:, :, order], omega))
    assert torch.allclose(out[:, :, order], favor_attention(q[:, :, order], k, v, omega))


@every_kind
@both
def test_long_vectors_stay_finite(kind, causal):
    q, k, v = 16 * normal(3, 1, 2, 30, 16, dtype=torch.float32)
    q, k = q.requires_grad_(), k.requires_grad_()
    omega = normal(32, 16, seed=1, dtype=torch.float32)
    out = favor_attention(q, k, v, omega, kind=kind, is_causal=causal)
    assert out.isfinite().all()
    if kind != "trig":
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, k)))


@pytest.mark.parametrize(("d", "s"), [(64, 4.0), (16, 8.0)])
def test_shifted_features_reach_far(d, s):
    q, k, v = normal(3, 1, 1, 40, d)
    omega = orthogonal_gaussian(64, d, generator=generator(), dtype=D)
    wanted = favor_attention(s * q, s * k, v, omega, is_causal=True)
    low = (s * q).float(), (s * k).float(), v.float(), omega.float()
    assert torch.allclose(favor_attention(*low, is_causal=True).double(), wanted, atol=1e-3)


def test_long_vectors_do_not_go_blind():
    q, k = 2 * normal(2, 1, 1, 64, 16, dtype=torch.float32)
    omega = orthogonal_gaussian(256, 16, generator=generator())
    weights = favor_attention(q, k, torch.eye(64)[None, None], omega)
    assert weights.amax(-1).mean() > 0.2  # the official stabilizer: 1/64


def test_error_falls_like_one_over_the_features():
    q, k, v = normal(3, 1, 1, 512, 16, dtype=torch.float32)
    q, k = q / 4, k / 4
    exact, found = F.scaled_dot_product_attention(q, k, v), []
    for m in (1024, 4096):
        omega = orthogonal_gaussian(m, 16, generator=generator())
        error = (favor_attention(q, k, v, omega) - exact).square().mean()
        found.append((error / exact.square().mean()).item())
    assert found[0] < 1.5e-3 and found[1] < 2.5e-4 and found[1] < found[0] / 2


def test_scale_is_that_of_torch():
    q, k, v = 0.5 * normal(3, 1, 1, 20, 4)
    omega = orthogonal_gaussian(20_000, 4, generator=generator(), dtype=D)
    for scale in (None, 0.1):
        exact = F.scaled_dot_product_attention(q, k, v, scale=scale)
        assert torch.allclose(favor_attention(q, k, v, omega, scale=scale), exact, atol=0.1)


def test_relu_kernel():
    omega = normal(400_000, 2, seed=1)
    for x, y, wanted in (
        ((1, 0), (0, 1), 0.159155),
        ((1, 2), (2, -1), 0.795775),
        ((1, 2), (1, 2), 2.5),
        ((1, 2), (3, 1), 2.670775),
    ):
        a, b = (relu_features(torch.tensor([t], dtype=D), omega, epsilon=0) for t in (x, y))
        assert (a @ b.T).item() == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("kind", [*_KINDS, "relu"])
@both
def test_gradients(kind, causal):
    q, k, v = (0.5 * t.clone().requires_grad_() for t in normal(3, 1, 5, 3))
    f = lambda q, k, v: favor_attention(
        q, k, v, normal(4, 3, seed=1), kind=kind, is_causal=causal, chunk_size=2
    )
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(f, leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@both
def test_half_precision(dtype, causal):
    q, k, v = (t.to(dtype) for t in normal(3, 1, 2, 50, 16))
    omega = orthogonal_gaussian(32, 16, generator=generator())
    low = favor_attention(q, k, v, omega, is_causal=causal)
    high = favor_attention(q.float(), k.float(), v.float(), omega, is_causal=causal)
    assert low.dtype == dtype and torch.allclose(low.float(), high, atol=0.02)
    assert softmax_features(q, omega).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        cast = favor_attention(q.float(), k.float(), v.float(), omega, is_causal=causal)
    assert torch.equal(cast, high)


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_step_by_step_in_half_precision(dtype, kind):
    "Causal features of keys reach e^60, which float16 does not hold."
    q, k, v = (t.to(dtype) for t in 0.5 * normal(3, 2, 20, 8))
    omega, state, outs = normal(6, 8, seed=1, dtype=torch.float32), None, []
    a = softmax_features(q, omega, kind=kind, role="query", is_causal=True)
    b = softmax_features(k, omega, kind=kind, is_causal=True)
    assert a.isfinite().all() and b.isfinite().all()
    for t in range(20):
        out, state = linear_attention_step(state, a[:, t], b[:, t], v[:, t])
        outs.append(out)
    high = favor_attention(q.float(), k.float(), v.float(), omega, kind=kind, is_causal=True)
    assert out.dtype == dtype
    assert torch.allclose(torch.stack(outs, 1).float(), high, atol=0.02, rtol=0.02)


@both
def test_vmap_and_compile(causal):
    q, k, v = normal(3, 4, 2, 10, 8, dtype=torch.float32)
    omega = normal(4, 6, 8, seed=1, dtype=torch.float32)
    f = lambda q, k, v, omega: favor_attention(q, k, v, omega, is_causal=causal, chunk_size=4)
    looped = torch.stack([f(*row) for row in zip(q, k, v, omega, strict=True)])
    assert torch.allclose(torch.vmap(f)(q, k, v, omega), looped, atol=1e-5)
    compiled = torch.compile(f, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(q, k, v, omega[0]), f(q, k, v, omega[0]), atol=1e-5)


def test_no_square_matrix_is_made():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.found = max(self.found, out.untyped_storage().nbytes() // 4)
            return out

    L, m = 2048, 32
    q, k, v = torch.randn(3, 1, 1, L, 16).requires_grad_().unbind(0)
    for causal in (False, True):
        with Largest() as seen:
            favor_attention(q, k, v, torch.randn(m, 16), is_causal=causal).sum().backward(
                retain_graph=True
            )
        assert seen.found <= L * 128 + L * 17  # chunks of 128; no L x L, no L x r x e


# --- the layer


@both
@pytest.mark.parametrize("bias", [False, True])
def test_layer_estimates_multihead_attention(causal, bias):
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(16, 2, bias=bias, batch_first=True)
    layer = FavorAttention(16, 2, 20_000, bias=bias, is_causal=causal).load_mha(mha)
    x, mask = 0.5 * torch.randn(2, 7, 16), torch.arange(7) < torch.tensor([[7], [4]])
    later = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    exact = mha(x, x, x, key_padding_mask=~mask, attn_mask=later, need_weights=False)[0]
    assert torch.allclose(layer(x, key_mask=mask), exact, atol=0.05)
    if not causal:
        context = 0.5 * torch.randn(2, 5, 16)
        assert torch.allclose(layer(x, context), mha(x, context, context)[0], atol=0.05)


def test_projections_of_a_layer():
    layer = FavorAttention(16, 2, 10, generator=generator())
    assert layer.projection.shape == (2, 10, 8) and "projection" in layer.state_dict()
    assert not any(p is layer.projection for p in layer.parameters())
    other = FavorAttention(16, 2, 10, generator=generator(1))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(1, 5, 16)
    assert torch.equal(layer(x), other(x))
    assert not torch.equal(layer(x), other.redraw_(generator(2))(x))
    assert FavorAttention(128, 2).projection.shape == (2, 268, 64)  # 64 ln 64 = 266.2
    assert FavorAttention(16, 2, 10, kind="trig").projection.shape == (2, 5, 8)
    assert FavorAttention(16, 2, kind="relu").projection is None
    assert FavorAttention(16, 2, kind="relu").redraw_()(x).shape == x.shape


def test_redraw_of_all_layers():
    torch.manual_seed(0)
    model = nn.ModuleList(
        FavorAttention(16, 2, r, kind=k)
        for r, k in (
            (6, "positive"),
            (6, "positive"),
            (12, "trig"),
            (4, "hyperbolic"),
        )
    )
    before = [layer.projection.clone() for layer in model]
    redraw_projections(model, generator())
    for old, layer in zip(before, model, strict=True):
        assert not torch.equal(old, layer.projection)
        product = layer.projection @ layer.projection.mT
        assert (product.triu(1).abs() < 1e-4).all()
    first, second = model[0].projection, model[1].projection
    assert not torch.equal(first, second)
    loose = FavorAttention(16, 2, 6, orthogonal=False)
    assert ((loose.projection @ loose.projection.mT).triu(1).abs() > 1e-3).any()


def test_learns_to_recall():
    "One layer picks one key of 8 with positive features."
    torch.manual_seed(0)
    keys, values = nn.Embedding(8, 16), nn.Embedding(4, 16)
    layer, readout = FavorAttention(16, 1, 64, generator=generator()), nn.Linear(16, 4)
    parts = nn.ModuleList([keys, values, layer, readout])
    optimizer = torch.optim.Adam(parts.parameters(), 1e-2)
    g = generator(1)
    for _ in range(150):
        v = torch.randint(4, (64, 8), generator=g)
        logits = readout(layer(keys.weight.expand(64, 8, 16), keys.weight + values(v)))
        loss = F.cross_entropy(logits.flatten(0, 1), v.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.argmax(-1) == v).float().mean() > 0.7


# --- bad input


def test_messages():
    q, k, v = normal(3, 2, 3, 5, 4, dtype=torch.float32)
    omega = normal(6, 4, dtype=torch.float32)
    f = favor_attention
    says(ValueError, r"projection must have shape \(..., m, 4\)", f, q, k, v, omega[:, :3])
    says(ValueError, "projection must have leading axes", f, q, k, v, omega.expand(2, 6, 4))
    says(ValueError, "projection must be finite, got NaN or inf", f, q, k, v, omega / 0)
    says(ValueError, "projection must be finite", relu_features, q, omega * math.nan)
    says(TypeError, "query must be a tensor of float dtype", f, q.long(), k, v, omega)
    says(TypeError, "x must be a tensor of float dtype", softmax_features, q.int(), omega)
    says(ValueError, "key must have 5 rows", f, q, k[:, :, :4], v[:, :, :4], omega, is_causal=True)
    says(ValueError, "key must have at least one row", f, q, k[:, :, :0], v[:, :, :0], omega)
    says(ValueError, "kind must be one of", f, q, k, v, omega, kind="sine")
    says(ValueError, "role must be one of 'query', 'key'", softmax_features, q, omega, role="value")
    for mask in (torch.ones(3, 5), torch.ones(2, 4), torch.ones(5), torch.ones(2, 1, 3, 5)):
        words = r"key_mask must have shape \(2, 5\) or \(2, 3, 5\)"
        says(ValueError, words, f, q, k, v, omega, key_mask=mask.bool())
    says(TypeError, "key_mask must be a tensor of bool", f, q, k, v, omega, key_mask=q[:, 0, :, 0])
    a, b = softmax_features(q, omega), softmax_features(k, omega)
    words = "q_features must have 5 rows as the keys if causal"
    says(ValueError, words, linear_attention, a[:, :, :4], b, v, is_causal=True)
    says(ValueError, "chunk_size must lie in 1", linear_attention, a, b, v, chunk_size=0)
    says(ValueError, "n_projections must lie in 1", orthogonal_gaussian, 0, 4)
    says(ValueError, "kind must be one of 'chi', 'fixed'", orthogonal_gaussian, 2, 4, kind=1)
    says(TypeError, "state must be a pair", linear_attention_step, a, a[0, 0], b[0, 0], v[0, 0])
    layer = FavorAttention(4, 2)
    says(ValueError, "embed_dim must be a multiple of num_heads = 3", FavorAttention, 4, 3)
    says(ValueError, "n_features must be even for 'trig'", FavorAttention, 4, 2, 5, kind="trig")
    says(ValueError, r"x must have shape \(B, L, 4\)", layer, torch.rand(1, 5, 3))
    says(TypeError, "x must be float32 like the weights", layer, torch.rand(1, 5, 4, dtype=D))
    causal = FavorAttention(4, 2, is_causal=True)
    says(ValueError, "context must have the shape of x", causal, q[0], k[0, :, :4])
    no_bias, other = nn.MultiheadAttention(4, 2, bias=False), nn.MultiheadAttention(4, 2, kdim=3)
    says(ValueError, "mha must have embed_dim", layer.load_mha, nn.MultiheadAttention(6, 2))
    says(ValueError, "mha must have bias=True", layer.load_mha, no_bias)
    says(ValueError, "mha must have one width", layer.load_mha, other)
    says(TypeError, "mha must be an nn.MultiheadAttention", layer.load_mha, nn.Linear(2, 2))
