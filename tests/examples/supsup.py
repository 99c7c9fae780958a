import tempfile
from pathlib import Path

import torch
from mistakes import Call, free, ok

from ponderlearn._nested import mlp
from ponderlearn.multitask import supsup as su

PATH = Path(tempfile.mkdtemp()) / "net.supsup"


def generator():
    return torch.Generator().manual_seed(1)


def bits(*shape):
    return (torch.rand(*shape) > 0.5).float()


def base():
    return mlp(4, 6, 3, bias=False)


def x(*legal):
    "Images; a network of linear layers takes a further axis."
    return ok(torch.randn(5, 4), "axis more", *legal)


def signs():
    return torch.tensor([1.0, -1, 1, 1, -1])


def net(n_tasks=3, training=False):
    "A SupSup that has learned some tasks."
    made = su.SupSup(base())
    for _ in range(n_tasks):
        made.new_task(generator=generator())
        with torch.no_grad():
            made.scores.uniform_(-1, 1)
        made.commit()
    if training:
        made.new_task()
    return made


def store():
    return net().store


def append():
    made = store()
    return Call(made.append, masks={name: bits(*s) for name, s in made.shapes.items()}).then(
        lambda _: made.total
    )


def new_task(init):
    return Call(net().new_task, init=init, n_outputs=ok(2, 10**30), generator=generator())


def remove():
    made = net()
    return Call(made.remove, task=ok(1, 0)).then(lambda _: made.store)


def settings(made):
    "What torch's load_state_dict hands on."
    return Call(made.set_extra_state, state=free(made.get_extra_state())).then(lambda _: made)


def scored():
    labels = torch.randint(3, (5,))
    earlier = su.TaskScores(0.5, 0.0, torch.tensor([0.5]))
    tasks = [(torch.randn(5, 4), labels), (torch.randn(5, 4), labels)]
    return Call(
        su.score_tasks,
        model=net(),
        tasks=ok(tasks, "entry less"),
        before=ok([earlier], "empty", "entry less"),
        chunk_size=ok(2, 10**30),
    )


def supsup():
    one = x().value
    return Call(
        su.SupSup,
        base=base(),
        density=0.5,
        absolute=True,
        seed=ok(1, 0),
        allow_extra=False,
        keep_weights=True,
    ).then(lambda made: made.run(made.weights(), one))


def saved():
    net().save(PATH)
    return Call(su.load_supsup, path=PATH, base=base(), allow_extra=False).then(
        lambda made: made.store
    )


def hopfield():
    made = su.HopfieldStore(5)
    made.append(signs())
    made.append(signs().flip(0))
    return made


def hopfield_append():
    made = su.HopfieldStore(5)
    return Call(made.append, z=signs()).then(lambda _: made)


INSIDE = [f"{what} inside" for what in ("None", "list", "rows", "width", "half")]  # for entropy_fn


def entropy(masks, batch):
    return (masks[0] * batch).sum().cos()


def recover(method):
    return Call(
        su.recover_mask,
        entropy_fn=entropy,
        stores=[hopfield()],
        batches=ok([torch.rand(5), torch.rand(5)], "entry less", "first alone", *INSIDE),
        energy_weight=ok(0.1, 0, 1.5, 10**30),
        lr=ok(0.1, 1.5, 10**30),
        momentum=ok(0.5, 0),
        method=method,
    )


