"""Nested states and small tools: against plain recursion and loops, and what they refuse."""

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ponderlearn import data
from ponderlearn._nested import (
    SequenceBatch,
    align,
    at_least_float32,
    draw,
    leaves,
    length_mask,
    mlp,
    n_rows,
    no_autocast,
    reduce,
    take_rows,
    tree_map,
)


class Pair(NamedTuple):
    a: Tensor
    rest: object


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


tensors = st.integers(0, 99).map(lambda v: torch.tensor([float(v), v + 1.0]))
trees = st.recursive(
    tensors | st.none() | st.integers(0, 9),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.tuples(inner, inner).map(lambda two: Pair(*two)),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=6,
)


def recursion(f, tree, *others):
    "What `tree_map` should do, in plain Python."
    if isinstance(tree, Tensor):
        return f(tree, *others)
    if isinstance(tree, dict):
        return type(tree)((k, recursion(f, v, *(o[k] for o in others))) for k, v in tree.items())
    if isinstance(tree, (tuple, list)):
        parts = [recursion(f, *p) for p in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def same(a, b):
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and all(same(p, q) for p, q in zip(a, b, strict=True))
    return a == b


@settings(max_examples=80, deadline=None)
@given(trees)
def test_tree_map_is_the_plain_recursion(tree):
    twice = tree_map(lambda t: 2 * t, tree)
    assert same(twice, recursion(lambda t: 2 * t, tree))
    three = tree_map(lambda s, t, u: s + t - u, tree, twice, tree)
    assert same(three, twice)


def test_counterparts_are_found_by_key_and_named_tuples_stay():
    one = {"x": torch.zeros(2), "y": Pair(torch.ones(2), None)}
    two = {"y": Pair(torch.full((2,), 5.0), None), "x": torch.full((2,), 7.0)}
    got = tree_map(torch.add, one, two)
    assert list(got) == ["x", "y"] and type(got["y"]) is Pair and got["y"].rest is None
    assert got["x"].tolist() == [7, 7] and got["y"].a.tolist() == [6, 6]


def test_trees_work_under_vmap_compile_and_gradient():
    def energy(x):
        state = Pair(x, {"h": [2 * x]})
        return sum(t.sum() for t in leaves(tree_map(lambda t: align(t[:, 0], t) * t, state)))

    x = torch.randn(4, 3, 2, dtype=torch.float64, generator=generator())
    want = torch.stack([energy(part) for part in x])
    assert torch.allclose(torch.vmap(energy)(x), want)
    assert torch.allclose(torch.compile(energy, backend="eager", fullgraph=True)(x[0]), want[0])
    assert torch.autograd.gradcheck(energy, x[0].clone().requires_grad_())


class Odd:
    pass


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda t: tree_map(torch.neg, (t, np.zeros(2))),
            TypeError,
            "state must be a tensor or a ",
        ),
        (lambda t: tree_map(torch.neg, [t, Odd()], argument="x"), TypeError, "x must .* got Odd"),
        (lambda t: tree_map(torch.add, (t, t), (t,)), ValueError, "state must keep its structure"),
        (lambda t: tree_map(torch.add, {"a": t}, {"b": t}), ValueError, "state must keep its str"),
        (lambda t: tree_map(torch.add, (t,), t), ValueError, "state must keep its structure"),
        (lambda t: leaves("x"), TypeError, "state must be a tensor or a tuple, list or dict of"),
        (lambda t: leaves((None, 3)), TypeError, "state must be a tensor or a tuple, list or dict"),
        (lambda t: n_rows([]), TypeError, r"x must be a tensor .* got list \[\]"),
        (lambda t: n_rows([t.sum()]), ValueError, "x must have the batch as first axis, got a fl"),
        (lambda t: reduce(t, "max"), ValueError, "reduction must be one of 'mean', 'none', 'sum'"),
        (lambda t: reduce(t, "batchmean"), ValueError, "reduction must be one of"),
        (lambda t: draw(torch.rand, 2, generator=0), TypeError, "generator must be a torch.Gener"),
    ],
)
def test_refused(call, error, words):
    with pytest.raises(error, match=f"^{words}"):
        call(torch.ones(2, 3))


