"""Summaries from feedback: world, transformer, sampler, rewards, advantages, losses, best-of-N."""

import copy
import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ponderlearn.language import summarize_feedback as sf
from ponderlearn.language.summarize_feedback import (
    EOS,
    PAD,
    SEP,
    CausalTransformer,
    RewardModel,
    WordCards,
    best_of_n,
    best_of_n_kl,
    dpo_loss,
    gae,
    kl_estimate,
    ppo_policy_loss,
    ppo_value_loss,
    preference_loss,
    sample_tokens,
    shaped_rewards,
    token_kl,
    token_log_probs,
    whiten,
)

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def column(*values):
    return [torch.tensor([[v]], dtype=F64) for v in values]


def model(seed=0, **how):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return CausalTransformer(15, 16, **how)


def ragged(lengths, n):
    return torch.arange(n) < torch.tensor(lengths)[:, None]


def close(x, wanted, tol=1e-6):
    assert x.flatten().tolist() == pytest.approx(
        torch.as_tensor(wanted, dtype=F64).flatten().tolist(), abs=tol
    )


# ---- the world ----


def test_utility_by_hand():
    world = WordCards()
    post = torch.tensor([[6, 3, 10, 4, 7, 11, SEP]])
    cases = {
        (EOS,): 0.0,
        (3, 4, 6, 7, EOS): 3.0,
        (3, 3, EOS): 0.25,
        (5, EOS): -1.0,
        (5, 5, EOS): -1.75,
        (3, EOS, 5, 5): 1.0,
        (10, EOS): -0.25,
        (PAD, EOS): -1.0,
        (SEP, EOS): -1.0,
    }
    for y, wanted in cases.items():
        assert world.utility(post, torch.tensor([y])).item() == pytest.approx(wanted)
    subsets = [s for k in range(6) for s in combinations([6, 3, 10, 4, 7, 11], k)]
    values = [world.utility(post, torch.tensor([[*s, EOS]])).item() for s in subsets]
    assert max(values) == 3.0


def test_posts_and_references():
    world = WordCards(generator=seeded(3))
    posts = world.posts(4000)
    words = posts[:, :-1]
    assert posts.shape == (4000, 7) and (posts[:, -1] == SEP).all()
    assert (words.sort(1).values.diff(dim=1) > 0).all()
    assert torch.bincount(words.flatten())[3:].tolist() == pytest.approx([2000] * 12, rel=0.1)
    y = world.references(posts)
    assert y.shape == (4000, 6) and ((y == EOS).sum(1) == 1).all()
    ends = (y == EOS).long().argmax(1)
    assert (y[torch.arange(6) > ends[:, None]] == PAD).all()
    plain = WordCards(keep=(1.0,) * 12, slips=0.0)
    assert torch.equal(plain.references(posts)[:, :5], posts[:, :5])
    doubled = WordCards(keep=(1.0,) * 12, slips=1.0).references(posts)
    assert torch.equal(doubled[:, 0], doubled[:, 1]) and torch.equal(doubled[:, 2], doubled[:, 3])


def test_draws_come_from_the_given_generator_or_the_worlds():
    one, other = (WordCards(generator=seeded(1)) for _ in range(2))
    assert torch.equal(one.posts(5), other.posts(5))
    assert torch.equal(one.posts(5, generator=seeded()), other.posts(5, generator=seeded()))
    assert not torch.equal(one.posts(5), WordCards(generator=seeded(2)).posts(5))


def test_choices_follow_the_model():
    world, n = WordCards(), 20_000
    post = torch.tensor([[6, 3, 10, 4, 7, 11, SEP]]).expand(n, -1)
    a, b = (torch.tensor([[w, EOS]]).expand(n, -1) for w in (6, 10))
    share = world.compare(post, a, b, generator=seeded()).double().mean().item()
    p = 1 / (1 + math.exp(-0.75 / 0.5))
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_decode():
    world = WordCards()
    rows = torch.tensor([[3, 8, EOS, 5], [PAD, 14, 4, SEP]])
    assert world.decode(rows) == ["fire night", "_ lol rescue"]


