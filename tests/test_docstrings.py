"""The examples of the docstrings: they run, and every public name of a chapter has one."""

import doctest
import importlib
import inspect
import pkgutil

import matplotlib
import pytest
import torch

import ponderlearn

MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(ponderlearn.__path__, "ponderlearn.")
    if not m.ispkg and not m.name.rpartition(".")[2].startswith("_")
)
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
EXEMPT = {  # a module or a name without an example, and why
    "cards": "HTML for a notebook's cell; `tests/test_cards.py` shows it",
    "catalogue": "rows of a table, and files of the checkout",
    "cli": "commands: `ponderlearn --help` shows how they are called",
    "execution": "runs and rewrites whole notebooks",
}


class Finder(doctest.DocTestFinder):
    "Also finds what a decorator such as `torch.no_grad()` wraps, and fastcore's class methods."

    def _from_module(self, module, o):
        return super()._from_module(module, inspect.unwrap(o) if callable(o) else o)

    def _find(self, tests, o, name, *rest):
        super()._find(tests, o, name, *rest)
        for key, method in vars(o).items() if isinstance(o, type) else ():
            if type(method).__name__ == "_clsmethod":  # of `patch(cls_method=True)`
                super()._find(tests, method.f, f"{name}.{key}", *rest)


def own(name):
    "What a module builds itself: its public functions and classes, but for NamedTuples."
    module = importlib.import_module(name)
    named = {x: getattr(module, x) for x in getattr(module, "__all__", ())}
    return {
        x: o
        for x, o in named.items()
        if callable(o)
        and o.__module__ == name
        and not (isinstance(o, type) and issubclass(o, tuple))
    }


def has_example(o):
    "Whether an object's own docstring, not one that it inherits, holds an example."
    return ">>> " in (o.__doc__ or "")


NAMES = [
    (name.removeprefix("ponderlearn."), x)
    for name in MODULES
    if name.removeprefix("ponderlearn.") not in EXEMPT
    for x in own(name)
]


@pytest.fixture(scope="module", autouse=True)
def imported():
    "The first optimizer imports half of PyTorch: not in the time of a test."
    torch.optim.SGD([torch.zeros(1)])


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch, clean_records):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    runner, said = doctest.DocTestRunner(optionflags=FLAGS, verbose=False), []
    with torch.random.fork_rng([]), matplotlib.rc_context():
        torch.manual_seed(0)
        for test in Finder().find(module, name, extraglobs={"torch": torch}):
            runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("module, name", NAMES)
def test_public_names_have_an_example(module, name):
    o = getattr(importlib.import_module(f"ponderlearn.{module}"), name)
    assert has_example(o) != (f"{module}.{name}" in EXEMPT)


def test_exempt_are_there():
    modules = {name.removeprefix("ponderlearn.") for name in MODULES}
    assert set(EXEMPT) <= modules | {f"{module}.{name}" for module, name in NAMES}
