"""SIRE: what a regularized step costs, and its networks for sets beside those of torch-geometric.

The cost: a training step with one pair (prefix, both orders, backward pass) beside the plain step
of the same network, and SIRE beside the same thing written out, a cell in a loop over time and the
two orders one after the other. No package offers the regularizer. Then the same step on rows of
different lengths, padded and packed, with two layers, and beside what one would do instead: nine
pairs, the loss on outputs, the Set Transformer. The networks: the same sets, widths and numbers of
blocks, forward and backward; torch-geometric takes all elements in one long list with the number of
their set.

Run with `make bench`, or: .venv-bench/bin/python benchmarks/sire.py
"""

import importlib.metadata
from collections.abc import Callable

import torch
import torch.nn.functional as F
from compare import interleaved, save
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from ponderlearn._nested import mlp
from ponderlearn.architectures.sire import (
    AggregationRNN,
    DeepSets,
    SetRNN,
    SetTransformer,
    output_invariance_loss,
    permutation_gap,
    sire_loss,
)

B, T, D, H = 200, 64, 8, 32
LAYERS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN, "AggregationRNN": AggregationRNN}


def problem(kind: str, b: int = B, t: int = T) -> tuple[SetRNN, torch.Tensor, torch.Tensor]:
    "A network, b sequences of t elements, and targets."
    torch.manual_seed(0)
    layer = (
        AggregationRNN(D, H) if kind == "AggregationRNN" else LAYERS[kind](D, H, batch_first=True)
    )
    return SetRNN(layer, nn.Linear(H, 1)), torch.randn(b, t, D), torch.randn(b, 1)


def step_of(net: nn.Module, loss: Callable) -> Callable:
    "One update: loss, backward pass, Adam."
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def cost(kind: str, repeats: int, b: int = B, t: int = T, detach_prefix: bool = False) -> dict:
    "The regularized step beside the plain one, averaged over many random places of the pairs."
    net, x, y = problem(kind, b, t)
    generator = torch.Generator().manual_seed(0)
    plain = step_of(net, lambda: F.mse_loss(net(x), y))
    choices = {"detach_prefix": detach_prefix, "generator": generator}
    regularized = step_of(
        net, lambda: F.mse_loss(net(x), y) + 0.1 * sire_loss(net.rnn, x, **choices)
    )
    end = ", detached prefix" if detach_prefix else ""
    return {
        "what": f"training step, {kind}, {b} sequences of {t}, one pair{end}",
        "beside": "the plain step",
        **interleaved(regularized, plain, repeats=repeats, warmup=60),
    }


def users(repeats: int) -> list[dict]:
    "What a network of one's own asks for: layers, lengths, packed sequences, and the rivals."
    torch.manual_seed(0)
    two = SetRNN(nn.GRU(D, H, 2, batch_first=True), nn.Linear(H, 1))
    net, x, y = problem("GRU")
    lengths = torch.arange(B) % T + 1
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)

    def step(net, data, penalty, **more):
        return step_of(net, lambda: F.mse_loss(net(data, **more), y) + 0.1 * penalty())

    def none():
        return 0.0

    def sire(net=net, data=x, **more):
        return lambda: sire_loss(net.rnn, data, **more)

    one_pair = step(net, x, sire())
    padded = step(net, x, sire(lengths=lengths), lengths=lengths)
    outputs = step(net, x, lambda: output_invariance_loss(net, x))
    sides = {
        ("two layers", "the plain step"): (step(two, x, sire(two)), step(two, x, none)),
        ("rows of 1 to 64", "the plain step"): (padded, step(net, x, none, lengths=lengths)),
        ("rows of 1 to 64, packed", "the same, padded"): (
            step(net, packed, sire(data=packed)),
            padded,
        ),
        ("one pair", "nine pairs"): (one_pair, step(net, x, sire(n_pairs=9))),
        ("one pair", "the loss on outputs"): (one_pair, outputs),
    }
    return [
        {
            "what": f"training step, GRU, {what}",
            "beside": beside,
            **interleaved(ours, theirs, repeats=repeats, warmup=20),
        }
        for (what, beside), (ours, theirs) in sides.items()
    ]


def small_sets(repeats: int) -> dict:
    "The network of the range, with SIRE, beside the Set Transformer there."
    torch.manual_seed(0)
    x, y = torch.randn(100, 10, 1), torch.randn(100, 1)
    net, rival = SetRNN(AggregationRNN(1, 16), nn.Linear(16, 1)), SetTransformer(1, 16, 1)
    ours = step_of(net, lambda: F.mse_loss(net(x), y) + 0.1 * sire_loss(net.rnn, x))
    theirs = step_of(rival, lambda: F.mse_loss(rival(x), y))
    return {
        "what": "training step, range of 10 numbers, RNN + SIRE",
        "beside": "our Set Transformer",
        **interleaved(ours, theirs, repeats=repeats, warmup=20),
    }


