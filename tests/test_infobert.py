"""InfoBERT: bounds, anchors, the critic, the loss, FreeLB, attacks: loops, limits, bad input."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ponderlearn.contrastive.infonce import mi_lower_bound
from ponderlearn.language.infobert import (
    InfoBERTLoss,
    InfoBERTTerms,
    PairCritic,
    anchor_mask,
    anchored_info,
    club_upper_bound,
    embedding_neighbors,
    freelb_loss,
    gaussian_channel_bound,
    greedy_substitution_attack,
    perturbation_init,
    perturbation_step,
)

THREE = torch.tensor([[0.0, 0], [2, 0], [0, 4]], dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def randn(*size, seed=0, dtype=torch.float64):
    return torch.randn(*size, generator=seeded(seed), dtype=dtype)


# ---- the upper bound ----


def test_variance_by_hand():
    y = THREE.clone().requires_grad_()
    value = gaussian_channel_bound(y)
    (grad,) = torch.autograd.grad(value, y)
    assert value.item() == pytest.approx(40 / 9)
    assert torch.allclose(grad, 2 * (THREE - THREE.mean(0)) / 3)
    assert gaussian_channel_bound(THREE, sigma=2.0).item() == pytest.approx(10 / 9)
    logdet = gaussian_channel_bound(THREE, kind="logdet").item()
    assert logdet == pytest.approx(0.5 * math.log(7.814815), abs=1e-6)


def test_official_random_partner_is_right_on_average():
    values = torch.stack(
        [
            ((THREE - THREE[list(index)]) ** 2 / 2).sum(1).mean()
            for index in itertools.product(range(3), repeat=3)
        ]
    )
    assert values.mean().item() == pytest.approx(gaussian_channel_bound(THREE).item())
    assert values.std(correction=0).item() == pytest.approx(2.330686, abs=1e-6)
    assert (values.min().item(), values.max().item()) == (0, pytest.approx(28 / 3))


@pytest.mark.parametrize("fill", [7.0, math.nan, math.inf])
@pytest.mark.parametrize("kind", ["club", "logdet"])
def test_padding_is_not_read(fill, kind):
    x = torch.full((2, 4, 2), fill, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, False], [False, True, False, False]])
    x[mask] = THREE
    x.requires_grad_()
    value = gaussian_channel_bound(x, mask, kind=kind)
    assert torch.allclose(value, gaussian_channel_bound(THREE, kind=kind))
    (grad,) = torch.autograd.grad(value, x)
    assert grad.isfinite().all() and not grad[~mask].any()


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.2, 5))
def test_order_of_the_bounds_and_invariances(seed, sigma):
    x = randn(20, 4, seed=seed) * torch.tensor([0.1, 1, 3, 10])
    club = gaussian_channel_bound(x, sigma=sigma)
    logdet = gaussian_channel_bound(x, sigma=sigma, kind="logdet")
    assert 0 <= logdet <= club / 2 + 1e-12
    turn = torch.linalg.qr(randn(4, 4, seed=seed + 1))[0]
    for kind, value in (("club", club), ("logdet", logdet)):
        moved = gaussian_channel_bound(x @ turn + 3, sigma=sigma, kind=kind)
        assert moved.item() == pytest.approx(value.item(), rel=1e-9)
    assert gaussian_channel_bound(3 * x).item() == pytest.approx(
        9 * gaussian_channel_bound(x).item()
    )


def test_limits():
    assert gaussian_channel_bound(torch.randn(1, 5)) == 0
    assert gaussian_channel_bound(torch.ones(6, 5)) == 0
    assert gaussian_channel_bound(torch.randn(4, 5), torch.zeros(4, dtype=torch.bool)) == 0
    t = F.layer_norm(randn(50, 8), (8,), eps=0.0)
    wanted = 8 - t.mean(0).square().sum()
    assert gaussian_channel_bound(t).item() == pytest.approx(wanted.item(), abs=1e-10)
    far = randn(100, 3, dtype=torch.float32) + 1e4  # two passes: no cancellation
    assert gaussian_channel_bound(far).item() == pytest.approx(3, abs=0.8)
    one = randn(1000, 1)
    snr = one.var(correction=0)
    assert gaussian_channel_bound(one, kind="logdet").item() == pytest.approx(
        0.5 * math.log1p(snr.item())
    )


def test_dtypes_and_gradcheck():
    x = randn(6, 3)
    half = gaussian_channel_bound(x.bfloat16())
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(gaussian_channel_bound(x).item(), rel=1e-2)
    x.requires_grad_()
    for kind in ("club", "logdet"):
        assert torch.autograd.gradcheck(
            lambda x, kind=kind: gaussian_channel_bound(x, kind=kind), x
        )


def test_club_by_hand_and_all_pairs():
    mean = torch.tensor([[0.0, 0], [1, 0], [0, 3]], dtype=torch.float64)
    logvar = torch.tensor([[1.0, 1], [2, 1], [1, 4]], dtype=torch.float64).log()
    q = torch.distributions.Normal(mean[:, None], (logvar / 2).exp()[:, None])
    scores = q.log_prob(THREE).sum(2)  # (x, y)
    rows = scores.diagonal() - scores.mean(1)
    assert rows.tolist() == pytest.approx([10 / 3, 8 / 3, 4 / 3])
    exact = club_upper_bound(mean, logvar, THREE)
    assert exact.item() == pytest.approx(rows.mean().item(), abs=1e-12)
    drawn = club_upper_bound(mean, logvar, THREE, n_samples=200_000, generator=seeded(0))
    assert drawn.item() == pytest.approx(exact.item(), rel=2e-2)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_club_of_gaussians(rho):
    x, e = randn(2, 200_000, 1, seed=1)
    y = rho * x + math.sqrt(1 - rho**2) * e
    logvar = torch.full_like(x, math.log(1 - rho**2))
    found = club_upper_bound(rho * x, logvar, y).item()
    assert found == pytest.approx(rho**2 / (1 - rho**2), rel=2e-2)
    assert found > -0.5 * math.log(1 - rho**2)  # the information


# ---- anchors ----


RANKS = {
    1: ([], []),
    2: ([1], [2]),
    3: ([2], [3]),
    4: ([2, 3], [3, 4]),
    5: ([3, 4], [4, 5]),
    9: ([5, 6, 7, 8], [6, 7, 8, 9]),
    10: ([5, 6, 7, 8, 9], [6, 7, 8, 9]),
    12: ([6, 7, 8, 9, 10], [7, 8, 9, 10, 11]),
    20: (list(range(10, 19)), list(range(11, 19))),
}


@pytest.mark.parametrize("n", RANKS)
def test_ranks_by_hand(n):
    norms = torch.arange(1.0, n + 1)[None]
    for kind, wanted in zip(("paper", "official"), RANKS[n], strict=True):
        assert (anchor_mask(norms, kind=kind)[0].nonzero()[:, 0] + 1).tolist() == wanted


def test_rank_limits_are_exact():
    norms = torch.arange(100.0)[None]
    found = anchor_mask(norms, low=0.55, high=0.57)[0].nonzero()[:, 0] + 1
    assert found.tolist() == [55, 56, 57]
    assert anchor_mask(norms, low=0, high=1).all()


@settings(max_examples=60)
@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 100), st.integers(0, 10**6))
def test_anchors_as_a_loop_with_padding_and_order(n, a, b, seed):
    low, high = min(a, b) / 100, max(a, b) / 100
    norms = torch.rand(n, generator=seeded(seed))
    wanted = [
        i
        for rank, i in enumerate(norms.argsort().tolist(), 1)
        if min(a, b) * n <= 100 * rank <= max(a, b) * n
    ]
    shuffled = torch.randperm(n + 5, generator=seeded(seed))
    padded, mask = (
        torch.cat([norms, torch.tensor([0, 9, torch.nan, 5, torch.inf])]),
        torch.arange(n + 5) < n,
    )
    found = anchor_mask(padded[shuffled][None], mask[shuffled][None], low, high)[0]
    assert sorted(shuffled[found].tolist()) == sorted(wanted)


def test_ties_take_the_earlier_word():
    assert anchor_mask(torch.ones(1, 10))[0].nonzero()[:, 0].tolist() == [4, 5, 6, 7, 8]


# ---- the lower bound ----


def test_critic_is_the_network_on_both_side_by_side():
    critic = PairCritic(3, 4, 5).double()
    local, global_ = randn(6, 3), randn(2, 4, seed=1)
    rows = [
        [F.softplus(critic.second(critic.first(torch.cat([t, z])).relu()))[0] for t in local]
        for z in global_
    ]
    rows = torch.stack([torch.stack(row) for row in rows])
    assert torch.allclose(critic(local, global_), rows)
    critic.positive = False
    raw = critic(local, global_)
    assert torch.allclose(F.softplus(raw), rows)


SCORES = torch.tensor([[2.0, 0, 1], [0, 1, 0], [1, 1, 3]], dtype=torch.float64)


def info_of(scores):
    k = len(scores)
    one = torch.ones(k, 1, dtype=torch.bool)
    return anchored_info(randn(k, 1, 2), randn(k, 2), one, lambda t, z: scores).item()


def test_bound_by_hand():
    assert info_of(SCORES) == pytest.approx(0.699080, abs=1e-6)
    assert info_of(F.softplus(SCORES)) == pytest.approx(0.581216, abs=1e-6)
    assert info_of(SCORES.T) == pytest.approx(0.618797, abs=1e-6)
    assert info_of(SCORES) == pytest.approx(mi_lower_bound(SCORES).item())
    assert info_of(50 * torch.eye(3).double()) == pytest.approx(math.log(3))
    assert info_of(SCORES[:1, :1]) == 0


def plain_info(local, global_, anchors, critic, others=None):
    "By a loop over pairs."
    places = anchors.nonzero().tolist()
    values = []
    for b, i in places:
        if others is None:
            rest = [local[c, j] for c, j in places if c != b]
        else:
            rest = [local[c, j] for c, j in others.nonzero().tolist()]
        scores = critic(torch.stack([local[b, i], *rest]), global_[b : b + 1])[0]
        values.append(math.log(len(scores)) + scores[0] - scores.logsumexp(0))
    return torch.stack(values).mean()


def test_bound_as_a_loop():
    critic = PairCritic(3, 2, 6).double()
    local, global_ = randn(4, 5, 3), randn(4, 2, seed=1)
    anchors = torch.rand(4, 5, generator=seeded(2)) < 0.5
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 5])[:, None]
    anchors &= mask
    found = anchored_info(local, global_, anchors, critic)
    assert torch.allclose(found, plain_info(local, global_, anchors, critic))
    found = anchored_info(local, global_, anchors, critic, mask=mask, negatives="others")
    wanted = plain_info(local, global_, anchors, critic, mask & ~anchors)
    assert torch.allclose(found, wanted)


def test_few_pairs():
    critic = PairCritic(3, 2, 6).double()
    local, global_ = randn(2, 4, 3).requires_grad_(), randn(2, 2)
    for n in (0, 1, 2):  # all of one sentence
        anchors = torch.arange(8).view(2, 4) < n
        for negatives in ("anchors", "others"):
            value = anchored_info(local, global_, anchors, critic, negatives=negatives)
            (grad,) = torch.autograd.grad(value, local)
            assert (negatives == "others" and n > 0) or (value == 0 and not grad.any())
    everything = torch.ones(2, 4, dtype=torch.bool)
    three = anchored_info(local, global_, everything, critic, max_pairs=3, generator=seeded(0))
    again = anchored_info(local, global_, everything, critic, max_pairs=3, generator=seeded(0))
    assert three == again != anchored_info(local, global_, everything, critic)


def test_gradcheck_of_the_lower_bound():
    critic = PairCritic(3, 2, 4).double()
    anchors = torch.tensor([[True, False, True], [False, True, True]])
    inputs = randn(2, 3, 3).requires_grad_(), randn(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, z: anchored_info(t, z, anchors, critic), inputs)


# ---- the loss and FreeLB ----


class Small(nn.Module):
    "Words to embeddings to logits, local and sentence features."

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm = nn.Embedding(20, 6), nn.LayerNorm(6)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.dropout = nn.Dropout(dropout)

    def features(self, e):
        t = self.norm(e)
        z = self.mix(self.dropout(t).tanh()).tanh().amax(1)
        return self.head(z), t, z

    def forward(self, tokens):
        return self.features(self.embedding(tokens))[0]


TOKENS = torch.randint(1, 20, (5, 7), generator=seeded(3))
LABELS = torch.randint(0, 3, (5,), generator=seeded(4))


def terms_of(net, loss_fn, e, **how):
    logits, t, z = net.features(e)
    return loss_fn(F.cross_entropy(logits, LABELS), e, t, z, **how)


def test_loss_is_the_sum_of_its_parts():
    net, critic = Small(), PairCritic(6, 6, 8)
    terms = terms_of(net, InfoBERTLoss(critic, 0.3, 0.2), net.embedding(TOKENS))
    e = net.embedding(TOKENS)
    logits, t, z = net.features(e)
    task = F.cross_entropy(logits, LABELS)
    (grad,) = torch.autograd.grad(task, e, retain_graph=True)
    anchors = anchor_mask(grad.norm(dim=2))
    wanted = task + 0.2 * gaussian_channel_bound(t) - 0.3 * anchored_info(t, z, anchors, critic)
    assert torch.equal(terms.anchors, anchors) and torch.equal(terms.grad, grad)
    assert torch.allclose(terms.loss, wanted)
    control = terms_of(net, InfoBERTLoss(critic, 0.3), net.embedding(TOKENS), anchors=~anchors)
    assert torch.equal(control.anchors, ~anchors) and control.anchored != terms.anchored


def test_weights_of_zero_leave_the_task():
    net = Small()
    terms = terms_of(net, InfoBERTLoss(PairCritic(6, 6), 0.0, 0.0), net.embedding(TOKENS))
    assert terms.loss is terms.task and terms.anchors.any()
    assert terms.bottleneck > 0 and not terms.bottleneck.requires_grad


def test_ranks_come_from_the_task_alone():
    net = Small()
    plain = terms_of(net, InfoBERTLoss(PairCritic(6, 6), 0.0, 0.0), net.embedding(TOKENS))
    heavy = terms_of(net, InfoBERTLoss(PairCritic(6, 6), 5.0, 500.0), net.embedding(TOKENS))
    assert torch.equal(plain.grad, heavy.grad) and torch.equal(plain.anchors, heavy.anchors)


def test_mean_pooling_has_equal_norms():
    e, head = randn(2, 6, 4).requires_grad_(), nn.Linear(4, 3).double()
    terms = InfoBERTLoss(PairCritic(4, 4).double())(
        F.cross_entropy(head(e.mean(1)), LABELS[:2]), e, e, e.mean(1)
    )
    norms = terms.grad.norm(dim=2)
    assert torch.allclose(norms, norms[:, :1])


def test_perturbations_by_hand():
    grad = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    delta = torch.zeros_like(grad)
    step = perturbation_step(delta, grad, 0.1)
    assert torch.allclose(step, torch.tensor([[[0.06, 0.08]], [[0.0, 0.0]]]))
    short = perturbation_step(delta, grad, 0.1, 0.05)
    assert torch.allclose(short[0], torch.tensor([[0.03, 0.04]]))
    sup = perturbation_step(delta, grad, 0.1, norm="linf")
    assert torch.allclose(sup[0], torch.tensor([[0.075, 0.1]]))
    assert perturbation_step(delta, grad, 0.1, 0.08, norm="linf").max().item() == pytest.approx(
        0.08
    )
    far = perturbation_step(
        delta + 1, 0 * grad, 0.1, 0.5
    )  # the projection holds without a gradient
    assert far.norm(dim=(1, 2)).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("length", [3, 8])
def test_first_perturbation(length):
    mask = torch.arange(8)[None] < length
    delta = perturbation_init(
        torch.zeros(4000, 8, 5), mask.expand(4000, 8), 2.0, generator=seeded(0)
    )
    assert not delta[:, length:].any()
    rms = delta.square().sum((1, 2)).mean().sqrt().item()
    assert rms == pytest.approx(2 / math.sqrt(3), rel=1e-2)
    box = perturbation_init(torch.zeros(100, 8, 5), None, 2.0, norm="linf", generator=seeded(0))
    assert 1.9 < box.abs().max() <= 2


def gradients(net):
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def test_one_pass_without_a_push_is_plain_training():
    net, loss_fn = Small(), InfoBERTLoss(PairCritic(6, 6), 0.0, 0.0)
    F.cross_entropy(net(TOKENS), LABELS).backward()
    wanted = gradients(net)
    net.zero_grad()
    e = net.embedding(TOKENS)
    how = {"n_steps": 1, "magnitude": 0.0}
    freelb_loss(lambda e: terms_of(net, loss_fn, e), e, **how).backward()
    assert all(map(torch.equal, gradients(net), wanted))


def test_freelb_as_the_accumulating_loop():
    net, loss_fn = Small(dropout=0.5), InfoBERTLoss(PairCritic(6, 6), 0.1, 0.1)
    mask = torch.arange(7) < torch.tensor([7, 5, 7, 3, 6])[:, None]
    how = {"step_size": 0.3, "magnitude": 0.2}
    run = lambda e: terms_of(net, loss_fn, e, mask=mask)
    torch.manual_seed(1)
    loss = freelb_loss(run, net.embedding(TOKENS), mask, n_steps=3, generator=seeded(5), **how)
    loss.backward()
    found, after = gradients(net), torch.rand(1)
    net.zero_grad()
    delta = perturbation_init(net.embedding(TOKENS), mask, 0.2, generator=seeded(5))
    for _ in range(3):
        torch.manual_seed(1)  # the same dropout
        terms = run(net.embedding(TOKENS) + delta)
        (terms.loss / 3).backward()
        delta = perturbation_step(delta, terms.grad, 0.3)
    assert torch.equal(after, torch.rand(1))  # the last pass moves the generator on
    for a, b in zip(found, gradients(net), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


# ---- attacks ----


def test_neighbors():
    vectors = randn(9, 4)
    found = embedding_neighbors(vectors, 3)
    for i in range(9):
        cosine = F.cosine_similarity(vectors[i : i + 1], vectors)
        cosine[i] = -2
        assert found[i].tolist() == cosine.argsort(descending=True)[:3].tolist()
    some = embedding_neighbors(vectors, 8, exclude=[0, 4])
    assert (some[0] == 0).all() and (some[4] == 4).all()
    for i in (1, 2, 3):
        assert 0 not in some[i] and 4 not in some[i] and some[i].eq(i).sum() == 2
    none = embedding_neighbors(vectors, 2, max_distance=0.0)
    assert (none == torch.arange(9)[:, None]).all()


def attack_small(net=None, **how):
    net = net or Small()
    how = {"max_changes": 3, "candidates": embedding_neighbors(randn(20, 5, seed=9), 4)} | how
    return net, greedy_substitution_attack(net, TOKENS, LABELS, **how)


def test_attack_keeps_its_promises():
    asked = []
    net = Small()

    def predict(tokens):
        asked.append(len(tokens))
        return net(tokens)

    mask = torch.arange(7) < torch.tensor([7, 5, 7, 3, 6])[:, None]
    fixed = [int(TOKENS[0, 0]), int(TOKENS[2, 3])]
    _, found = attack_small(predict, mask=mask, protected=fixed, chunk_size=6)
    changed = found.tokens != TOKENS
    assert not changed[~mask].any() and not changed[torch.isin(TOKENS, torch.tensor(fixed))].any()
    assert changed.sum(1).max() <= 3 and max(asked) <= 6
    assert found.queries.sum().item() == sum(asked)
    assert torch.equal(found.success, net(found.tokens).argmax(1) != LABELS)
    right = net(TOKENS).argmax(1) == LABELS
    assert not changed[~right].any() and found.success[~right].all()


def test_more_changes_go_on_from_fewer():
    found = [attack_small(max_changes=m)[1] for m in range(6)]
    for m in range(1, 6):
        assert (found[m - 1].success <= found[m].success).all()
        changed = (found[5].tokens != TOKENS).sum(1)
        assert torch.equal(found[m].success, found[5].success & (changed <= m))


def test_candidates_that_are_the_word_itself():
    same = torch.arange(20)[:, None].expand(20, 3)
    net, found = attack_small(candidates=same)
    assert torch.equal(found.tokens, TOKENS)
    assert torch.equal(found.success, net(TOKENS).argmax(1) != LABELS)


@pytest.mark.parametrize("place", range(7))
def test_one_free_word_equals_brute_force(place):
    net, candidates = Small(), torch.arange(20).expand(20, 20)
    mask = torch.arange(7).expand(5, 7) == place
    _, found = attack_small(net, candidates=candidates, mask=mask, max_changes=1)
    for i in range(5):
        every = TOKENS[i].repeat(20, 1)
        every[:, place] = torch.arange(20)
        assert found.success[i] == (net(every).argmax(1) != LABELS[i]).any()


def test_modes_come_back():
    net = Small(dropout=0.5).train()
    a, b = attack_small(net)[1], attack_small(net)[1]
    assert net.training and torch.equal(a.tokens, b.tokens)


# ---- what it is for ----


def test_terms_do_what_they_say():
    "A hundred steps: the bottleneck shrinks the variance, the anchored term grows."
    found = {}
    for name, weights in {"plain": (0.0, 0.0), "ib": (0.0, 0.3), "af": (1.0, 0.0)}.items():
        net = Small()
        loss_fn = InfoBERTLoss(PairCritic(6, 6, 16), *weights)
        optimizer = torch.optim.Adam([*net.parameters(), *loss_fn.parameters()], lr=1e-2)
        for _ in range(100):
            terms = terms_of(net, loss_fn, net.embedding(TOKENS))
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
        found[name] = terms
    assert found["ib"].bottleneck < 0.5 * found["plain"].bottleneck
    assert found["af"].anchored > 0.3


def test_compile_and_bad_input():
    x = torch.randn(8, 3)
    fast = torch.compile(gaussian_channel_bound, backend="eager", fullgraph=True)
    assert torch.allclose(fast(x), gaussian_channel_bound(x))
    for bad, error, words in (
        ({"sigma": 0}, ValueError, "sigma must"),
        ({"kind": "vub"}, ValueError, "kind must be one of 'club', 'logdet'"),
        ({"mask": torch.ones(7, dtype=torch.bool)}, ValueError, "mask must have shape"),
    ):
        with pytest.raises(error, match=words):
            gaussian_channel_bound(x, **bad)
    with pytest.raises(ValueError, match="mean must have at least 2 rows"):
        club_upper_bound(x[:1], x[:1], x[:1])
    with pytest.raises(ValueError, match="high must"):
        anchor_mask(x, low=0.6, high=0.5)
    with pytest.raises(ValueError, match="embeddings must require a gradient"):
        e = torch.zeros(2, 3, 4)
        InfoBERTLoss(PairCritic(4, 4))(torch.tensor(1.0), e, e, e[:, 0])
    with pytest.raises(ValueError, match="norm must be one of 'l2', 'linf'"):
        perturbation_step(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), 0.1, norm="l1")
    with pytest.raises(ValueError, match="labels must lie in"):
        greedy_substitution_attack(
            Small(), TOKENS, LABELS + 3, torch.arange(20)[:, None], max_changes=1
        )
    with pytest.raises(ValueError, match="tokens must lie in"):
        attack_small(candidates=torch.zeros(5, 1, dtype=torch.int64))
    assert isinstance(InfoBERTTerms(*range(6)), tuple)
