import torch
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.adaptive import act

x, rows = lambda: torch.randn(3, 2), lambda: torch.rand(3)
real = lambda: torch.tensor([[True] * 4, [True] * 4, [True, True, False, False]])
generator = lambda: torch.Generator().manual_seed(1)


def cell(**more):
    return act.ACTCell(nn.GRUCell(3, 5), max_steps=4, halting_bias=-1.0, **more)


def act_cell():
    one = x()
    return Call(
        act.ACTCell,
        cell=nn.RNNCell(3, 5),
        hidden_size=5,
        epsilon=ok(0.05, 0),
        max_steps=4,
        halting_bias=ok(-1.0, -1, 0, 1.5, 10**30),
        flag=True,
        halting_input=lambda state: state,
        compact=True,
        return_weights=False,
    ).then(lambda made: made(one))


def repeat_cell():
    one = x()
    return Call(act.RepeatCell, cell=nn.RNNCell(3, 5), n_steps=2, flag=True).then(
        lambda made: made(one)
    )


def lstm_forward():
    state = torch.rand(3, 5), torch.rand(3, 5)
    return Call(act.ACTCell(nn.LSTMCell(3, 5), max_steps=3), input=x(), state=state)


def act_rnn():
    one = torch.randn(3, 4, 2)
    return Call(act.ACTRNN, cell=cell(), output=lambda state: state).then(lambda made: made(one))


EXAMPLES = {
    "act_weights": lambda: Call(
        act.act_weights,
        halting=free(torch.rand(4, 3)),
        dim=ok(0, 0, -1),
        epsilon=ok(0.1, 0),
        max_steps=3,
    ),
    "ponder_cost": lambda: Call(
        act.ponder_cost,
        steps=ok(torch.randint(1, 4, (3, 4)), "entry -1", "entry past the end"),
        remainder=torch.rand(3, 4),
        mask=real(),
        reduction="mean",
    ),
    "ACTCell": act_cell,
    "ACTCell.forward": lambda: Call(cell(), input=x(), state=torch.rand(3, 5)),
    "ACTCell.forward, LSTM": lstm_forward,
    "ACTCell.make": lambda: Call(
        act.ACTCell.make, cell_type=nn.GRUCell, input_size=2, hidden_size=5, max_steps=3
    ),
    "RepeatCell": repeat_cell,
    "RepeatCell.forward": lambda: Call(
        act.RepeatCell(nn.GRUCell(3, 5), 2), input=x(), state=torch.rand(3, 5)
    ),
    "RepeatCell.unroll": lambda: Call(
        act.RepeatCell(nn.GRUCell(3, 5), 2).unroll, input=x(), state=torch.rand(3, 5)
    ),
    "ACTRNN": act_rnn,
    "ACTRNN.forward": lambda: Call(
        act.ACTRNN(cell()), x=torch.randn(3, 4, 2), state=torch.rand(3, 5), mask=real()
    ),
    "ACTRNN.forward, lengths": lambda: Call(
        act.ACTRNN(cell()),
        x=torch.randn(3, 4, 2),
        state=torch.rand(3, 5),
        lengths=torch.tensor([4, 2, 1]),
    ),
    "ACTRNN.forward, no look": lambda: Call(
        act.ACTRNN(cell(compact=False)), x=torch.randn(3, 4, 2), mask=real()
    ),
    "parity": lambda: Call(
        act.parity,
        batch_size=3,
        n_bits=6,
        min_bits=2,
        max_bits=4,
        generator=generator(),
        device=torch.device("cpu"),
    ),
    "addition": lambda: Call(
        act.addition,
        batch_size=3,
        min_length=2,
        max_length=4,
        max_digits=2,
        msd_first=True,
        generator=generator(),
        device=torch.device("cpu"),
    ),
    "sequence_error_rate": lambda: Call(
        act.sequence_error_rate,
        prediction=ok(torch.eye(3, 4).long(), "entry -1", "entry past the end"),
        target=ok(torch.zeros(3, 4).long(), "entry -1", "entry past the end"),
        mask=real(),
    ),
}
ALLOWED = {}