def test_bad_worlds():
    with pytest.raises(ValueError, match="worth must hold 12 numbers"):
        WordCards(worth=(1.0,))
    with pytest.raises(ValueError, match="words must differ"):
        WordCards(("a", "a"), (1.0, 1.0), (0.5, 0.5), post_length=1)
    with pytest.raises(ValueError, match=r"posts must hold ids in 0\.\.14"):
        WordCards().utility(torch.full((1, 7), 99), torch.zeros(1, 2, dtype=torch.int64))


# ---- transformer and sampler ----


@pytest.mark.parametrize("cuts", [(1, 2), (3, 4), (5, 6), (2, 7)])
def test_cache_gives_the_same_logits(cuts):
    net, tokens = model().double(), torch.randint(15, (3, 9), generator=seeded())
    whole = net(tokens).logits
    cache, parts = None, []
    for a, b in zip((0, *cuts), (*cuts, 9), strict=True):
        logits, cache = net(tokens[:, a:b], cache)
        parts.append(logits)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-12)


def test_looks_back_only():
    net, tokens = model(), torch.randint(15, (1, 8), generator=seeded())
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 15
    same = (net(tokens).logits == net(changed).logits).all(-1)[0]
    assert same.tolist() == [True] * 5 + [False] * 3


def test_too_long_and_foreign_caches():
    net = model(max_length=8)
    with pytest.raises(ValueError, match="tokens must end at position 8 or before, got 9"):
        net(torch.zeros(1, 9, dtype=torch.int64))
    cache = net(torch.zeros(2, 3, dtype=torch.int64)).cache
    with pytest.raises(ValueError, match="cache must"):
        net(torch.zeros(1, 1, dtype=torch.int64), cache)


def uncached(net, prompts, max_steps, seed, temperature=1.0):
    "The same draws, reading all again for each token."
    chance = torch.rand(len(prompts), max_steps, generator=seeded(seed))
    rows = []
    for prompt, u in zip(prompts, chance, strict=True):
        text = prompt
        for t in range(max_steps):
            p = (net(text[None]).logits[0, -1] / temperature).softmax(-1)
            token = (p.cumsum(0) <= u[t] * p.sum()).sum()
            text = torch.cat([text, token[None]])
            if token == EOS:
                break
        rows.append(F.pad(text[len(prompt) :], (0, max_steps - len(text) + len(prompt))))
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_agrees_with_reading_all_again(temperature):
    net, prompts = model(), WordCards().posts(40, generator=seeded())
    with torch.no_grad():
        net.head.weight *= 6
        wanted = uncached(net, prompts, 5, 7, temperature)
    found = sample_tokens(
        net, prompts, max_steps=5, eos=EOS, temperature=temperature, generator=seeded(7)
    )
    assert torch.equal(found.tokens, wanted)
    place = torch.arange(5) < found.lengths[:, None]
    logits = net(torch.cat([prompts, wanted], 1)[:, :-1]).logits[:, 6:] / temperature
    right = torch.where(place, token_log_probs(logits, wanted), 0)
    assert torch.allclose(found.log_probs, right, atol=1e-5)
    assert (found.tokens.eq(EOS).sum(1) <= 1).all() and 1 < found.lengths.float().mean() < 5


def test_sampler_draws_the_distribution():
    p = torch.tensor([0.0, 0.5, 0.3, 0.2])

    def fixed(tokens, cache):
        return p.log().expand(*tokens.shape, 4), ()

    for temperature, wanted in ((1.0, p), (0.5, p**2 / (p**2).sum())):
        found = sample_tokens(
            fixed,
            torch.zeros(1, 1, dtype=torch.int64),
            max_steps=1,
            n_samples=40_000,
            temperature=temperature,
            generator=seeded(),
        )
        share = torch.bincount(found.tokens[:, 0], minlength=4) / 40_000
        assert torch.allclose(share, wanted, atol=0.01)
        assert torch.allclose(found.log_probs[:, 0].exp(), wanted[found.tokens[:, 0]])