def test_errors_of_the_function_come_through():
    def broken(t, u):
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        tree_map(broken, (torch.ones(1),), (torch.ones(1),))


def test_rows():
    state = Pair(torch.arange(6.0).view(3, 2), (torch.arange(3), 7))
    assert n_rows(state) == 3 and n_rows(torch.zeros(0, 2)) == 0
    cut = take_rows(state, torch.tensor([2, 0]))
    assert cut.a.tolist() == [[4, 5], [0, 1]] and cut.rest[0].tolist() == [2, 0]
    assert cut.rest[1] == 7 and take_rows(None, torch.tensor([0])) is None
    w = torch.tensor([1.0, 2.0, 3.0])
    for shape in ((3,), (3, 2), (3, 2, 4)):
        x = torch.randn(shape, generator=generator())
        assert torch.equal(align(w, x) * x, torch.stack([a * b for a, b in zip(w, x, strict=True)]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 6))
def test_length_mask_by_hand(lengths, n):
    mask = length_mask(torch.tensor(lengths), n)
    assert mask.dtype == torch.bool and mask.shape == (len(lengths), n)
    assert mask.tolist() == [[place < length for place in range(n)] for length in lengths]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_reductions_by_hand(rows, columns, seed):
    g = generator(seed)
    x = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    mask = torch.rand(rows, columns, generator=g) < 0.6
    x[~mask] = torch.nan  # what stands in padding has no effect
    real = x[mask].tolist()
    choices = ("mean", "none", "sum", "batchmean")
    assert reduce(x, "sum", mask).item() == pytest.approx(sum(real))
    assert reduce(x, "mean", mask).item() == pytest.approx(sum(real) / max(len(real), 1))
    got = reduce(x, "batchmean", mask, choices=choices).item()
    assert got == pytest.approx(sum(real) / rows)
    assert reduce(x, "none", mask).tolist() == x.masked_fill(~mask, 0).tolist()
    full = x.masked_fill(~mask, 1)
    assert torch.equal(reduce(full), full.mean()) and torch.equal(reduce(full, "sum"), full.sum())
    assert reduce(full, "none") is full and reduce(full[:0]) == 0  # no NaN for nothing


def test_padding_gets_no_gradient():
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    reduce(x, mask=torch.tensor([True, False, True])).backward()
    assert x.grad.tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float16])
def test_at_least_float32(dtype):
    assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == torch.float32
    x = torch.ones(2, dtype=torch.float64)
    assert at_least_float32(x) is x


def test_no_autocast_keeps_the_dtype_on_any_device():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with no_autocast(x):
            assert (x @ x).dtype == torch.float32
    with no_autocast(torch.ones(2, device="meta")):  # a device without autocast
        pass


def test_draws_come_from_the_generator():
    for f, size in ((torch.rand, (2, 3)), (torch.randint, (3, 9, (4,))), (torch.randperm, (7,))):
        got = draw(f, *size, generator=generator(3))
        assert torch.equal(got, f(*size, generator=generator(3)))
    torch.manual_seed(5)
    free = draw(torch.randn, 4)
    torch.manual_seed(5)
    assert torch.equal(free, torch.randn(4))
    assert draw(torch.rand, 2, generator=generator(), device="meta").device.type == "meta"
    assert draw(torch.rand, 2, device="meta").device.type == "meta"


def test_mlp_is_the_network_written_out():
    torch.manual_seed(0)
    got = mlp(3, 5, 4, 2)
    torch.manual_seed(0)
    by_hand = torch.nn.Sequential(
        torch.nn.Linear(3, 5),
        torch.nn.ReLU(),
        torch.nn.Linear(5, 4),
        torch.nn.ReLU(),
        torch.nn.Linear(4, 2),
    )
    assert str(got) == str(by_hand)
    assert all(
        torch.equal(a, b) for a, b in zip(got.parameters(), by_hand.parameters(), strict=True)
    )
    for sizes, error in (((3,), ValueError), ((3, 0), ValueError), ((3, 2.0), TypeError)):
        with pytest.raises(error, match=r"^sizes must be"):
            mlp(*sizes)


def test_one_batch_of_sequences_for_all():
    assert data.SequenceBatch is SequenceBatch and "SequenceBatch" in data.__all__
    assert SequenceBatch._fields == ("x", "y", "mask")
