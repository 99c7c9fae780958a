"""ponderlearn.training: what a notebook should not carry: kills, processes, faults, messages."""

import gc
import hashlib
import io
import json
import math
import multiprocessing
import os
import random
import re
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
import training_jobs as jobs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ponderlearn.data import digits, noisy_digits
from ponderlearn.training import (
    History,
    _known,
    _mix,
    _part,
    _seed_of,
    curves,
    feature_network,
    fit,
    fit_noisy,
    label_noise_errors,
    load_checkpoint,
    noisy_network,
    one_cycle,
    progress,
    rows_of,
    save_checkpoint,
    seeded,
    stopped_early,
    sweep,
    without_suspects,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def processes():
    "Processes forked from a server that has imported everything once."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["training_jobs", "accelerate", "pandas", "torch._dynamo"]
    )  # all that start slowly
    return context


def linear(*sizes):
    torch.manual_seed(0)
    return nn.Linear(*(sizes or (3, 1)))


def fit_quietly(model=None, loss_fn=jobs.squared_error, batches=jobs.pairs, **kwargs):
    return fit(model or linear(), loss_fn, batches, **{"steps": 6, "bar": False, **kwargs})


def same(a, b):
    "Whether two nests of dicts, lists and tensors are equal to the last bit."
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ---------------------------------------------------------------- kill and resume


def kill_at(process, counter, value, delay):
    "SIGKILL the process `delay` seconds after the counter has reached the value."
    deadline = time.monotonic() + 60
    while counter.value < value and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(delay)
    with suppress(ProcessLookupError):  # it was quicker
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode


