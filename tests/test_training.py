"""ponderlearn.training: what a notebook should not carry: kills, processes, faults, messages."""

import json
import math
import multiprocessing
import os
import random
import signal
import socket
import time
import warnings
from contextlib import suppress
from functools import partial

import joblib
import pandas as pd
import pytest
import torch
import training_jobs as jobs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ponderlearn.training import (
    History,
    _kept,
    _part,
    _version,
    fit,
    load_checkpoint,
    progress,
    save_checkpoint,
    seeded,
    sweep,
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
    for target in sorted(rng.sample(range(2, jobs.STEPS - 20), 6)):
        counter = processes.Value("i", 0, lock=False)
        process = processes.Process(target=jobs.train, args=(broken, counter, target))
        process.start()
        killed += kill_at(process, counter, target, rng.random() * 0.02) == -signal.SIGKILL
        reached.append(counter.value)
        if (broken / "run.pt").exists():  # whole, whatever the moment of the kill
            assert load_checkpoint(broken / "run.pt")["history"]["step"].numel() <= jobs.STEPS
    last = processes.Process(target=jobs.train, args=(broken,))
    last.start()
    last.join(60)
    reference.join(60)
    assert killed >= 3 and reached[0] < jobs.STEPS, (killed, reached)
    one, other = load_checkpoint(whole / "end.pt"), load_checkpoint(broken / "end.pt")
    assert one["table"].shape == other["table"].shape == (jobs.STEPS, len(one["names"]))
    assert same(one, other)


def test_killed_sweep_computes_what_is_missing(processes, tmp_path):
    counter = processes.Value("i", 0, lock=False)
    process = processes.Process(target=jobs.slow_sweep, args=(tmp_path, counter))
    process.start()
    assert kill_at(process, counter, 12, 0.002) == -signal.SIGKILL
    kept = len(list(tmp_path.glob("*.json")))
    assert 11 <= kept < 80
    counter.value = 0
    process = processes.Process(target=jobs.slow_sweep, args=(tmp_path, counter))
    process.start()
    process.join(60)
    assert counter.value == 80 - kept and len(list(tmp_path.glob("*.json"))) == 80


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
        table, other = (x[name].drop(columns="seconds") for x in (one, two))
        assert list(table.columns) == list(other.columns)
        pd.testing.assert_frame_equal(table, other, rtol=1e-4, atol=1e-6, check_dtype=False)
    assert len(one["masked"]) == 25 and (two["masked"].two - 2).abs().max() < 1e-5
    assert one["unused"] and two["unused"]  # no gradient on any process stays no gradient
    assert same(two["weights"], second["weights"])
    for k, v in one["weights"].items():
        torch.testing.assert_close(v, two["weights"][k], rtol=1e-4, atol=1e-5)
    assert one["nan"] == two["nan"] == second["nan"] and "at step 4 with seed 0" in one["nan"]
    assert "at least 2 rows for 2 processes, got 1 rows" in two["one row"]
    assert (tmp_path / "2.pt").exists()


def test_accelerator(processes, tmp_path):
    process = processes.Process(target=jobs.half_precision, args=(tmp_path,))
    process.start()
    process.join(60)
    half = torch.load(tmp_path / "half.pt")
    assert half["dtypes"] == ["torch.bfloat16"] * 5 and math.isfinite(half["loss"])
    assert half["texts"] == [
        "accelerator must not accumulate gradients, got gradient_accumulation_steps 2"
    ]


@given(n=st.integers(1, 6), extra=st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_parts_cover_the_batch(n, extra):
    batch = (
        torch.arange(n + extra),
        {"scalar": torch.tensor(3.0), "y": torch.arange(n + extra) * 2},
    )
    parts = [_part(batch, rank, n, None) for rank in range(n)]
    assert torch.equal(torch.cat([part[0] for part, _ in parts]), batch[0])
    assert torch.equal(torch.cat([part[1]["y"] for part, _ in parts]), batch[1]["y"])
    assert sum(share for _, share in parts) == pytest.approx(1)


def test_parts_of_a_crooked_batch():
    with pytest.raises(
        ValueError, match=r"one size in front, to be cut for 2 processes, got sizes \[3, 4\]"
    ):
        _part((torch.zeros(3), torch.zeros(4)), 0, 2, None)


# ---------------------------------------------------------------- NaN


@pytest.mark.parametrize("look_every", [1, 7, 100])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_before_the_update(tmp_path, look_every, where):
    bad = 17

    def loss_fn(model, batch):
        x, y, step = batch
        error = ((model(x) - y) ** 2).mean()
        if step == bad and where == "loss":
            error = error * torch.tensor(math.inf)
        if step == bad and where == "gradient":
            error = error + (error * 0).sqrt()  # finite, with an infinite slope
        return error

    batches = lambda step, generator: (*jobs.pairs(step, generator), step)
    model, path = jobs.network(), tmp_path / "run.pt"
    with pytest.raises(
        FloatingPointError, match=f"at step {bad} with seed 9.*seeded\\(9, {bad}\\)"
    ) as caught:
        fit_quietly(
            model,
            loss_fn,
            batches,
            steps=40,
            seed=9,
            checkpoint=path,
            checkpoint_every=5,
            look_every=look_every,
        )
    rows = caught.value.history.rows
    assert [row["step"] for row in rows] == list(range(1, bad))
    good = jobs.network()
    short = fit_quietly(good, loss_fn, batches, steps=bad - 1, seed=9)
    for a, b in zip(model.parameters(), good.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [row["loss"] for row in rows] == [row["loss"] for row in short.rows]
    assert load_checkpoint(path)["history"]["step"][-1] == 15


def test_looking_less_often_changes_nothing():
    tables = [
        fit_quietly(
            jobs.network(),
            steps=30,
            look_every=k,
            evaluate=lambda m, step: {"x": step},
            eval_every=4,
            schedule="cosine",
        ).table.drop(columns="seconds")
        for k in (1, 8)
    ]
    assert tables[0].equals(tables[1])


# ---------------------------------------------------------------- what fit does


def test_the_curve_of_a_plain_loop():
    model, plain = linear(), linear()
    history = fit_quietly(model, steps=20, lr=0.1, seed=4, clip=0.3, schedule=lambda step: 1 / step)
    optimizer = torch.optim.Adam(plain.parameters())
    losses = []
    for step in range(1, 21):
        optimizer.param_groups[0]["lr"] = 0.1 / step
        loss, _ = jobs.squared_error(plain, jobs.pairs(step, seeded(4, step)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.3)
        optimizer.step()
        losses.append(loss.item())
    assert history.table.loss.tolist() == losses
    assert torch.equal(model.weight, plain.weight)
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


def test_a_given_generator_is_the_one_that_draws():
    seen, mine = [], torch.Generator()

    def batches(step, generator):
        seen.append(generator is mine and generator.initial_seed() >> 32 == 12)
        return jobs.pairs(step, generator)

    fit_quietly(batches=batches, generator=mine, seed=12)
    assert all(seen)


def test_float64_and_frozen_parameters():
    model = jobs.Masked().double()
    double = lambda step, generator: {
        k: v.double() if v.is_floating_point() else v
        for k, v in jobs.masked_batch(step, generator).items()
    }
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


def test_checkpoints_are_whole_and_harmless(tmp_path):
    path = tmp_path / "a" / "state.pt"
    state = {"x": torch.randn(3), "n": 4, "inner": {"list": [1, "two", None, 3.5], "tuple": (1, 2)}}
    save_checkpoint(path, **state)
    assert same(load_checkpoint(path), state)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="state must hold tensors, numbers, strings"):
        save_checkpoint(path, f=torch.nn.Linear(1, 1))
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt")
    for content in (before[: len(before) // 2], b"", b"hello"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"state.pt must be a whole checkpoint, got"):
            load_checkpoint(path)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"x": Evil()}, path)
    with pytest.raises(ValueError, match="must be a whole checkpoint"):
        load_checkpoint(path)
    assert not marker.exists()


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
        ({"loss_fn": None}, TypeError, "loss_fn must be a function, got None"),
        ({"batches": [1]}, TypeError, "batches must be a function, got list"),
        ({"steps": 0}, ValueError, "steps must be >= 1, got 0"),
        ({"steps": 2.5}, TypeError, "steps must be an integer, got 2.5"),
        ({"seed": -1}, ValueError, "seed must lie in 0..2147483647, got -1"),
        ({"generator": 3}, TypeError, "generator must be a torch.Generator, got 3"),
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
        ({"evaluate": 3}, TypeError, "evaluate must be a function or None, got 3"),
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
        ({"look_every": 1.5}, TypeError, "look_every must be an integer"),
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
    import io

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


# ---------------------------------------------------------------- sweep


def power(seed, base, exponent=2):
    return {"power": base**exponent, "half": seed / 2, "text": "x", "curve": torch.arange(2)}


def test_the_table_of_a_plain_loop(tmp_path):
    grid = {"base": [3, 2.5], "exponent": [1, 2]}
    rows = [
        {"base": b, "exponent": e, "seed": s, **power(s, b, e), "curve": [0, 1]}
        for b in grid["base"]
        for e in grid["exponent"]
        for s in (4, 7)
    ]
    kept = {"folder": tmp_path}
    for arguments in ({"n_jobs": 1}, {"n_jobs": 2}, {"n_jobs": 2, **kept}, {"n_jobs": 1, **kept}):
        pd.testing.assert_frame_equal(
            sweep(power, [4, 7], grid, bar=False, **arguments), pd.DataFrame(rows)
        )
    assert len(list(tmp_path.glob("power-*.json"))) == 8
    numbers = sweep(lambda seed: seed + 1, 3, n_jobs=1)
    assert list(numbers.columns) == ["seed", "value"] and numbers.value.tolist() == [1, 2, 3]


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
    share = max(1, joblib.cpu_count() // 2)
    assert set(out.threads) == {share} and set(out.omp) == {str(share)}


def test_where_a_sweep_runs(monkeypatch):
    where = lambda seed: {"pid": os.getpid()}
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
def test_a_failed_point_is_named_and_the_others_kept(tmp_path, n_jobs):
    wanted = r"(?s)1 of 6 runs failed .*the first at x=2, seed=1:.*fails_at_two"
    with pytest.warns(RuntimeWarning, match=wanted) as caught:
        out = sweep(fails_at_two, 2, {"x": [1, 2, 3]}, folder=tmp_path, n_jobs=n_jobs)
    assert caught[0].filename == __file__
    assert out.error.dropna().to_dict() == {3: "ValueError: two is too much"}
    assert out.y.dropna().tolist() == [1, 1, 2, 3, 3] and list(out.columns) == [
        "x",
        "seed",
        "y",
        "error",
    ]
    assert len(list(tmp_path.glob("*.json"))) == 5
    with pytest.raises(RuntimeError, match="1 of 6 runs failed") as caught:
        sweep(fails_at_two, 2, {"x": [1, 2, 3]}, folder=tmp_path, n_jobs=n_jobs, on_error="raise")
    assert caught.value.table.equals(out)


def test_a_process_that_dies_leaves_the_others(tmp_path):
    def run(seed):
        if seed == 5:
            time.sleep(0.3)
            os._exit(1)
        return seed

    with pytest.warns(RuntimeWarning, match="runs failed"):
        out = sweep(run, 6, folder=tmp_path, n_jobs=2)
    assert "a process of the sweep died" in out.error[5] and out.value[:4].tolist() == [0, 1, 2, 3]
    assert len(list(tmp_path.glob("*.json"))) >= 4


def test_stale_results_are_not_reused(tmp_path, monkeypatch):
    monkeypatch.setenv("PONDERLEARN_SCALE", "quick")
    calls = Calls()

    def make(value, default=1):
        def run(seed, x, plus=default):
            calls.append((seed, x))
            return x + value + plus

        return run

    first = sweep(make(1), 2, {"x": [1, 2]}, folder=tmp_path)
    assert len(calls) == 4
    assert sweep(make(1), 2, {"x": [1, 2]}, folder=tmp_path).equals(first) and len(calls) == 4
    sweep(make(1), 3, {"x": [1, 2, 3]}, folder=tmp_path)  # a larger grid: only what is new
    assert len(calls) == 9
    for other in (
        partial(sweep, make(2)),
        partial(sweep, make(1, 5)),
        partial(sweep, make(1), version="2"),
    ):
        before = len(calls)
        other(2, {"x": [1, 2]}, folder=tmp_path)
        assert len(calls) == before + 4
    monkeypatch.setenv("PONDERLEARN_SCALE", "full")
    before = len(calls)
    sweep(make(1), 2, {"x": [1, 2]}, folder=tmp_path, n_jobs=1)
    assert len(calls) == before + 4
    for file in tmp_path.glob("*.json"):  # damaged and foreign files are computed anew
        file.write_text('{"key": ')
    assert (
        sweep(make(1), 2, {"x": [1, 2]}, folder=tmp_path, n_jobs=1).equals(first)
        and len(calls) == before + 8
    )


class Calls:
    "Counts; no plain value, so it is not a part of what a run is known by."

    def __init__(self):
        self.n = 0

    def append(self, call):
        self.n += 1

    def __len__(self):
        return self.n


def test_the_version_sees_helpers_and_methods():
    texts = {}
    for name, body in {"a": "return 1", "b": "return 2"}.items():
        scope = {"__name__": "__main__"}
        exec(
            f"N = 3\ndef helper():\n    {body}\ndef run(seed):\n    return [helper() for _ in range(N)]",
            scope,
        )
        texts[name] = _version(scope["run"], "")
        scope["N"] = 4
        texts[name + "N"] = _version(scope["run"], "")
    assert len(set(texts.values())) == 4
    assert _version(power, "") == _version(power, "") != _version(partial(power, exponent=3), "")
    assert _version(jobs.train, "") != _version(jobs.curves, "")


def test_the_version_sees_through_partials_methods_and_objects():
    found = []
    for body in ("return 1", "return 2"):
        scope = {
            "__name__": "elsewhere"
        }  # not the module of `partial`, of this test or of ponderlearn
        exec(
            f"def helper():\n    {body}\ndef run(seed, x):\n    return helper()\n"
            "class Job:\n    def __init__(self, x):\n        self.x = x\n"
            "    def __call__(self, seed):\n        return helper()\n    def go(self, seed):\n        return helper()",
            scope,
        )
        job = scope["Job"]
        found += [
            _version(f, "")
            for f in (partial(scope["run"], x=1), job(1), job(2), job(1).go, job(2).go)
        ]
    assert len(set(found)) == len(found)


def test_kept_and_fresh_results_are_the_same(tmp_path):
    run = lambda seed, width: {"double": 2 * width}
    grid = {"width": torch.arange(2).numpy()}  # NumPy's numbers are kept too
    assert sweep(run, 2, grid, folder=tmp_path, n_jobs=1).equals(
        sweep(run, 2, grid, folder=tmp_path, n_jobs=1)
    )
    with pytest.warns(
        RuntimeWarning, match="run must return a dict whose keys are names, got list \\[0\\]"
    ):
        sweep(lambda seed: {0: 1.0}, 1, n_jobs=1)


@pytest.mark.parametrize("name", ["eval_every", "checkpoint_every", "look_every"])
def test_zero_is_not_the_default(name):
    with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
        fit(
            nn.Linear(1, 1),
            lambda m, b: m(b).mean(),
            lambda s, g: torch.ones(1, 1),
            steps=2,
            bar=False,
            **{name: 0},
        )


def test_kept_files_are_plain(tmp_path):
    sweep(power, [3], {"base": [2]}, folder=tmp_path, n_jobs=1)
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    assert content["key"]["point"] == {"base": 2} and content["key"]["seed"] == 3
    assert content["result"] == {"power": 4, "half": 1.5, "text": "x", "curve": [0, 1]}
    assert _kept(file, {"another": "key"}) is None
    assert sweep(lambda seed: math.nan, 1, folder=tmp_path, n_jobs=1).value.isna().all()
    assert sweep(lambda seed: math.nan, 1, folder=tmp_path, n_jobs=1).value.isna().all()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"run": 3}, TypeError, "run must be a function, got 3"),
        ({"seeds": 0}, ValueError, "seeds must be >= 1, got 0"),
        ({"seeds": True}, TypeError, "seeds must be an integer, got True"),
        ({"seeds": [1, 1]}, ValueError, "seeds must be at least one and differ"),
        ({"seeds": []}, ValueError, "seeds must be at least one and differ"),
        ({"seeds": 2.5}, TypeError, "seeds must be a number or a list of seeds, got 2.5"),
        ({"grid": 3}, TypeError, "grid must be a dict of lists or a list of dicts, got 3"),
        ({"grid": {"x": 3}}, TypeError, r"grid\['x'\] must be a list of values, got 3"),
        ({"grid": {"x": "abc"}}, TypeError, r"grid\['x'\] must be a list of values, got 'abc'"),
        ({"grid": {"x": []}}, ValueError, "grid must hold at least one point, got none"),
        ({"grid": [3]}, TypeError, "grid must hold dicts whose keys are names"),
        ({"grid": {"seed": [1]}}, ValueError, "grid must leave the names 'seed' and 'error' free"),
        ({"on_error": "ignore"}, ValueError, "on_error must be one of 'warn', 'raise', got ignore"),
        (
            {"grid": {"x": [torch.relu]}, "folder": "."},
            TypeError,
            "grid must hold numbers, strings and lists",
        ),
    ],
)
def test_messages_of_sweep(arguments, error, text):
    with pytest.raises(error, match=text):
        sweep(**{"run": power, "n_jobs": 1, "bar": False, **arguments})


@pytest.mark.parametrize(
    ("out", "text"),
    [
        (None, None),
        (object(), "TypeError: run's 'value' must hold numbers, strings or lists of them"),
        ({"x": 1}, "ValueError: run must not return a name of the point, 'seed' or 'error'"),
        ({"error": 1}, "ValueError: run must not return a name of the point"),
    ],
)
def test_results_of_the_wrong_kind(out, text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = sweep(lambda seed, x: out, 1, {"x": [1]}, n_jobs=1)
    assert text is None or table.error[0].startswith(text)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    model, cpu = jobs.network().cuda(), jobs.network()
    model[2].p = cpu[2].p = 0.0
    tables = [fit_quietly(m, steps=40, clip=1.0).table for m in (model, cpu)]
    assert next(model.parameters()).is_cuda
    torch.testing.assert_close(
        *(torch.tensor(t.loss.to_numpy()) for t in tables), rtol=1e-3, atol=1e-4
    )
