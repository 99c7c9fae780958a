"""Perceiver: counts, plain loops, PyTorch's own attention, order, masks, limits, messages."""

import io
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ponderlearn.architectures import perceiver
from ponderlearn.architectures.perceiver import (
    CrossAttention,
    LatentTransformer,
    Perceiver,
    byte_array,
    fourier_features,
    fourier_positions,
    join_modalities,
    perceiver_flops,
)

D64 = torch.float64
IMAGENET = {"input_size": 261, "num_classes": 1000}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(seed=0, **how):
    torch.manual_seed(seed)
    sizes = {"n_latents": 6, "embed_dim": 8, "n_iterations": 3, "num_layers": 2, "latent_heads": 2}
    return Perceiver(5, 4, **(sizes | how)).double()


def randn(*size, seed=0):
    return torch.randn(*size, dtype=D64, generator=generator(seed))


def says(error, words, f, *args, **kwargs):
    with pytest.raises(error) as found:
        f(*args, **kwargs)
    assert words in str(found.value)


def test_docstrings_name_equations_and_errors():
    for name in perceiver.__all__:
        x = getattr(perceiver, name)
        if name in ("Attended", "PerceiverCost"):
            continue
        for text in [x.__doc__, *([x.forward.__doc__] if isinstance(x, type) else [])]:
            assert ">>> " in text and "(perceiver-" in text, name
            assert "Error" in text, name


# --- positions


def test_fourier_by_hand():
    found = fourier_features(torch.tensor([[0.5]], dtype=D64), 3, 8)
    wanted = torch.tensor([[0.5, 1, -math.sqrt(0.5), 0, 0, -math.sqrt(0.5), 1]], dtype=D64)
    assert torch.allclose(found, wanted, atol=1e-7)  # linspace of the bands is exact here
    rows = torch.tensor([[-1.0, 0, 0, -1, 1], [0, 0, 0, 1, 1], [1, 0, 0, -1, 1]])
    assert torch.allclose(fourier_positions((3,), 2, max_resolution=4), rows, atol=1e-6)


def test_order_of_the_channels_and_their_number():
    u = fourier_positions((2, 3), 2, dtype=D64)
    x, y = torch.tensor([-1.0, 1], dtype=D64), torch.tensor([-1.0, 0, 1], dtype=D64)
    for i in range(2):
        for j in range(3):
            angles = torch.pi * torch.cat(
                [x[i] * torch.tensor([1, 1.0]), y[j] * torch.tensor([1, 1.5])]
            )
            wanted = torch.cat([x[i : i + 1], y[j : j + 1], angles.sin(), angles.cos()])
            assert torch.allclose(u[3 * i + j], wanted, atol=1e-6)
    assert fourier_positions((224, 224), 64, device="meta").shape == (50176, 258)
    assert fourier_positions((4, 4), 3, concat_positions=False).shape == (16, 12)
    assert fourier_positions((4, 4), 3, sine_only=True).shape == (16, 8)
    assert (fourier_positions((1, 4), 2)[:, 0] == 0).all()
    assert torch.equal(
        fourier_positions((5,), 1)[:, 1], torch.sin(torch.pi * torch.linspace(-1, 1, 5))
    )


@given(st.integers(3, 40))
@settings(max_examples=20, deadline=None)
def test_the_top_band_repeats_the_one_below(n):
    u = torch.linspace(-1, 1, n, dtype=D64)
    top, below = torch.pi * u * (n / 2), torch.pi * u * (n / 2 - 1)
    sign = 1 if n % 2 else -1
    assert torch.allclose(top.cos(), sign * below.cos(), atol=1e-9)
    assert torch.allclose(top.sin(), -sign * below.sin(), atol=1e-9)


def test_free_coordinates_are_the_grid_there():
    grid = torch.stack(
        torch.meshgrid(torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 4), indexing="ij"), -1
    )
    given_ = fourier_positions(None, 5, coords=grid.flatten(0, 1), max_resolution=(3, 4))
    assert torch.allclose(given_, fourier_positions((3, 4), 5), atol=1e-6)
    half = fourier_features(grid.bfloat16(), 3, 8)
    assert half.dtype == torch.bfloat16 and half.shape == (3, 4, 14)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