def test_killed_runs_end_with_the_same_bits(processes, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    reference = processes.Process(target=jobs.train, args=(whole,))
    reference.start()
    rng, killed, reached = random.Random(time.time_ns()), 0, []
    for target in sorted(rng.sample(range(4, jobs.STEPS - 20), 4)):
        counter = processes.Value("i", 0, lock=False)
        process = processes.Process(target=jobs.train, args=(broken, counter, target))
        process.start()
        killed += kill_at(process, counter, target, rng.random() * 0.02) == -signal.SIGKILL
        reached.append(counter.value)
        if (broken / "run.pt").exists():  # whole, whatever the moment of the kill
            assert load_checkpoint(broken / "run.pt")["step"] <= jobs.STEPS
    last = processes.Process(target=jobs.train, args=(broken,))
    last.start()
    last.join(60)
    reference.join(60)
    assert killed >= 2 and reached[0] < jobs.STEPS, (killed, reached)
    one, other = load_checkpoint(whole / "end.pt"), load_checkpoint(broken / "end.pt")
    assert one["table"].shape == other["table"].shape == (jobs.STEPS, len(one["names"]))
    assert same(one, other)


# ---------------------------------------------------------------- several processes


def test_two_processes_give_the_curve_of_one(processes, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    crowd = [
        processes.Process(target=jobs.curves, args=(tmp_path, rank, 2, port)) for rank in range(2)
    ]
    crowd.append(processes.Process(target=jobs.curves, args=(tmp_path,)))
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(100)
    assert [process.exitcode for process in crowd] == [0, 0, 0]
    one, two, second = (
        torch.load(tmp_path / f"curves-{name}.pt", weights_only=False)
        for name in ("1-0", "2-0", "2-1")
    )
    for name in ("masked", "plain"):
        ours = ["seconds", "rows"] if name == "masked" else ["seconds"]
        table, other = (x[name].drop(columns=ours) for x in (one, two))
        assert list(table.columns) == list(other.columns)
        pd.testing.assert_frame_equal(table, other, rtol=1e-4, atol=1e-6, check_dtype=False)
    assert len(one["masked"]) == 25 and (two["masked"].two - 2).abs().max() < 1e-5
    assert one["unused"] and two["unused"]  # no gradient on any process stays no gradient
    assert same(two["weights"], second["weights"])
    for k, v in one["weights"].items():
        torch.testing.assert_close(v, two["weights"][k], rtol=1e-4, atol=1e-5)
    assert one["nan"] == two["nan"] == second["nan"] and "at step 4 with seed 0" in one["nan"]
    assert one["masked"].rows.eq(7).all() and two["masked"].rows.between(3.4, 3.8).all()
    assert "at least 2, for 2 processes, got sizes [1]" in two["one row"]
    assert (tmp_path / "2.pt").exists()


def test_accelerator(processes, tmp_path):
    process = processes.Process(target=jobs.half_precision, args=(tmp_path,))
    process.start()
    process.join(60)
    half = torch.load(tmp_path / "half.pt")
    assert half["dtypes"] == ["torch.bfloat16"] * 5 and math.isfinite(half["loss"])
    assert half["text"].startswith("accelerator must be plain data parallel over 1 processes")
    assert half["text"].endswith("gradient_accumulation_steps 2")


@given(n=st.integers(1, 6), extra=st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_parts_cover_the_batch(n, extra):
    batch = (
        torch.arange(n + extra),
        {"scalar": torch.tensor(3.0), "y": torch.arange(n + extra) * 2},
    )
    parts = [_part(batch, rank, n) for rank in range(n)]
    assert torch.equal(torch.cat([part[0] for part, _ in parts]), batch[0])
    assert torch.equal(torch.cat([part[1]["y"] for part, _ in parts]), batch[1]["y"])
    assert sum(share for _, share in parts) == pytest.approx(1)


def test_parts_of_a_crooked_batch():
    with pytest.raises(
        ValueError, match=r"one size in front, at least 2, for 2 processes, got sizes \[3, 4\]"
    ):
        _part((torch.zeros(3), torch.zeros(4)), 0, 2)


# ---------------------------------------------------------------- NaN


@pytest.mark.parametrize("where", ["loss", "gradient", "batch"])
def test_nan_stops_before_the_update(tmp_path, where):
    bad = 17

    def loss_fn(model, batch):
        x, y, step = batch
        if step == bad and where == "batch":
            x = x * math.nan  # which batch normalization puts into its buffers
        error = ((model(x) - y) ** 2).mean()
        if step == bad and where == "loss":
            error = error * torch.tensor(math.inf)
        if step == bad and where == "gradient":
            error = error + (error * 0).sqrt()  # finite, with an infinite slope
        return error

    def batches(step, generator):
        return (*jobs.pairs(step, generator), step)

    model, path = jobs.network(), tmp_path / "run.pt"
    with pytest.raises(
        FloatingPointError, match=f"at step {bad} with seed 9.*seeded\\(9, {bad}\\)"
    ) as caught:
        fit_quietly(model, loss_fn, batches, steps=100, seed=9, checkpoint=path)
    rows = caught.value.history.rows
    assert [row["step"] for row in rows] == list(range(1, bad))
    good = jobs.network()
    short = fit_quietly(good, loss_fn, batches, steps=bad - 1, seed=9)
    assert same(model.state_dict(), good.state_dict())
    assert [row["loss"] for row in rows] == [row["loss"] for row in short.rows]
    assert load_checkpoint(path)["step"] == 15


def test_a_buffer_that_is_replaced_goes_back_too():
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear()
            self.register_buffer("mean", torch.zeros(1))

        def forward(self, x):
            out = self.linear(x)
            self.mean = self.mean * 0.5
            self.mean = self.mean + out.detach().mean(0)
            return out

    def batches(step, generator):
        x, y = jobs.pairs(step, generator)
        return (x if step < 6 else x * math.nan), y

    model, good = Average(), Average()
    with pytest.raises(FloatingPointError, match="at step 6"):
        fit_quietly(model, batches=batches)
    fit_quietly(good, batches=batches, steps=5)
    assert torch.equal(model.mean, good.mean) and model.mean.isfinite()


# ---------------------------------------------------------------- what fit does


def test_the_curve_of_a_plain_loop():
    model, plain = jobs.network(), jobs.network()
    history = fit_quietly(model, steps=20, lr=0.1, seed=4, clip=0.3, schedule=lambda step: 1 / step)
    optimizer = torch.optim.Adam(plain.parameters())
    losses, norms = [], []
    for step in range(1, 21):
        optimizer.param_groups[0]["lr"] = 0.1 / step
        batch = jobs.pairs(step, seeded(4, step))
        torch.manual_seed(_mix(4, step, 1))  # for dropout
        loss, _ = jobs.squared_error(plain, batch)
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(plain.parameters(), 0.3).item())
        optimizer.step()
        losses.append(loss.item())
    assert history.table.loss.tolist() == losses and history.table.grad_norm.tolist() == norms
    assert same(model.state_dict(), plain.state_dict())
    assert list(history.table.columns) == ["step", "loss", "largest", "grad_norm", "seconds"]
    assert history.seconds == history.last["seconds"] > 0


def test_the_world_is_left_as_it_was():
    model = jobs.network()
    model[1].eval()
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[4].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    seen = []

    def loss_fn(model, batch):
        seen.append((model.training, model[1].training))
        return jobs.squared_error(model, batch)

    def evaluate(model, step):
        seen.append((model.training, torch.is_grad_enabled()))
        return {"x": torch.tensor(1.0)}

    fit_quietly(
        model,
        loss_fn,
        steps=2,
        optimizer=optimizer,
        schedule="cosine",
        evaluate=evaluate,
        eval_every=2,
    )
    assert torch.equal(torch.rand(3), expected)
    assert seen == [(True, True), (True, True), (False, False)]
    assert model.training and not model[1].training
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.1]


def test_evaluation_and_last_row():
    history = fit_quietly(steps=25, evaluate=lambda m, step: {"seen": step}, eval_every=10)
    assert history.table.dropna().step.tolist() == [10, 20, 25]
    assert history.last["seen"] == 25.0 and len(history.rows) == 25
    assert repr(History(history.rows)).startswith("History(25 steps, loss ")


def test_stop_and_finished_runs_are_not_continued(tmp_path):
    path, calls = tmp_path / "run.pt", []

    def batches(step, generator):
        calls.append(step)
        return jobs.pairs(step, generator)

    arguments = dict(
        steps=50, checkpoint=path, stop=lambda row: row["step"] >= 8, evaluate=lambda m, s: {"e": s}
    )
    first = fit_quietly(linear(), batches=batches, **arguments)
    assert calls == list(range(1, 9)) and first.last["e"] == 8
    second = fit_quietly(linear(), batches=batches, **arguments)
    assert len(calls) == 8 and second.table.equals(first.table)
    del arguments["stop"]
    assert fit_quietly(linear(), batches=batches, **arguments).last["step"] == 50


@pytest.mark.parametrize(
    "make", [None, torch.optim.SGD, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1)]
)
def test_kinds_of_optimizers(make):
    assert fit_quietly(optimizer=make, lr=0.05, steps=50).table.loss.iloc[-5:].mean() < 5


