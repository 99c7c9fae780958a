"""A wrong argument is refused by its name, or changes nothing (mistakes.py, examples/)."""

import importlib
import pkgutil

import pytest
from mistakes import EXAMPLES, examples, follows, fresh, has_device, public_names, try_mistakes

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
FIRST |= {"course", "catalogue", "records", "cards", "data", "training", "metrics", "viz"}


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
    assert not follows(make)


@pytest.mark.parametrize("module", sorted(set(MODULES) - set(WITHOUT)))
def test_every_public_name_has_an_example(module):
    "Names are `f`, `Class`, `Class.method`; a second example adds a comma and what is special."
    assert module in FILES, f"tests/examples/{module}.py is missing"
    listed = {name.partition(",")[0] for name in FILES[module].EXAMPLES}
    public = set(public_names(importlib.import_module(MODULES[module])))
    without = getattr(FILES[module], "WITHOUT", {})
    assert not public - listed - set(without), "public names without an example"
    assert not listed - public, "examples of names that are not public"
    assert not set(without) - public, "exceptions that are none"


def test_few_are_allowed():
    counts = {module: len(file.ALLOWED) for module, file in FILES.items()}
    assert sum(counts[m] for m in FIRST & counts.keys()) < 40
    assert all(n <= 5 for m, n in counts.items() if m not in FIRST)
    assert all(len(why) > 10 for file in FILES.values() for why in file.ALLOWED.values())
