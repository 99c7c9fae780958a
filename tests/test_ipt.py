"""IPT: damage, PSNR, transformer, contrastive loss and tiles against Pillow, PyTorch and loops."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from ponderlearn.architectures import ipt
from ponderlearn.architectures.ipt import (
    IPT,
    ConvRestorer,
    bicubic_downsample,
    gaussian_noise,
    patch_contrastive_loss,
    psnr,
    restoration_loss,
    rgb_to_y,
    synthetic_rain,
    tiled_forward,
)
from ponderlearn.training import seeded

TASKS = {"denoise": 1, "other": 1, "sr2": 2, "sr3": 3}
SMALL = {"channels": 4, "patch_size": 2, "image_size": 8, "num_layers": 2, "num_heads": 4}


def small(seed=0, tasks=TASKS, **how):
    torch.manual_seed(seed)
    return IPT(tasks, **(SMALL | how))


# ---- damage ----


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_pillows(scale):
    x = torch.rand(1, 1, 24, 36, generator=seeded(0))
    image = Image.fromarray(x[0, 0].numpy(), mode="F")
    wanted = np.asarray(image.resize((36 // scale, 24 // scale), Image.Resampling.BICUBIC))
    assert np.allclose(bicubic_downsample(x, scale)[0, 0], wanted, atol=1e-6)


def test_bicubic_weights_constants_and_ramps():
    x = torch.eye(32)[:, None, None].expand(32, 1, 2, 32)
    half = [-0.01171875, -0.03515625, 0.11328125, 0.43359375]
    found = bicubic_downsample(x, 2)[:, 0, 0, 8]
    assert torch.allclose(found[13:21], torch.tensor(half + half[::-1]), atol=1e-7)
    assert not found[:13].any() and not found[21:].any()
    assert torch.allclose(bicubic_downsample(torch.full((1, 1, 8, 8), 0.3), 4), torch.tensor(0.3))
    ramp = torch.arange(32.0).expand(1, 1, 8, 32)
    assert torch.allclose(bicubic_downsample(ramp, 2)[0, 0, 0, 2:-2], torch.arange(4.5, 28, 2))


def test_noise():
    x = torch.rand(4, 3, 32, 32, generator=seeded(0))
    assert torch.equal(gaussian_noise(x, 0), x)
    state = torch.get_rng_state()
    a, b = (gaussian_noise(x, 0.2, generator=seeded(1)) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(torch.get_rng_state(), state)
    levels = torch.tensor([0.0, 0.1, 0.2, 0.4])
    found = (gaussian_noise(x, levels, generator=seeded(1)) - x).std((1, 2, 3))
    assert torch.allclose(found, levels, rtol=0.05)
    assert a.min() < 0 and a.max() > 1
    clipped = gaussian_noise(x, 0.2, generator=seeded(1), clip=True)
    assert torch.equal(clipped, a.clamp(0, 1))


def test_rain():
    x = torch.rand(3, 3, 40, 40, generator=seeded(0)) * 0.2
    assert torch.equal(synthetic_rain(x, density=0.0), x)
    a, b = (synthetic_rain(x, angle=(-30, 30), generator=seeded(1)) for _ in range(2))
    streaks = a - x
    assert torch.equal(a, b)
    assert torch.allclose(streaks, streaks[:, :1].expand_as(streaks), atol=1e-6)
    assert streaks.min() > -1e-6 and abs(streaks.max() - 0.8) < 1e-6
    drop = torch.zeros(1, 1, 21, 21)
    for angle, wanted in ((0, (9, 1)), (90, (1, 9))):  # upright, lying
        kernel = ipt._line_kernels(torch.deg2rad(torch.tensor([float(angle)])), 9)
        drop.zero_()[..., 10, 10] = 1
        seen = F.conv2d(drop, kernel, padding=4)[0, 0] > 1e-3
        assert (int(seen.any(1).sum()), int(seen.any(0).sum())) == wanted
    slant = ipt._line_kernels(torch.deg2rad(torch.tensor([45.0])), 9)[0, 0]
    assert slant[4, 4] == 1 and slant[2, 2] > 0.9 and slant[2, 6] == 0


# ---- PSNR ----


def test_psnr_of_known_errors():
    zero = torch.zeros(1, 3, 5, 7)
    for color, rgb, y in (((1, 1, 1), 48.130804, 49.452718), ((0, 0, 1), 52.902016, 68.314595)):
        error = zero + torch.tensor(color).view(3, 1, 1) / 255
        assert abs(psnr(error, zero) - rgb) < 1e-4
        assert abs(psnr(error, zero, channel="y") - y) < 1e-4
    assert psnr(zero, zero) == math.inf
    x = torch.rand(200, 3, 32, 32, generator=seeded(0))
    for sigma, wanted in ((10, 28.130803), (30, 18.588379), (50, 14.151404), (70, 11.228843)):
        noisy = gaussian_noise(x, sigma / 255, generator=seeded(1))
        assert abs(psnr(noisy, x) - wanted) < 0.02


@given(st.integers(0, 10**6))
def test_luma_never_loses(seed):
    a, b = torch.rand(2, 2, 3, 4, 5, generator=seeded(seed), dtype=torch.float64)
    gain = psnr(a, b, channel="y", reduction="none") - psnr(a, b, reduction="none")
    assert (gain >= 0.047964).all()


def test_psnr_options():
    a, b = torch.rand(2, 3, 3, 9, 8, generator=seeded(0))
    inside = psnr(a[..., 2:-2, 2:-2], b[..., 2:-2, 2:-2])
    assert torch.allclose(psnr(a, b, border=2), inside)
    assert torch.allclose(psnr(255 * a, 255 * b, data_range=255), psnr(a, b))
    each = psnr(a, b, reduction="none")
    wanted = [-10 * math.log10(float(((x - y) ** 2).mean())) for x, y in zip(a, b, strict=True)]
    assert torch.allclose(each, torch.tensor(wanted)) and torch.isclose(each.mean(), psnr(a, b))
    rounded = [(x * 255).round() / 255 for x in (a, b)]
    assert torch.allclose(psnr(a, b, quantize=True), psnr(*rounded))
    assert torch.allclose(psnr(a, b, channel="y"), psnr(rgb_to_y(a), rgb_to_y(b)))
    ends = rgb_to_y(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)).flatten()
    assert torch.allclose(ends, torch.tensor([16 / 255, 235 / 255]), atol=1e-5)
    assert torch.isclose(psnr(a.bfloat16(), b.bfloat16()), psnr(a, b), atol=0.05)


def test_psnr_is_scikit_images():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = torch.rand(2, 1, 3, 9, 8, generator=seeded(0), dtype=torch.float64)
    wanted = metrics.peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1)
    assert abs(float(psnr(a, b)) - wanted) < 1e-6


# ---- the transformer ----


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 3), (13, 6)])
def test_any_size(size):
    model, conv = small(), ConvRestorer(TASKS, channels=4, n_blocks=1)
    for task, s in TASKS.items():
        for net in (model, conv):
            out = net(torch.rand(2, 3, *size), task)
            assert out.shape == (2, 3, s * size[0], s * size[1])


def test_resized_places_keep_rows_and_columns():
    model = small()
    down, right = torch.arange(4.0).repeat_interleave(4), torch.arange(4.0).repeat(4)
    table = torch.stack([down, right], 1)  # (16 places, 2)
    assert model._table(table, (4, 4)) is table
    found = model._table(table, (12, 8)).unflatten(0, (12, 8))
    assert torch.allclose(found[..., 0], found[:, :1, 0].expand(12, 8), atol=1e-5)
    assert torch.allclose(found[..., 1], found[:1, :, 1].expand(12, 8), atol=1e-5)
    assert (found[:, 0, 0].diff()[1:-1] > 0).all() and (found[0, :, 1].diff()[1:-1] > 0).all()


def test_weights_of_the_papers_size():
    tasks = {"sr2": 2, "sr3": 3, "sr4": 4, "denoise30": 1, "denoise50": 1, "rain": 1}
    with torch.device("meta"):
        model = IPT(tasks)
    assert sum(p.numel() for p in model.parameters()) == 118_892_370 + 12 * 2 * 576
    ends = ("heads.", "tails.")
    body = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(ends))
    assert body == 115_636_608 + 12 * 2 * 576


def test_attention_is_pytorchs():
    torch.manual_seed(0)
    ours = ipt._Attention(12, 3, 0.0)
    peer = nn.MultiheadAttention(12, 3, bias=False, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(
            torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
        )
        peer.out_proj.weight.copy_(ours.out.weight)
    q, k, v = torch.randn(3, 2, 5, 12)
    assert torch.allclose(ours(q, k, v), peer(q, k, v)[0], atol=1e-6)


def layer_by_formula(layer, z, memory, E):
    "The decoder's layer with PyTorch's attention."
    n = layer.norm1(z)
    z = z + attend(layer.attention, n + E, n + E, n)
    m = layer.memory_norm(memory)
    z = z + attend(layer.cross, layer.norm2(z) + E, m, m)
    return z + layer.mlp(layer.norm3(z))


def attend(module, q, k, v):
    "PyTorch's attention with the weights of ours."
    peer = nn.MultiheadAttention(q.shape[-1], module.num_heads, bias=False, batch_first=True)
    parts = module.query.weight, module.key.weight, module.value.weight
    peer.in_proj_weight.data, peer.out_proj.weight.data = torch.cat(parts), module.out.weight
    return peer(q, k, v)[0]


def test_encoder_layer_by_its_formula():
    layer, y = small().encoder[0], torch.randn(2, 5, 16)
    n = layer.norm1(y)
    wanted = y + attend(layer.attention, n, n, n)
    wanted = wanted + layer.mlp(layer.norm2(wanted))
    assert torch.allclose(layer(y), wanted, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_decoder_layer_by_its_formula(normalize):
    layer = small(normalize_memory=normalize).decoder[0]
    z, memory, E = torch.randn(2, 5, 16), torch.randn(2, 5, 16), torch.randn(5, 16)
    assert torch.allclose(layer(z, memory, E), layer_by_formula(layer, z, memory, E), atol=1e-5)


def test_tokens_there_and_back():
    x = torch.rand(2, 3, 6, 8)
    tokens = ipt._to_tokens(x, 2)
    assert tokens.shape == (2, 12, 12)
    assert torch.equal(tokens[0, 1].view(3, 2, 2), x[0, :, :2, 2:4])  # the second patch of row 1
    assert torch.equal(ipt._to_features(tokens, (6, 8), 2), x)


def test_a_body_of_zeros():
    model = small(tasks={"a": 1})
    for layer in [*model.encoder, *model.decoder]:
        for part in [layer.attention.out, layer.mlp[-1], getattr(layer, "cross", layer.attention)]:
            for p in part.parameters():
                nn.init.zeros_(p)
    for p in model.last[-1].parameters():
        nn.init.zeros_(p)
    f = torch.rand(2, 4, 8, 8)
    u = ipt._to_tokens(f, 2)
    wanted = u + model.embedding(u) + model.position
    found, tokens = model._between(f, 0)
    assert torch.allclose(tokens, wanted, atol=1e-6)
    assert torch.allclose(found, ipt._to_features(wanted, (8, 8), 2), atol=1e-6)


def test_the_task_embedding_tells_tasks_apart():
    x = torch.rand(2, 3, 8, 8)
    for kind in ("per_token", "shared", "none"):
        model = small(task_embedding=kind)
        for part in (model.heads, model.tails):
            part[1].load_state_dict(part[0].state_dict())
        same = torch.allclose(model(x, "denoise"), model(x, "other"))
        assert same == (kind == "none")
        if kind == "none":
            continue
        a = model(x, "denoise")
        E = model.task_embeddings
        E[0].data, E[1].data = E[1].data.clone(), E[0].data.clone()
        assert torch.equal(model(x, "other"), a)
        with torch.no_grad():
            E[0].zero_(), E[1].zero_()
        assert torch.allclose(model(x, "denoise"), model(x, "other"))


def test_other_tasks_have_no_gradient():
    model = small()
    model(torch.rand(1, 3, 8, 8), "sr2").sum().backward()
    for i, task in enumerate(TASKS):
        parts = [*model.heads[i].parameters(), *model.tails[i].parameters()]
        parts.append(model.task_embeddings[i])
        assert all((p.grad is None) == (task != "sr2") for p in parts)


def test_places_make_the_encoder_see_the_order():
    model = small()
    u, order = torch.randn(2, 16, 16), torch.randperm(16, generator=seeded(0))

    def encoded(u, place):
        for layer in model.encoder:
            u = layer(u + place)
            place = 0.0
        return u

    assert torch.allclose(encoded(u[:, order], 0.0), encoded(u, 0.0)[:, order], atol=1e-5)
    place = model.position * 50
    assert not torch.allclose(encoded(u[:, order], place), encoded(u, place)[:, order], atol=1e-2)


def test_a_batch_is_its_images():
    model, x = small().eval(), torch.rand(4, 3, 8, 8)
    whole = model(x, "sr2")
    for image, out in zip(x, whole, strict=True):
        assert torch.allclose(model(image[None], "sr2")[0], out, atol=1e-5)


def test_image_skip_starts_as_the_input():
    x = torch.rand(2, 3, 8, 8)
    for net in (small(image_skip=True, mean=0.4), ConvRestorer(TASKS, channels=4, image_skip=True)):
        assert torch.allclose(net(x, "denoise"), x, atol=1e-6)
        wanted = F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True)
        assert torch.allclose(net(x, "sr2"), wanted, atol=1e-6)


def test_mean_is_taken_off_and_added():
    model = small(mean=(0.1, 0.2, 0.3))
    plain = small()
    assert "mean" in model.state_dict()
    mean, x = model.mean, torch.rand(2, 3, 8, 8)
    assert torch.allclose(model(x + mean, "denoise"), plain(x, "denoise") + mean, atol=1e-5)


def test_dropout_only_in_training():
    model, x = small(dropout=0.5), torch.rand(2, 3, 8, 8)
    assert not torch.equal(model(x, "denoise"), model(x, "denoise"))
    model.eval()
    assert torch.equal(model(x, "denoise"), model(x, "denoise"))


@pytest.mark.parametrize("size", [(8, 8), (10, 6)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype, size):
    model, x = small().eval(), torch.rand(2, 3, *size)
    wanted = model(x, "sr2")
    found = model.to(dtype)(x.to(dtype), "sr2")
    assert found.dtype == dtype and torch.allclose(found.float(), wanted, atol=2e-2)


def test_autocast():
    model, x = small().eval(), torch.rand(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x, "denoise")
    assert torch.allclose(found.float(), model(x, "denoise"), atol=2e-2)


@pytest.mark.slow
def test_compile():
    model, x = small().eval(), torch.rand(2, 3, 8, 8)
    assert torch.allclose(torch.compile(model)(x, "sr2"), model(x, "sr2"), atol=1e-5)


def test_it_learns_to_restore():
    torch.manual_seed(0)
    base = torch.rand(32, 1, 2, 2)
    clean = F.interpolate(base, size=(8, 8), mode="bilinear")  # smooth images
    model = small(tasks={"denoise": 1}, in_channels=1, image_skip=True, head_kernel=3)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(40):
        noisy = gaussian_noise(clean, 0.2, generator=seeded(step))
        image, tokens = model(noisy, "denoise", return_tokens=True)
        loss = restoration_loss(image, clean, tokens, max_tokens=4, generator=seeded(step))
        adam.zero_grad()
        loss.backward()
        adam.step()
    noisy = gaussian_noise(clean, 0.2, generator=seeded(99))
    with torch.no_grad():
        gain = psnr(model(noisy, "denoise"), clean) - psnr(noisy, clean)
    assert gain > 1


# ---- the contrastive loss ----


def contrast_by_loops(tokens, temperature=1.0, include_positive=False, negatives="same_place"):
    f = F.normalize(tokens, dim=-1) / temperature**0.5
    B, N, _ = f.shape
    terms = []
    for j in range(B):
        for i1 in range(N):
            for i2 in range(N):
                if negatives == "all" and i1 == i2:
                    continue
                pool = [
                    f[j, i1] @ f[k, i]
                    for k in range(B)
                    for i in (range(N) if negatives == "all" else [i2])
                    if k != j or (include_positive and not (negatives == "all" and i == i1))
                ]
                terms.append(torch.stack(pool).logsumexp(0) - f[j, i1] @ f[j, i2])
    return torch.stack(terms).mean()


FORMS = [(a, b) for a in (False, True) for b in ("same_place", "all")]


@pytest.mark.parametrize(("include_positive", "negatives"), FORMS)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_contrast_by_loops(include_positive, negatives, chunk_size):
    tokens = torch.randn(3, 4, 5, generator=seeded(0), dtype=torch.float64).requires_grad_()
    how = {"temperature": 0.3, "include_positive": include_positive, "negatives": negatives}
    loss = partial(patch_contrastive_loss, chunk_size=chunk_size, **how)
    assert torch.isclose(loss(tokens), contrast_by_loops(tokens, **how))
    assert torch.autograd.gradcheck(loss, (tokens,))
    assert torch.autograd.gradgradcheck(loss, (tokens,))


def test_contrast_by_hand():
    loss = patch_contrastive_loss
    apart = torch.eye(2)[:, None].expand(2, 3, 2)
    assert torch.isclose(loss(apart), torch.tensor(-1.0))
    assert torch.isclose(loss(apart, include_positive=True), torch.tensor(0.313262))
    equal = torch.ones(3, 2, 4)
    assert torch.isclose(loss(equal), torch.tensor(math.log(2)))
    assert torch.isclose(loss(equal, include_positive=True), torch.tensor(math.log(3)))
    published = {"include_positive": True, "negatives": "all"}
    x = torch.tensor([[[1.0, 0], [3, 4]], [[0, 2], [-1, 0]]])
    y = torch.arange(1.0, 13).view(3, 2, 2) * torch.tensor([1, -1, 1]).view(3, 1, 1)
    for tokens, how, wanted in (
        (x, {}, -0.85),
        (x, {"temperature": 0.5}, -1.7),
        (x, {"include_positive": True}, 0.432591),
        (x, {"temperature": 0.07} | published, 3.585490),
        (x, published, 0.894264),
        (y, {}, -0.357044),
        (y, {"include_positive": True}, 0.581533),
        (y, {"temperature": 0.5}, -1.106221),
    ):
        assert abs(float(loss(tokens, **how)) - wanted) < 2e-6


def test_contrast_forgets_length_and_order():
    tokens = torch.randn(4, 5, 3, generator=seeded(0))
    loss = patch_contrastive_loss(tokens)
    scales = torch.rand(4, 5, 1, generator=seeded(1)) + 0.5
    images, places = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1, 0, 3, 2])
    for other in (tokens * scales, tokens[images], tokens[:, places]):
        assert torch.isclose(patch_contrastive_loss(other), loss, atol=1e-6)


def test_contrast_of_some_places():
    tokens = torch.randn(3, 6, 4, generator=seeded(0))
    places = torch.randperm(6, generator=seeded(1))[:4]
    found = patch_contrastive_loss(tokens, max_tokens=4, generator=seeded(1))
    assert torch.isclose(found, patch_contrastive_loss(tokens[:, places]))
    assert torch.equal(patch_contrastive_loss(tokens, max_tokens=6), patch_contrastive_loss(tokens))


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_contrast_at_low_temperature_and_in_half(chunk_size):
    tokens = torch.randn(3, 4, 8, generator=seeded(0))
    sharp = patch_contrastive_loss(tokens, temperature=1e-3, chunk_size=chunk_size)
    assert sharp.isfinite()
    half = patch_contrastive_loss(tokens.bfloat16(), chunk_size=chunk_size)
    assert half.dtype == torch.float32
    assert torch.isclose(half, patch_contrastive_loss(tokens), atol=1e-2)


def test_contrast_vmap():
    tokens = torch.randn(2, 3, 4, 5, generator=seeded(0))
    found = torch.vmap(patch_contrastive_loss)(tokens)
    wanted = torch.stack([patch_contrastive_loss(x) for x in tokens])
    assert torch.allclose(found, wanted)


def test_restoration_loss():
    a, b = torch.rand(2, 2, 3, 4, 4, generator=seeded(0))
    tokens = torch.randn(2, 5, 3, generator=seeded(1))
    l1 = (a - b).abs().mean()
    assert torch.isclose(restoration_loss(a, b), l1)
    assert torch.equal(restoration_loss(a, b, tokens, contrastive_weight=0), l1)
    wanted = l1 + 0.1 / 255 * patch_contrastive_loss(tokens, temperature=0.5)
    assert torch.isclose(restoration_loss(a, b, tokens, temperature=0.5), wanted)


# ---- tiles ----


def enlarged(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("blend", ["linear", "none"])
@pytest.mark.parametrize(("f", "scale"), [(torch.clone, 1), (enlarged, 2)])
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.integers(0, 15))
def test_tiles_of_local_functions_are_exact(f, scale, blend, h, w, tile, overlap):
    x = torch.rand(2, 3, h, w, generator=seeded(0))
    how = {"tile": tile, "overlap": min(overlap, tile - 1), "scale": scale, "blend": blend}
    found = tiled_forward(f, x, batch_size=7, **how)
    assert torch.allclose(found, f(x), atol=1e-6)


@given(st.integers(3, 40), st.integers(3, 40), st.integers(5, 16), st.integers(2, 15))
def test_blended_tiles_hide_a_wrong_border(h, w, tile, overlap):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(3, 2, 3, padding=1), torch.rand(1, 3, h, w)
    with torch.no_grad():
        found = tiled_forward(conv, x, tile=tile, overlap=min(overlap, tile - 1))
        assert torch.allclose(found, conv(x), atol=1e-6)


def test_one_tile_is_the_plain_call():
    model, x = small().eval(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        wanted = model(x, "sr2")
        found = tiled_forward(partial(model, task="sr2"), x, tile=8, overlap=3, scale=2)
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tiles_add_no_error(dtype):
    x = torch.rand(1, 3, 40, 37, generator=seeded(0)).to(dtype)
    found = tiled_forward(torch.clone, x, tile=16, overlap=7)
    assert found.dtype == dtype and torch.equal(found, x)


def test_tiles_pass_gradients():
    x = torch.rand(1, 2, 7, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(partial(tiled_forward, torch.sin, tile=4, overlap=2), (x,))


# ---- bad input of the brief ----


def test_errors():
    x = torch.rand(2, 3, 8, 8)
    for call, words in (
        (lambda: small()(x, "deblur"), "task must be one of 'denoise', 'other'"),
        (lambda: small()(x[:, :1], "sr2"), r"x must have shape \(B, 3, h, w\)"),
        (lambda: small()(x[..., :1], "sr2"), "x must be at least 2 pixels high and wide"),
        (lambda: small(num_heads=5), "num_heads must divide channels"),
        (lambda: small(image_size=9), "image_size must be a multiple of patch_size = 2"),
        (lambda: small(task_embedding="all"), "task_embedding must be one of"),
        (lambda: gaussian_noise(x, -1), "sigma must lie in"),
        (lambda: bicubic_downsample(x, 3), "x must have a height and width that scale = 3"),
        (lambda: bicubic_downsample(x, 0), "scale must be >= 1"),
        (lambda: patch_contrastive_loss(x[:1, 0]), "tokens must hold at least 2 images"),
        (lambda: patch_contrastive_loss(x), r"tokens must have shape \(B, N, D\)"),
        (lambda: psnr(x[:, :1], x[:, :1], channel="y"), "pred must have 3 channels"),
        (lambda: psnr(x, x, border=4), "border must leave at least one pixel"),
        (lambda: tiled_forward(torch.sin, x, tile=5, overlap=5), "overlap must be smaller than"),
        (lambda: tiled_forward(enlarged, x, tile=5, overlap=2), "what model returns must have"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