def test_batches_of_many_shapes():
    from typing import NamedTuple

    class Pair(NamedTuple):
        x: torch.Tensor
        rest: dict

    def batches(step, generator):
        x, y = jobs.pairs(step, generator)
        return Pair(x, {"y": [y], "name": "pair"})

    def loss_fn(model, batch):
        assert isinstance(batch, Pair) and batch.rest["name"] == "pair"
        return jobs.squared_error(model, (batch.x, batch.rest["y"][0]))

    assert fit_quietly(loss_fn=loss_fn, batches=batches).last["loss"] == fit_quietly().last["loss"]


def test_float64_and_frozen_parameters():
    model = jobs.Masked().double()

    def double(step, generator):
        batch = jobs.masked_batch(step, generator)
        return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}

    frozen = model.frozen.weight.clone()
    history = fit_quietly(model, jobs.masked_error, double, clip=1.0)
    assert torch.equal(model.frozen.weight, frozen) and math.isfinite(history.last["loss"])


# ---------------------------------------------------------------- checkpoints


def test_checkpoint_of_another_run(tmp_path):
    path = tmp_path / "run.pt"
    arguments = dict(steps=6, checkpoint=path, seed=1, clip=1.0)
    fit_quietly(linear(), **arguments)
    for change, text in [
        ({"seed": 2}, r"seed 1 \(here 2\)"),
        ({"steps": 7}, r"steps 6 \(here 7\)"),
        ({"clip": None}, r"clip 1.0 \(here None\)"),
        ({"lr": 0.5}, r"parameter group 0: lr 0.001 \(here 0.5\)"),
        ({"schedule": "cosine"}, r"schedule constant \(here cosine\)"),
        ({"optimizer": torch.optim.SGD}, r"optimizer Adam \(here SGD\); parameter group 0: "),
    ]:
        wanted = rf"run.pt must be of this very run \(or be deleted\), got one with .*{text}"
        with pytest.raises(ValueError, match=wanted):
            fit_quietly(linear(), **{**arguments, **change})
    with pytest.raises(
        ValueError, match=r"model: weight torch.float32 \(1, 3\) \(here torch.float32 \(2, 3\)\)"
    ):
        fit_quietly(linear(3, 2), **arguments)
    save_checkpoint(path, weights=torch.zeros(2))
    with pytest.raises(ValueError, match="must be one of fit, got one that holds weights"):
        fit_quietly(linear(), **arguments)


def by_exponent(model, batch, data=None, exponent=2):
    return ((model(batch[0]) - batch[1]) ** exponent).mean()


def make_loss(exponent):
    def loss_fn(model, batch):
        return sum(((model(batch[0]) - batch[1]) ** e).mean() for e in (exponent,))

    return loss_fn


def fixed_batches(x):
    return lambda step, generator: (x, x.sum(1, keepdim=True))


def halved(step):
    return 0.5**step


def test_checkpoint_of_other_functions(tmp_path):
    x = torch.randn(8, 3)
    same_run = [
        {},
        {"loss_fn": partial(by_exponent, exponent=4)},
        {"loss_fn": make_loss(2)},
        {"batches": fixed_batches(x)},
        {"schedule": halved},
    ]
    other = [
        {"loss_fn": by_exponent},
        {"loss_fn": partial(by_exponent, exponent=6)},
        {"loss_fn": make_loss(4)},
        {"batches": fixed_batches(x + 1)},
        {"schedule": lambda step: 0.6**step},
    ]
    again = [{}, {**same_run[1]}, {"loss_fn": make_loss(2)}, {"batches": fixed_batches(1 * x)}, {}]
    for i, (first, second, changed) in enumerate(zip(same_run, again, other, strict=True)):
        path = tmp_path / f"{i}.pt"
        fit_quietly(**first, checkpoint=path)
        fit_quietly(**(second or first), checkpoint=path)  # the same functions, made again
        (name,) = changed
        with pytest.raises(ValueError, match=rf"{i}.pt must be of this very run .* {name} "):
            fit_quietly(**changed, checkpoint=path)


