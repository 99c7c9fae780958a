"""PonderNet: hand cases, extreme logits, torch.distributions, early exit, messages, learning."""

import functools
import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import nn
from torch.distributions import Categorical, Geometric, kl_divergence
from torch.func import functional_call

from ponderlearn._nested import tree_map
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


def test_hand_case_b():
    logits = torch.tensor([[0.5, 0.2], [0.5, 0.5], [0.9, 0.1]], dtype=D).logit()
    answers = torch.tensor([[0.0, 0.0], [1.0, -1.0], [2.0, -3.0]], dtype=D)
    y = torch.tensor([1.0, 0.0], dtype=D).expand(3, 2)
    losses = F.binary_cross_entropy_with_logits(answers, y, reduction="none")
    assert close(losses.T, [[0.693147, 0.313262, 0.126928], [0.693147, 0.313262, 0.048587]])
    each = ponder_loss(losses, logits, 0.5, 0.01, reduction="none")
    assert close(each.reconstruction, [0.456621, 0.283369]) and close(each.kl, [0.0, 0.192745])
    mean = ponder_loss(losses, logits, 0.5, 0.01)
    assert close(each.loss.mean(), mean.loss, 1e-12)
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


def test_half_precision_is_computed_in_float32():
    a, losses = torch.randn(20, 3, generator=generator()).bfloat16(), torch.rand(20, 3).bfloat16()
    log_p = pn.halting_log_probs(a).bfloat16()
    prior = pn.geometric_prior(0.1, 20, log=True, dtype=torch.bfloat16)
    for f, *args in (
        (pn.halting_log_probs, a),
        (pn.expected_steps, log_p),
        (pn.halting_kl, log_p, prior),
        (lambda x: pn.optimal_halting(x, 0.2, 0.1), losses),
        (lambda x, y: ponder_loss(x, y).loss, losses, a),
        (pn.prediction_entropy, a),
    ):
        got, wanted = f(*args), f(*(t.float() for t in args))
        assert got.dtype == torch.float32 and torch.equal(got, wanted)


def test_logits_that_rule_a_step_or_class_out():
    a = torch.zeros(4, 2, dtype=D)
    a[0], a[2, 1] = -math.inf, math.inf
    a.requires_grad_()
    result = ponder_loss(torch.rand(4, 2, dtype=D), a, reduction="none")
    (grad,) = torch.autograd.grad(result.loss.sum(), a)
    assert all(v.isfinite().all() for v in result) and grad.isfinite().all()
    output = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    (grad,) = torch.autograd.grad(pn.prediction_entropy(output).sum(), output)
    assert close(pn.prediction_entropy(output).detach(), math.log(2)) and grad.isfinite().all()


def test_nothing_for_no_inputs():
    for step, x in STEPS.values():
        empty = tree_map(lambda t: t[:0], x)
        out = PonderNet(step(), 3)(empty)
        losses = out.outputs.sum(-1)
        assert losses.shape == (3, 0) and all(v == 0 for v in ponder_loss(losses, out))
        assert PonderNet(step(), 3).predict(empty).steps.shape == (0,)


# --- the prior, N and the KL


def test_prior():
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
    wanted = {0.05: 59, 0.1: 29, 0.2: 14, 0.3: 9, 0.5: 5, 0.7: 3, 0.9: 2}
    assert {v: pn.steps_for_mass(v) for v in wanted} == wanted
    assert pn.steps_for_mass(0.5, 0.25) == 3  # 1 - 0.25 is not larger than 0.75
    log_p = pn.halting_log_probs(torch.tensor([[0.0, -9.0, 9.0]] * 6), truncation="none")
    found = pn.steps_to_mass(log_p)
    assert found.tolist() == [5, 6, 1] and found.dtype == torch.int64


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


