"""TransGAN: pixel shuffle, masks, blocks, both networks, drift, augmentation, the side task."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ponderlearn.generative.gan import gradient_penalty, train_gan
from ponderlearn.generative.transgan import (
    TransformerBlock,
    TransGANDiscriminator,
    TransGANGenerator,
    diff_augment,
    drift_penalty,
    local_attention_mask,
    pixel_shuffle_tokens,
    window_schedule,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_generator(**how):
    torch.manual_seed(0)
    sizes = dict(bottom=2, embed_dim=32, num_layers=(1, 1, 1), num_heads=2, mlp_ratio=2)
    return TransGANGenerator(6, **(sizes | dict(out_channels=1, radii=(0, 1, 7)) | how))


def small_critic(**how):
    torch.manual_seed(0)
    sizes = dict(embed_dim=8, num_layers=2, num_heads=2, mlp_ratio=2, in_channels=1)
    return TransGANDiscriminator(8, 2, **(sizes | how))


# ---- pixel shuffle ----


def test_tokens_go_where_they_should():
    "Cases worked by hand; the wrong `view` in place of the transpose gives something else."
    four = torch.arange(16.0).view(1, 4, 4)
    rows = pixel_shuffle_tokens(four, 2, 2).tokens.view(4, 4).tolist()
    assert rows == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    wrong = F.pixel_shuffle(four.view(1, 4, 2, 2), 2).view(4, 4).tolist()
    assert wrong != rows
    two = pixel_shuffle_tokens(torch.arange(8.0).view(1, 1, 8), 1, 1).tokens
    assert two.tolist() == [[[0, 4], [1, 5], [2, 6], [3, 7]]]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_unshuffling_brings_back(height, width, factor, channels):
    x = torch.randn(2, height * width, channels * factor**2)
    y, tall, wide = pixel_shuffle_tokens(x, height, width, factor)
    assert (tall, wide) == (height * factor, width * factor)
    grid = y.transpose(1, 2).reshape(2, channels, tall, wide)
    back = F.pixel_unshuffle(grid, factor).flatten(2).transpose(1, 2)
    assert torch.equal(back, x)


# ---- masks ----


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(0, 10), st.sampled_from(["window", "band"])
)
@settings(max_examples=40, deadline=None)
def test_masks_agree_with_a_loop(height, width, radius, kind):
    mask = local_attention_mask(height, width, radius, kind=kind)
    for i in range(height * width):
        for j in range(height * width):
            apart = max(abs(i // width - j // width), abs(i % width - j % width))
            near = abs(i - j) if kind == "band" else apart
            assert bool(mask[i, j]) == (near <= radius)


@pytest.mark.parametrize(
    "size, radius, count", [(4, 1, 100), (8, 1, 484), (8, 2, 1156), (16, 2, 5476), (32, 4, 71_824)]
)
def test_pairs_in_a_window(size, radius, count):
    mask = local_attention_mask(size, size, radius)
    assert int(mask.sum()) == count
    assert torch.equal(mask, mask.T)
    assert int(mask[0].sum()) == (radius + 1) ** 2
    assert bool(local_attention_mask(size, size, size - 1).all())
    assert torch.equal(local_attention_mask(size, size, 0), torch.eye(size**2).bool())


@pytest.mark.parametrize(
    "width, count, other",
    [(4, 9196, 620), (6, 13_270, 1302), (8, 17_336, 2232), (10, 21_394, 3410)],
)
def test_pairs_in_the_released_band(width, count, other):
    mask = local_attention_mask(32, 32, width, kind="band")
    place = torch.arange(1024)
    rows = place // 32
    assert int(mask.sum()) == count
    assert int((mask & (rows[:, None] != rows)).sum()) == other
    assert not bool(mask[place[:-32], place[32:]].any())  # the pixel below


def test_a_prefix_sees_all_and_is_seen():
    mask = local_attention_mask(3, 3, 1, prefix=2)
    assert mask.shape == (11, 11)
    assert bool(mask[:2].all()) and bool(mask[:, :2].all())
    assert torch.equal(mask[2:, 2:], local_attention_mask(3, 3, 1))
    assert bool(local_attention_mask(2, 5, None).all())


def test_schedule():
    found = [window_schedule(step, 100) for step in (0, 24, 25, 49, 50, 74, 75, 100)]
    assert found == [1, 1, 2, 2, 4, 4, None, None]
    assert window_schedule(0, 10, (), ()) is None


# ---- blocks ----


def test_a_block_agrees_with_the_formulas():
    "Heads by hand, the mask before the softmax, both additions."
    block = TransformerBlock(6, num_heads=2, mlp_ratio=3).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    mask = local_attention_mask(3, 3, 1)
    q, k, v = block.qkv(block.norm1(x)).split(6, dim=2)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        logits = q[..., part] @ k[..., part].mT / math.sqrt(3)
        logits[:, ~mask] = -1e9
        heads.append(logits.softmax(2) @ v[..., part])
    y = x + block.join(torch.cat(heads, 2))
    hidden = block.mlp[0](block.norm2(y))
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    assert torch.allclose(block(x, mask), y + block.mlp[2](hidden), atol=1e-12)
    weights = block.attention_weights(x, mask)
    assert torch.allclose(weights.sum(3), torch.ones(2, 2, 9).double())
    assert float(weights[:, :, ~mask].detach().abs().max()) == 0


def test_a_query_that_may_look_at_nothing():
    "Its weights are zero, as torch has it: its token passes by the attention."
    block = TransformerBlock(4, num_heads=2)
    x, mask = torch.randn(2, 3, 4), torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    weights = block.attention_weights(x, mask)
    assert float(weights[:, :, 1].detach().abs().max()) == 0
    assert torch.allclose(weights[:, :, 0].sum(2), torch.ones(2, 2))
    y = x + block.join.bias
    assert torch.allclose(block(x, mask)[:, 1], (y + block.mlp(block.norm2(y)))[:, 1], atol=1e-6)


def test_what_a_mask_hides_has_no_influence():
    "The Jacobian of one block is zero exactly where the mask is."
    block = TransformerBlock(4, num_heads=2)
    x, mask = torch.randn(16, 4), local_attention_mask(4, 4, 1)
    jacobian = torch.autograd.functional.jacobian(lambda t: block(t[None], mask)[0], x)
    assert torch.equal(jacobian.abs().amax((1, 3)) > 0, mask)


def test_blocks_in_other_dtypes():
    block, x = TransformerBlock(8, num_heads=2), torch.randn(2, 5, 8)
    right = block(x)
    assert torch.allclose(block.double()(x.double()).float(), right, atol=1e-5)
    assert torch.allclose(block.bfloat16()(x.bfloat16()).float(), right, atol=0.1)


# ---- the generator ----


@pytest.mark.parametrize(
    "name, count, last",
    [("S", 15_493_803, 24), ("M", 24_695_011, 32), ("L", 49_152_339, 48), ("XL", 83_260_867, 64)],
)
def test_sizes_of_the_paper(name, count, last):
    with torch.device("meta"):
        net = TransGANGenerator.size(name)
    side_task = sum(p.numel() for p in net.from_image.parameters())
    assert sum(p.numel() for p in net.parameters()) - side_task == count
    assert net.positions[-1].shape == (1, 1024, last)
    assert net.image_size == 32


def test_the_critic_of_the_paper():
    with torch.device("meta"):
        net = TransGANDiscriminator()
    assert sum(p.numel() for p in net.parameters()) == 12_458_497


def test_each_image_by_itself():
    "No statistics of the batch, no dropout: modes and neighbors change nothing."
    net, z = small_generator(), torch.randn(3, 6)
    image = net(z)
    assert image.shape == (3, 1, 8, 8)
    assert torch.allclose(net(z[:1]), image[:1], atol=1e-6)
    assert torch.equal(net.eval()(z), image)


def test_windows_of_the_generator():
    net, z = small_generator(), torch.randn(3, 6)
    assert torch.allclose(net(z, 7), net(z), atol=1e-6)
    assert not torch.allclose(net(z, 1), net(z), atol=1e-4)
    assert len(net.attention_maps(z, 1)) == 3
    hidden = ~local_attention_mask(8, 8, 1)
    assert float(net.attention_maps(z, 1)[-1][:, :, hidden].detach().abs().max()) == 0
    band = small_generator(kind="band", radii=(1,))
    assert torch.equal(band.mask_2_1, local_attention_mask(8, 8, 1, kind="band"))


def test_masks_are_buffers_that_are_not_saved():
    net = small_generator()
    names = dict(net.named_buffers())
    assert len(names) == 9
    assert all(mask.dtype == torch.bool for mask in names.values())
    assert not any("mask" in name for name in net.state_dict())
    other = small_generator(radii=())
    other.load_state_dict(net.state_dict())
    z = torch.randn(2, 6)
    assert torch.equal(other(z), net(z))


def test_radius_0_keeps_the_children_of_a_token_together():
    "Without looking around, an image falls into blocks that know nothing of each other."
    net = small_generator()
    x = torch.randn(1, 1, 2, 2, requires_grad=True)
    net.super_resolve(x, 0)[0, 0, :4, :4].sum().backward()
    assert torch.equal(x.grad[0, 0] != 0, torch.tensor([[True, False], [False, False]]))


def test_side_task():
    net, x = small_generator(), torch.randn(3, 1, 8, 8)
    assert torch.equal(net.super_resolve(x), net.super_resolve(F.avg_pool2d(x, 4)))
    F.mse_loss(net.super_resolve(x), x).backward()
    assert net.from_latent.weight.grad is None
    for blocks in net.stages:
        assert float(blocks[0].qkv.weight.grad.abs().sum()) > 0


@pytest.mark.slow
def test_compiles():
    net, z = small_generator(), torch.randn(3, 6)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(z, 1), net(z, 1), atol=1e-6)


# ---- the critic ----


def test_patches_move_with_their_positions():
    "Attention knows no order: patches and positions permuted together give the same logits."
    net, x = small_critic(), torch.randn(2, 1, 8, 8)
    right = net(x)
    order = torch.randperm(16, generator=seeded(1))
    patches = F.pixel_unshuffle(x, 2).flatten(2)[:, :, order]
    moved = F.pixel_shuffle(patches.unflatten(2, (4, 4)), 2)
    with torch.no_grad():
        net.positions[:, 1:] = net.positions[:, 1:][:, order]
    assert torch.allclose(net(moved), right, atol=1e-6)


def test_patches_are_a_strided_convolution():
    net, x = small_critic(in_channels=3), torch.randn(2, 3, 8, 8)
    kernel = net.embed.weight.unflatten(1, (3, 2, 2))
    wanted = F.conv2d(x, kernel, net.embed.bias, stride=2).flatten(2).transpose(1, 2)
    assert torch.allclose(net._tokens(x)[:, 1:] - net.positions[:, 1:], wanted, atol=1e-6)


def test_second_derivatives_by_finite_differences():
    net = small_critic(embed_dim=4, num_layers=1).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(20)
    weight = net.embed.weight
    real, fake = torch.randn(2, 3, 1, 8, 8, dtype=torch.float64)

    def penalty():
        with sdpa_kernel(SDPBackend.MATH):
            return gradient_penalty(net, real, fake, generator=seeded(0))

    (slope,) = torch.autograd.grad(penalty(), weight)
    with torch.no_grad():
        weight[1, 2] += 1e-5
        up = penalty()
        weight[1, 2] -= 2e-5
        down = penalty()
    assert math.isclose((up - down) / 2e-5, slope[1, 2], rel_tol=1e-5)


def test_cls_leads_the_weights():
    maps = small_critic().attention_maps(torch.randn(3, 1, 8, 8))
    assert [tuple(m.shape) for m in maps] == [(3, 2, 17, 17)] * 2


# ---- drift ----


def test_drift():
    real = torch.tensor([1.0, 3.0])
    assert drift_penalty(real) == 5
    assert drift_penalty(real, kind="square_mean") == 4
    assert drift_penalty(real.bfloat16()).dtype == torch.float32


# ---- augmentation ----


def test_no_policy_changes_nothing():
    x = torch.randn(2, 3, 5, 7)
    assert torch.equal(diff_augment(x, ""), x)
    same = [diff_augment(x, generator=seeded(3)) for _ in range(2)]
    assert torch.equal(*same)
    assert diff_augment(x.bfloat16()).dtype == torch.bfloat16


def test_translation_moves_whole_images():
    x = torch.rand(300, 2, 8, 8) + 1
    moved = diff_augment(x, "translation", generator=seeded(0), fill=-3.0)
    padded = F.pad(x, (1, 1, 1, 1), value=-3.0)
    places = set()
    for before, after in zip(padded, moved, strict=True):
        hits = [
            (i, j)
            for i in range(3)
            for j in range(3)
            if torch.equal(before[:, i : i + 8, j : j + 8], after)
        ]
        assert len(hits) == 1
        places.add(hits[0])
    assert len(places) == 9


@pytest.mark.parametrize("side", [6, 7, 8])
def test_cutout_erases_a_rectangle(side):
    x = torch.ones(400, 1, side, side)
    cut = diff_augment(x, "cutout", generator=seeded(0)) == 0
    length = int(side / 2 + 0.5)
    assert int(cut.sum((1, 2, 3)).max()) == length**2
    rows, columns = cut.any(3)[:, 0], cut.any(2)[:, 0]
    assert torch.equal(cut[:, 0], rows[:, :, None] & columns[:, None])
    assert bool(cut.any(0).all())  # everywhere, sooner or later


def test_color_of_gray_images_has_no_saturation():
    "Images of one channel: an affine map of the whole image, slope in 0.5 .. 1.5."
    x = torch.rand(50, 1, 4, 4)
    y = diff_augment(x, "color", generator=seeded(0))
    slope = y.flatten(1).std(1) / x.flatten(1).std(1)
    assert bool(((slope >= 0.5) & (slope <= 1.5)).all())
    shift = y.mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert bool((shift.abs() <= 0.5).all()) and float(shift.std()) > 0.2


def test_gradients_pass_where_pixels_stay():
    x = torch.rand(20, 1, 8, 8, requires_grad=True)
    out = diff_augment(x, "translation,cutout", generator=seeded(0), fill=5.0)
    out.sum().backward()
    assert set(x.grad.flatten().tolist()) == {0.0, 1.0}
    assert int(x.grad.sum()) == int((out != 5).sum())


# ---- together ----


def test_trains_with_the_common_loop():
    G, D = small_generator(), small_critic()
    how = dict(kind="wasserstein", gradient_penalty_weight=10.0, steps=2, batch_size=4)
    with sdpa_kernel(SDPBackend.MATH):
        _, history = train_gan(G, D, torch.randn(9, 1, 8, 8), latent_dim=6, **how)
    assert bool(history["penalty"].isfinite().all())


def test_the_side_task_learns():
    "Restoring blobs from their means: half of the measured fall of the error."
    net = small_generator()
    center = torch.rand(64, 2, 1, 1, generator=seeded(0)) * 7
    grid = torch.arange(8.0)
    far = (grid[:, None] - center[:, :1]).square() + (grid - center[:, 1:]).square()
    x = torch.exp(-far / 8)
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    errors = []
    for _ in range(60):
        loss = F.mse_loss(net.super_resolve(x), x)
        adam.zero_grad()
        loss.backward()
        adam.step()
        errors.append(loss.item())
    assert errors[-1] < 0.5 * x.var().item()


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: pixel_shuffle_tokens(torch.ones(1, 5, 4), 2, 2), ValueError, "height and width"),
        (lambda: pixel_shuffle_tokens(torch.ones(1, 4, 6), 2, 2), ValueError, "factor must"),
        (lambda: local_attention_mask(2, 2, -1), ValueError, "radius must"),
        (lambda: local_attention_mask(2, 2, 1, kind="round"), ValueError, "kind must"),
        (lambda: small_generator(embed_dim=24), ValueError, "embed_dim must be divisible"),
        (lambda: small_generator(num_heads=4), ValueError, "num_heads must divide"),
        (lambda: small_generator()(torch.ones(2, 5)), ValueError, "z must"),
        (lambda: small_generator()(torch.ones(2, 6), 3), ValueError, "radius must be None or one"),
        (lambda: small_generator().super_resolve(torch.ones(2, 1, 4, 4)), ValueError, "x must"),
        (lambda: TransGANDiscriminator(9, 2), ValueError, "patch_size must divide"),
        (lambda: small_critic()(torch.ones(2, 1, 8, 6)), ValueError, "x must"),
        (lambda: diff_augment(torch.ones(1, 1, 2, 2), "blur"), ValueError, "policy must"),
        (lambda: drift_penalty(torch.ones(2), kind="mean"), ValueError, "kind must"),
        (lambda: window_schedule(1, 4, (1, 2), (0.5, 0.2)), ValueError, "fractions must"),
        (lambda: window_schedule(1, 4, (1,), (0.5, 0.7)), ValueError, "radii must"),
    ],
)
def test_bad_inputs(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_module_moves_its_masks():
    net = small_generator().to("meta")
    assert all(mask.is_meta for mask in net.buffers())
    assert isinstance(net, nn.Module)