def test_what_is_known_of_a_function(monkeypatch):
    "Helpers and numbers of its module count, also in functions inside; attributes do not."
    before, texts = {}, []
    for body, number in [("return 1", 3), ("return 2", 3), ("return 1", 4)]:
        scope = {"__name__": "elsewhere", "N": number, "mean": number}
        code = f"def helper():\n    {body}\n"
        code += "def run(x):\n    return [helper() + N + x.mean() for _ in {'a', 'b'}]\n"
        exec(code + "def own(x):\n    return x.mean() if x else own(x)", scope)
        texts.append(_known(scope["run"], []))
        before.setdefault("own", _known(scope["own"], []))
        assert _known(scope["own"], []) == before["own"]
    assert len(set(texts)) == 3

    def with_empty_cell():
        return later

    assert _known(with_empty_cell, [])
    later = 1
    assert "'1'" in _known(with_empty_cell, [])


def test_a_logged_nan_survives(tmp_path):
    def loss_fn(model, batch):
        loss, _ = jobs.squared_error(model, batch)
        return loss, {"odd": math.nan}

    given = dict(loss_fn=loss_fn, checkpoint=tmp_path / "run.pt", eval_every=4)
    given["evaluate"] = lambda model, step: {"e": math.nan if step == 4 else 1.0}
    first, again = fit_quietly(**given), fit_quietly(**given)
    assert [list(row) for row in again.rows] == [list(row) for row in first.rows]
    assert again.table.equals(first.table) and math.isnan(again.rows[3]["e"])
    assert "e" not in again.rows[0] and isinstance(again.rows[0]["step"], int)


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "a" / "state.pt"
    state = {"x": torch.randn(3), "n": 4, "inner": {"list": [1, "two", None, 3.5], "tuple": (1, 2)}}
    save_checkpoint(path, **state)
    assert same(load_checkpoint(path), state)
    return path


def test_every_flipped_bit_is_refused(state):
    whole = state.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 300) + list(range(0, 256, 16)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        state.write_bytes(data)
        with pytest.raises(ValueError, match=r"state.pt must be a whole file of save_checkpoint"):
            load_checkpoint(state)


def test_checkpoints_are_whole_and_harmless(state, tmp_path):
    before = state.read_bytes()
    for entry, text in [
        (
            {"f": nn.Linear(1, 1)},
            r"state\['f'\] must be a tensor, a number, .*, got torch.nn.*Linear",
        ),
        ({"a": {"lr": [1.0, np.float64(0.1)]}}, r"state\['a'\]\['lr'\]\[1\] must .* numpy.float64"),
        ({"f": lambda x: x}, r"state\['f'\] must be .*, got builtins.function"),
        ({"d": {np.int64(1): 1}}, "state must be .*, got a container or a key"),
    ]:
        with pytest.raises(TypeError, match=text):
            save_checkpoint(state, **entry)
    assert state.read_bytes() == before and list(state.parent.iterdir()) == [state]
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt")
    for content in (before[: len(before) // 2], before[:20], b"", b"hello", before + b"0"):
        state.write_bytes(content)
        with pytest.raises(ValueError, match=r"state.pt must be a whole file of save_checkpoint"):
            load_checkpoint(state)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"x": Evil()}, buffer := io.BytesIO())
    data = buffer.getvalue()
    state.write_bytes(hashlib.sha256(data).digest() + data)
    with pytest.raises(ValueError, match=r"state.pt must be a whole file"):
        load_checkpoint(state)
    assert not marker.exists()


def test_what_killed_runs_left_is_swept_up(tmp_path):
    left = [tmp_path / ".run[1].pt.0123abcd.tmp", tmp_path / ".run[1].pt.ffffffff.tmp"]
    others = [tmp_path / ".run1.pt.0123abcd.tmp", tmp_path / ".run[1].pt.old.0123abcd.tmp"]
    for file in left + others:
        file.touch()
    save_checkpoint(tmp_path / "run[1].pt", x=1)
    assert set(tmp_path.iterdir()) == {*others, tmp_path / "run[1].pt"}


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": [1]}, TypeError, "model must be a torch.nn.Module, got"),
        (
            {"model": nn.Tanh()},
            ValueError,
            "model must have a parameter that requires a gradient, got none",
        ),
        ({"loss_fn": None}, TypeError, "loss_fn must be callable as loss_fn.*, got None"),
        ({"batches": [1]}, TypeError, r"batches must be callable as .*, got list \[1\]"),
        ({"steps": 0}, ValueError, "steps must be >= 1, got 0"),
        ({"steps": 2.5}, TypeError, "steps must be an integer, got 2.5"),
        ({"seed": -1}, ValueError, "seed must lie in 0..2147483647, got -1"),
        ({"clip": 0}, ValueError, r"clip must lie in \(0, inf\), got 0"),
        (
            {"schedule": "linear"},
            ValueError,
            "must be 'constant', 'cosine' or a function of the step, got 'linear'",
        ),
        (
            {"optimizer": "adam"},
            TypeError,
            "optimizer must be a torch optimizer, its class or a function .* got 'adam'",
        ),
        ({"optimizer": lambda p: 3}, TypeError, "optimizer must be a torch optimizer"),
        (
            {"optimizer": torch.optim.SGD(linear().parameters(), lr=0.1)},
            ValueError,
            "hold parameters of model only",
        ),
        ({"evaluate": 3}, TypeError, "evaluate must be callable as evaluate.*, got 3"),
        ({"evaluate": lambda m, s: 3}, TypeError, "evaluate must return a dict of numbers, got 3"),
        (
            {"evaluate": lambda m, s: {"loss": 3}},
            ValueError,
            "evaluate must not use the names step, loss",
        ),
        (
            {"evaluate": lambda m, s: {"a": "b"}},
            TypeError,
            "evaluate's 'a' must be one number, got 'b'",
        ),
        ({"eval_every": -1}, ValueError, "eval_every must be >= 1, got -1"),
        (
            {"evaluate": lambda m, s: {"largest": 3}},
            ValueError,
            "evaluate must not use the names step, loss, largest, grad_norm, seconds, got largest",
        ),
        (
            {"loss_fn": lambda m, b: m(b[0])},
            ValueError,
            r"loss_fn must return a scalar loss, shape \(\), got a float32",
        ),
        (
            {"loss_fn": lambda m, b: 1.0},
            TypeError,
            r"loss_fn must return a tensor or \(tensor, dict of logs\), got 1.0",
        ),
        (
            {"loss_fn": lambda m, b: b[0].mean()},
            ValueError,
            "loss that depends on trainable parameters, got one without",
        ),
        ({"loss_fn": lambda m, b: torch.tensor(3)}, TypeError, "loss of float dtype"),
        (
            {"loss_fn": lambda m, b: (m(b[0]).mean(), 3)},
            TypeError,
            "loss_fn's logs must return a dict of numbers, got 3",
        ),
        (
            {"loss_fn": lambda m, b: (m(b[0]).mean(), {"a": b[0]})},
            TypeError,
            "'a' must be one number, got a float32",
        ),
        (
            {"loss_fn": lambda m, b: (m(b[0]).mean(), {"seconds": 1})},
            ValueError,
            "logs must not use the names",
        ),
    ],
)
def test_messages_of_fit(change, error, text):
    with pytest.raises(error, match=text):
        fit_quietly(**change)


