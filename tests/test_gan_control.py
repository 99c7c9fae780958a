"""GAN-Control: groups, pairs, distances, loss, margins, mapping, encoders, control, training."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ponderlearn.explain.gan_control import (
    AttributeEncoder,
    GroupedMapping,
    LatentGroups,
    attribute_loss,
    control_matrix,
    fit_attribute_encoder,
    margin_contrastive_loss,
    own_share,
    paired_latents,
    pairwise_distance,
    quantile_margins,
    train_controlled_gan,
)
from ponderlearn.generative.gan import (
    MappingNetwork,
    ResidualDiscriminator,
    StyleGenerator,
    modulated_conv2d,
    train_gan,
)

GROUPS = LatentGroups({"hue": 2, "size": 1, "other": 3})
TERMS = {"hue": dict(tau_pos=0.1, tau_neg=0.5), "size": dict(tau_pos=0.2, tau_neg=0.9, weight=2)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


# ---- groups and pairs ----


def test_groups():
    z = numbers(4, 6)
    assert GROUPS.dim == 6 and GROUPS.names == ("hue", "size", "other")
    assert torch.equal(GROUPS.join(GROUPS.split(z)), z)
    shuffled = dict(reversed(GROUPS.split(z).items()))
    assert torch.equal(GROUPS.join(shuffled), z)
    new = numbers(4, 1, seed=1)
    found = GROUPS.replace(z, size=new)
    assert torch.equal(found[:, 2:3], new) and found.data_ptr() != z.data_ptr()
    assert torch.equal(found[:, :2], z[:, :2]) and torch.equal(found[:, 3:], z[:, 3:])
    assert torch.equal(
        GROUPS.replace(z, size=new[:1]), GROUPS.replace(z, size=new[:1].expand(4, 1))
    )
    assert torch.equal(GROUPS.replace(z), z)


def test_bad_groups():
    z = numbers(4, 6)
    with pytest.raises(ValueError, match="color must be one of the groups hue, size, other"):
        GROUPS.replace(z, color=z[:, :1])
    with pytest.raises(ValueError, match=r"size must have shape \(4, 1\)"):
        GROUPS.replace(z, size=z[:, :2])
    with pytest.raises(ValueError, match="z must have shape"):
        GROUPS.split(z[:, 1:])
    with pytest.raises(ValueError, match="parts must hold the groups"):
        GROUPS.join({"hue": z[:, :2]})
    with pytest.raises(ValueError, match="sizes must have at least one group"):
        LatentGroups({})
    with pytest.raises(ValueError, match="sizes must not use the names"):
        LatentGroups({"z": 2})


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(1, 3), st.integers(0, 999))
def test_pairs_share_one_group_and_nothing_else(sizes, pairs, seed):
    groups = LatentGroups({f"g{k}": size for k, size in enumerate(sizes)})
    z, same = paired_latents(groups, pairs, generator=seeded(seed))
    assert z.shape == (2 * pairs * len(sizes), sum(sizes))
    everywhere = torch.stack(list(same.values()))
    assert everywhere.sum() == pairs * len(sizes)
    assert not everywhere.triu().any()
    assert torch.equal(
        everywhere.any(0).sum(0) + everywhere.any(0).sum(1), torch.ones(len(z)).long()
    )
    for name, part in groups.split(z).items():
        equal = (part[:, None] == part).all(2)
        assert torch.equal(equal.tril(-1), same[name])


def test_pairs_of_some_groups():
    z, same = paired_latents(GROUPS, {"size": 2, "other": 1}, dtype=torch.float64)
    assert z.shape == (6, 6) and z.dtype == torch.float64
    assert [int(m.sum()) for m in same.values()] == [0, 2, 1]
    assert same["other"][5, 4]
    with pytest.raises(ValueError, match="pairs must hold a pair"):
        paired_latents(GROUPS, {"size": 0})


# ---- distances and losses ----


def test_distances():
    f = F.normalize(numbers(5, 7), dim=1)
    squared = pairwise_distance(f, kind="sqeuclidean")
    assert torch.allclose(squared, 2 * pairwise_distance(f, kind="cosine"), atol=1e-6)
    assert torch.allclose(squared.sqrt(), pairwise_distance(f, kind="l2"), atol=1e-3)
    g = numbers(3, 7, seed=1)
    wanted = torch.stack([torch.stack([(a - b).abs().mean() for b in g]) for a in f])
    assert torch.allclose(pairwise_distance(f, g), wanted, atol=1e-6)
    hue = torch.tensor([[0.05], [0.95]])
    assert pairwise_distance(hue, kind="circular")[0, 1].item() == pytest.approx(0.1, abs=1e-6)
    turn = 2 * math.pi * hue
    on_circle = torch.cat([turn.cos(), turn.sin()], 1)
    assert pairwise_distance(on_circle)[0, 1].item() == pytest.approx(0.3090170, abs=1e-6)
    assert pairwise_distance(f.bfloat16()).dtype == torch.float32
    assert pairwise_distance(f.double()).dtype == torch.float64


def plain_loss(D, same, tau_pos, tau_neg):
    alike, other = [], []
    for i, j in itertools.combinations(range(len(D)), 2):
        if same[j, i]:
            alike.append(max(D[j][i] - tau_pos, 0))
        else:
            other.append(max(tau_neg - D[j][i], 0))
    return sum(sum(part) / len(part) for part in (alike, other) if part)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(0, 999))
def test_loss_agrees_with_a_plain_loop(pairs, seed):
    z, same = paired_latents(GROUPS, pairs, generator=seeded(seed), dtype=torch.float64)
    D = pairwise_distance(z @ numbers(6, 2, dtype=torch.float64))
    for mask in same.values():
        found = margin_contrastive_loss(D, mask, tau_pos=0.3, tau_neg=1.1).item()
        assert found == pytest.approx(plain_loss(D.tolist(), mask, 0.3, 1.1))


def test_loss_by_hand():
    D = pairwise_distance(torch.tensor([[0.0], [0.5], [0.1], [0.9]]))
    same = torch.zeros(4, 4, dtype=torch.bool)
    same[1, 0] = True
    how = dict(tau_pos=0.2, tau_neg=0.6)
    assert margin_contrastive_loss(D, same, **how).item() == pytest.approx(0.48)
    assert margin_contrastive_loss(D, same.T, **how).item() == pytest.approx(0.48)
    pays = margin_contrastive_loss(D, same, reduction="none", **how)
    wanted = [[0, 0, 0, 0], [0.3, 0, 0, 0], [0.5, 0.2, 0, 0], [0, 0.2, 0, 0]]
    assert torch.allclose(pays, torch.tensor(wanted), atol=1e-6)
    assert margin_contrastive_loss(D, same, reduction="sum", **how).item() == pytest.approx(1.2)
    nobody = margin_contrastive_loss(D, torch.zeros_like(same), **how).item()
    assert nobody == pytest.approx((0.1 + 0.5 + 0.2 + 0.2) / 6)


def test_nothing_to_pay():
    f = torch.tensor([[0.0], [0.1], [5.0]], requires_grad=True)
    same = torch.zeros(3, 3, dtype=torch.bool)
    same[1, 0] = True
    loss = margin_contrastive_loss(pairwise_distance(f), same, tau_pos=0.2, tau_neg=1.0)
    loss.backward()
    assert loss.item() == 0 and not f.grad.any()


def test_only_violating_pairs_get_gradients():
    f = torch.tensor([[0.0], [0.1], [5.0], [5.3]], requires_grad=True)
    same = torch.zeros(4, 4, dtype=torch.bool)
    same[1, 0] = True
    margin_contrastive_loss(pairwise_distance(f), same, tau_pos=0.2, tau_neg=1.0).backward()
    assert f.grad.flatten().tolist() == pytest.approx([0, 0, 0.2, -0.2])


def test_symmetries():
    z, same = paired_latents(GROUPS, 2, generator=seeded())
    f, order = numbers(len(z), 3), torch.randperm(len(z), generator=seeded(1))
    how = dict(tau_pos=0.3, tau_neg=1.0)
    loss = margin_contrastive_loss(pairwise_distance(f), same["hue"], **how)
    shifted = margin_contrastive_loss(pairwise_distance(f + 3), same["hue"], **how)
    mask = same["hue"] | same["hue"].T
    moved = margin_contrastive_loss(pairwise_distance(f[order]), mask[order][:, order], **how)
    assert loss.item() == pytest.approx(shifted.item(), abs=1e-5)
    assert loss.item() == pytest.approx(moved.item(), abs=1e-5)


def test_gradcheck_vmap_compile_and_half():
    z, same = paired_latents(GROUPS, 1, generator=seeded())
    f = numbers(len(z), 2, dtype=torch.float64).requires_grad_()

    def loss(f):
        return margin_contrastive_loss(pairwise_distance(f), same["hue"], tau_pos=0.3, tau_neg=1.0)

    assert torch.autograd.gradcheck(loss, (f,))
    both = torch.stack([f.detach(), 2 * f.detach()])
    wanted = torch.stack([loss(x) for x in both])
    assert torch.allclose(torch.func.vmap(loss)(both), wanted)
    half = loss(f.detach().bfloat16())
    assert half.dtype == torch.float32 and half.item() == pytest.approx(wanted[0].item(), abs=0.02)


def test_attribute_loss():
    z, same = paired_latents(GROUPS, 2, generator=seeded())
    features = {"hue": z[:, :2], "size": z[:, 2:3], "more": z}
    total, each = attribute_loss(features, same, TERMS)
    assert set(each) == {"hue", "size"}
    assert total.item() == pytest.approx((each["hue"] + 2 * each["size"]).item())
    alone = margin_contrastive_loss(
        pairwise_distance(z[:, :2]), same["hue"], tau_pos=0.1, tau_neg=0.5
    )
    assert each["hue"].item() == pytest.approx(alone.item())


def test_bad_losses():
    D, same = torch.ones(3, 3), torch.zeros(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="tau_pos must lie in"):
        margin_contrastive_loss(D, same, tau_pos=0.6, tau_neg=0.6)
    with pytest.raises(TypeError, match="same must be a tensor of bool"):
        margin_contrastive_loss(D, same.long(), tau_pos=0.1, tau_neg=0.6)
    with pytest.raises(ValueError, match="same must have shape"):
        margin_contrastive_loss(D, same[:2], tau_pos=0.1, tau_neg=0.6)
    with pytest.raises(ValueError, match="kind must be one of"):
        pairwise_distance(D, kind="l3")
    with pytest.raises(ValueError, match="features must hold hue"):
        attribute_loss({"size": D}, {"hue": same}, {"hue": TERMS["hue"]})
    with pytest.raises(ValueError, match="terms must hold tau_neg for hue"):
        attribute_loss({"hue": D}, {"hue": same}, {"hue": dict(tau_pos=0.1)})
    with pytest.raises(ValueError, match="terms must be one of"):
        attribute_loss({"hue": D}, {"hue": same}, {"hue": TERMS["hue"] | dict(tau=1)})


FLOORS = [(0.25, 0.0176082), (0.5, 0.0686966), (1.0, 0.2608974), (1.5, 0.5557691)]


@pytest.mark.parametrize(("tau", "floor"), FLOORS)
def test_floor_of_uniform_values(tau, floor):
    assert tau**2 / 12**0.5 - tau**3 / 36 == pytest.approx(floor, abs=1e-6)
    values = 12**0.5 * torch.rand(1500, 1, generator=seeded())
    same = torch.zeros(1500, 1500, dtype=torch.bool)
    found = margin_contrastive_loss(pairwise_distance(values), same, tau_pos=0.0, tau_neg=tau)
    assert found.item() == pytest.approx(floor, rel=0.05)


def test_quantile_margins():
    values = 12**0.5 * torch.rand(1500, 1, generator=seeded())
    tau_pos, tau_neg = quantile_margins(values)
    exact = [12**0.5 * (1 - (1 - q) ** 0.5) for q in (0.05, 0.25)]
    assert [tau_pos, tau_neg] == pytest.approx(exact, rel=0.03)
    with pytest.raises(ValueError, match="f must have distances that differ"):
        quantile_margins(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="f must hold finite values"):
        quantile_margins(torch.full((5, 1), math.nan))
    with pytest.raises(ValueError, match="low must lie in"):
        quantile_margins(values, low=0.5, high=0.3)


# ---- networks ----


def test_mapping_keeps_groups_apart():
    torch.manual_seed(0)
    out = LatentGroups({"hue": 3, "size": 4, "other": 2})
    net = GroupedMapping(GROUPS, out)
    J = torch.autograd.functional.jacobian(lambda z: net(z[None])[0], numbers(6))
    for (row, rows), (column, columns) in itertools.product(
        out.slices.items(), GROUPS.slices.items()
    ):
        assert bool(J[rows, columns].any()) == (row == column)
    z = numbers(5, 6)
    scaled = GROUPS.replace(z, other=7 * z[:, 3:])
    assert torch.allclose(net(z), net(scaled), atol=1e-4)
    assert torch.equal(net.mappings[0](z[:, :2]), net(z)[:, :3])
    assert isinstance(net.mappings[1], MappingNetwork)
    with pytest.raises(ValueError, match="groups_out must have the names"):
        GroupedMapping(GROUPS, LatentGroups({"hue": 3, "other": 2}))


def test_float64():
    net = GroupedMapping(GROUPS, GROUPS).double()
    assert net(numbers(2, 6, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(TypeError, match="z must be float64"):
        net(numbers(2, 6))


def test_modulated_convolution_is_a_grouped_one():
    x, weight, style = numbers(3, 4, 8, 8), numbers(5, 4, 3, 3, seed=1), numbers(3, 4, seed=2)
    kernels = weight * style[:, None, :, None, None]
    kernels = kernels / kernels.square().sum((2, 3, 4), keepdim=True).sqrt()
    out = F.conv2d(x.reshape(1, 12, 8, 8), kernels.flatten(0, 1), padding=1, groups=3)
    assert torch.allclose(modulated_conv2d(x, weight, style), out.reshape(3, 5, 8, 8), atol=1e-5)


def test_encoder_fits_and_ends_at_the_median():
    torch.manual_seed(0)
    y = 2 * torch.rand(1000, 1, generator=seeded()) - 1
    w = torch.cat([y, y.square()], 1)
    encoder = AttributeEncoder(1, 2)
    losses = fit_attribute_encoder(encoder, y, w, steps=300, generator=seeded())
    assert losses.shape == (300,) and (encoder(y) - w).abs().mean() < 0.03
    w = numbers(1000, 1, seed=3).exp()  # median 1, mean 1.65
    encoder = AttributeEncoder(1, 1)
    fit_attribute_encoder(encoder, y, w, steps=300, generator=seeded())
    assert encoder(y).mean().item() == pytest.approx(w.median().item(), abs=0.15)
    encoder = AttributeEncoder(1, 1)
    fit_attribute_encoder(encoder, y, w, steps=300, kind="l2", generator=seeded())
    assert encoder(y).mean().item() == pytest.approx(w.mean().item(), abs=0.15)


# ---- control ----


def identity(x):
    return x


def test_control_matrix_of_known_generators():
    attributes = {"hue": [0, 1], "size": [2]}
    C = control_matrix(identity, identity, GROUPS, attributes, n=20_000, generator=seeded())
    assert torch.allclose(C, torch.tensor([[1.0, 0], [0, 1], [0, 0]]), atol=0.05)
    assert not C[2].any() and own_share(C).tolist() == [1, 1]

    def driven(z):
        return z[:, 2:3].expand(-1, 3)

    C = control_matrix(driven, identity, GROUPS, attributes, n=20_000, generator=seeded())
    assert torch.allclose(C, torch.tensor([[0.0, 0], [1, 1], [0, 0]]), atol=0.05)
    assert own_share(C).tolist() == [0, 1]


def test_control_matrix_by_a_plain_loop():
    mix = numbers(6, 3, seed=5)
    g = seeded(7)
    found = control_matrix(
        lambda z: z @ mix, identity, GROUPS, {"a": [0], "b": [2, 1]}, n=50, generator=g
    )
    g = seeded(7)
    z = torch.randn(50, 6, generator=g)
    for k, (name, size) in enumerate(GROUPS.sizes.items()):
        new = z.clone()
        new[:, GROUPS.slices[name]] = torch.randn(50, size, generator=g)
        change = ((new - z) @ mix).square().mean(0) / 2
        variance = (z @ mix).var(0)
        wanted = [change[0] / variance[0], (change[1] + change[2]) / (variance[1] + variance[2])]
        assert found[k].tolist() == pytest.approx([v.item() for v in wanted], rel=1e-4)


def test_own_share_needs_a_group_for_each():
    with pytest.raises(ValueError, match="matrix must have at least as many rows"):
        own_share(torch.ones(2, 3))
    assert own_share(torch.ones(5, 4)).tolist() == pytest.approx([0.2] * 4)


# ---- training ----


def small_nets(seed=0):
    torch.manual_seed(seed)
    styles = LatentGroups({"hue": 4, "size": 4, "other": 4})
    made = nn.Sequential(GroupedMapping(GROUPS, styles), StyleGenerator(12, (4, 4)))
    return made, ResidualDiscriminator((4, 4))


def tiny_attributes(x):
    return {"hue": x.mean((2, 3))[:, :2], "size": x.mean((1, 2, 3), keepdim=True)[:, :, 0, 0]}


def test_training_is_reproducible_and_moves_both():
    real = numbers(16, 3, 8, 8)
    nets = small_nets()
    before = copy.deepcopy(nets)
    runs, seen = [], []
    for _ in range(2):
        again = copy.deepcopy(before)
        runs.append(
            train_controlled_gan(
                *again,
                tiny_attributes,
                real,
                GROUPS,
                TERMS,
                steps=3,
                pairs=1,
                generator=seeded(),
                callback=lambda step, net: seen.append(step),
            )
        )
    assert seen == [1, 2, 3] * 2
    assert set(runs[0].history) == {
        "generator_loss",
        "attribute_loss",
        "discriminator_loss",
        "penalty",
    }
    for name, row in runs[0].history.items():
        assert torch.equal(row, runs[1].history[name]) and row.shape == (3,)
    assert runs[0].history["penalty"][0] > 0 and not runs[0].history["penalty"][1:].any()
    for net, old in zip(again, before, strict=True):
        assert all(
            not torch.equal(a, b) for a, b in zip(net.parameters(), old.parameters(), strict=True)
        )
        assert all(p.requires_grad for p in net.parameters())


def test_first_discriminator_step_is_that_of_train_gan():
    real, how = numbers(16, 3, 8, 8), dict(steps=1, lr=2.5e-3, r1_weight=0.5, r1_every=16)
    ours = train_controlled_gan(
        *small_nets(), tiny_attributes, real, GROUPS, TERMS, pairs=1, generator=seeded(), **how
    )
    theirs = train_gan(*small_nets(), real, latent_dim=6, batch_size=6, generator=seeded(), **how)
    for name in ("discriminator_loss", "penalty"):
        assert ours.history[name].item() == pytest.approx(theirs.history[name].item(), rel=1e-5)


def test_data_may_be_a_function():
    real, sizes = numbers(16, 3, 8, 8), []

    def batches(n, generator):
        sizes.append(n)
        return real[torch.randint(16, (n,), generator=generator)]

    runs = [
        train_controlled_gan(
            *small_nets(),
            tiny_attributes,
            data,
            GROUPS,
            TERMS,
            steps=2,
            pairs=1,
            generator=seeded(),
        ).history["discriminator_loss"]
        for data in (real, batches)
    ]
    assert torch.equal(*runs) and sizes == [6, 6]


def test_attribute_module_keeps_its_weights():
    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            y = x.mean((2, 3)) * self.weight
            return {"hue": y[:, :2], "size": y[:, 2:]}

    net = Means()
    train_controlled_gan(
        *small_nets(), net, numbers(9, 3, 8, 8), GROUPS, TERMS, steps=2, pairs=1, noise=0.1
    )
    assert net.weight.grad is None and net.weight.requires_grad


def test_bad_training():
    nets, real = small_nets(), numbers(9, 3, 8, 8)
    with pytest.raises(ValueError, match="terms must use the groups"):
        terms = {"age": TERMS["hue"]}
        train_controlled_gan(*nets, tiny_attributes, real, GROUPS, terms, steps=1)
    with pytest.raises(ValueError, match="what attributes returns must hold size"):
        train_controlled_gan(*nets, lambda x: {"hue": x.mean((2, 3))}, real, GROUPS, TERMS, steps=1)
    with pytest.raises(ValueError, match="terms must name an attribute"):
        train_controlled_gan(*nets, tiny_attributes, real, GROUPS, {}, steps=1)


class Turned(nn.Module):
    "Three numbers that are a rotation of three latents."

    def __init__(self):
        super().__init__()
        self.skew = nn.Parameter(numbers(3, 3, seed=4))

    def forward(self, z):
        return z @ torch.linalg.matrix_exp(self.skew - self.skew.T)


def test_the_loss_separates_a_rotation():
    groups = LatentGroups({"a": 1, "b": 1, "other": 1})
    torch.manual_seed(0)
    net, columns = Turned(), {"a": [0], "b": [1]}
    terms = {name: dict(tau_pos=0.1, tau_neg=0.5) for name in columns}

    def share(model):
        how = dict(n=500, generator=seeded(2))
        return own_share(control_matrix(model, identity, groups, columns, **how)).mean().item()

    before = share(net)
    model, _ = train_controlled_gan(
        net,
        nn.Linear(3, 1),
        lambda x: {"a": x[:, :1], "b": x[:, 1:2]},
        numbers(500, 3, seed=1),
        groups,
        terms,
        steps=300,
        lr=0.02,
        generator=seeded(3),
    )
    after = share(model)
    assert before < 0.7 and after > 0.85, (before, after)
