from itertools import pairwise

import torch
import torch.nn.functional as F
from mistakes import Call, free, ok
from torch import nn

from ponderlearn.multitask import meta_augmentation as ma

# sizes all different: T = 4 tasks, 6 support and 5 query examples of width 3, 2 targets
big = 1.5, 10**30


def seeded():
    return torch.Generator().manual_seed(1)


def net(*sizes):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*layers)


def batch():
    return torch.randn(4, 6, 3), torch.randn(4, 6, 2), torch.randn(4, 5, 3), torch.randn(4, 5, 2)


def cnp(encoder=None):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return ma.ConditionalNeuralProcess(3, 2, hidden_size=7, encoder=encoder)


def new_cnp():
    x_s, y_s, x_q, _ = batch()
    made = Call(
        ma.ConditionalNeuralProcess,
        input_size=3,
        output_size=2,
        hidden_size=7,
        encoder=torch.tanh,
    )
    return made.then(lambda net: net(x_s, y_s, x_q))


def losses(model):
    return Call(
        ma.maml_losses,
        model=ok(model, "returns a list"),  # no list inside vmap
        batch=batch(),
        loss_fn=ok(F.mse_loss, "returns a list"),
        lr=ok(0.1, 0, *big),
        n_steps=ok(2, 0),
        first_order=True,
    )


def predict(x_s, y_s, x_q):
    return x_q[..., :2] + y_s.mean(1, keepdim=True)


EXAMPLES = {
    "count_tasks": lambda: Call(ma.count_tasks, n_classes=7, n_way=3, kind="intrashuffle"),
    "sample_episodes": lambda: Call(
        ma.sample_episodes,
        x=free(torch.randn(30, 3), "int", "bool", "nan"),  # not all data are looked at in each call
        y=ok(torch.arange(5).repeat(6), "entry -1", "entry past the end"),
        n_way=2,
        k_shot=1,
        n_query=2,
        n_tasks=4,
        kind="intershuffle",
        generator=seeded(),
    ),
    "conditional_entropy": lambda: Call(
        ma.conditional_entropy, joint=free(torch.rand(4, 3)), base=ok(2.0, *big)
    ),
    "shift_targets": lambda: Call(
        ma.shift_targets,
        y_s=ok(torch.randn(4, 6, 2), "nan"),  # NaN stays NaN; called at each update
        y_q=ok(torch.randn(4, 5, 2), "nan"),
        kind="discrete",
        scale=ok(1.0, *big),
        n_values=3,
        modulus=ok(1.0, *big),
        generator=seeded(),
    ),
    "shift_targets, uniform": lambda: Call(
        ma.shift_targets,
        y_s=ok(torch.randn(4, 6, 2), "nan"),
        y_q=ok(torch.randn(4, 5, 2), "nan"),
        generator=seeded(),
    ),
    "permute_labels": lambda: Call(
        ma.permute_labels,
        y_s=ok(torch.randint(3, (4, 6)), "width"),
        y_q=ok(torch.randint(3, (4, 5)), "width"),
        n_way=3,
        generator=seeded(),
    ),
    "maml_adapt": lambda: Call(
        ma.maml_adapt,
        model=net(3, 2),
        params={k: p.detach() for k, p in net(3, 2).named_parameters()},
        x_s=torch.randn(6, 3),
        y_s=ok(torch.randn(6, 2), "bool", "int", "width"),  # what loss_fn takes
        loss_fn=F.mse_loss,
        lr=ok(0.1, 0, *big),
        n_steps=ok(2, 0),
        first_order=True,
    ),
    "maml_losses": lambda: losses(net(3, 2)),
    "maml_losses, low rank": lambda: losses(net(3, 90, 2)),
    "ConditionalNeuralProcess": new_cnp,
    "ConditionalNeuralProcess.forward": lambda: Call(
        cnp(), x_s=torch.randn(4, 6, 3), y_s=torch.randn(4, 6, 2), x_q=torch.randn(4, 5, 3)
    ),
    "support_shuffle_gap": lambda: Call(
        ma.support_shuffle_gap,
        predict=predict,
        batch=batch(),
        loss_fn=F.mse_loss,
        targets_only=False,
        groups=ok(torch.arange(4), "entry -1", "entry past the end"),
        generator=seeded(),
    ),
}
WITHOUT = {}
ALLOWED = {}