def test_gradient_of_the_kl():
    a = LAM.logit().requires_grad_()
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
    step = pn.RecurrentStep(5, 8, 3, cell=cell).double()
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


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_second_derivatives_and_torch_func(cell):
    torch.manual_seed(0)
    net = PonderNet(pn.RecurrentStep(3, 4, 2, cell=cell), 3).double()
    x, params = torch.randn(5, 3, dtype=D), dict(net.named_parameters())

    def loss(params, x):
        out = functional_call(net, params, (x,))
        return ponder_loss(out.outputs.square().sum(-1), out).loss

    grads = torch.autograd.grad(loss(params, x), params.values(), create_graph=True)
    for g, wanted in zip(torch.func.grad(loss)(params, x).values(), grads, strict=True):
        assert close(g, wanted.detach(), 1e-12)
    norm = sum(g.square().sum() for g in grads)
    twice = torch.autograd.grad(norm, params.values())

    def squared(params):
        return sum(g.square().sum() for g in torch.func.grad(loss)(params, x).values())

    for g, wanted in zip(torch.func.grad(squared)(params).values(), twice, strict=True):
        assert close(g, wanted, 1e-10)
    each = torch.vmap(torch.func.grad(loss), (None, 0))(params, x[:, None])
    for g, wanted in zip(each.values(), grads, strict=True):
        assert close(g.mean(0), wanted.detach(), 1e-10)


TOKENS = torch.randn(4, 7, 6)
REAL = torch.arange(7) >= torch.tensor([[0], [2], [6], [3]])  # padding in front
STEPS = {
    "mlp": (lambda: pn.MLPStep(5, 8, 3, confidence=True), torch.randn(4, 5)),
    "gru": (lambda: pn.RecurrentStep(5, 8, 3, confidence=True), torch.randn(4, 5)),
    "lstm": (lambda: pn.RecurrentStep(5, 8, 1, cell="lstm", confidence=True), torch.randn(4, 5)),
    "rnn": (lambda: pn.RecurrentStep(5, 8, 3, cell="rnn"), torch.randn(4, 5)),
    "attention": (lambda: pn.AttentionStep(6, 8, 3), TOKENS),
    "attention, padded": (lambda: pn.AttentionStep(6, 8, 3), (TOKENS, REAL)),
    "transformer": (lambda: pn.TransformerStep(6, 2, 3), TOKENS),
    "transformer, padded": (lambda: pn.TransformerStep(6, 2, 3), (TOKENS, REAL)),
}
every_step = pytest.mark.parametrize("make, x", STEPS.values(), ids=STEPS)
the_padded = pytest.mark.parametrize("kind", ["attention", "transformer"])


@every_step
def test_steps_start_on_the_prior_and_agree_with_the_plain_loop(make, x):
    step = make()
    net, plain = PonderNet(step, 5), PonderNet(lambda x, state: step(x, state), 5)
    a, b = net(x), plain(x)
    assert torch.allclose(a.outputs, b.outputs, atol=1e-6)
    assert torch.allclose(a.log_p, b.log_p, atol=1e-6)
    assert torch.allclose(a.log_p.exp(), pn.geometric_prior(0.2, 5)[:, None].expand(5, 4))
    ponder_loss(a.outputs.square().sum(-1), a).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters())


@every_step
def test_autocast(make, x):
    torch.manual_seed(0)
    net = PonderNet(make(), 4)
    wanted = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
        losses = pn.step_losses(out, torch.zeros(4, 1).expand(4, out.outputs.shape[-1]), F.mse_loss)
        result = ponder_loss(losses, out)
        again = net(x, wanted.state)  # a state in float32
        assert net.predict(x).steps.shape == (4,)
    result.loss.backward()
    assert result.loss.dtype == out.log_p.dtype == torch.float32
    assert torch.allclose(out.outputs.float(), wanted.outputs, atol=0.05)
    assert again.outputs.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_autocast_of_the_modules_around():
    embed, reader = pn.StoryEmbedding(6), PonderNet(pn.TransformerStep(6, 2, 4), 3)
    reader.init_state = embed
    with torch.autocast("cpu", torch.bfloat16):
        out = reader(pn.stories(4).tokens)
        model = nn.Sequential(
            nn.Linear(2, 5), pn.PonderOutput(PonderNet(pn.RecurrentStep(5, 8, 3), 3))
        )
        assert model(torch.randn(4, 2)).isfinite().all()
        assert model.eval()(torch.randn(4, 2)).isfinite().all()
        assert pn.PonderHead(8, 3)(torch.randn(4, 8))[1].shape == (4,)
    assert out.outputs.isfinite().all()