def test_a_grid_in_16_bits_is_the_exact_one_rounded(dtype, atol):
    low, exact = (fourier_positions((224, 30), 64, dtype=d) for d in (dtype, D64))
    assert low.dtype == dtype
    assert (low.double() - exact).abs().max() < atol


# --- sizes


def count(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ({}, 44_912_254),
        ({"share_weights": False}, 326_241_856),
        ({"n_iterations": 1}, 42_135_859),
        ({"share_first": True}, 42_135_859),
    ],
)
def test_parameters_of_the_paper(how, wanted):
    with torch.device("meta"):
        assert count(Perceiver(**IMAGENET, **how)) == wanted
    assert perceiver_flops(50176, **IMAGENET, **how).parameters == wanted


def test_multiply_adds_of_the_paper():
    cost = perceiver_flops(50176, **IMAGENET)
    assert round(cost.total / 1e9, 2) == 353.14 and round(2 * cost.total / 1e9, 3) == 706.279
    assert cost.total == sum(cost[1:6]) and cost.absorbed < cost.total
    assert round(cost.keys_values / 8e9, 2) == 6.84 and round(cost.scores / 8e9, 1) == 13.4


@pytest.mark.parametrize("heads", [1, 2])
def test_multiply_adds_as_torch_counts_them(heads):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    net = small(cross_heads=heads, qkv_dim=4).float()
    for M in (3, 40):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            net(torch.randn(1, M, 5))  # no fused kernel, which it may not know
        sizes = {"n_latents": 6, "embed_dim": 8, "n_iterations": 3, "num_layers": 2}
        cost = perceiver_flops(M, 5, 4, cross_heads=heads, qkv_dim=4, **sizes)
        saved = 0  # keys and values of shared weights are computed once
        if cost.absorbed == cost.total:
            saved = cost.keys_values // 3
        assert counter.get_total_flops() / 2 == cost.absorbed - saved


# --- against other implementations


def plain(layer, z, x, real=None):
    "A cross-attend of z (N, D) to x (M, C), head by head, row by row."
    x = x if real is None else x[real]
    c = F.layer_norm(x, x.shape[1:]) * layer.gain + layer.shift
    q, k, v = layer.query(layer.norm(z)), layer.key(c), layer.value(c)
    parts, weights = [], []
    for qh, kh, vh in zip(*(t.chunk(layer.num_heads, 1) for t in (q, k, v)), strict=True):
        w = (qh @ kh.T / math.sqrt(qh.shape[1])).softmax(1)
        parts.append(w @ vh)
        weights.append(w)
    z = z + layer.out(torch.cat(parts, 1))
    return z + layer.mlp(z), torch.stack(weights)


def layer_of(heads, width, n, D=8, C=5):
    torch.manual_seed(1)
    layer = CrossAttention(D, C, num_heads=heads, qkv_dim=width).double()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    return layer, randn(3, n, D), randn(3, 11, C, seed=2)


@pytest.mark.parametrize(
    ("heads", "width", "n"), [(1, 5, 4), (1, 3, 4), (2, 4, 2), (2, 4, 9), (4, 8, 3)]
)
@pytest.mark.parametrize("grad", [True, False])
def test_cross_attention_is_the_plain_one(heads, width, n, grad):
    layer, z, x = layer_of(heads, width, n)
    with torch.set_grad_enabled(grad):
        out = layer(z, x, return_weights=True)
        assert torch.allclose(layer(z, x), out.latents, atol=1e-12)
    for i in range(3):
        wanted, weights = plain(layer, z[i], x[i])
        assert torch.allclose(out.latents[i], wanted, atol=1e-10)
        assert torch.allclose(out.weights[i], weights, atol=1e-12)


def test_both_forms_are_met():
    forms = {layer_of(*how)[0]._absorbs(how[2]) for how in ((1, 5, 4), (2, 4, 9), (4, 8, 3))}
    assert forms == {True, False}
    assert CrossAttention(8, 261)._absorbs(10**6)  # one head of the input's width: always


def test_gradients_of_both_forms():
    layer, z, x = layer_of(2, 4, 2)
    z, x = z.requires_grad_(), x.requires_grad_()
    inputs = [z, x, *layer.parameters()]
    assert layer._absorbs(2)
    ours = torch.autograd.grad(layer(z, x).sin().sum(), inputs)
    loop = torch.stack([plain(layer, z[i], x[i])[0] for i in range(3)])
    wanted = torch.autograd.grad(loop.sin().sum(), inputs)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(ours, wanted, strict=True))
    names = [n for n, _ in layer.named_parameters()]
    assert ours[2 + names.index("key.bias")].abs().max() < 1e-12


