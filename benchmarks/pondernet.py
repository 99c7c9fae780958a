"""PonderNet: a training step beside labml-nn's, and early exit beside running all steps.

Training: the same GRU (batch 128, hidden 64, N = 20) on parity, the same loss and optimizer. Of
labml-nn only the one file with PonderNet is loaded, as its package needs much else. Its KL has the
arguments the other way round and a prior that is not normalized; the work is the same. Early exit:
N = 20 and 3 steps on average; the outputs of both sides are compared at equal halting steps.

Run with `make bench`, or: python benchmarks/pondernet.py
"""

import importlib.metadata
import importlib.util
from types import ModuleType

import torch
import torch.nn.functional as F
from compare import interleaved, save
from torch import nn

from ponderlearn.adaptive.act import parity
from ponderlearn.adaptive.pondernet import GRUStep, PonderNet, halting_steps, ponder_loss

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
    ours = PonderNet(GRUStep(BITS, HIDDEN, 1), N)
    ours_optimizer = torch.optim.Adam(ours.parameters(), lr=1e-4)
    peer = labml()
    theirs = peer.ParityPonderGRU(BITS, HIDDEN, N)
    reconstruction = peer.ReconstructionLoss(nn.BCEWithLogitsLoss(reduction="none"))
    regularization = peer.RegularizationLoss(0.2, N)
    theirs_optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-4)

    def run_ours():
        out = ours(x)
        losses = F.binary_cross_entropy_with_logits(
            out.outputs.squeeze(-1), y.expand(N, -1), reduction="none"
        )
        ours_optimizer.zero_grad()
        ponder_loss(losses, out.logits, 0.2, 0.01, log_p=out.log_p).loss.backward()
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


def early_exit(batch: int, hidden: int, repeats: int) -> dict:
    "Prediction in which halted rows leave the batch, beside all N steps and a choice afterwards."
    torch.manual_seed(0)
    net = PonderNet(GRUStep(16, hidden, 10, lambda_init=1 / 3), N).eval()
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
    rows = [training()]
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