def test_greedy_and_several_samples():
    net, prompts = model(), WordCards().posts(6, generator=seeded())
    greedy = sample_tokens(net, prompts, max_steps=3, temperature=0)
    first = net(prompts).logits[:, -1].argmax(-1)
    assert torch.equal(greedy.tokens[:, 0], first) and (greedy.log_probs == 0).all()
    twice = sample_tokens(net, prompts, max_steps=3, temperature=0, n_samples=2)
    assert torch.equal(twice.tokens, greedy.tokens.repeat_interleave(2, 0))
    assert net.training
    with pytest.raises(ValueError, match="eos must differ from pad"):
        sample_tokens(net, prompts, max_steps=2, eos=0)


def test_ended_rows_are_not_read_again():
    seen = []

    def counting(tokens, cache):
        seen.append(len(tokens))
        logits = torch.zeros(*tokens.shape, 3)
        logits[: (len(tokens) + 1) // 2, :, EOS] = 1e4
        return logits, torch.zeros(len(tokens))

    start = torch.zeros(8, 1, dtype=torch.int64)
    found = sample_tokens(counting, start, max_steps=9, eos=EOS, temperature=0)
    assert seen[:4] == [8, 4, 2, 1] and len(seen) <= 9
    assert (found.lengths[:4] == 1).all()


# ---- log-probabilities ----


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_token_log_probs(chunk_size, dtype):
    logits = (3 * torch.randn(4, 5, 11, generator=seeded())).to(dtype)
    tokens = torch.randint(11, (4, 5), generator=seeded())
    found = token_log_probs(logits, tokens, chunk_size=chunk_size)
    wide = torch.promote_types(dtype, torch.float32)
    assert found.dtype == wide
    right = -F.cross_entropy(logits.to(wide).flatten(0, 1), tokens.flatten(), reduction="none")
    assert torch.allclose(found, right.view(4, 5), atol=1e-5)


def test_token_log_probs_gradient_and_infinities():
    logits = torch.randn(3, 2, 4, dtype=F64, generator=seeded(), requires_grad=True)
    tokens = torch.randint(4, (3, 2), generator=seeded())
    assert torch.autograd.gradcheck(lambda x: token_log_probs(x, tokens, chunk_size=4), logits)
    banned = torch.tensor([[0.0, -math.inf, 0.0]])
    close(token_log_probs(banned, torch.tensor([0])), [-math.log(2)])


def test_no_second_tensor_of_the_logits_size():
    compare = pytest.importorskip("torch.profiler")
    logits, tokens = torch.zeros(16, 32, 2000), torch.zeros(16, 32, dtype=torch.int64)
    with compare.profile(
        activities=[compare.ProfilerActivity.CPU], profile_memory=True, record_shapes=False
    ) as found:
        token_log_probs(logits, tokens, chunk_size=16)
    largest = max(e.cpu_memory_usage for e in found.events())
    assert 0 < largest < logits.numel() * 4 / 8


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 10**6))
def test_token_kl_agrees_with_torch(B, V, seed):
    p, q = torch.randn(2, B, 3, V, dtype=F64, generator=seeded(seed))
    found = token_kl(p, q, chunk_size=2)
    right = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    assert torch.allclose(found, right) and (found >= 0).all()
    assert torch.allclose(token_kl(p, p), torch.zeros(B, 3, dtype=F64), atol=1e-12)


# ---- reward model ----