@every_step
@pytest.mark.parametrize("dtype", [torch.bfloat16, D])
def test_other_dtypes(make, x, dtype):
    net = PonderNet(make(), 3).to(dtype)
    x = tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, x)
    out = net(x)
    assert out.outputs.dtype == dtype and out.log_p.dtype == (D if dtype == D else torch.float32)
    ponder_loss(out.outputs.square().sum(-1), out).loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert net.predict(x).output.dtype == dtype


@pytest.mark.parametrize("kind", ["mlp", "gru", "attention, padded", "transformer, padded"])
def test_compiled_and_exported_for_any_batch(kind):
    make, x = STEPS[kind]
    net = PonderNet(make(), 3)
    more = tree_map(lambda t: torch.cat([t, t, t]), x)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: net(x)[:3], backend="eager", fullgraph=True, dynamic=True)
    batch = torch.export.Dim("batch")
    dynamic = tree_map(lambda t: {0: batch}, (x,))
    exported = torch.export.export(net, (x,), dynamic_shapes=dynamic).module()
    for one in (x, more):
        wanted = net(one)
        assert torch.allclose(compiled(one)[0], wanted.outputs, atol=1e-6)
        assert torch.allclose(exported(one).outputs, wanted.outputs, atol=1e-6)


@the_padded
def test_padding_is_not_read(kind):
    torch.manual_seed(0)
    step = STEPS[kind][0]()
    net, tokens = PonderNet(step, 3), TOKENS.clone()
    wanted = [net(tokens[i : i + 1, REAL[i]]).outputs for i in range(4)]
    for junk in (math.nan, math.inf, 1e30):
        tokens = torch.where(REAL[..., None], TOKENS, junk).requires_grad_()
        out = net((tokens, REAL)).outputs
        assert torch.allclose(out, torch.cat(wanted, 1), atol=1e-5)
        grads = torch.autograd.grad(out.sum(), [tokens, *step.parameters()], allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in grads)
        assert (grads[0][~REAL] == 0).all()
    early = net.predict((TOKENS, REAL), rule="threshold")
    steps = pn.halting_steps(net((TOKENS, REAL)).logits.detach(), rule="threshold")
    assert torch.equal(early.steps, steps)


@the_padded
def test_rows_of_padding_alone(kind):
    net = PonderNet(STEPS[kind][0](), 3)
    real = REAL.clone()
    real[1] = False
    tokens = torch.where(real[..., None], TOKENS, math.nan).requires_grad_()
    out = net((tokens, real))
    (grad,) = torch.autograd.grad(out.outputs.sum(), tokens)
    assert out.outputs.isfinite().all() and out.logits.isfinite().all() and grad.isfinite().all()


class Two(nn.Module):
    "A step with a tuple and a dict as its output."

    def __init__(self):
        super().__init__()
        self.step = pn.RecurrentStep(5, 8, 3)

    def forward(self, x, state=None):
        output, logit, state = self.step(x, state)
        return (output, {"more": output[:, :2]}), logit, state


def test_outputs_may_be_nested():
    torch.manual_seed(0)
    net, x = PonderNet(Two(), 6), torch.randn(100, 5)
    nn.init.normal_(net.step.step.heads.linear.weight, std=2.0)
    plain = PonderNet(net.step.step, 6)
    a, more = net(x).outputs
    assert torch.allclose(a, plain(x).outputs, atol=1e-6) and more["more"].shape == (6, 100, 2)
    got, wanted = (n.predict(x, rule="threshold", threshold=0.8) for n in (net, plain))
    assert torch.equal(got.steps, wanted.steps) and len(got.steps.unique()) > 1
    assert torch.allclose(got.output[0], wanted.output, atol=1e-6)
    assert torch.equal(got.output[0][:, :2], got.output[1]["more"])

    def both(outputs, targets, reduction):
        return F.mse_loss(outputs[1]["more"], targets[0], reduction=reduction).sum(1)

    losses = pn.step_losses(net(x), (torch.zeros(100, 2),), both)
    assert torch.allclose(losses, more["more"].square().sum(-1))