def test_attention_of_torch():
    torch.manual_seed(0)
    layer = CrossAttention(8, 6, num_heads=2, qkv_dim=8).double()
    theirs = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True).double()
    z, x = randn(2, 5, 8), randn(2, 30, 6)
    with torch.no_grad():
        theirs.q_proj_weight.copy_(layer.query.weight)
        theirs.k_proj_weight.copy_(layer.key.weight)
        theirs.v_proj_weight.copy_(layer.value.weight)
        theirs.out_proj.load_state_dict(layer.out.state_dict())
        c = F.layer_norm(x, (6,))
        wanted = z + theirs(layer.norm(z), c, c)[0]
        assert torch.allclose(layer(z, x), wanted + layer.mlp(wanted), atol=1e-12)


def test_latent_layers_of_torch():
    torch.manual_seed(0)
    ours = LatentTransformer(8, 1, num_heads=2).double()
    theirs = nn.TransformerEncoderLayer(
        8, 2, 8, 0.0, "gelu", batch_first=True, norm_first=True, dtype=D64
    )
    own = ours.layers[0]
    with torch.no_grad():
        for name in ("weight", "bias"):
            parts = [getattr(f, name) for f in (own.query, own.key, own.value)]
            getattr(theirs.self_attn, f"in_proj_{name}").copy_(torch.cat(parts))
        theirs.self_attn.out_proj.load_state_dict(own.out.state_dict())
        theirs.norm1.load_state_dict(own.norm.state_dict())
        theirs.norm2.load_state_dict(own.mlp[0].state_dict())
        theirs.linear1.load_state_dict(own.mlp[1].state_dict())
        theirs.linear2.load_state_dict(own.mlp[3].state_dict())
    z = randn(3, 5, 8)
    assert torch.allclose(ours(z), theirs(z), atol=1e-10)


@pytest.mark.parametrize(
    "how", [{}, {"share_weights": False}, {"share_first": True}, {"cross_heads": 5}]
)
def test_whole_network_by_hand(how):
    net, x = small(**how), randn(2, 13, 5)
    crosses = {"share_weights": [0, 1, 2], "share_first": [0, 0, 0]}.get(
        next(iter(how), ""), [0, 1, 1]
    )
    own = [0, 1, 2] if how == {"share_weights": False} else [0, 0, 0]
    for i in range(2):
        z = net.latents
        for t in range(3):
            z, weights = plain(net.crosses[crosses[t]], z, x[i])
            assert torch.allclose(net.attention_maps(x)[t, i], weights, atol=1e-10)
            z = net.transformers[own[t]](z[None])[0]
        assert torch.allclose(net(x)[i], net.classifier(z.mean(0)), atol=1e-10)
        assert torch.allclose(net(x, return_latents=True)[i], z, atol=1e-10)
    assert len(net.crosses) == len(set(crosses)) and len(net.transformers) == len(set(own))


# --- identities and limits


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_order_copies_and_order_of_the_latents(seed):
    net, x = small(), randn(2, 13, 5, seed=seed)
    wanted = net(x)
    order = torch.randperm(13, generator=generator(seed))
    assert torch.allclose(net(x[:, order]), wanted, atol=1e-12)
    assert torch.allclose(net(x.repeat(1, 3, 1)), wanted, atol=1e-12)
    with torch.no_grad():
        net.latents.copy_(net.latents[torch.randperm(6, generator=generator(seed))])
    assert torch.allclose(net(x), wanted, atol=1e-12)


def test_order_in_float32_too():
    net, x = small().float(), torch.randn(4, 200, 5)
    assert (net(x[:, torch.randperm(200)]) - net(x)).abs().max() < 5e-6


def test_identical_latents_stay_so():
    net = small(latent_std=0.0)
    z = net(randn(2, 13, 5), return_latents=True)
    assert (z - z[:, :1]).abs().max() < 1e-14