EXAMPLES = {
    "signed_constant_": lambda: Call(
        su.signed_constant_,
        weight=free(torch.zeros(3, 4), "nan"),
        density=0.5,
        generator=generator(),
    ),
    "supermask": lambda: Call(
        su.supermask, scores=free(torch.randn(3, 4)), density=0.5, absolute=True
    ),
    "pack_bits": lambda: Call(su.pack_bits, mask=free(bits(3, 10))),
    "unpack_bits": lambda: Call(
        su.unpack_bits, packed=free(torch.randint(256, (3, 2)).to(torch.uint8)), n=ok(10, 0)
    ),
    "coded_bytes": lambda: Call(su.coded_bytes, mask=free(bits(3, 10)), coding="entropy"),
    "MaskStore": lambda: Call(
        su.MaskStore,
        shapes=ok({"a": (2, 3), "b": (3, 1)}, "misspelt key"),
        device=torch.device("cpu"),
    ),
    "MaskStore.split": lambda: Call(
        store().split, flat=ok(torch.rand(42), "axis more", "bool", "int", "meta")
    ),
    "MaskStore.mean": lambda: Call(store().mean, dtype=torch.float64),
    "MaskStore.set_extra_state": lambda: settings(store()),
    "MaskStore.append": append,
    "MaskStore.mix": lambda: Call(store().mix, alpha=torch.rand(3), chunk_size=2),
    "MaskStore.project": lambda: Call(
        store().project,
        vec=ok(torch.randn(42), "axis more"),
        tasks=free(torch.tensor([0, 2])),
        chunk_size=ok(2, 10**30),
    ),
    "MaskStore.project, rows": lambda: Call(
        store().project,
        vec=ok(torch.randn(4, 42), "axis fewer"),
        tasks=free(torch.tensor([0, 2])),
        chunk_size=ok(2, 10**30),
    ),
    "SupSup": supsup,
    "SupSup.new_task": lambda: new_task("mean"),
    "SupSup.new_task, from a task": lambda: new_task(ok(1, 0)),
    "SupSup.run": lambda: Call(net().run, flat=torch.rand(42), x=x()),
    "SupSup.forward": lambda: Call(net(training=True), x=x()),
    "SupSup.forward, task": lambda: Call(net(), x=x(), task=ok(1, 0)),
    "SupSup.forward, alpha": lambda: Call(net(), x=x(), alpha=torch.rand(3)),
    "SupSup.save": lambda: Call(net().save, path=PATH, store_weights=False).then(
        lambda _: PATH.read_bytes()
    ),
    "SupSup.remove": remove,
    "SupSup.task_state_dict": lambda: Call(net().task_state_dict, task=ok(1, 0)),
    "SupSup.set_extra_state": lambda: settings(net()),
    "score_tasks": scored,
    "entropy_objective": lambda: Call(
        su.entropy_objective, logits=free(torch.randn(5, 3)), reduction="mean"
    ),
    "alpha_gradient": lambda: Call(
        su.alpha_gradient,
        model=net(),
        x=x(),
        objective=ok(su.entropy_objective, "returns a list"),  # no list inside vmap
        alpha=torch.rand(3),
        tasks=free(torch.tensor([0, 2])),
        per_example=True,
        chunk_size=2,
    ),
    "superfluous_objective": lambda: Call(
        su.superfluous_objective,
        logits=free(torch.randn(5, 4)),
        n_real=3,
        full=True,
        reduction="mean",
    ),
    "infer_task": lambda: Call(
        su.infer_task,
        model=net(),
        x=x(),
        method="one_shot",
        objective=su.entropy_objective,
        center=torch.zeros(3),
        epsilon=ok(0.001, 0, 1.5, 10**30),
    ),
    "infer_task, exhaustive": lambda: Call(su.infer_task, model=net(), x=x(), method="exhaustive"),
    "HopfieldStore": lambda: Call(su.HopfieldStore, d=5, kind="hebb"),
    "HopfieldStore.append": hopfield_append,
    "HopfieldStore.field": lambda: Call(hopfield().field, z=ok(signs(), "axis more")),
    "HopfieldStore.energy": lambda: Call(hopfield().energy, z=ok(signs(), "axis more")),
    "HopfieldStore.recall": lambda: Call(hopfield().recall, z=signs(), max_steps=3),
    "recover_mask": lambda: recover("straight_through"),
    "recover_mask, projected": lambda: recover("projected"),
    "load_supsup": saved,
}
ALLOWED = {
    ("supermask", "scores", "nan"): "called at each update: a look at values would make a GPU wait",
}