def test_step_losses():
    out = PonderNet(pn.MLPStep(5, 8, 3), 4)(torch.randn(6, 5))
    y = torch.randint(0, 3, (6,))
    wanted = [F.cross_entropy(output, y, reduction="none") for output in out.outputs]
    assert torch.equal(pn.step_losses(out, y), torch.stack(wanted))
    target = torch.randn(6, 3)
    wanted = (out.outputs - target).square().mean(-1)
    assert torch.allclose(pn.step_losses(out, target, F.mse_loss), wanted)


def test_the_loss_knows_the_networks_truncation():
    net = PonderNet(pn.MLPStep(5, 8, 3), 4, truncation="renormalize")
    out, losses = net(torch.randn(6, 5)), torch.rand(4, 6)
    result = ponder_loss(losses, out)
    wanted = ponder_loss(losses, out.logits, truncation="renormalize")
    assert close(result.kl.detach(), 0) and torch.equal(result.loss, wanted.loss)
    assert torch.equal(ponder_loss(losses, out, truncation="renormalize").loss, result.loss)
    with pytest.raises(ValueError, match="truncation must be 'renormalize' as in the network"):
        ponder_loss(losses, out, truncation="remainder")


def test_one_tensor_in_a_sequence():
    torch.manual_seed(0)
    net = PonderNet(pn.RecurrentStep(5, 8, 3), 6)
    nn.init.normal_(net.step.heads.linear.weight, std=2.0)
    model, x = nn.Sequential(nn.Linear(2, 5), pn.PonderOutput(net), nn.Tanh()), torch.randn(9, 2)
    out = net(model[0](x))
    mean = (out.log_p.exp()[..., None] * out.outputs).sum(0)
    assert torch.allclose(model(x), mean.tanh(), atol=1e-6)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    steps = pn.halting_steps(out.logits.detach(), rule="threshold")
    wanted = out.outputs[steps - 1, torch.arange(9)].tanh()
    assert torch.allclose(model.eval()(x), wanted, atol=1e-6)


def test_confidence_is_detached_and_bernoulli_for_one_logit():
    assert close(pn.prediction_entropy(torch.zeros(2, 1)), math.log(2))
    assert close(pn.prediction_entropy(torch.zeros(2, 4)), math.log(4))
    logit = torch.tensor([[1.3]])
    p = torch.sigmoid(logit)
    assert close(pn.prediction_entropy(logit), -(p * p.log() + (1 - p) * (1 - p).log()))
    head = pn.PonderHead(4, 3, confidence=True)
    nn.init.constant_(head.entropy_weight, 2.0)
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
        (lambda: pn.RecurrentStep(5, 8, 3), (300, 5)),
        (lambda: pn.RecurrentStep(5, 8, 3, cell="lstm"), (300, 5)),
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
            for rule in pn._RULES:
                assert (PonderNet(Scripted("tuple"), 7).predict(x, rule=rule).steps == wanted).all()
    empty = PonderNet(pn.RecurrentStep(5, 8, 3), 4).predict(torch.zeros(0, 5))
    assert empty.output.shape == (0, 3) and empty.steps.shape == (0,)
    longer = {"logits": torch.full((2, 30), -30.0), "start": torch.zeros(2)}
    assert (PonderNet(Scripted("tuple"), 7).predict(longer, max_steps=30).steps == 30).all()


def test_predict_leaves_the_modes_alone():
    step = pn.TransformerStep(6, 2, 3)
    net, seen = PonderNet(step, 4), []
    step.norms[0].eval()
    step.register_forward_pre_hook(lambda *_: seen.append(step.training))
    step.norms[1].register_forward_pre_hook(lambda *_: seen.append(step.norms[1].training))
    net.predict(torch.zeros(2, 7, 6))
    assert net.training and step.norms[1].training and not step.norms[0].training
    assert seen and not any(seen)


def test_predict_refuses_what_cannot_be_cut():
    net = PonderNet(lambda x, state: (x["a"], x["a"][:, 0], state), 3)
    for more in ([1, 2], ["ann", "bob"], 0.5):
        with pytest.raises(TypeError, match="x must hold tensors only"):
            net.predict({"a": torch.zeros(2, 5), "more": more})
    with pytest.raises(ValueError, match="x must have the batch as first axis"):
        net.predict({"a": torch.zeros(2, 5), "more": torch.zeros(3)})