def test_preference_loss_by_hand():
    chosen, rejected = torch.tensor([1.2, 0.5, -50, 100.0], dtype=F64), torch.zeros(4, dtype=F64)
    rejected[:] = torch.tensor([0.4, 0.5, 50, -100])
    found = preference_loss(chosen, rejected, reduction="none")
    close(found, [0.371101, 0.693147, 100.0, 0.0])
    assert found[3].item() == pytest.approx(1.383897e-87, rel=1e-5)
    chosen.requires_grad_(), rejected.requires_grad_()
    preference_loss(chosen, rejected, reduction="sum").backward()
    assert chosen.grad[0].item() == pytest.approx(-0.310026, abs=1e-6)
    assert torch.equal(chosen.grad, -rejected.grad)
    shift = torch.randn(4, dtype=F64, generator=seeded())
    again = preference_loss(chosen + shift, rejected + shift, reduction="none")
    assert torch.allclose(again, found)


def reward_model(**how):
    backbone = model()
    backbone.head = nn.Identity()
    return RewardModel(backbone, 16, generator=seeded(), **how)


def test_reward_reads_the_last_token():
    judge = reward_model(head_init="normal")
    tokens = torch.randint(3, 15, (4, 9), generator=seeded())
    lengths = torch.tensor([1, 9, 5, 8])
    values = judge.values(tokens)
    assert torch.equal(judge(tokens, lengths), values[torch.arange(4), lengths - 1])
    padded = tokens.clone()
    padded[2, 5:] = 0
    assert torch.equal(judge(padded, lengths)[2], judge(tokens, lengths)[2])
    judge.readout = "sum"
    wanted = torch.where(ragged(lengths.tolist(), 9), values, 0)[:, 1:].sum(1)
    assert torch.allclose(judge(tokens, lengths, start=1), wanted)
    with torch.no_grad():
        judge.offset += 0.5
    assert torch.allclose(judge(tokens, lengths, start=1), wanted - 0.5)
    assert torch.allclose(judge.values(tokens), values - 0.5)
    with pytest.raises(ValueError, match=r"lengths must lie in 1\.\.9"):
        judge(tokens, torch.tensor([0, 1, 1, 1]))


def test_calibrate():
    judge = reward_model(head_init="normal")
    tokens, lengths = torch.randint(3, 15, (50, 6), generator=seeded()), torch.full((50,), 6)
    before = judge(tokens, lengths)
    for _ in range(2):
        judge.calibrate(judge(tokens, lengths))
    after = judge(tokens, lengths)
    assert abs(after.mean().item()) < 1e-6
    assert torch.allclose(after - after[0], before - before[0], atol=1e-6)
    again = reward_model()
    again.load_state_dict(judge.state_dict())
    assert torch.equal(again(tokens, lengths), after)
    assert (reward_model()(tokens, lengths) == 0).all()


# ---- KL ----


def test_kl_estimates_by_hand():
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=F64), torch.tensor([0.25, 0.25, 0.5], dtype=F64)
    ell = p.log() - q.log()
    for kind, mean, variance in (
        ("k1", 0.218012, 0.370587),
        ("k2", 0.209058, 0.020477),
        ("k3", 0.218012, 0.039341),
    ):
        found = kl_estimate(ell, kind)
        assert (p * found).sum().item() == pytest.approx(mean, abs=1e-6)
        assert (p * found**2).sum().item() - mean**2 == pytest.approx(variance, abs=2e-6)
    close(token_kl(p.log(), q.log()), 0.218012)
    uniform = torch.full_like(p, 1 / 3)
    close(torch.stack([(uniform * kl_estimate(ell, k)).sum() for k in ("k1", "k2", "k3")]),
          [-0.013607, 0.225547, 0.264170])  # fmt: skip


@given(st.floats(-20, 20))
def test_k2_and_k3_are_never_negative(x):
    ell = torch.tensor([x], dtype=F64)
    assert kl_estimate(ell, "k2") >= 0 and kl_estimate(ell, "k3") >= 0
    assert (kl_estimate(ell, "k3") > 0) or abs(x) < 1e-7