def gap_with_lengths(repeats: int) -> dict:
    "The permutation gap of 50 rows of different lengths, in one call and row by row."
    net, x, _ = problem("GRU", 50)
    lengths = torch.arange(50) + 15

    def rows():
        for row, n in zip(x, lengths, strict=True):
            permutation_gap(net, row[None, :n])

    return {
        "what": "permutation gap, GRU, 50 rows of 15 to 64, 16 orders",
        "beside": "row by row",
        **interleaved(lambda: permutation_gap(net, x, lengths=lengths), rows, repeats=repeats),
    }


def written_out(repeats: int) -> dict:
    "SIRE's GRU step beside a loop over GRUCell, at the same middle place."
    net, x, _ = problem("GRU")
    cell = nn.GRUCell(D, H)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in net.rnn.state_dict().items()})
    k = T // 2
    middle = x[:, : k + 2]

    def run(elements: list[torch.Tensor], state: torch.Tensor) -> torch.Tensor:
        for element in elements:
            state = cell(element, state)
        return state

    def loop():
        zero = x.new_zeros(B, H)
        s = run(list(middle[:, :k].unbind(1)), zero)
        a, b = middle[:, k], middle[:, k + 1]
        gap = (run([a, b], s) - run([b, a], s)).square().sum(1).mean()
        gap.backward()
        return gap.detach()

    def fused():
        state = net.rnn(middle[:, :k])[1]
        pair = middle[:, k:]
        first, second = (net.rnn(p, state)[1][0] for p in (pair, pair.flip(1)))
        gap = (first - second).square().sum(1).mean()
        gap.backward()
        return gap.detach()

    assert torch.allclose(loop(), fused(), rtol=1e-4)
    return {
        "what": "SIRE alone, GRU, prefix of 32",
        "beside": "a loop over cells",
        **interleaved(fused, loop, repeats=repeats),
    }


def networks(repeats: int) -> list[dict]:
    "DeepSets, the Set Transformer and an LSTM beside torch-geometric's, forward and backward."
    from torch_geometric.nn.aggr import (
        DeepSetsAggregation,
        LSTMAggregation,
        SetTransformerAggregation,
    )

    torch.manual_seed(0)
    x, index = torch.randn(B, T, H), torch.arange(B).repeat_interleave(T)
    flat, sets = x.flatten(0, 1), DeepSets(H, H, H)
    their_sets = DeepSetsAggregation(mlp(H, H, H), mlp(H, H, H))
    their_sets.local_nn.load_state_dict(sets.phi.state_dict())
    their_sets.global_nn.load_state_dict(sets.rho.state_dict())
    lstm = SetRNN(nn.LSTM(H, H, batch_first=True), nn.Identity())
    their_lstm = LSTMAggregation(H, H)
    their_lstm.lstm.load_state_dict(lstm.rnn.state_dict())
    attention = SetTransformer(H, H, H)
    their_attention = SetTransformerAggregation(
        H, num_encoder_blocks=2, num_decoder_blocks=0, heads=4, layer_norm=True
    )
    with torch.no_grad():
        assert torch.allclose(sets(x), their_sets(flat, index), atol=1e-3)
        assert torch.allclose(lstm(x), their_lstm(flat, index), atol=1e-4)
    rows = []
    for name, ours, theirs in (
        ("DeepSets", sets, their_sets),
        ("LSTM", lstm, their_lstm),
        ("Set Transformer", attention, their_attention),
    ):
        measured = interleaved(
            lambda m=ours: m(x).sum().backward(),
            lambda m=theirs: m(flat, index).sum().backward(),
            repeats=repeats,
        )
        rows.append(
            {"what": f"{name}, forward and backward", "beside": "torch-geometric", **measured}
        )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    rows = [cost(kind, 201) for kind in LAYERS]
    rows += [cost("LSTM", 201, 100, 50), cost("LSTM", 201, detach_prefix=True)]
    rows += [*users(101), small_sets(201), gap_with_lengths(41)]
    rows += [written_out(101), *networks(61)]
    print(save("sire", f"torch-geometric {importlib.metadata.version('torch-geometric')}", rows))


if __name__ == "__main__":
    main()