@pytest.mark.parametrize("heads", [1, 5])
def test_masked_is_cut_off(heads):
    net, x = small(cross_heads=heads), randn(2, 13, 5)
    mask = (torch.arange(13) < 7).expand(2, 13)
    for junk in (0.0, 1e6, torch.nan, torch.inf):
        y = torch.where(mask[..., None], x, junk).requires_grad_()
        out = net(y, mask)
        assert torch.allclose(out, net(x[:, :7]), atol=1e-10)
        (grad,) = torch.autograd.grad(out.sum(), y)
        assert grad.isfinite().all() and (grad[:, 7:] == 0).all()
    maps = net.attention_maps(x, mask)
    assert (maps[..., 7:] == 0).all() and torch.allclose(maps.sum(-1), torch.ones((), dtype=D64))


@pytest.mark.parametrize("heads", [1, 5])
@pytest.mark.parametrize("grad", [True, False])
def test_nothing_real(heads, grad):
    torch.manual_seed(0)
    layer = CrossAttention(8, 5, num_heads=heads).double()
    for p in layer.parameters():
        nn.init.normal_(p)
    z, x = randn(2, 20, 8), randn(2, 13, 5)
    mask = torch.tensor([[False] * 13, [True] * 13])
    with torch.set_grad_enabled(grad):
        out = layer(z, x, mask, return_weights=True)
    wanted = z[0] + layer.out.bias
    assert torch.allclose(out.latents[0], wanted + layer.mlp(wanted))
    assert (out.weights[0] == 0).all()
    assert torch.allclose(out.latents[1], layer(z, x)[1])


def test_one_latent_and_one_element():
    layer, z, x = layer_of(1, 5, 1, D=5)
    with torch.no_grad():  # the latent gets a weighted mean of the normalized rows
        for part in (layer.value, layer.out):
            part.weight.copy_(torch.eye(5)), part.bias.zero_()
        layer.gain.fill_(1), layer.shift.zero_()
        layer.mlp[3].weight.zero_(), layer.mlp[3].bias.zero_()
    mean, rows = layer(z, x) - z, F.layer_norm(x, (5,))
    w = torch.randn(5, 100, dtype=D64, generator=generator())  # within the hull: in each direction
    assert ((mean @ w).amax(1) <= (rows @ w).amax(1)).all()
    assert ((mean @ w).amin(1) >= (rows @ w).amin(1)).all()
    one = [layer(z, x[:, :1]) - z for z in (z, randn(3, 1, 5, seed=9))]
    assert torch.allclose(one[0], one[1]) and torch.allclose(one[0], rows[:, :1])


def test_one_channel_carries_nothing():
    net = Perceiver(1, 4, n_latents=6, embed_dim=8, n_iterations=2, num_layers=1, latent_heads=2)
    with torch.no_grad():
        a, b = net(torch.rand(1, 20, 1)), net(torch.rand(1, 20, 1))
    assert torch.equal(a, b)  # each row becomes 0 in the normalization


def test_deeper_than_trained_is_the_same_weights():
    net = small()
    net.n_iterations = 5
    assert [id(c) for c, _ in net.rounds()][1:] == [id(net.crosses[1])] * 4
    assert net(randn(1, 4, 5)).shape == (1, 4)


def test_state_dict_and_parameters():
    net, other = small(), small(seed=5)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = randn(2, 7, 5)
    assert torch.equal(net(x), other(x))
    names = [n for n, _ in net.named_parameters()]
    assert len(names) == len(set(names)) and len(list(net.parameters())) == len(net.state_dict())


# --- dtypes, gradients, compilation


def test_bfloat16_is_near():
    net, x = small().float(), torch.randn(3, 50, 5, generator=generator())
    with torch.no_grad():
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                low = net.bfloat16()(x.bfloat16())
            assert low.dtype == torch.bfloat16
            assert torch.allclose(low.float(), net.float()(x), atol=0.1)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(net(x).float(), net(x).float()) and net(x).isfinite().all()