def test_k3_near_zero_in_float32():
    ell = torch.tensor([1e-3, -1e-3])
    close(kl_estimate(ell, "k3") / (ell**2 / 2), [1.0, 1.0], 1e-3)


# ---- rewards and advantages ----


def test_shaped_rewards_by_hand():
    old, ref = (torch.tensor([x], dtype=F64).log() for x in ([0.5, 0.4, 0.9], [0.25, 0.5, 0.6]))
    score = torch.tensor([1.5], dtype=F64)
    close(shaped_rewards(score, old, ref), [-0.034657, 0.011157, 1.479727])
    close(shaped_rewards(score, old, ref, beta=0.1), [-0.069315, 0.022314, 1.459453])
    close(shaped_rewards(score, old, ref, beta=0), [0, 0, 1.5])
    close(shaped_rewards(score, old, old, beta=9.0), [0, 0, 1.5])
    assert not shaped_rewards(score, old.requires_grad_(), ref).requires_grad


def test_masks_of_rewards():
    nan = float("nan")
    old = torch.tensor([[0.0, nan, nan], [0.0, 0.0, 0.0]])
    mask = ragged([1, 3], 3)
    found = shaped_rewards(torch.tensor([2.0, 3.0]), old, torch.zeros(2, 3), mask, beta=1.0)
    close(found, [[2.0, 0, 0], [0, 0, 3]])
    for bad, words in (
        ([[True, False, True]], "True up to a place"),
        ([[False] * 3], "have an action"),
    ):
        with pytest.raises(ValueError, match=f"mask must .*{words}"):
            shaped_rewards(torch.ones(1), old[1:], old[1:], torch.tensor(bad))
        with pytest.raises(ValueError, match=f"mask must .*{words}"):
            gae(old[1:], old[1:], torch.tensor(bad))


def gae_loop(rewards, values, gamma, lam, last_value=0.0):
    "One episode, backwards."
    found, later, ahead = [], 0.0, last_value
    for r, v in zip(rewards[::-1], values[::-1], strict=True):
        later = r + gamma * ahead - v + gamma * lam * later
        found.insert(0, later)
        ahead = v
    return found


def test_gae_by_hand():
    R, V = torch.tensor([[0.0, 0, 1]], dtype=F64), torch.tensor([[0.5, 0.8, 1]], dtype=F64)
    for lam, A, G in (
        (0.95, [0.49, 0.2, 0], [0.99, 1, 1]),
        (1.0, [0.5, 0.2, 0], [1, 1, 1]),
        (0.0, [0.3, 0.2, 0], [0.8, 1, 1]),
    ):
        close(gae(R, V, lam=lam).advantages, A)
        close(gae(R, V, lam=lam).returns, G)
    R = torch.tensor([[1.0, 2, 3]], dtype=F64)
    found = gae(R, V, gamma=0.9, lam=0.5)
    close(found.advantages, gae_loop([1, 2, 3], [0.5, 0.8, 1], 0.9, 0.5))
    close(found.returns - found.advantages, V)
    R = torch.tensor([[-0.069315, 0.022314, 1.459453]], dtype=F64)
    close(gae(R, V).advantages, [0.856541, 0.658795, 0.459453], 2e-6)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_gae_of_ragged_rows(lengths, gamma, lam, seed):
    n = max(lengths)
    R, V = torch.randn(2, len(lengths), n, dtype=F64, generator=seeded(seed))
    last, mask = torch.randn(len(lengths), dtype=F64, generator=seeded(seed)), ragged(lengths, n)
    R, V = (torch.where(mask, x, torch.nan) for x in (R, V))
    A, G = gae(R, V, mask, gamma=gamma, lam=lam, last_value=last)
    for i, k in enumerate(lengths):
        row = gae_loop(R[i, :k].tolist(), V[i, :k].tolist(), gamma, lam, last[i].item())
        close(A[i, :k], row, 1e-9)
        assert (A[i, k:] == 0).all() and (G[i, k:] == 0).all()


