"""PonderNet: a training step beside labml-nn's and beside a plain loop, and early exit.

Training: the same GRU (batch 128, hidden 64, N = 20) on parity, the same loss and optimizer. Of
labml-nn only the one file with PonderNet is loaded, as its package needs much else. Its KL has the
arguments the other way round and a prior that is not normalized; the work is the same. The plain
loop is what one writes by hand: the cell, the heads and the loss step by step, from the same
weights; gradients of both sides are compared. So are padded sets beside sets cut to equal length,
and gradients of each input by `torch.func` beside one backward pass an input. Early exit: N = 20
and 3 steps on average; the outputs of both sides are compared at equal halting steps.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/pondernet.py
"""

import importlib.metadata
import importlib.util
from types import ModuleType

import torch
import torch.nn.functional as F
from compare import interleaved, save
from torch import nn

from ponderlearn.adaptive.act import parity
from ponderlearn.adaptive.pondernet import (
    AttentionStep,
    PonderNet,
    RecurrentStep,
    TransformerStep,
    geometric_prior,
    halting_steps,
    ponder_loss,
    step_losses,
)

BATCH, HIDDEN, N, BITS = 128, 64, 20, 8


def labml() -> ModuleType:
    "The file of labml-nn that holds PonderNet, without its package."
    wanted = "labml_nn/adaptive_computation/ponder_net/__init__.py"
    path = next(f for f in importlib.metadata.files("labml-nn") if str(f) == wanted).locate()
    spec = importlib.util.spec_from_file_location("labml_ponder_net", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def training(repeats: int = 301) -> dict:
    "One update of both: forward pass of all N steps, loss, backward pass, Adam."
    torch.manual_seed(0)
    batch = parity(BATCH, BITS, generator=torch.Generator().manual_seed(0))
    x, y = batch.x[:, 0], batch.y[:, 0].float()
    ours = PonderNet(RecurrentStep(BITS, HIDDEN, 1), N)
    ours_optimizer = torch.optim.Adam(ours.parameters(), lr=1e-4)
    peer = labml()
    theirs = peer.ParityPonderGRU(BITS, HIDDEN, N)
    reconstruction = peer.ReconstructionLoss(nn.BCEWithLogitsLoss(reduction="none"))
    regularization = peer.RegularizationLoss(0.2, N)
    theirs_optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-4)

    def run_ours():
        out = ours(x)
        losses = step_losses(out, y[:, None], F.binary_cross_entropy_with_logits)
        ours_optimizer.zero_grad()
        ponder_loss(losses, out, 0.2, 0.01).loss.backward()
        ours_optimizer.step()

    def run_theirs():
        p, guess, _, _ = theirs(x)
        theirs_optimizer.zero_grad()
        (reconstruction(p, guess, y) + 0.01 * regularization(p)).backward()
        theirs_optimizer.step()

    what = f"training step, batch {BATCH}, hidden {HIDDEN}, N = {N}"
    return {
        "what": what,
        "beside": "labml-nn",
        **interleaved(run_ours, run_theirs, repeats=repeats),
    }


def plain_loss(step, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    "PonderNet's loss, step by step, in probabilities in the last sum only."
    state, log_survival, total, kl = None, 0.0, 0.0, 0.0
    for n, log_prior in enumerate(geometric_prior(0.2, N, log=True)):
        output, logit, state = step(x, state)
        log_p = log_survival + (F.logsigmoid(logit) if n < N - 1 else 0.0)
        log_survival = log_survival + F.logsigmoid(-logit)
        losses = F.cross_entropy(output, y, reduction="none")
        total = total + log_p.exp() * losses
        kl = kl + log_p.exp() * (log_p - log_prior)
    return (total + 0.01 * kl).mean()


def torchs_gru(step: RecurrentStep):
    "The step with torch's own cell."

    def call(x, state):
        state = step.cell(x, state)
        return *step.heads(state), state

    return call


STEPS = {
    "GRU": (lambda: RecurrentStep(BITS, HIDDEN, 3), torchs_gru, (BATCH, BITS)),
    "LSTM": (lambda: RecurrentStep(BITS, HIDDEN, 3, cell="lstm"), lambda step: step, (BATCH, BITS)),
    "attention": (lambda: AttentionStep(32, HIDDEN, 3), lambda step: step, (BATCH, 16, 32)),
    "transformer": (lambda: TransformerStep(32, 4, 3), lambda step: step, (BATCH, 16, 32)),
}


def beside_plain(kind: str, repeats: int) -> dict:
    "Loss and gradient of a network beside the loop that one writes by hand."
    torch.manual_seed(0)
    make, plain_of, shape = STEPS[kind]
    step, x, y = make(), torch.randn(shape), torch.randint(0, 3, (BATCH,))
    net, plain = PonderNet(step, N), plain_of(step)

    def ours():
        step.zero_grad()
        out = net(x)
        ponder_loss(step_losses(out, y), out, 0.2, 0.01).loss.backward()
        return [p.grad.clone() for p in step.parameters()]

    def theirs():
        step.zero_grad()
        plain_loss(plain, x, y).backward()
        return [p.grad.clone() for p in step.parameters()]

    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours(), theirs(), strict=True))
    what = f"loss and gradient, {kind}, batch {BATCH}, N = {N}"
    return {"what": what, "beside": "plain loop", **interleaved(ours, theirs, repeats=repeats)}