# ---------------------------------------------------------------- seeds and bars


def test_seeds_stay_what_they_are():
    "Stored results rest on these numbers."
    assert _seed_of(7, 3) == 31831979968 and _mix(7, 3, 1) == 17224168618335850599


def test_streams_of_steps_differ():
    starts = {
        torch.randint(2**62, (), generator=seeded(seed, step)).item()
        for seed in range(40)
        for step in range(40)
    }
    assert len(starts) == 1600
    assert torch.equal(
        torch.rand(3, generator=seeded(2**31 - 1, 5)), torch.rand(3, generator=seeded(2**31 - 1, 5))
    )
    assert torch.equal(
        torch.rand(3, generator=seeded(7)),
        torch.rand(3, generator=torch.Generator().manual_seed(7)),
    )
    with pytest.raises(ValueError, match=r"seed must lie in 0\.\.2147483647, got 2147483648"):
        seeded(2**31)


def test_bar_shows_loss_and_speed(monkeypatch, capsys):
    import ponderlearn.training as training

    text = io.StringIO()
    monkeypatch.setattr(training, "progress", partial(progress, file=text))
    fit_quietly(steps=400, bar=True)
    last = text.getvalue().split("\r")[-1]
    assert "400/400" in last and "loss=" in last and "step/s" in last
    text.truncate(0)
    sweep(lambda seed: fit_quietly(steps=3, bar=True).last["loss"], 4, n_jobs=1)
    assert "4/4" in text.getvalue() and "step" not in text.getvalue()
    assert capsys.readouterr().err == ""


def test_no_bar_needs_no_tqdm(monkeypatch):
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    assert fit_quietly().last["step"] == 6
    with progress(3, bar=False) as line:
        line.update()
        line.set_postfix(loss="1")
    with pytest.raises(ImportError, match=r"tqdm is missing: pip install"):
        progress(3, file=io.StringIO())


# ---------------------------------------------------------------- sweep


def power(seed, base, exponent=2):
    return {"power": base**exponent, "half": seed / 2, "text": "x", "curve": torch.arange(2)}


GRID = {"base": [3, 2.5], "exponent": [1, 2]}


def plain_loop():
    "The table of `power` over the grid and two seeds."
    points = [(b, e, s) for b in GRID["base"] for e in GRID["exponent"] for s in (4, 7)]
    return pd.DataFrame(
        {"base": b, "exponent": e, "seed": s, **power(s, b, e), "curve": [0, 1]}
        for b, e, s in points
    )


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_the_table_of_a_plain_loop(n_jobs):
    table = sweep(power, [4, 7], GRID, bar=False, n_jobs=n_jobs)
    pd.testing.assert_frame_equal(table, plain_loop())
    numbers = sweep(lambda seed: seed + 1, 3, n_jobs=1)
    assert list(numbers.columns) == ["seed", "value"] and numbers.value.tolist() == [1, 2, 3]