@pytest.mark.parametrize("T", [1, 255, 256, 257, 700])
def test_gae_in_blocks(T):
    R, V = torch.randn(2, 2, T, dtype=F64, generator=seeded())
    found = gae(R, V, gamma=0.999, lam=0.97).advantages
    for i in range(2):
        close(found[i], gae_loop(R[i].tolist(), V[i].tolist(), 0.999, 0.97), 1e-9)
    assert torch.allclose(
        gae(R.float(), V.float(), gamma=0.999, lam=0.97).advantages.double(), found, atol=1e-4
    )


def test_right_values_leave_no_advantage_on_average():
    p = torch.tensor([0.3, 0.7])
    worth = torch.tensor([[1.0, 4.0], [-2.0, 0.5]])  # of the first and the second action
    first, second = torch.multinomial(p, 80_000, replacement=True, generator=seeded()).view(2, -1)
    R = torch.stack([torch.zeros(40_000), worth[first, second]], 1)
    after = worth @ p
    V = torch.stack([(after @ p).expand(40_000), after[first]], 1)
    for lam in (0.0, 0.5, 1.0):
        assert gae(R, V, lam=lam).advantages.mean(0).abs().max() < 0.05


def test_whiten_by_hand():
    x = torch.tensor([0.49, 0.2, 0.0], dtype=F64)
    close(whiten(x), [1.292482, -0.149133, -1.143350])
    close(whiten(torch.tensor([1.0, 2, 3]), shift_mean=False), [0.775255, 2, 3.224745])
    assert (whiten(torch.full((2, 3), 7.0)) == 0).all()
    padded = torch.cat([x, torch.tensor([torch.nan, 5.0])])
    close(whiten(padded, torch.tensor([True] * 3 + [False] * 2))[:3], whiten(x))
    assert whiten(x.bfloat16()).dtype == torch.float32


# ---- losses of PPO and DPO ----


@pytest.mark.parametrize(
    ("A", "ratio", "loss", "slope"),
    [(1, 1.5, -1.2, 0), (1, 0.5, -0.5, -1), (-1, 1.5, 1.5, 1), (-1, 0.5, 0.8, 0),
     (2, 1.1, -2.2, -2), (-2, 0.7, 1.6, 0), (3, 1.0, -3.0, -3)],
)  # fmt: skip
def test_policy_loss_by_hand(A, ratio, loss, slope):
    rho = torch.tensor([[float(ratio)]], dtype=F64, requires_grad=True)
    found = ppo_policy_loss(rho.log(), *column(0.0, A))
    assert found.loss.item() == pytest.approx(loss)
    assert torch.autograd.grad(found.loss, rho)[0].item() == pytest.approx(slope)
    assert found.clip_fraction.item() == float(slope == 0)
    free = ppo_policy_loss(rho.log(), *column(0.0, A), clip=None)
    assert free.loss.item() == pytest.approx(-A * ratio) and free.clip_fraction == 0


@pytest.mark.parametrize(
    ("V", "old", "G", "loss"),
    [(1.0, 0.5, 2.0, 0.845), (0.6, 0.5, 2.0, 0.98), (1.0, 0.5, 0.6, 0.08), (0.9, 0.5, 0.0, 0.405)],
)
def test_value_loss_by_hand(V, old, G, loss):
    found = ppo_value_loss(*column(V, old, G)).loss
    assert found.item() == pytest.approx(loss)
    assert found >= ppo_value_loss(*column(V, old, G), clip=None).loss - 1e-12


