import tempfile
from pathlib import Path

import torch
from mistakes import Call, ok, words
from torch import nn

from ponderlearn import training
from ponderlearn.data import NoisyTask, noisy_digits

RETURNS = "returns nothing", "returns a row less", "returns a list"
PATH = Path(tempfile.mkdtemp()) / "state.pt"


def small_task():
    "A hundred digits or so in each part."
    return NoisyTask(*(part[:150] for part in noisy_digits(0.4)))


def batches(step, generator):
    x = torch.randn(4, 2, generator=generator, device=generator.device)
    return x, x.sum(1, keepdim=True)


def loss_fn(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def fit():
    return Call(
        training.fit,
        model=ok(nn.Linear(2, 1), *RETURNS),  # what comes of it is the loss function's affair,
        loss_fn=loss_fn,
        batches=ok(batches, *RETURNS),
        steps=2,
        optimizer=torch.optim.SGD,
        lr=ok(0.1, 0, 1.5, 10**30),
        seed=ok(1, 0),
        schedule="cosine",
        clip=ok(1.0, 1.5, 10**30),
        evaluate=lambda model, step: {"size": model.weight.norm()},
        eval_every=1,
        stop=lambda row: False,
        bar=False,
        device=torch.device("cpu"),
    ).then(lambda history: [[row["loss"], row.get("size")] for row in history.rows])


def load_checkpoint():
    training.save_checkpoint(PATH, weight=torch.ones(3), step=2)
    return Call(training.load_checkpoint, path=PATH, device=torch.device("cpu"))


def save_checkpoint():
    state = dict(weight=ok(torch.ones(3), "width"), step=2)
    return Call(training.save_checkpoint, path=PATH, **state)


def run(seed, width):
    return {"score": float(seed + width)}


def sweep():
    return Call(
        training.sweep,
        run=ok(run, "returns nothing"),
        seeds=ok(2, "list"),
        grid={"width": [1, 2]},
        n_jobs=ok(1, -1, 0),  # as many as there are cores
        bar=False,
        on_error="raise",
    ).then(scores)


def table():
    return training.sweep(run, 2, {"width": [1, 2]}, n_jobs=1, bar=False)


def scores(frame):
    return frame["score"].tolist()


def history():
    return training.History([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])


def noisy_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def fit_noisy():
    return Call(
        training.fit_noisy,
        model=ok(nn.Linear(2, 3), *RETURNS),
        x=ok(torch.rand(6, 2), "width"),  # the model is any network
        labels=ok(torch.arange(6) % 3, "width"),
        seed=ok(1, 0),
        epochs=2,
        drops=ok((1,), "entry less", "empty"),
        batch_size=3,
        loss_fn=ok(noisy_loss, *RETURNS),
        evaluate=lambda model, step: {"size": model.weight.norm()},
        stop=lambda row: False,
    ).then(lambda history: [row["loss"] for row in history.rows])


def constant(task, seed):
    return nn.Linear(task.x.shape[1], 10)


def feature_network():
    images = torch.rand(9, 1, 5, 5)
    return Call(
        training.feature_network,
        images=ok(images, "width", "axes swapped", "meta"),
        labels=ok(torch.arange(9) % 3, "entry past the end"),
        n_features=4,
        steps=2,
        seed=ok(1, 0),
    ).then(lambda network: network.out.weight.shape)


def small_network():
    return training.feature_network(torch.rand(9, 1, 5, 5), torch.arange(9) % 3, steps=1)


EXAMPLES = {
    "seeded": lambda: Call(
        training.seeded, seed=ok(1, 0), step=ok(2, 0), device=torch.device("cpu")
    ).then(lambda generator: torch.rand(3, generator=generator, device="cpu")),
    "progress": lambda: Call(
        training.progress,
        total=ok(3, 0),
        unit=words("run"),
        bar=False,
        initial=ok(1, 0),
    ),
    "save_checkpoint": save_checkpoint,
    "load_checkpoint": load_checkpoint,
    "one_cycle": lambda: Call(training.one_cycle, steps=10, warmup=ok(0.2, 0, 1)).then(
        lambda factor: [factor(step) for step in range(1, 11)]
    ),
    "fit": fit,
    "sweep": sweep,
    "rows_of": lambda: Call(training.rows_of, table=table(), width=ok(2, 1, True)).then(scores),
    "curves": lambda: Call(
        training.curves, histories=ok([history(), history()], "entry less"), column="loss"
    ),
    "noisy_network": lambda: Call(
        training.noisy_network, input_size=2, output_size=3, seed=ok(1, 0)
    ),
    "fit_noisy": fit_noisy,
    "stopped_early": lambda: Call(
        training.stopped_early, task=small_task(), seed=ok(3, 0, 1), epochs=1
    ),
    "without_suspects": lambda: Call(
        training.without_suspects, task=small_task(), seed=ok(3, 0, 1), epochs=1, aum_epochs=2
    ),
    "label_noise_errors": lambda: Call(
        training.label_noise_errors,
        remedies={"constant": constant},
        rates=ok((0.5,), "entry less"),
        seeds=ok(2, "list"),
        kind="next",
        make_task=ok(noisy_digits, *RETURNS),
        n_jobs=ok(1, -1, 0),
    ).then(lambda frame: frame.test_error.tolist()),
    "feature_network": feature_network,
    "FeatureNetwork.forward": lambda: Call(
        small_network(), x=ok(torch.rand(2, 1, 5, 5), "width", "axes swapped")
    ),
    "FeatureNetwork.features": lambda: Call(
        small_network().features, x=ok(torch.rand(2, 1, 5, 5), "width", "axes swapped")
    ),
}
WITHOUT = {"FeatureNetwork": "made by feature_network", "History": "made by fit, not by hand"}
ALLOWED = {}
