"""PonderNet: hand cases, extreme logits, torch.distributions, early exit, messages, learning."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import nn
from torch.distributions import Categorical, Geometric, kl_divergence

from ponderlearn.adaptive import pondernet as pn
from ponderlearn.adaptive.pondernet import PonderNet, ponder_loss

D = torch.float64
LAM = torch.tensor([0.1, 0.3, 0.4, 0.4], dtype=D)
LOSSES = torch.tensor([1.0, 0.5, 0.2, 0.1], dtype=D)
BOTH = pytest.mark.parametrize("truncation", ["remainder", "renormalize"])


def close(a, b, tol=1e-6):
    return torch.allclose(
        torch.as_tensor(a, dtype=D), torch.as_tensor(b, dtype=D), atol=tol, rtol=0
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the distribution


@pytest.mark.parametrize(
    "truncation, wanted, steps",
    [
        ("none", [0.1, 0.27, 0.252, 0.1512], 2.0008),
        ("renormalize", [0.129333, 0.349198, 0.325918, 0.195551], 2.587688),
        ("remainder", [0.1, 0.27, 0.252, 0.378], 2.908),
    ],
)
def test_hand_case_a(truncation, wanted, steps):
    log_p = pn.halting_log_probs(LAM.logit(), truncation=truncation)
    assert close(log_p.exp(), wanted)
    assert close(pn.expected_steps(log_p), steps)


def test_hand_case_b():
    logits = torch.tensor([[0.5, 0.2], [0.5, 0.5], [0.9, 0.1]], dtype=D).logit()
    answers = torch.tensor([[0.0, 0.0], [1.0, -1.0], [2.0, -3.0]], dtype=D)
    y = torch.tensor([1.0, 0.0], dtype=D).expand(3, 2)
    losses = F.binary_cross_entropy_with_logits(answers, y, reduction="none")
    assert close(losses.T, [[0.693147, 0.313262, 0.126928], [0.693147, 0.313262, 0.048587]])
    each = ponder_loss(losses, logits, 0.5, 0.01, reduction="none")
    assert close(each.reconstruction, [0.456621, 0.283369]) and close(each.kl, [0.0, 0.192745])
    mean = ponder_loss(losses, logits, 0.5, 0.01)
    assert (
        close(mean.loss, 0.370959)
        and close(mean.kl, 0.096372)
        and close(each.loss.mean(), mean.loss, 1e-12)
    )
    assert close(ponder_loss(losses, logits, 0.5, 0.01, reduction="sum").loss, 2 * mean.loss, 1e-12)
    renormalized = pn.halting_log_probs(logits, truncation="renormalize")
    assert close(renormalized.exp().T, [[0.512821, 0.256410, 0.230769], [0.3125, 0.625, 0.0625]])
    each = ponder_loss(losses, logits, 0.5, 0.01, truncation="renormalize", reduction="none")
    assert close(each.kl, [0.027429, 0.248952]) and close(each.kl.mean(), 0.138191)


@BOTH
@given(data=st.data(), n=st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_sums_to_one_for_any_logits(truncation, data, n):
    values = st.floats(-1e4, 1e4, width=32)
    a = torch.tensor(data.draw(st.lists(values, min_size=n, max_size=n)), requires_grad=True)
    log_p = pn.halting_log_probs(a, truncation=truncation)
    assert abs(log_p.exp().sum().item() - 1) < 1e-6
    assert log_p.isfinite().all() and (log_p <= 1e-6).all()
    loss = ponder_loss(torch.linspace(1, 0, n), a, 0.2, 0.01, truncation=truncation)
    (grad,) = torch.autograd.grad(loss.loss, a)
    assert all(v.isfinite() for v in loss) and loss.kl > -1e-5 and grad.isfinite().all()


@BOTH
@pytest.mark.parametrize("size", [100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_extreme_logits(truncation, size, dtype):
    for signs in ([1, 1, 1, 1, 1], [-1, -1, -1, -1, -1], [1, -1, 1, -1, 1], [-1, 1, -1, 1, -1]):
        a = (size * torch.tensor(signs, dtype=dtype)).requires_grad_()
        result = ponder_loss(
            torch.rand(5, dtype=dtype, generator=generator()), a, truncation=truncation
        )
        (grad,) = torch.autograd.grad(result.loss, a)
        assert all(v.isfinite() for v in result) and grad.isfinite().all()


def test_extreme_values():
    assert close(pn.halting_log_probs(torch.full((5,), 100.0)), [0, -100, -200, -300, -400], 1e-4)
    assert close(pn.halting_log_probs(torch.full((5,), -100.0)), [-100, -100, -100, -100, 0], 1e-4)
    nothing = torch.full((3,), -math.inf)
    assert pn.halting_log_probs(nothing, truncation="renormalize").isnan().all()
    assert pn.halting_log_probs(nothing).tolist() == [-math.inf, -math.inf, 0.0]


def test_last_logit():
    for truncation, zero in (("remainder", True), ("renormalize", False)):
        a = LAM.logit().requires_grad_()
        (grad,) = torch.autograd.grad(ponder_loss(LOSSES, a, truncation=truncation).loss, a)
        assert (grad[-1] == 0) == zero


def test_half_precision():
    a = torch.randn(20, 3, generator=generator()).bfloat16()
    log_p = pn.halting_log_probs(a)
    assert log_p.dtype == torch.float32 and torch.equal(log_p, pn.halting_log_probs(a.float()))
    assert ponder_loss(torch.rand(20, 3).bfloat16(), a).loss.dtype == torch.float32


# --- the prior, N and the KL


def test_prior():
    renormalized = pn.geometric_prior(0.2, 4, truncation="renormalize", dtype=D)
    assert close(renormalized, [0.338753, 0.271003, 0.216802, 0.173442])
    assert close(pn.geometric_prior(0.2, 4, dtype=D), [0.2, 0.16, 0.128, 0.512])
    for lambda_p, n, cut, remainder in (
        (0.2, 14, 4.355948, 4.780098),
        (0.1, 29, 8.566545, 9.528987),
        (0.2, 20, 4.766726, (1 - 0.8**20) / 0.2),
    ):
        for truncation, mean in (("renormalize", cut), ("remainder", remainder)):
            log_prior = pn.geometric_prior(lambda_p, n, truncation=truncation, log=True, dtype=D)
            assert close(pn.expected_steps(log_prior), mean) and close(
                log_prior.exp().sum(), 1, 1e-12
            )
    last = pn.geometric_prior(0.95, 10, log=True)[-1]
    assert close(last, 9 * math.log(0.05), 1e-4)


def test_steps_for_mass():
    assert [pn.steps_for_mass(v) for v in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)] == [
        59,
        29,
        14,
        9,
        5,
        3,
        2,
    ]
    assert pn.steps_for_mass(0.5, 0.25) == 3  # 1 - 0.25 is not larger than 0.75
    log_p = pn.halting_log_probs(torch.tensor([[0.0, -9.0, 9.0]] * 6), truncation="none")
    assert (
        pn.steps_to_mass(log_p).tolist() == [5, 6, 1]
        and pn.steps_to_mass(log_p).dtype == torch.int64
    )


@pytest.mark.parametrize(
    "mine, prior, wanted, reverse",
    [
        ("renormalize", "renormalize", 0.120319, 0.148287),
        ("remainder", "remainder", 0.127970, 0.123559),
        ("remainder", "renormalize", 0.209383, None),
    ],
)
def test_kl(mine, prior, wanted, reverse):
    log_p = pn.halting_log_probs(LAM.logit(), truncation=mine)
    log_prior = pn.geometric_prior(0.2, 4, truncation=prior, log=True, dtype=D)
    assert close(pn.halting_kl(log_p, log_prior), wanted)
    assert reverse is None or close(pn.halting_kl(log_p, log_prior, reverse=True), reverse)
    torchs = kl_divergence(Categorical(logits=log_p), Categorical(logits=log_prior))
    assert close(pn.halting_kl(log_p, log_prior), torchs)


def test_kl_with_zeros():
    log_p = torch.tensor([0.0, -math.inf, -math.inf], requires_grad=True)
    kl = pn.halting_kl(log_p, pn.geometric_prior(0.5, 3, log=True))
    (grad,) = torch.autograd.grad(kl, log_p)
    assert close(kl, math.log(2)) and grad.isfinite().all()


@BOTH
def test_constant_lambda(truncation):
    a = torch.full((20,), 0.2, dtype=D).logit()
    log_p = pn.halting_log_probs(a, truncation=truncation)
    other = "remainder" if truncation == "renormalize" else "renormalize"
    same, mixed = (
        pn.geometric_prior(0.2, 20, truncation=t, log=True, dtype=D) for t in (truncation, other)
    )
    assert close(pn.halting_kl(log_p, same), 0, 1e-12) and pn.halting_kl(log_p, mixed) > 1e-3


def test_agreement_with_torch_distributions():
    raw = pn.halting_log_probs(torch.full((40,), 0.3, dtype=D).logit(), truncation="none")
    assert close(
        raw, Geometric(torch.tensor(0.3, dtype=D)).log_prob(torch.arange(40.0, dtype=D)), 1e-10
    )
    a, b = torch.randn(2, 9, 5, dtype=D, generator=generator())
    p, q = (pn.halting_log_probs(v, truncation="renormalize") for v in (a, b))
    wanted = kl_divergence(Categorical(logits=p.T), Categorical(logits=q.T))
    assert close(pn.halting_kl(p, q, reduction="none"), wanted, 1e-10)


# --- the loss, its gradient and its optimum


def test_gradient_by_working_backwards():
    a = LAM.logit().requires_grad_()
    (grad,) = torch.autograd.grad(ponder_loss(LOSSES, a, beta=0.0).loss, a)
    assert close(ponder_loss(LOSSES, a, beta=0.0).reconstruction.detach(), 0.3232)
    assert close(grad, [0.06768, 0.06804, 0.01512, 0])
    (grad,) = torch.autograd.grad(ponder_loss(LOSSES, a).kl, a)
    assert close(grad, [-0.082112, 0.082092, 0.148301, 0])


def test_gibbs_optimum():
    p = pn.optimal_halting(LOSSES, 0.2, 0.5, truncation="renormalize")
    assert close(p.exp(), [0.105910, 0.230314, 0.335728, 0.328047]) and close(
        pn.expected_steps(p), 2.885913
    )
    log_prior = pn.geometric_prior(0.2, 4, truncation="renormalize", log=True, dtype=D)
    best = ((p.exp() * LOSSES).sum() + 0.5 * pn.halting_kl(p, log_prior)).item()
    assert abs(best - 0.418658) < 1e-6
    logits = torch.randn(4, 1000, dtype=D, generator=generator())
    tried = ponder_loss(
        LOSSES[:, None].expand(4, 1000),
        logits,
        0.2,
        0.5,
        truncation="renormalize",
        reduction="none",
    )
    assert (tried.loss >= best - 1e-12).all()
    assert close(pn.optimal_halting(LOSSES, 0.2, 0.01, truncation="renormalize").exp()[3], 0.999943)


def test_one_step():
    a = torch.zeros(1, 3, requires_grad=True)
    losses = torch.tensor([[1.0, 2.0, 6.0]])
    result = ponder_loss(losses, a)
    (grad,) = torch.autograd.grad(result.loss, a)
    assert result.loss == 3 and result.kl == 0 and (grad == 0).all()


def test_constant_shift():
    a = torch.randn(6, 4, dtype=D, generator=generator(), requires_grad=True)
    losses = torch.rand(6, 4, dtype=D, generator=generator())
    one, two = ponder_loss(losses, a), ponder_loss(losses + 3, a)
    assert close((two.loss - one.loss).detach(), 3, 1e-12)
    assert close(torch.autograd.grad(one.loss, a)[0], torch.autograd.grad(two.loss, a)[0], 1e-12)


@BOTH
def test_gradcheck(truncation):
    a = torch.randn(5, 3, dtype=D, generator=generator(), requires_grad=True)
    losses = torch.rand(5, 3, dtype=D, generator=generator(1)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, y: ponder_loss(x, y, 0.3, 0.2, truncation=truncation).loss, (losses, a)
    )
    assert torch.autograd.gradcheck(
        lambda y: ponder_loss(losses.detach(), y, 0.3, 0.2, reverse=True).loss, (a,)
    )


def test_batch_order_and_transforms():
    a, losses = torch.randn(7, 10, generator=generator()), torch.rand(7, 10, generator=generator(1))
    order = torch.randperm(10, generator=generator())
    each = ponder_loss(losses, a, reduction="none").loss
    assert torch.allclose(
        ponder_loss(losses[:, order], a[:, order], reduction="none").loss, each[order]
    )
    mapped = torch.vmap(lambda x, y: ponder_loss(x, y).loss, in_dims=1)(losses, a)
    assert torch.allclose(mapped, each, atol=1e-6)
    compiled = torch.compile(lambda x, y: ponder_loss(x, y).loss, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(losses, a), each.mean(), atol=1e-6)


# --- steps


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_recurrent_cells_agree_with_torch(cell):
    torch.manual_seed(0)
    step = pn.GRUStep(5, 8, 3, cell=cell).double()
    net, x = PonderNet(step, 6), torch.randn(4, 5, dtype=D)
    state, hidden = None, []
    for _ in range(6):
        state = step.cell(x, state)
        hidden.append(state[0] if cell == "lstm" else state)
    outputs, logits = step.heads(torch.stack(hidden))
    got = net(x)
    assert close(got.outputs, outputs, 1e-12) and close(got.logits, logits, 1e-12)
    names, params = zip(*step.named_parameters(), strict=True)
    weights = torch.randn(outputs.shape, dtype=D)
    mine = torch.autograd.grad((got.outputs * weights).sum() + got.logits.sum(), params)
    wanted = torch.autograd.grad((outputs * weights).sum() + logits.sum(), params)
    for name, a, b in zip(names, mine, wanted, strict=True):
        assert close(a, b, 1e-10), name
    assert not torch.equal(net(x).outputs[0], net(x + 1).outputs[0])


def test_gru_unroll_gradcheck():
    tensors = [
        torch.randn(*s, dtype=D, requires_grad=True)
        for s in ((3, 8), (3, 4), (3, 4), (12, 4), (12,))
    ]
    assert torch.autograd.gradcheck(lambda *t: pn._GRUUnroll.apply(*t, 5), tensors)


@pytest.mark.parametrize(
    "step, x",
    [
        (pn.MLPStep(5, 8, 3), torch.randn(4, 5)),
        (pn.GRUStep(5, 8, 3, confidence=True), torch.randn(4, 5)),
        (pn.GRUStep(5, 8, 1, cell="lstm", confidence=True), torch.randn(4, 5)),
        (pn.AttentionStep(6, 8, 3), torch.randn(4, 7, 6)),
        (pn.TransformerStep(6, 2, 3), torch.randn(4, 7, 6)),
    ],
)
def test_steps_start_on_the_prior_and_agree_with_the_plain_loop(step, x):
    net, plain = PonderNet(step, 5), PonderNet(lambda x, state: step(x, state), 5)
    a, b = net(x), plain(x)
    assert torch.allclose(a.outputs, b.outputs, atol=1e-6) and torch.allclose(
        a.log_p, b.log_p, atol=1e-6
    )
    assert torch.allclose(a.log_p.exp(), pn.geometric_prior(0.2, 5)[:, None].expand(5, 4))
    loss = ponder_loss(a.outputs.square().sum(-1), a.logits).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters())


def test_confidence_is_detached_and_bernoulli_for_one_logit():
    assert close(pn.prediction_entropy(torch.zeros(2, 1)), math.log(2))
    assert close(pn.prediction_entropy(torch.zeros(2, 4)), math.log(4))
    logit = torch.tensor([[1.3]])
    p = torch.sigmoid(logit)
    assert close(pn.prediction_entropy(logit), -(p * p.log() + (1 - p) * (1 - p).log()))
    head = pn.PonderHead(4, 3, confidence=True)
    nn.init.constant_(head.certainty, 2.0)
    h = torch.randn(5, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(head(h)[1].sum(), h)
    assert (
        grad == 0
    ).all()  # the halting weights on h start at zero, and the entropy passes no gradient


# --- halting


class Scripted(nn.Module):
    "A step with given halting logits by row and step; the state counts, in any structure."

    def __init__(self, kind):
        super().__init__()
        self.kind, self.rows = kind, 0

    def forward(self, x, state=None):
        table, start = x["logits"], x["start"]
        if state is None:
            n = torch.zeros(len(start), dtype=torch.long)
            state = {
                "tensor": n,
                "tuple": (n, start),
                "nested": {"n": n, "deep": [{"h": start}, (n, None)]},
            }[self.kind]
        n = state if self.kind == "tensor" else state[0] if self.kind == "tuple" else state["n"]
        logit = table.gather(1, n[:, None]).squeeze(1)
        output = torch.stack([start + n, logit], -1)
        n = n + 1
        new = {
            "tensor": n,
            "tuple": (n, start),
            "nested": {"n": n, "deep": [{"h": start}, (n, None)]},
        }[self.kind]
        self.rows += len(start)
        return output, logit, new


@pytest.mark.parametrize("kind", ["tensor", "tuple", "nested"])
@pytest.mark.parametrize(
    "rule, threshold",
    [("threshold", 0.5), ("threshold", 0.9), ("threshold", 1.0), ("halt_prob", 0.6)],
)
@pytest.mark.parametrize("batch", [1, 3, 257])
def test_early_exit_equals_no_exit(kind, rule, threshold, batch):
    logits = 2 * torch.randn(batch, 12, generator=generator()) - 1
    x = {"logits": logits, "start": torch.arange(batch) * 100.0}
    step = Scripted(kind)
    net = PonderNet(step, 12)
    full = net(x)
    steps = pn.halting_steps(full.logits, rule=rule, threshold=threshold)
    step.rows = 0
    got = net.predict(x, rule=rule, threshold=threshold)
    assert torch.equal(got.steps, steps) and got.steps.dtype == torch.int64
    assert torch.equal(got.output, full.outputs[steps - 1, torch.arange(batch)])
    assert steps.sum() <= step.rows <= math.ceil(steps.sum() * 4 / 3) + 12


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: pn.GRUStep(5, 8, 3), (300, 5)),
        (lambda: pn.GRUStep(5, 8, 3, cell="lstm"), (300, 5)),
        (lambda: pn.TransformerStep(6, 2, 3), (300, 7, 6)),
        (lambda: pn.AttentionStep(6, 8, 3), (300, 7, 6)),
    ],
)
def test_early_exit_of_real_steps(make, shape):
    torch.manual_seed(0)
    step, x = make(), torch.randn(shape)
    nn.init.normal_(step.heads.linear.weight, std=2.0)
    net = PonderNet(step, 10)
    with torch.no_grad():
        full = net(x)
    for threshold in (0.3, 0.9):
        steps = pn.halting_steps(full.logits, rule="threshold", threshold=threshold)
        got = net.predict(x, rule="threshold", threshold=threshold)
        assert torch.equal(got.steps, steps)
        assert torch.allclose(got.output, full.outputs[steps - 1, torch.arange(300)], atol=1e-5)
    assert len(steps.unique()) > 1


def test_edges_of_the_batch():
    for value, wanted in ((30.0, 1), (-30.0, 7)):
        for batch in (1, 5):
            x = {"logits": torch.full((batch, 7), value), "start": torch.zeros(batch)}
            for rule in pn.RULES:
                assert (PonderNet(Scripted("tuple"), 7).predict(x, rule=rule).steps == wanted).all()
    empty = PonderNet(pn.GRUStep(5, 8, 3), 4).predict(torch.zeros(0, 5))
    assert empty.output.shape == (0, 3) and empty.steps.shape == (0,)
    longer = {"logits": torch.full((2, 30), -30.0), "start": torch.zeros(2)}
    assert (PonderNet(Scripted("tuple"), 7).predict(longer, max_steps=30).steps == 30).all()


def test_predict_leaves_the_mode_alone():
    net = PonderNet(pn.GRUStep(5, 8, 3), 4)
    seen = []
    advance = net.step.advance
    net.step.advance = lambda x, state: (seen.append(net.step.training), advance(x, state))[1]
    net.predict(torch.zeros(2, 5))
    assert net.training and not any(seen)


def test_sampled_steps_follow_p():
    logits = LAM.logit().float().expand(20000, 4)
    x = {"logits": logits, "start": torch.zeros(20000)}
    net = PonderNet(Scripted("tensor"), 4)
    steps = net.predict(x, generator=generator(1)).steps
    wanted = [2000, 5400, 5040, 7560]
    assert chisquare(torch.bincount(steps, minlength=5)[1:].tolist(), wanted).pvalue > 0.001
    assert torch.equal(steps, net.predict(x, generator=generator(1)).steps)
    drawn = pn.halting_steps(logits.T, generator=generator(2))
    assert chisquare(torch.bincount(drawn, minlength=5)[1:].tolist(), wanted).pvalue > 0.001


def test_two_rules():
    logits = torch.full((20, 1), 0.2).logit()
    assert pn.halting_steps(logits, rule="threshold").item() == 4
    assert pn.halting_steps(logits, rule="halt_prob").item() == 20
    column = LAM.logit()[:, None]
    assert [
        pn.halting_steps(column, rule="threshold", threshold=q).item() for q in (0.1, 0.5, 0.9)
    ] == [1, 3, 4]


# --- messages

PAIR = torch.zeros(3, 2)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: ponder_loss(torch.tensor(1.0), torch.zeros(3, 2)),
            ValueError,
            "step_losses must be unreduced, shape",
        ),
        (
            lambda: ponder_loss(torch.zeros(3), torch.zeros(3, 2)),
            ValueError,
            "step_losses must be unreduced, shape",
        ),
        (lambda: ponder_loss(PAIR, PAIR, beta=-1), ValueError, "beta must"),
        (
            lambda: ponder_loss(PAIR, PAIR, reduction="batchmean"),
            ValueError,
            "reduction must be one of 'mean'",
        ),
        (
            lambda: ponder_loss(PAIR, PAIR, truncation="none"),
            ValueError,
            "truncation must be one of",
        ),
        (
            lambda: pn.halting_log_probs(PAIR, truncation="norm"),
            ValueError,
            "'remainder', 'renormalize', 'none'",
        ),
        (lambda: pn.halting_log_probs(torch.tensor(0.0)), ValueError, "logits must have shape"),
        (lambda: pn.halting_log_probs(torch.zeros(0, 2)), ValueError, "logits must have shape"),
        (
            lambda: pn.halting_log_probs(PAIR.long()),
            TypeError,
            "logits must be a tensor of float dtype",
        ),
        (lambda: pn.geometric_prior(1.0, 3), ValueError, r"lambda_p must lie in \(0, 1\), got 1.0"),
        (lambda: pn.geometric_prior(0.2, 0), ValueError, "n_steps must be >= 1, got 0"),
        (lambda: pn.steps_for_mass(0.2, 1.0), ValueError, "epsilon must lie in"),
        (
            lambda: pn.halting_kl(torch.zeros(3, 2), torch.zeros(4)),
            ValueError,
            "log_prior must have shape",
        ),
        (
            lambda: pn.halting_steps(torch.zeros(3, 2), rule="mode"),
            ValueError,
            "rule must be one of 'sample'",
        ),
        (
            lambda: pn.halting_steps(torch.zeros(3, 2), threshold=0),
            ValueError,
            "threshold must lie in",
        ),
        (lambda: PonderNet(3, 4), TypeError, "step must be callable"),
        (lambda: PonderNet(pn.MLPStep(1, 2, 3), 0), ValueError, "n_steps must be >= 1"),
        (lambda: PonderNet(pn.MLPStep(1, 2, 3), 2)(None), ValueError, "x must hold a tensor"),
        (
            lambda: pn.GRUStep(1, 2, 3, cell="elman"),
            ValueError,
            "cell must be one of 'gru', 'lstm', 'rnn'",
        ),
        (
            lambda: pn.TransformerStep(6, 4, 3),
            ValueError,
            "embed_dim must be a multiple of num_heads = 4",
        ),
        (lambda: pn.stories(0), ValueError, "batch_size must be >= 1"),
        (lambda: pn.associative_pairs(2, length=1), ValueError, "length must be >= 2"),
    ],
)
def test_messages(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "result, error, message",
    [
        (torch.zeros(2), TypeError, "step must return .output, halt_logit, state., got"),
        ((torch.zeros(2, 3), torch.zeros(2)), TypeError, "step must return"),
        (
            (torch.zeros(3, 3), torch.zeros(2), None),
            ValueError,
            r"output must be a tensor \(B, ...\) with B = 2",
        ),
        (
            (torch.zeros(2, 3), torch.zeros(2, 3), None),
            ValueError,
            r"halt_logit must have shape \(B,\) or \(B, 1\)",
        ),
        (
            (torch.zeros(2, 3), torch.zeros(2).long(), None),
            TypeError,
            "the step's halt_logit must be a float tensor",
        ),
        ((torch.zeros(2, 3), 0.5, None), TypeError, "the step's halt_logit must be a float tensor"),
    ],
)
def test_a_wrong_step_is_told(result, error, message):
    net = PonderNet(lambda x, state: result, 3)
    for call in (net, net.predict):
        with pytest.raises(error, match=message):
            call(torch.zeros(2, 5))


def test_halt_logit_may_be_a_column():
    net = PonderNet(lambda x, state: (x, x[:, :1], None), 3)
    assert net(torch.zeros(2, 5)).logits.shape == (3, 2) and net.predict(
        torch.zeros(2, 5)
    ).steps.shape == (2,)


# --- tasks


def test_stories():
    batch = pn.stories(3000, generator=generator())
    assert batch.tokens.shape == (3000, 7, 4) and batch.tokens.dtype == torch.int64
    assert torch.equal(batch.tokens, pn.stories(3000, generator=generator()).tokens)
    assert 0.3 < (batch.hops == 2).float().mean() < 0.5 and set(batch.y.tolist()) == {0, 1, 2, 3}
    for i in range(300):
        assert _answer(pn.tell(batch, i)), pn.tell(batch, i)
    embedded = pn.StoryEmbedding(8)(batch.tokens)
    assert embedded.shape == (3000, 7, 8)


def _answer(text: str) -> bool:
    "Whether a reader of the text finds the same answer."
    story, answer = text.split(" -> ")
    *facts, question = story.replace("?", ".").rstrip(".").split(". ")
    room, holder = {}, {}
    for fact in facts:
        who, verb, *_, what = fact.split()
        if verb == "goes":
            room[who] = what
        elif verb == "grabs":
            assert who in room and what not in holder
            holder[what] = who
        else:
            assert holder.pop(what) == who
    thing = question.split()[-1]
    return room[holder.get(thing, thing)] == answer


def test_associative_pairs():
    batch = pn.associative_pairs(500, length=4, n_chains=5, dim=16, generator=generator())
    assert batch.pairs.shape == (500, 15, 2, 16) and batch.options.shape == (500, 2, 16)
    assert set(batch.hops.tolist()) == {1, 2, 3} and set(batch.y.tolist()) == {0, 1}
    for i in range(50):
        found, seen = batch.cue[i : i + 1], []
        for _ in range(int(batch.hops[i])):
            hit = (batch.pairs[i] @ found[0]) > 0.999
            row, side = next((r, s) for r, s in hit.nonzero().tolist() if r not in seen)
            seen.append(row)
            found = batch.pairs[i, row, 1 - side][None]
        assert (found @ batch.options[i].T).argmax() == batch.y[i]


# --- learning


class Reveal(nn.Module):
    "Shows the answer from step 1 (kind 0) or 3 (kind 1); learns halting logits by step and kind."

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2, 8))

    def forward(self, x, state=None):
        n = torch.zeros(len(x), dtype=torch.long) if state is None else state
        kind = x[:, 0].long()
        known = (kind == 0) | (n >= 2)
        return torch.where(known, x[:, 1] * 5, 0.0), self.logits[kind, n], n + 1


def test_trained_miniature():
    net = PonderNet(Reveal(), 8)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    g = generator()
    for _ in range(150):
        kind, y = torch.randint(0, 2, (2, 64), generator=g)
        out = net(torch.stack([kind.float(), 2 * y.float() - 1], -1))
        losses = F.binary_cross_entropy_with_logits(
            out.outputs, y.float().expand(8, 64), reduction="none"
        )
        optimizer.zero_grad()
        ponder_loss(losses, out.logits, 0.5, 0.02).loss.backward()
        optimizer.step()
    steps = pn.expected_steps(net(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).log_p)
    assert steps[1] - steps[0] > 1.5 and abs(steps[0] - 2) < 0.3
