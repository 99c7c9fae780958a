"""One name for one thing: what parameters of the public functions and classes may be called."""

import inspect

import pytest
from test_docstrings import MODULES, own

INSTEAD = {
    "causal": "is_causal",
    "img_channels": "in_channels or out_channels",
    "need_weights": "return_weights",
    "net": "model",
    "network_size": "hidden_size",
    "num_steps": "n_steps or max_steps",
    "iters": "n_iter or max_iter",
    "num_iters": "n_iter",
    "n_iters": "n_iter",
    "penalty": "<term>_weight",
    "random_state": "generator",
    "rng": "generator",
    "tau": "temperature, or the paper's quantity by its name",
    "temp": "temperature",
    "use": "mask",
    "val_fraction": "valid_fraction",
    "val_loss": "valid_loss",
    "widening": "mlp_ratio",
}
SEEDED = {"data", "training", "views", "supsup"}  # fit, sweep, loaders, and what a file rebuilds
STOPPING = {"pondernet"}  # a stopping rule is called so


def parameters(o):
    "The parameters of a function, or of a class and of its own public methods."
    found = list(inspect.signature(o).parameters.values()) if callable(o) else []
    if isinstance(o, type):
        for name, method in vars(o).items():
            if inspect.isfunction(method) and not name.startswith("_"):
                found += inspect.signature(method).parameters.values()
    return found


@pytest.mark.parametrize("name", MODULES)
def test_parameters_have_the_name_of_the_course(name):
    wrong, short = [], name.rpartition(".")[2]
    for key, o in own(name).items():
        for p in parameters(o):
            instead = INSTEAD.get(p.name)
            if p.name in ("mode", "rule") and isinstance(p.default, str) and short not in STOPPING:
                instead = "kind (a variant of a formula) or method (an algorithm)"
            if p.name == "n_classes" and hasattr(o, "forward"):
                instead = "num_classes, as in PyTorch's modules"
            if p.name == "seed" and short not in SEEDED:
                instead = "generator"
            if instead:
                wrong.append(f"{key}({p.name}): {instead}")
    assert not wrong