def test_gradcheck():
    net = small(n_iterations=2, num_layers=1)
    x = randn(1, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(net, (x,))
    coords = randn(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: fourier_features(c, 2, 5), (coords,))


@pytest.mark.slow
def test_compile():
    net, x = small(), randn(2, 9, 5)
    mask = torch.rand(2, 9, generator=generator()) < 0.7
    fast = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert torch.allclose(fast(x, mask), net(x, mask))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_weights():
    nets = [small(seed=s) for s in range(3)]
    params, _ = torch.func.stack_module_state(nets)
    x = randn(2, 9, 5)
    many = torch.vmap(lambda p: torch.func.functional_call(nets[0], p, (x,)))(params)
    assert torch.allclose(many, torch.stack([net(x) for net in nets]))


def test_dropout_only_in_training():
    net, x = small(dropout=0.5), randn(2, 9, 5)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


# --- byte arrays and modalities


def test_byte_array_and_modalities():
    image, positions = torch.rand(2, 3, 4, 1), fourier_positions((3, 4), 2)
    x = byte_array(image, positions)
    assert x.shape == (2, 12, 11)
    assert torch.equal(x[1, 5], torch.cat([image[1, 1, 1], positions[5]]))
    each = byte_array(image, positions.expand(2, -1, -1))
    assert torch.equal(each, x)
    cloud = torch.rand(2, 7, 3)
    a, b = nn.ParameterList([torch.rand(4), torch.rand(12)])
    joined = join_modalities([x, cloud], [a, b])
    assert joined.shape == (2, 19, 15)
    assert torch.equal(joined[0, 0], torch.cat([x[0, 0], a]))
    assert torch.equal(joined[1, 12], torch.cat([cloud[1, 0], b]))
    joined.sum().backward()
    assert a.grad.eq(2 * 12).all() and b.grad.eq(2 * 7).all()


def test_messages():
    says(ValueError, "n_bands must lie in 1..", fourier_positions, (4,), 0)
    says(
        ValueError,
        "max_resolution must have one entry for each of 2 axes, got 3",
        fourier_positions,
        (4, 4),
        2,
        max_resolution=(1, 2, 3),
    )
    says(ValueError, "shape must be None if and only if", fourier_positions, None, 2)
    says(
        ValueError,
        "qkv_dim must be a multiple of num_heads = 2, got 261",
        CrossAttention,
        8,
        261,
        num_heads=2,
    )
    says(ValueError, "qkv_dim must be a multiple of cross_heads = 2", Perceiver, 261, cross_heads=2)
    says(
        ValueError, "share_first must be False", Perceiver, 5, share_weights=False, share_first=True
    )
    net = small().float()
    says(
        TypeError,
        "x must be a tensor of float dtype (scale bytes to [-1, 1] first)",
        net,
        torch.zeros(2, 3, 5, dtype=torch.uint8),
    )
    says(
        ValueError,
        "x must have shape (B, M, 5) (byte_array makes it of images), got a float32",
        net,
        torch.zeros(8, 4, 4, 3),
    )
    says(ValueError, "x must have shape (B, M, 5)", net, torch.zeros(8, 4, 3))
    says(
        ValueError,
        "key_mask must have shape (2, 3)",
        net,
        torch.zeros(2, 3, 5),
        torch.ones(2, 4, dtype=torch.bool),
    )
    says(
        TypeError, "key_mask must be a tensor of bool", net, torch.zeros(2, 3, 5), torch.ones(2, 3)
    )
    says(
        ValueError,
        "embeddings[1] must bring arrays[1] to 5 columns",
        join_modalities,
        [torch.rand(1, 2, 3), torch.rand(1, 2, 3)],
        [torch.rand(2), torch.rand(1)],
    )
    says(
        TypeError,
        "x must be a tensor of float dtype",
        byte_array,
        torch.zeros(1, 2, 2, 1, dtype=torch.uint8),
        torch.rand(4, 2),
    )


# --- learning


@pytest.mark.slow
def test_it_learns_where_a_bright_point_lies():
    torch.manual_seed(0)
    positions = fourier_positions((8, 8), 3)
    net = Perceiver(15, 4, n_latents=8, embed_dim=16, n_iterations=2, num_layers=1, latent_heads=2)
    optimizer, g = torch.optim.AdamW(net.parameters(), lr=1e-2), generator(1)

    def batch(n):
        place = torch.randint(64, (n,), generator=g)
        image = F.one_hot(place, 64).float().view(n, 8, 8, 1)
        return byte_array(image, positions), 2 * (place // 32) + place % 8 // 4

    for _ in range(250):
        x, y = batch(64)
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = batch(500)
    assert (net(x).argmax(1) == y).float().mean() > 0.62  # measured: above 0.99; chance is 0.25
