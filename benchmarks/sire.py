"""SIRE: what a regularized step costs, and its networks for sets beside those of torch-geometric.

The cost: a training step with one pair (prefix, both orders, backward pass) beside the plain step
of the same network, and SIRE beside the same thing written out, a cell in a loop over time and the
two orders one after the other. No package offers the regularizer. The networks: the same sets,
widths and numbers of blocks, forward and backward; torch-geometric takes all elements in one long
list with the number of their set.

Run with `make bench`, or: python benchmarks/sire.py
"""

import importlib.metadata
from collections.abc import Callable

import torch
import torch.nn.functional as F
from compare import interleaved, save
from torch import nn

from ponderlearn._nested import mlp
from ponderlearn.architectures.sire import (
    AggregationRNN,
    DeepSets,
    SetRNN,
    SetTransformer,
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
        end = net.rnn(torch.cat([pair, pair.flip(1)]), torch.cat([state, state], 1))[1][0]
        gap = (end[:B] - end[B:]).square().sum(1).mean()
        gap.backward()
        return gap.detach()

    assert torch.allclose(loop(), fused(), rtol=1e-4)
    return {
        "what": "SIRE alone, GRU, prefix of 32: one call for both orders",
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
    rows += [written_out(101), *networks(61)]
    print(save("sire", f"torch-geometric {importlib.metadata.version('torch-geometric')}", rows))


if __name__ == "__main__":
    main()