@pytest.mark.parametrize("f", [ppo_policy_loss, ppo_value_loss])
def test_padding_does_not_leak(f):
    g = seeded()
    x, old, third = torch.randn(3, 4, 5, dtype=F64, generator=g)
    mask = ragged([5, 1, 3, 2], 5)
    right = f(x[mask][None], old[mask][None], third[mask][None])
    nan = [torch.where(mask, t, torch.nan) for t in (x, old, third)]
    nan[0].requires_grad_()
    found = f(*nan, mask)
    assert torch.allclose(found.loss, right.loss)
    assert torch.allclose(found.clip_fraction, right.clip_fraction)
    (slope,) = torch.autograd.grad(found.loss, nan[0])
    assert slope.isfinite().all() and (slope[~mask] == 0).all()


def test_no_gradient_to_what_is_fixed():
    xs = [torch.randn(2, 3, generator=seeded(i), requires_grad=True) for i in range(3)]
    for f in (ppo_policy_loss, ppo_value_loss):
        found = torch.autograd.grad(f(*xs).loss, xs, allow_unused=True)
        assert found[0] is not None and found[1] is None and found[2] is None


def test_dpo_by_hand():
    xs = [torch.tensor([v], dtype=F64) for v in (-2.0, -3.0, -2.5, -2.6)]
    assert dpo_loss(*xs).item() == pytest.approx(0.649159, abs=1e-6)
    assert dpo_loss(*xs[:2], *xs[:2]).item() == pytest.approx(math.log(2))
    g = seeded()
    c, r, rc, rr = torch.randn(4, 7, dtype=F64, generator=g)
    implied = preference_loss(0.3 * (c - rc), 0.3 * (r - rr), reduction="none")
    assert torch.allclose(dpo_loss(c, r, rc, rr, beta=0.3, reduction="none"), implied)


@pytest.mark.parametrize(
    "f",
    [
        lambda a, b, c: preference_loss(a, b),
        lambda a, b, c: kl_estimate(a, "k3"),
        lambda a, b, c: ppo_policy_loss(a * 0.02, b * 0.02, c).loss,
        lambda a, b, c: ppo_value_loss(a, b + 9, c).loss,
        lambda a, b, c: dpo_loss(a[0], b[0], c[0], a[1]),
        lambda a, b, c: whiten(a),
        lambda a, b, c: token_kl(a, b),
    ],
)
def test_gradients_vmap_compile(f):
    a, b, c = torch.randn(3, 2, 4, dtype=F64, generator=seeded())
    b, c = b.detach(), c.detach()
    assert torch.autograd.gradcheck(lambda x: f(x, b, c), a.requires_grad_())
    stacked = torch.stack([a.detach(), a.detach() * 0.9])
    each = torch.stack([torch.as_tensor(f(x, b, c)) for x in stacked])
    assert torch.allclose(torch.vmap(lambda x: f(x, b, c))(stacked), each)
    compiled = torch.compile(f, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(a.detach(), b, c), f(a.detach(), b, c))


@pytest.mark.parametrize("f", [preference_loss, lambda a, b: ppo_policy_loss(a, b, b).loss])
def test_differences_of_halves_are_taken_in_float32(f):
    a, b = (torch.randn(3, 4, generator=seeded(i)).bfloat16() for i in (0, 1))
    found = f(a, b)
    assert found.dtype == torch.float32
    assert torch.allclose(found, f(a.float(), b.float()))


# ---- best of N ----


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 10**6))
def test_best_of_n_is_the_mean_over_subsets(proxy, seed):
    "Ties included: among equals each is as good a choice."
    gold = torch.randn(len(proxy), dtype=F64, generator=seeded(seed))
    for n in range(1, len(proxy) + 1):
        every = []
        for part in combinations(range(len(proxy)), n):
            top = max(proxy[i] for i in part)
            group = [j for j, p in enumerate(proxy) if p == top]
            every.append(gold[group].mean().item())
        found = best_of_n(torch.tensor(proxy, dtype=F64), gold, n)
        assert found.item() == pytest.approx(sum(every) / len(every))