def padded(repeats: int) -> dict:
    "Sets of 1 to 16 tokens in one padded batch, beside one batch a length."
    torch.manual_seed(0)
    net = PonderNet(AttentionStep(32, HIDDEN, 3), N)
    tokens, lengths = torch.randn(BATCH, 16, 32), torch.randint(1, 17, (BATCH,))
    key_mask = torch.arange(16) < lengths[:, None]
    groups = [tokens[lengths == n, :n] for n in lengths.unique()]

    @torch.no_grad()
    def ours():
        return net((tokens, key_mask)).outputs

    @torch.no_grad()
    def theirs():
        return [net(group).outputs for group in groups]

    wanted = torch.cat(theirs(), 1)
    assert torch.allclose(ours()[:, lengths.argsort(stable=True)], wanted, atol=1e-5)
    what = f"padded sets, attention, batch {BATCH}, N = {N}"
    times = interleaved(ours, theirs, repeats=repeats)
    return {"what": what, "beside": "a batch a length", **times}


def each_gradient(repeats: int) -> dict:
    "The gradient of each input's loss, by torch.func beside a backward pass an input."
    torch.manual_seed(0)
    net, x, y = (
        PonderNet(RecurrentStep(BITS, HIDDEN, 3), N),
        torch.randn(32, BITS),
        torch.zeros(32).long(),
    )
    params = dict(net.named_parameters())

    def loss(params, x, y):
        out = torch.func.functional_call(net, params, (x,))
        return ponder_loss(step_losses(out, y), out, 0.2, 0.01).loss

    each = torch.vmap(torch.func.grad(loss), (None, 0, 0))

    def ours():
        return each(params, x[:, None], y[:, None])

    def theirs():
        parts = zip(x[:, None], y[:, None], strict=True)
        return [torch.autograd.grad(loss(params, a, b), params.values()) for a, b in parts]

    for mine, other in zip(ours().values(), zip(*theirs(), strict=True), strict=True):
        assert torch.allclose(mine, torch.stack(other), atol=1e-5)
    what = f"gradients of 32 inputs, GRU, hidden {HIDDEN}, N = {N}"
    return {"what": what, "beside": "a pass an input", **interleaved(ours, theirs, repeats=repeats)}


def early_exit(batch: int, hidden: int, repeats: int) -> dict:
    "Prediction in which halted rows leave the batch, beside all N steps and a choice afterwards."
    torch.manual_seed(0)
    net = PonderNet(RecurrentStep(16, hidden, 10, lambda_init=1 / 3), N).eval()
    nn.init.normal_(net.step.heads.linear.weight[-1], std=0.3)
    x = torch.randn(batch, 16)
    with torch.inference_mode():
        logits = net(x).logits
        shift = torch.linspace(-4, 4, 81)
        means = torch.stack(
            [halting_steps(logits + s, rule="threshold").float().mean() for s in shift]
        )
        net.step.heads.linear.bias[-1] += shift[(means - 3).abs().argmin()]

    @torch.inference_mode()
    def all_steps():
        out = net(x)
        steps = halting_steps(out.logits, rule="threshold")
        return out.outputs[steps - 1, torch.arange(batch)], steps

    def exiting():
        return net.predict(x, rule="threshold")

    (wanted, wanted_steps), got = all_steps(), exiting()
    same = got.steps == wanted_steps
    assert same.float().mean() > 0.999 and torch.allclose(got.output[same], wanted[same], atol=1e-5)
    mean = got.steps.float().mean()
    what = f"inference, batch {batch}, hidden {hidden}, {mean:.1f} of {N} steps on average"
    return {"what": what, "beside": "all steps", **interleaved(exiting, all_steps, repeats=repeats)}


def main() -> None:
    torch.set_num_threads(1)
    rows = [training(), *(beside_plain(kind, 41) for kind in STEPS)]
    rows += [padded(41), each_gradient(21)]
    for batch, hidden, repeats in (
        (4096, 64, 31),
        (4096, 256, 11),
        (512, 256, 41),
        (128, 64, 201),
        (32, 64, 301),
        (8, 64, 301),
        (1, 64, 301),
    ):
        rows.append(early_exit(batch, hidden, repeats))
    print(save("pondernet", f"labml-nn {importlib.metadata.version('labml-nn')}", rows))


if __name__ == "__main__":
    main()
