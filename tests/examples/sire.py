import torch
from mistakes import Call, ok
from torch import nn

from ponderlearn.architectures import sire


def generator():
    return torch.Generator().manual_seed(1)


def x():
    return torch.randn(5, 4, 2)  # (B, T, d)


def lengths():
    return torch.tensor([4, 3, 4, 2, 1])


def groups():
    return ok(torch.tensor([0, 0, 1, 1]), "entry -1", "entry past the end")  # any labels


def net():
    return sire.SetRNN(nn.GRU(2, 3, batch_first=True), nn.Linear(3, 2))


def made(cls, example, **arguments):
    "A constructor, used once."
    return Call(cls, **arguments).then(lambda module: module(example))


EXAMPLES = {
    "commutator": lambda: Call(
        sire.commutator,
        step=nn.GRUCell(2, 3),
        state=ok(torch.rand(5, 3), None),
        x1=torch.rand(5, 2),
        x2=torch.rand(5, 2),
    ),
    "commutator, LSTM": lambda: Call(
        sire.commutator,
        step=nn.LSTMCell(2, 3),
        state=ok((torch.rand(5, 3), torch.rand(5, 3)), None),
        x1=torch.rand(5, 2),
        x2=torch.rand(5, 2),
    ),
    "commutator, a function": lambda: Call(
        sire.commutator,
        step=lambda x, state: torch.tanh(x if state is None else 0.5 * state + x),
        state=ok(torch.rand(5, 2), None),
        x1=torch.rand(5, 2),
        x2=torch.rand(5, 2),
    ),
    "shuffle_within": lambda: Call(
        sire.shuffle_within,
        x=ok(x(), "width", "meta"),  # groups and lengths may stay on the CPU
        groups=groups(),
        lengths=lengths(),
        generator=generator(),
    ),
    "sire_loss": lambda: Call(
        sire.sire_loss,
        rnn=nn.GRU(2, 3, batch_first=True),
        x=x(),
        lengths=lengths(),
        groups=groups(),
        shuffle=True,
        n_pairs=2,
        detach_prefix=True,
        reduction="mean",
        generator=generator(),
    ),
    "output_invariance_loss": lambda: Call(
        sire.output_invariance_loss,
        model=net(),
        x=x(),
        lengths=lengths(),
        kind="transposition",
        groups=groups(),
        reduction="mean",
        generator=generator(),
    ),
    "permutation_gap": lambda: Call(
        sire.permutation_gap,
        model=net(),
        x=x(),
        n_orders=3,
        lengths=lengths(),
        groups=groups(),
        generator=generator(),
    ),
    "AggregationRNN": lambda: made(
        sire.AggregationRNN,
        x(),
        input_size=2,
        hidden_size=3,
        aggregation_size=4,
        residual=True,
    ),
    "AggregationRNN.forward": lambda: Call(
        sire.AggregationRNN(2, 3), x=x(), state=torch.rand(1, 5, 3)
    ),
    "SetRNN": lambda: made(
        sire.SetRNN,
        x(),
        rnn=nn.GRU(4, 3, batch_first=True),
        readout=nn.Linear(3, 2),
        embed=nn.Linear(2, 4),
    ),
    "SetRNN.forward": lambda: Call(net(), x=x(), lengths=lengths()),
    "DeepSets": lambda: made(
        sire.DeepSets, x(), input_size=2, hidden_size=3, output_size=1, pool="mean"
    ),
    "DeepSets.forward": lambda: Call(sire.DeepSets(2, 3, 1), x=x(), lengths=lengths()),
    "SetTransformer": lambda: made(
        sire.SetTransformer,
        x(),
        input_size=2,
        embed_dim=4,
        output_size=1,
        num_heads=2,
        n_inducing=3,
    ),
    "SetTransformer.forward": lambda: Call(
        sire.SetTransformer(2, 4, 1, num_heads=2), x=x(), lengths=lengths()
    ),
    "parity_deepsets": lambda: Call(sire.parity_deepsets, n_bits=4, deep=True).then(
        lambda made: made(torch.ones(2, 4, 1, device="cpu"))
    ),
    "parity_deepsets, another length": lambda: Call(
        sire.parity_deepsets(3), x=ok(torch.ones(2, 3, 1), "nan"), lengths=torch.tensor([3, 2])
    ),
    "half_range": lambda: Call(sire.half_range, values=ok(torch.rand(5, 4), "axes swapped")),
    "exchange_neighbors": lambda: Call(
        sire.exchange_neighbors,
        x=ok(torch.rand(5, 4, 2), "axes swapped", "width", "int", "bool"),
        share=ok(0.5, 0),
        generator=generator(),
    ),
}
ALLOWED = {}