def test_inference_mode():
    net, x = PonderNet(pn.RecurrentStep(5, 8, 3), 4), torch.randn(100, 5)
    wanted = net.predict(x, rule="threshold")
    with torch.inference_mode():
        got = net.predict(x, rule="threshold")
        assert torch.allclose(net(x).outputs[0], net.eval()(x).outputs[0])
    assert torch.equal(got.steps, wanted.steps) and torch.equal(got.output, wanted.output)
    layer = nn.Linear(3, 1)  # what was predicted may be learned from
    layer(wanted.output).sum().backward()


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


def test_a_threshold_below_rounding():
    logits = torch.tensor([[-20.0], [-10.0], [0.0]])
    assert pn.halting_steps(logits, rule="threshold", threshold=1e-7).item() == 2
    assert pn.halting_steps(logits, rule="threshold", threshold=1e-10).item() == 1


# --- messages: tests/test_wrong_arguments.py tries the rest


def test_a_reduced_loss_is_refused():
    for losses in (torch.tensor(1.0), torch.zeros(3)):
        with pytest.raises(ValueError, match="step_losses must be unreduced, shape"):
            ponder_loss(losses, torch.zeros(3, 2))


@pytest.mark.parametrize(
    "result, error, message",
    [
        (torch.zeros(2), TypeError, "step must return .output, halt_logit, state., got"),
        ((torch.zeros(2, 3), torch.zeros(2)), TypeError, "step must return"),
        ((torch.zeros(3, 3), torch.zeros(2), None), ValueError, "the output of step must have"),
        ((torch.zeros(2, 3), torch.zeros(2, 3), None), ValueError, "the halt_logit of step must"),
        ((torch.zeros(2, 3), torch.zeros(2).long(), None), TypeError, "halt_logit of step must be"),
        ((torch.zeros(2, 3), 0.5, None), TypeError, "the halt_logit of step must be a tensor"),
        ((torch.zeros(2, 3), torch.zeros(2), torch.zeros(3)), ValueError, "the state of step must"),
    ],
)
def test_a_wrong_step_is_told(result, error, message):
    net = PonderNet(lambda x, state: result, 3)
    for call in (net, net.predict):
        with pytest.raises(error, match=message):
            call(torch.zeros(2, 5))


def test_a_wrong_first_state_is_told():
    x = torch.zeros(2, 5)
    with pytest.raises(TypeError, match="what init_state returns must be a tensor"):
        PonderNet(pn.RecurrentStep(5, 8, 3), 3, init_state=lambda x: None)(x)
    with pytest.raises(ValueError, match="what init_state returns must have the batch"):
        PonderNet(pn.RecurrentStep(5, 8, 3), 3, init_state=lambda x: torch.zeros(3, 8))(x)
    with pytest.raises(TypeError, match=r"state must be a pair \(h, c\) of tensors"):
        PonderNet(pn.RecurrentStep(5, 8, 3, cell="lstm"), 3)(x, torch.zeros(2, 8))


def test_halt_logit_may_be_a_column():
    net = PonderNet(lambda x, state: (x, x[:, :1], None), 3)
    assert net(torch.zeros(2, 5)).logits.shape == (3, 2)
    assert net.predict(torch.zeros(2, 5)).steps.shape == (2,)


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


# --- the API page


DOCUMENTED = [name for name in pn.__all__ if callable(getattr(pn, name))]
DOCUMENTED += ["PonderNet.forward", "PonderNet.predict"]
NO_EQUATION = {"step_losses", "prediction_entropy"}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_examples(name):
    "`tests/test_docstrings.py` runs them."
    o = functools.reduce(getattr, name.split("."), pn)
    n = len(re.findall(r"(?m)^ *(>>>|\.\.\.) ", o.__doc__))
    assert n >= (9 if isinstance(o, type) and issubclass(o, nn.Module) else 2)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstrings_name_equations_and_errors(name):
    o = functools.reduce(getattr, name.split("."), pn)
    about_data = re.search("stor|Stor|Associative|associative|tell", name)
    result = isinstance(o, type) and issubclass(o, tuple)
    assert about_data or name in NO_EQUATION or re.search(r"\(ponder-[a-z]+\)", o.__doc__)
    assert result or re.search("(Type|Value|Index)Error", o.__doc__)
