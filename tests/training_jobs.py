"""What the tests of ponderlearn.training run in other processes: importable by a fork server."""

import os
import time
from pathlib import Path

import torch
from torch import nn

from ponderlearn.training import fit, save_checkpoint

STEPS = 60


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.4), nn.Tanh(), nn.Linear(16, 1)
    )


def pairs(step, generator):
    x = torch.randn(24, 3, generator=generator)
    return x, x.prod(1, keepdim=True)


def squared_error(model, batch):
    error = (model(batch[0]) - batch[1]) ** 2
    return error.mean(), {"largest": error.max()}


def squared_error_only(model, batch):
    return squared_error(model, batch)[0]


def train(folder, counter=None, slow_from=STEPS):
    "A run that saves often and says in `counter` where it is; its end goes to end.pt."
    torch.set_num_threads(1)
    watch = [counter, slow_from]  # in a list, so that it is no part of what the run is known by

    def batches(step, generator):
        if watch[0] is not None:
            watch[0].value = step
        if step > watch[1]:  # so that whoever kills is quick enough
            time.sleep(0.004)
        return pairs(step, generator)

    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    history = fit(
        model,
        squared_error,
        batches,
        steps=STEPS,
        optimizer=optimizer,
        schedule="cosine",
        clip=1.0,
        seed=5,
        evaluate=lambda m, step: {"noise": torch.rand(()).item()},
        eval_every=7,
        checkpoint=Path(folder) / "run.pt",
        bar=False,
    )
    table = history.table.drop(columns="seconds").fillna(-1.0)
    save_checkpoint(
        Path(folder) / "end.pt",
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        table=torch.tensor(table.to_numpy()),
        names=list(table.columns),
    )


class Masked(nn.Module):
    "A linear layer, one that is never used, and a frozen one."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused, self.frozen = nn.Linear(3, 4), nn.Linear(2, 2), nn.Linear(4, 1)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.frozen(self.used(x).tanh())[..., 0]


def masked_batch(step, generator):
    x = torch.randn(7, 5, 3, generator=generator)
    return {
        "x": x,
        "y": x.sum(2),
        "mask": torch.arange(5) < torch.randint(1, 6, (7, 1), generator=generator),
    }


def masked_error(model, batch):
    "A mean over rows of means over a mask, by parts of the model and not by its forward pass."
    error = (model.frozen(model.used(batch["x"]).tanh())[..., 0] - batch["y"]) ** 2
    mask = batch["mask"].to(error.dtype)
    return ((error * mask).sum(1) / mask.sum(1)).mean(), {"two": 2.0, "rows": len(mask)}


def curves(folder, rank=0, n=1, port=0):
    "Several short runs, in one process or as process `rank` of `n`; what they gave, in a file."
    torch.set_num_threads(1)
    if n > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(n),
            LOCAL_WORLD_SIZE=str(n),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    common = dict(steps=30, lr=0.05, bar=False)
    state = {}

    model = Masked()
    if rank:  # other weights and another order of drawing: the first process decides
        nn.init.zeros_(model.used.weight)
    history = fit(
        model,
        masked_error,
        masked_batch,
        clip=0.5,
        schedule="cosine",
        evaluate=lambda m, step: {"norm": m.used.weight.norm()},
        checkpoint=Path(folder) / f"{n}.pt",
        stop=lambda row: row["step"] == 25,
        **common,
    )
    state["masked"], state["unused"] = history.table, model.unused.weight.grad is None

    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    model.load_state_dict(
        {
            k: torch.full_like(v, 0.1) + torch.arange(v.numel()).view_as(v) / 9
            for k, v in model.state_dict().items()
        }
    )
    uneven = lambda step, generator: tuple(t[:23] for t in pairs(step, generator))
    state["plain"] = fit(model, squared_error_only, uneven, **common).table

    def part_of_nan(step, generator):
        x, y = pairs(step, generator)
        if step == 4:
            x[-1] = torch.nan  # in the last process' part
        return x, y

    try:
        fit(nn.Linear(3, 1), squared_error, part_of_nan, **common)
    except FloatingPointError as e:
        state["nan"] = str(e)
    try:
        fit(nn.Linear(3, 1), squared_error, lambda step, g: torch.zeros(1, 3), **common)
    except (ValueError, IndexError) as e:
        state["one row"] = str(e)
    state["weights"] = model.state_dict()
    torch.save(state, Path(folder) / f"curves-{n}-{rank}.pt")


def half_precision(folder):
    "What a passed Accelerator changes."
    from accelerate import Accelerator

    seen = []

    def loss_fn(model, batch):
        out = model(batch[0])
        seen.append(str(out.dtype))
        return (out.float() - batch[1]).square().mean()

    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    history = fit(nn.Linear(3, 1), loss_fn, pairs, steps=5, accelerator=accelerator, bar=False)
    accelerator.gradient_accumulation_steps = 2
    try:
        fit(nn.Linear(3, 1), loss_fn, pairs, steps=1, accelerator=accelerator, bar=False)
    except ValueError as e:
        text = str(e)
    state = {"dtypes": seen, "loss": history.last["loss"], "text": text}
    torch.save(state, Path(folder) / "half.pt")
