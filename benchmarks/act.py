"""ACT beside the package pytorch-adaptive-computation-time, at an equal number of executed updates,
and beside a careful plain loop.

The package counts the current halting value twice in its stopping test, so at equal halting values
it stops earlier. Here the number of updates of each row is prescribed instead, and checked: one
unit of the state copies an input number, which stays the same at all ponder steps, and the halting
unit reads that unit alone. Both sides run one GRU with the same weights. The plain loop runs our
layer's own cell and halting unit, so both sides take the same steps; that is checked too.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/act.py
"""

import importlib.metadata

import torch
from compare import interleaved, save
from pytorch_adaptive_computation_time import AdaptiveGRU
from torch import nn

from ponderlearn.adaptive.act import ACTRNN, ACTCell, RepeatCell, ponder_cost

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
    return {"what": what, "beside": "package", "updates": int(steps.sum()), **row}


def plain(layer: ACTCell, x: torch.Tensor, mask: torch.Tensor):
    """Outputs, steps and remainders: the formulas written out with masks around torch's own cell.
    It stops when all rows have; padded steps are computed and thrown away."""
    outputs, steps, remainders = [], [], []
    state = (x.new_zeros(len(x), HIDDEN),) * (2 if isinstance(layer.cell, nn.LSTMCell) else 1)
    flags = [x.new_full((len(x), 1), value) for value in (1.0, 0.0)]
    for t, now in enumerate(x.unbind(1)):
        start, mean, n = state, (0.0,) * len(state), 0
        left, total = x.new_ones(len(x), 1), x.new_zeros(len(x), 1)
        live, count = left > 0, total.long()
        while bool(live.any()):
            n += 1
            flagged = torch.cat([now, flags[n > 1]], 1)
            state = layer.cell(flagged, state if len(state) > 1 else state[0])
            state = state if isinstance(state, tuple) else (state,)
            h = layer.halting(state[0]).sigmoid()
            total, count = total + h.detach(), count + live
            stop = live & ((total >= 1 - layer.epsilon) | (n == layer.max_steps))
            w = torch.where(stop, left, h) * live
            left = torch.where(live & ~stop, left - h, left)
            mean = tuple(m + w * s for m, s in zip(mean, state, strict=True))
            live = live & ~stop
        real = mask[:, t, None]
        state = tuple(torch.where(real, m, s) for m, s in zip(mean, start, strict=True))
        outputs.append(state[0])
        steps.append(count * real)
        remainders.append(left * real)
    return torch.stack(outputs, 1), torch.cat(steps, 1), torch.cat(remainders, 1)


def beside_plain(kind, shape: tuple, train: bool, bias: float, repeats: int, **more) -> dict:
    "Our layer and the plain loop on sequences (B, T); with `padded` they have 1 to T real steps."
    torch.manual_seed(0)
    batch, length = shape
    layer = ACTCell.make(kind, SIZE, HIDDEN, halting_bias=bias, max_steps=20)
    nn.init.normal_(layer.halting.weight, std=0.3)
    rnn, x = ACTRNN(layer), torch.randn(batch, length, SIZE)
    lengths = torch.full((batch,), length)
    if more.get("padded"):
        lengths = torch.randint(1, length + 1, (batch,))
    mask = torch.arange(length) < lengths[:, None]
    ours, (outputs, steps, _) = rnn(x, mask=mask), plain(layer, x, mask)
    assert torch.equal(ours.final.steps, steps) and torch.allclose(ours.output, outputs, atol=1e-4)

    def run_ours():
        output, final = rnn(x, mask=mask)
        if train:
            cost = ponder_cost(final.steps, final.remainder, mask=mask)
            (output.sum() + 0.01 * cost).backward()

    def run_plain():
        output, count, remainder = plain(layer, x, mask)
        if train:
            (output.sum() + 0.01 * ponder_cost(count, remainder, mask=mask)).backward()

    with torch.set_grad_enabled(train):
        row = interleaved(run_ours, run_plain, repeats=repeats)
    name, taken = kind.__name__.removesuffix("Cell"), steps[mask].double()
    what = f"{'training' if train else 'inference'}, {name}, batch {batch}, "
    what += f"{length} input{'s' * (length > 1)}{', padded' * bool(more)}, "
    what += f"{taken.mean():.1f} updates on average, {int(taken.max())} at most"
    return {"what": what, "beside": "plain loop", "updates": int(steps.sum()), **row}


def without_a_look(repeats: int) -> dict:
    "`compact=False`, which can be compiled and exported, beside the default; both not compiled."
    torch.manual_seed(0)
    layer = ACTCell.make(nn.GRUCell, SIZE, HIDDEN, halting_bias=-1.0, max_steps=8)
    whole = ACTCell(layer.cell, max_steps=8, compact=False)
    whole.load_state_dict(layer.state_dict())
    x = torch.randn(128, SIZE)
    assert torch.equal(whole(x).steps, layer(x).steps)
    with torch.no_grad():
        row = interleaved(lambda: whole(x), lambda: layer(x), repeats=repeats)
    what = f"inference, batch 128, compact=False, always 8 updates (needed: {layer(x).steps.max()})"
    return {"what": what, "beside": "compact=True", "updates": 8 * 128, **row}


def beside_fixed(n: int, repeats: int) -> dict:
    "One training update of the chapter's parity network: ACT beside `n` updates for every input."
    torch.manual_seed(0)
    layer = ACTCell.make(nn.RNNCell, 8, HIDDEN, halting_bias=-0.3, max_steps=20)
    nn.init.normal_(layer.halting.weight, std=0.5)
    act, fixed = ACTRNN(layer), ACTRNN(RepeatCell(layer.cell, n))
    x = torch.randint(-1, 2, (128, 1, 8)).float()

    def run_act():
        output, final = act(x)
        (output.sum() + 0.01 * ponder_cost(final.steps, final.remainder)).backward()

    row = interleaved(run_act, lambda: fixed(x).output.sum().backward(), repeats=repeats)
    steps = act(x).final.steps
    what = f"training, RNN, batch 128, 1 input, {steps.double().mean():.1f} updates on average, "
    what += f"{steps.max()} at most"
    return {"what": what, "beside": f"always {n}", "updates": int(steps.sum()), **row}


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
    for kind, shape, train, bias, more in (
        (nn.GRUCell, (128, 1), True, -1.0, {}),
        (nn.GRUCell, (32, 10), True, -1.0, {}),
        (nn.LSTMCell, (32, 10), True, -1.0, {}),
        (nn.LSTMCell, (32, 10), True, -1.0, {"padded": True}),
        (nn.GRUCell, (256, 1), False, -2.0, {}),
        (nn.LSTMCell, (1024, 1), False, -2.0, {}),
    ):
        rows.append(beside_plain(kind, shape, train, bias, 101, **more))
    rows.append(without_a_look(101))
    rows += [beside_fixed(n, 301) for n in (2, 5)]
    version = importlib.metadata.version("pytorch-adaptive-computation-time")
    print(save("act", f"pytorch-adaptive-computation-time {version}", rows))


if __name__ == "__main__":
    main()