@pytest.mark.slow
def test_the_table_of_a_plain_loop_on_a_dask_cluster():
    distributed = pytest.importorskip("distributed")
    here = os.getpid()
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        table = sweep(power, [4, 7], GRID, bar=False)
        where = sweep(lambda seed: os.getpid(), 8, bar=False)
    pd.testing.assert_frame_equal(table, plain_loop())
    assert here not in set(where.value)


def test_functions_of_a_notebook_reach_the_processes():
    factor = 10
    out = sweep(
        lambda seed: {
            "pid": os.getpid(),
            "product": factor * seed,
            "threads": torch.get_num_threads(),
            "omp": os.environ["OMP_NUM_THREADS"],
        },
        4,
        n_jobs=2,
        bar=False,
    )
    assert out["product"].tolist() == [0, 10, 20, 30] and os.getpid() not in set(out.pid)
    share = os.environ.get("OMP_NUM_THREADS") or str(max(1, joblib.cpu_count() // 2))
    assert set(out.omp) == {share} and set(out.threads) == {int(share)}


@pytest.mark.parametrize("steps, warmup", [(1, 0.1), (3, 0.0), (10, 0.2), (50, 1.0)])
def test_one_cycle_rises_to_one_and_falls_to_nearly_zero(steps, warmup):
    factor = one_cycle(steps, warmup)
    rates = [factor(step) for step in range(1, steps + 1)]
    top = rates.index(max(rates))
    assert max(rates) == 1 and min(rates) > 0
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:])[::-1]


def test_workers_collect_what_a_run_left_behind():
    def run(seed):
        gc.disable()
        kept = sum(type(o).__name__ == "Left" for o in gc.get_objects())
        left = type("Left", (), {})()
        left.itself = left
        gc.enable()
        return {"kept": kept, "pid": os.getpid()}

    out = sweep(run, 6, n_jobs=2, bar=False)
    assert out.pid.nunique() < 6 and set(out.kept) == {0}


def test_where_a_sweep_runs(monkeypatch):
    def where(seed):
        return {"pid": os.getpid()}

    monkeypatch.setenv("PONDERLEARN_SCALE", "quick")
    assert set(sweep(where, 2).pid) == {os.getpid()}
    import threading

    with joblib.parallel_config(backend="threading", n_jobs=2):
        out = sweep(lambda seed: {"pid": os.getpid(), "thread": threading.current_thread().name}, 6)
    assert set(out.pid) == {os.getpid()} and "MainThread" not in set(out.thread)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert os.getpid() not in set(sweep(where, 2).pid)
    monkeypatch.setenv("PONDERLEARN_SCALE", "full")
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    assert set(sweep(where, 2).pid) == {os.getpid()}


def fails_at_two(seed, x):
    if x == 2 and seed == 1:
        raise ValueError("two is too much")
    return {"y": x}


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_failed_point_is_named_and_the_others_kept(n_jobs):
    wanted = r"(?s)1 of 6 runs failed .*the first at x=2, seed=1:.*fails_at_two"
    with pytest.warns(RuntimeWarning, match=wanted) as warned:
        out = sweep(fails_at_two, 2, {"x": [1, 2, 3]}, n_jobs=n_jobs, on_error="warn")
    assert warned[0].filename == __file__
    assert out.error.dropna().to_dict() == {3: "ValueError: two is too much"}
    assert out.y.dropna().tolist() == [1, 1, 2, 3, 3]
    assert list(out.columns) == ["x", "seed", "y", "error"]
    with pytest.raises(RuntimeError, match=wanted) as caught:
        sweep(fails_at_two, 2, {"x": [1, 2, 3]}, n_jobs=n_jobs)
    assert caught.value.table.equals(out)


def test_a_sweep_inside_a_sweep_is_a_loop(monkeypatch):
    monkeypatch.setenv("PONDERLEARN_SCALE", "full")
    inner = sweep(lambda seed: sweep(lambda seed: os.getpid(), 3).value.tolist(), 2, n_jobs=2)
    assert all(len(set(pids)) == 1 and os.getpid() not in pids for pids in inner.value)


