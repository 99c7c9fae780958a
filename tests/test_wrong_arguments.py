"""A wrong argument is refused by its name, or changes nothing (mistakes.py, examples/)."""

import importlib
import pkgutil

import pytest
import torch
from mistakes import (
    EXAMPLES,
    Call,
    examples,
    follows,
    fresh,
    has_device,
    ok,
    public_names,
    try_mistakes,
)

import ponderlearn

WITHOUT = {"cli": "commands: typer checks what is typed"}
MODULES = {
    m.name.rpartition(".")[2]: m.name
    for m in pkgutil.walk_packages(ponderlearn.__path__, "ponderlearn.")
    if not m.ispkg and not any(part.startswith("_") for part in m.name.split("."))
}
FILES = {path.stem: examples(path.stem) for path in sorted(EXAMPLES.glob("[a-z]*.py"))}
CALLS = [
    pytest.param(module, name, make, id=f"{module}-{name}")
    for module, file in FILES.items()
    for name, make in file.EXAMPLES.items()
]
FIRST = {"act", "pondernet", "sire", "supsup"}
FIRST |= {"catalogue", "records", "cards", "execution", "data", "training", "metrics", "viz"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "A folder for what a wrong path would write."
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("module", "name", "make"), CALLS)
def test_wrong_arguments(module, name, make):
    failures = try_mistakes(name, make)
    allowed = {key for key in FILES[module].ALLOWED if key[0] == name}
    found = {(f.name, f.argument, f.mistake) for f in failures}
    left = [str(f) for f in failures if (f.name, f.argument, f.mistake) not in allowed]
    if left:
        pytest.fail(f"{len(left)} mistakes:\n" + "\n".join(left), pytrace=False)
    assert allowed <= found, f"no longer to be allowed: {allowed - found}"


DEVICES = [p for p in CALLS if has_device(fresh(p.values[2]))]


@pytest.mark.parametrize(("module", "name", "make"), DEVICES)
def test_devices(module, name, make):
    "New tensors follow the arguments to their device: here the CPU, while the default is meta."
    wrong = follows(make)
    assert not wrong, (
        "a tensor was made without `device=`: give new tensors the device of an argument, drawn "
        f"ones that of the generator\n{wrong}"
    )


@pytest.mark.parametrize("module", sorted(set(MODULES) - set(WITHOUT)))
def test_every_public_name_has_an_example(module):
    "Names are `f`, `Class`, `Class.method`; a second example adds a comma and what is special."
    public = set(public_names(importlib.import_module(MODULES[module])))
    if not public:
        return
    assert module in FILES, f"tests/examples/{module}.py is missing"
    listed = {name.partition(",")[0] for name in FILES[module].EXAMPLES}
    without = getattr(FILES[module], "WITHOUT", {})
    assert not public - listed - set(without), "public names without an example"
    assert not listed - public, "examples of names that are not public"
    assert not set(without) - public, "exceptions that are none"


def test_few_are_allowed():
    counts = {module: len(file.ALLOWED) for module, file in FILES.items()}
    assert sum(counts[m] for m in FIRST & counts.keys()) < 40
    assert all(n <= 5 for m, n in counts.items() if m not in FIRST)
    assert all(len(why) > 10 for file in FILES.values() for why in file.ALLOWED.values())


def careless(x, n, width=None):
    if x.ndim != 2:
        raise ValueError(f"x must have two axes, got {x.ndim}")
    return x[:, :n].sum(1) + torch.arange(len(x))


def test_mistakes_are_found():
    make = lambda: Call(careless, x=ok(torch.rand(3, 4), "axes swapped"), n=ok(2, 0, -1), width=1.5)
    kinds = {(f.argument, f.mistake): f.kind for f in try_mistakes("careless", make)}
    assert kinds["x", "int"] == kinds["n", "None"] == "silent"
    assert kinds["x", "list"] == kinds["x", "text"] == kinds["n", "1.5"] == "insides"
    assert kinds["n", "10**30"] == "silent" and kinds["n", "list"] == "insides"
    quiet = [("x", "axis more"), ("x", "axes swapped"), ("n", "0"), ("x", "float64")]
    assert not set(quiet) & set(kinds) and not any(argument == "width" for argument, _ in kinds)
    assert "meta" in follows(make)


def test_a_call_that_does_not_end_is_found(monkeypatch):
    monkeypatch.setattr("mistakes.SECONDS", 0.2)
    make = lambda: Call(lambda n: sum(1 for _ in range(n)), n=ok(2, 0, -1, True))
    kinds = {f.mistake: f.kind for f in try_mistakes("count", make)}
    assert kinds["10**30"] == "slow" and kinds["text"] == "insides" and "0" not in kinds
