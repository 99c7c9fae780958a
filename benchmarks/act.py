"""ACT beside the package pytorch-adaptive-computation-time, at an equal number of executed updates.

The package counts the current halting value twice in its stopping test, so at equal halting values
it stops earlier. Here the number of updates of each row is prescribed instead, and checked: one
unit of the state copies an input number, which stays the same at all ponder steps, and the halting
unit reads that unit alone. Both sides run one GRU with the same weights.

Run with `make bench`, or: python benchmarks/act.py
"""

import importlib.metadata

import torch
from compare import interleaved, save
from pytorch_adaptive_computation_time import AdaptiveGRU
from torch import nn

from ponderlearn.adaptive.act import ACTRNN, ACTCell, ponder_cost

SIZE, HIDDEN, LIMIT = 64, 128, 100


def pair() -> tuple[nn.Module, nn.Module]:
    """Our network and the peer's around one GRU cell whose unit 0 holds tanh(3 x_0), read by both
    halting units."""
    torch.manual_seed(0)
    peer = AdaptiveGRU(SIZE, HIDDEN, 1, time_penalty=0.01, time_limit=LIMIT, batch_first=True)
    wrapped = peer._layer_cells[0]
    cell = wrapped._cell
    with torch.no_grad():
        for gate in (HIDDEN, 2 * HIDDEN):  # update gate and candidate of unit 0
            cell.weight_ih[gate] = cell.weight_hh[gate] = 0
            cell.bias_ih[gate] = cell.bias_hh[gate] = 0
        cell.bias_ih[HIDDEN] = -50  # keep nothing of the old value
        cell.weight_ih[2 * HIDDEN, 0] = 3
    ours = ACTCell(cell, max_steps=LIMIT)
    for unit in (ours.halting, wrapped._halting_unit[0]):
        nn.init.zeros_(unit.weight), nn.init.zeros_(unit.bias)
        unit.weight.data[0, 0] = 6.0
    return ACTRNN(ours), peer


def prescribed(x: torch.Tensor, steps: torch.Tensor, spare: float) -> torch.Tensor:
    "`x` with column 0 set so that the halting value of each row is 0.99 / (steps + spare)."
    h = (0.99 / (steps + spare)).clamp(max=0.995)
    x = x.clone()
    x[..., 0] = torch.atanh(torch.logit(h) / 6.0) / 3
    return x


def measure(what: str, steps: torch.Tensor, train: bool, repeats: int) -> dict:
    """Time both sides on rows that take `steps` (B, T) updates; check that they do, and that the
    states agree in size."""
    ours, peer = pair()
    x = torch.randn(*steps.shape, SIZE)
    mine, theirs = prescribed(x, steps, -0.5), prescribed(x, steps, 0.5)
    taken = [peer._layer_cells[0](theirs[:, t])[2][:, 0] for t in range(steps.shape[1])]
    assert torch.equal(ours(mine).final.steps, steps) and torch.equal(
        torch.stack(taken, 1), steps.float()
    )

    def run_ours():
        output, final = ours(mine)
        if train:
            (output.sum() + 0.01 * ponder_cost(final.steps, final.remainder)).backward()

    def run_peer():
        output, _, cost = peer(theirs)
        if train:
            (output.sum() + cost).backward()

    with torch.set_grad_enabled(train):
        row = interleaved(run_ours, run_peer, repeats=repeats)
    return {"what": what, "updates": int(steps.sum()), **row}


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for n in (2, 6, 19):
        what, steps = f"training, batch 128, 1 input, {n} updates each", torch.full((128, 1), n)
        rows.append(measure(what, steps, True, 1201 // n))
    rows.append(
        measure("training, batch 32, 10 inputs, 4 updates each", torch.full((32, 10), 4), True, 101)
    )
    g = torch.Generator().manual_seed(0)
    for batch, p in ((256, 0.4), (256, 0.2), (1024, 0.3)):
        steps = (torch.empty(batch, 1).geometric_(p, generator=g)).clamp(max=30).long()
        mean, most = steps.double().mean(), steps.max()
        what = f"inference, batch {batch}, {mean:.1f} updates on average, {most} at most"
        rows.append(measure(what, steps, False, 101))
    version = importlib.metadata.version("pytorch-adaptive-computation-time")
    print(save("act", f"pytorch-adaptive-computation-time {version}", rows))


if __name__ == "__main__":
    main()