def test_rows_and_curves_of_a_sweep():
    def run(seed, lr, arm=None):
        last = 8 - seed
        history = fit_quietly(
            steps=8,
            seed=seed,
            lr=lr,
            evaluate=lambda m, step: {"e": step + seed},
            eval_every=3,
            stop=lambda row: row["step"] == last,
        )
        return {"history": history, "end": history.last["step"]}

    table = sweep(run, [2, 0], [{"lr": 0.1}, {"lr": 0.2, "arm": "a"}, {"lr": 0.2}], n_jobs=1)
    plain = rows_of(table, lr=0.2, arm=None)
    assert plain.seed.tolist() == [0, 2] and plain.index.tolist() == [0, 1]
    assert plain.end.tolist() == [8, 6]
    assert len(rows_of(table, lr=0.1, arm="a")) == 0  # no such combination
    assert rows_of(table, seed=[0], lr=(0.1, 0.2)).lr.tolist() == [0.1, 0.2, 0.2]
    with pytest.raises(ValueError, match=r"lr must be one of 0\.1, 0\.2, got 0\.3"):
        rows_of(table, lr=0.3)
    with pytest.raises(ValueError, match=r"point must use the names lr, arm, seed, .*, got rate"):
        rows_of(table, rate=0.1)
    steps, values = curves(plain.history, "e")
    assert steps.tolist() == [3, 6, 8]
    np.testing.assert_array_equal(values, [[3, 6, 8], [5, 8, np.nan]])
    steps, values = curves(list(plain.history), "loss")
    assert values.shape == (2, 8) and np.isnan(values[1, 6:]).all()
    assert values[0].tolist() == [row["loss"] for row in plain.history[0].rows]
    with pytest.raises(ValueError, match=r"column must be one of step, loss, .*, e, got 'f'"):
        curves(plain.history, "f")


@pytest.mark.parametrize("value", [0, -1])
def test_zero_is_not_the_default(value):
    with pytest.raises(ValueError, match=f"eval_every must be >= 1, got {value}"):
        fit_quietly(eval_every=value)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"run": 3}, TypeError, "run must be callable as run.*, got 3"),
        ({"seeds": 0}, ValueError, "seeds must be >= 1, got 0"),
        ({"seeds": True}, TypeError, "seeds must be an integer, got True"),
        ({"seeds": [1, 1]}, ValueError, "seeds must be at least one and differ"),
        ({"seeds": []}, ValueError, "seeds must be at least one and differ"),
        ({"seeds": 2.5}, TypeError, "seeds must be a number or a list of seeds, got 2.5"),
        ({"grid": 3}, TypeError, "grid must be a dict of lists or a list of dicts, got 3"),
        ({"grid": {"x": 3}}, TypeError, r"grid\['x'\] must be a list of values, got 3"),
        ({"grid": {"x": "abc"}}, TypeError, r"grid\['x'\] must be a list of values, got 'abc'"),
        ({"grid": {"x": []}}, ValueError, "grid must hold at least one point, got none"),
        (
            {"grid": {"x": [1], "typo": [2]}},
            ValueError,
            "grid must hold what run takes, got .*typo",
        ),
        ({"grid": [3]}, TypeError, "grid must hold dicts whose keys are names"),
        ({"grid": {"seed": [1]}}, ValueError, "grid must leave the names 'seed' and 'error' free"),
        ({"on_error": "ignore"}, ValueError, "on_error must be one of 'raise', 'warn', got ignore"),
    ],
)
def test_messages_of_sweep(arguments, error, text):
    with pytest.raises(error, match=text):
        sweep(**{"run": power, "n_jobs": 1, "bar": False, **arguments})


@pytest.mark.parametrize(
    ("out", "text"),
    [
        (object(), "TypeError: run's 'value' must be a number, a string, a History or a list"),
        ({"x": 1}, "ValueError: run must return a dict under names other than 'seed', 'error' and"),
        ({"error": 1}, "ValueError: run must return a dict under names other than"),
        ({0: 1.0}, "ValueError: run must return a dict under names .*, got list \\[0\\]"),
    ],
)
def test_results_of_the_wrong_kind(out, text):
    with pytest.raises(RuntimeError, match=text):
        sweep(lambda seed, x: out, 1, {"x": [1]}, n_jobs=1)
    assert sweep(lambda seed: None, 1, n_jobs=1).value[0] is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    model, cpu = jobs.network().cuda(), jobs.network()
    model[2].p = cpu[2].p = 0.0
    tables = [fit_quietly(m, steps=40, clip=1.0).table for m in (model, cpu)]
    assert next(model.parameters()).is_cuda
    torch.testing.assert_close(
        *(torch.tensor(t.loss.to_numpy()) for t in tables), rtol=1e-3, atol=1e-4
    )


# Wrong labels