def test_best_of_n_limits():
    proxy = torch.randn(3, 50, generator=seeded())
    n = torch.arange(1, 51)
    curve = best_of_n(proxy, proxy, n)
    assert curve.shape == (3, 50) and (curve.diff(dim=1) >= -1e-12).all()
    assert torch.allclose(curve[:, 0], proxy.double().mean(1))
    assert torch.allclose(curve[:, -1], proxy.double().amax(1))
    assert torch.allclose(
        best_of_n(proxy, torch.full_like(proxy, 3.0), n), torch.tensor(3.0, dtype=F64)
    )
    assert torch.allclose(best_of_n(proxy.exp(), proxy, 7), best_of_n(proxy, proxy, 7))
    assert best_of_n(torch.zeros(4096), torch.ones(4096), 2048).item() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"n must lie in 1\.\.50"):
        best_of_n(proxy, proxy, 51)
    with pytest.raises(ValueError, match="gold must hold finite values"):
        best_of_n(proxy, proxy * torch.nan, 2)


def test_best_of_n_kl():
    n = torch.tensor([1, 2, 4, 16, 64, 256, 2048])
    close(best_of_n_kl(n), [0, 0.193147, 0.636294, 1.835088, 3.174508, 4.549083, 6.625107])
    for size, n, wanted in ((4, 2, 0.173980), (4, 16, 1.330075), (1000, 4, 0.636294)):
        rank = torch.arange(size + 1, dtype=F64) / size
        p = (rank**n).diff()
        true = (p * (p * size).log()).sum().item()
        assert true == pytest.approx(wanted, abs=2e-5) and true <= best_of_n_kl(n) + 1e-9


# ---- all together ----


def test_policy_gradient_reaches_the_optimum():
    "Exact expectations on three summaries; the tilted distribution is a fixed point."
    z = torch.tensor([0.5, 0.3, 0.2], dtype=F64).log().requires_grad_()
    reference, r = z.detach().clone(), torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    for _ in range(300):
        log_p = z.log_softmax(0)
        p = log_p.detach().exp()
        R = shaped_rewards(r, log_p.detach()[:, None], reference[:, None], beta=1.0)[:, 0]
        A = (3 * p * (R - (p * R).sum()))[:, None]
        loss = ppo_policy_loss(log_p[:, None], log_p.detach()[:, None], A).loss
        z.data -= 0.5 * torch.autograd.grad(loss, z)[0]
    close(z.softmax(0), [0.179000, 0.291944, 0.529056], 1e-5)


@pytest.mark.slow
def test_a_judge_learns_from_choices():
    "Half of the margin over chance that was measured with 4096 choices."
    world, g = WordCards(), seeded(5)
    posts = world.posts(4096 + 1000, generator=g)
    a, b = (world.references(posts, generator=g) for _ in range(2))
    first = world.compare(posts, a, b, generator=g)[:, None]
    pairs = posts, torch.where(first, a, b), torch.where(first, b, a)
    judge = reward_model()
    adam = torch.optim.AdamW(judge.parameters(), lr=3e-3)

    def scores(rows):
        x, *both = (t[rows] for t in pairs)
        return [judge(torch.cat([x, y], 1), 8 + (y == EOS).long().argmax(1)) for y in both]

    for step in range(256):
        rows = torch.arange(64) + 64 * (step % 64)
        adam.zero_grad()
        preference_loss(*scores(rows)).backward()
        adam.step()
    chosen, rejected = scores(torch.arange(4096, 5096))
    assert (chosen > rejected).double().mean() > 0.57


def test_copies_do_not_share():
    judge = reward_model()
    other = copy.deepcopy(judge)
    with torch.no_grad():
        other.head.bias += 1
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    assert (other.values(tokens) - judge.values(tokens)).mean().item() == pytest.approx(1)
    assert sf.PAD != sf.EOS
