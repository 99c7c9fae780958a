"""InfoNCE beside lightly (NT-Xent and its decoupled form) and info-nce-pytorch (one way).

Forward and backward, features of width 128. Values and gradients of both sides are compared first.
lightly's package imports torchvision, which its two losses do not need: their files are loaded
without the files of the folders around them, which are not changed. Memory is what torch's
profiler says that one update holds at most.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/infonce.py
"""

import importlib.metadata
import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from compare import interleaved, peak_megabytes, save
from info_nce import info_nce

from ponderlearn.contrastive.infonce import info_nce_loss, nt_xent_loss

WIDTH = 128


def lightly_losses() -> tuple[type, type]:
    "lightly's NTXentLoss and DCLLoss."
    top = Path(importlib.util.find_spec("lightly").submodule_search_locations[0])
    for name in ("loss", "models", "models/modules"):
        module = ModuleType("lightly." + name.replace("/", "."))
        module.__path__ = [str(top / name)]
        sys.modules[module.__name__] = module
    helpers = ModuleType("lightly.models.utils")  # what a memory bank on many machines needs
    sys.modules["lightly.models"].utils = sys.modules[helpers.__name__] = helpers
    from lightly.loss.dcl_loss import DCLLoss
    from lightly.loss.ntx_ent_loss import NTXentLoss

    return NTXentLoss, DCLLoss


NTXentLoss, DCLLoss = lightly_losses()


def ours(chunk_size, **more):
    return lambda a, b: nt_xent_loss(a, b, temperature=0.5, chunk_size=chunk_size, **more)


SIDES = {
    "NT-Xent, in one piece": (ours(None), NTXentLoss(0.5)),
    "NT-Xent, chunks of 256": (ours(256), NTXentLoss(0.5)),
    "decoupled, chunks of 256": (ours(256, decoupled=True), DCLLoss(0.5)),
    "one way": (info_nce_loss, info_nce),
    "one way, 4096 negatives": (info_nce_loss, info_nce),
}
PEERS = dict.fromkeys(SIDES, "lightly") | {
    k: "info-nce-pytorch" for k in SIDES if k.startswith("one way")
}


def features(what: str, batch_size: int) -> list[torch.Tensor]:
    "Two views, and where they are wanted negatives; all get gradients but the negatives."
    g = torch.Generator().manual_seed(0)
    views = [torch.randn(batch_size, WIDTH, generator=g).requires_grad_() for _ in range(2)]
    return views + [torch.randn(4096, WIDTH, generator=g)] * what.endswith("negatives")


def update(loss, xs) -> torch.Tensor:
    for x in xs[:2]:
        x.grad = None
    value = loss(*xs)
    value.backward()
    return value.detach()


def measure(what: str, batch_size: int, repeats: int) -> dict:
    xs, sides = features(what, batch_size), SIDES[what]
    values, grads = [], []
    for loss in sides:
        values.append(update(loss, xs))
        grads.append(xs[0].grad)
    assert torch.allclose(*values, rtol=1e-5), (what, values)
    assert (grads[0] - grads[1]).norm() < 1e-4 * grads[1].norm(), what
    row = interleaved(
        lambda: update(sides[0], xs), lambda: update(sides[1], xs), repeats=repeats, warmup=2
    )
    return {"what": f"{what}, B = {batch_size}", "beside": PEERS[what], **row}


def memory(what: str, batch_size: int) -> dict:
    xs = features(what, batch_size)
    mine, theirs = (peak_megabytes(partial(update, loss, xs)) for loss in SIDES[what])
    return {
        "what": f"{what}, B = {batch_size}",
        "beside": PEERS[what],
        "ours (MB)": mine,
        "other (MB)": theirs,
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for what in SIDES:
        for batch_size, repeats in ((256, 101), (1024, 41), (2048, 21)):
            rows.append(measure(what, batch_size, repeats))
            print(rows[-1], flush=True)
    sizes = [memory(what, b) for what in list(SIDES)[:3] for b in (1024, 2048)]
    for row in sizes:
        print(row)
    names = "lightly", "info-nce-pytorch"
    peers = " and ".join(f"{n} {importlib.metadata.version(n)}" for n in names)
    save("infonce", peers, rows, memory=sizes)


if __name__ == "__main__":
    main()
