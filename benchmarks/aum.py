"""AUM beside the official package `aum`, one update of a batch.

Both get logits on the CPU, labels and the places of the examples; the package gets the places as a
list, as it wants them, made beforehand. Its records of each example are part of its update and
cannot be switched off; `compressed=True`, its default, keeps no history. That both end with the
same areas is checked first.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/aum.py
"""

import importlib.metadata
import sys
import tempfile

import torch

sys.path.append(sys.path.pop(0))  # the package before this folder, whose file is called aum too
from aum import AUMCalculator
from compare import interleaved, save

from ponderlearn.robust.aum import AUM


def measure(batch: int, n_classes: int, repeats: int, dtype: torch.dtype = torch.float32) -> dict:
    "One update of a batch that is drawn without replacement from 50 000 examples."
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, n_classes, generator=g).to(dtype)
    target = torch.randint(n_classes, (batch,), generator=g)
    indices = torch.randperm(50_000, generator=g)[:batch]
    ours, places = AUM(50_000, skip_first=0), indices.tolist()
    theirs = AUMCalculator(tempfile.gettempdir())
    for _ in range(2):
        ours.update(logits, target, indices)
        theirs.update(logits, target, places)
    want = torch.tensor([theirs.sums[i] / theirs.counts[i] for i in places])
    assert torch.allclose(ours.compute()[indices].float(), want, atol=1e-2 * (dtype.itemsize < 4))
    row = interleaved(
        lambda: ours.update(logits, target, indices),
        lambda: theirs.update(logits, target, places),
        repeats=repeats,
    )
    name = str(dtype).removeprefix("torch.")
    return {"what": f"update, batch {batch}, {n_classes} classes, {name}", **row}


def main() -> None:
    torch.set_num_threads(1)
    rows = [measure(64, 10, 501), measure(256, 10, 301), measure(256, 1000, 301)]
    rows += [measure(4096, 10, 51), measure(4096, 100, 51), measure(4096, 1000, 31)]
    print(save("aum", f"aum {importlib.metadata.version('aum')}", rows))


if __name__ == "__main__":
    main()