def test_noisy_network_is_the_seeds():
    before = torch.random.get_rng_state()
    a, b, c = (noisy_network(3, 2, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(a[0].weight, b[0].weight) and not torch.equal(a[0].weight, c[0].weight)
    assert a(torch.zeros(5, 3)).shape == (5, 2) and a[2].weight.shape == (256, 256)


def test_fit_noisy_is_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(40, 3, generator=generator), torch.arange(40) % 2
    seen, rates, model = [], [], noisy_network(3, 2, seed=0)

    def noting(model, batch):
        seen.append(batch[2])
        assert torch.equal(x[batch[2]], batch[0]) and torch.equal(labels[batch[2]], batch[1])
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def note(row):
        rates.append(row["step"])

    history = fit_noisy(
        model, x, labels, seed=3, epochs=4, drops=(1, 3), batch_size=8, loss_fn=noting, stop=note
    )
    assert len(history.rows) == 20 == len(rates)
    for epoch in range(4):
        assert sorted(torch.cat(seen[5 * epoch : 5 * epoch + 5]).tolist()) == list(range(40))
    plain = noisy_network(3, 2, seed=0)
    sgd = torch.optim.SGD(plain.parameters(), 0.1, 0.9, weight_decay=1e-4, nesterov=True)
    for step, index in enumerate(seen):
        sgd.param_groups[0]["lr"] = (0.1, 0.01, 0.01, 0.001)[step // 5]
        sgd.zero_grad()
        nn.functional.cross_entropy(plain(x[index]), labels[index]).backward()
        sgd.step()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_label_noise_errors():
    def constant(task, seed):
        return lambda x: nn.functional.one_hot(torch.full((len(x),), seed), 10).float()

    def share(task, seed):
        return constant(task, seed), {"flipped": task.flipped.double().mean()}

    frame = label_noise_errors(
        {"a": constant, "b": share}, rates=(0.0, 0.5), seeds=[2, 3], kind="next", n_jobs=1
    )
    assert frame[["remedy", "rate", "seed"]].values.tolist() == [
        [r, p, s] for r in "ab" for p in (0.0, 0.5) for s in (2, 3)
    ]
    assert frame.test_error.between(0.89, 0.91).all()
    assert rows_of(frame, remedy="b", rate=0.0).flipped.tolist() == [0, 0]
    assert rows_of(frame, remedy="b", rate=0.5).flipped.between(0.4, 0.6).all()
    with pytest.raises(TypeError, match=r"^remedies\['a'\] must be callable as remedy"):
        label_noise_errors({"a": 3})


def test_remedies():
    task, seen = noisy_digits(0.4, seed=100), []

    def right(model):
        return (model(task.valid_x).argmax(1) == task.valid_labels).double().mean().item()

    def evaluate(model, step):
        seen.append(right(model))
        return {}

    model = noisy_network(64, 10, seed=1)
    fit_noisy(model, task.x, task.labels, seed=1, epochs=20, evaluate=evaluate)
    assert right(stopped_early(task, 1, epochs=20)) == max(seen) > right(model)
    kept, whole = (
        (m(task.test_x).argmax(1) != task.test_labels).double().mean()
        for m in (without_suspects(task, 1, epochs=20), model)
    )
    assert kept < whole - 0.1  # 0.07 and 0.29 were measured


def test_the_table_of_remedies_holds_what_the_chapters_measured():
    folder = Path(__file__).parents[1] / "nbs" / "06_robust"
    words = r"(?s)\*\*The remedies of three.*?SAM was tested against neither\."
    tables, stored = [], []
    for name in ("01_aum", "02_early_stopping", "03_sam"):
        cells = json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        prose = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        tables += re.findall(words, "\n".join(prose))
        shown = [
            o.get("data", {}).get("text/html", "") for c in cells for o in c.get("outputs", [])
        ]
        for row in re.findall(r"(?s)<tr>.*?</tr>", "".join(map("".join, shown))):
            stored.append(re.findall(r">(\d+\.\d \[\d+\.\d, \d+\.\d\])<", row))
    (table,) = tables
    rows = [line.split(" | ")[3:] for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 9
    for row in rows:  # its numbers are neighbors in a row of a stored table
        numbers = [x.strip(" |") for x in row if "not run" not in x]
        n = len(numbers)
        assert n >= 2 and any(numbers == s[i : i + n] for s in stored for i in range(len(s))), row


def test_a_feature_network_reads_digits_and_is_frozen():
    data = digits()
    network = feature_network(data.train.x, data.train.y, n_features=16, steps=80, seed=5)
    right = network(data.test.x).argmax(1) == data.test.y
    assert right.double().mean() > 0.85
    features = network.features(data.train.x)
    assert features.shape == (1197, 16) and not features.requires_grad and not network.training
    assert torch.allclose(features.mean(0), torch.zeros(16), atol=1e-4)
    assert torch.allclose(features.std(0), torch.ones(16), atol=1e-4)
    few = [feature_network(data.valid.x, data.valid.y, steps=2, seed=5) for _ in range(2)]
    assert torch.equal(*(model.features(data.test.x) for model in few))
    x = data.test.x[:2].requires_grad_()
    assert torch.autograd.grad(network.features(x).sum(), x)[0].abs().sum() > 0


def test_a_feature_network_does_not_mind_the_range_or_size_of_images():
    x = torch.rand(40, 1, 28, 28, generator=seeded(0))
    labels = torch.arange(40) % 4
    one, two = (feature_network(a * x + b, labels, steps=20) for a, b in ((1, 0), (2, -1)))
    assert torch.allclose(one.features(x), two.features(2 * x - 1), atol=1e-2)
    before = torch.random.get_rng_state()
    feature_network(x[:3], labels[:3], steps=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ValueError, match=r"^labels must hold at least 2 classes, got class 0"):
        feature_network(x, labels * 0)
