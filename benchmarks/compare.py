"""Side by side with a peer in one process: medians of interleaved runs, their ratio, their memory.

With BENCH_MEMORY=1 (`make bench-memory`) only the memory is measured, and written beside the times
that are stored.
"""

import json
import os
import platform
import re
import time
import tracemalloc
from collections.abc import Callable
from datetime import date
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from ponderlearn.cards import bench_table
from ponderlearn.catalogue import write_atomic
from ponderlearn.metrics import Interval

RESULTS = Path(__file__).resolve().parents[1] / "results"
MEMORY_ONLY = bool(os.environ.get("BENCH_MEMORY"))
LONG = 2.0  # seconds: the memory of a longer run is not watched, its record would not fit


def interleaved(
    ours: Callable,  # runs our side once; returns what must agree, or None
    theirs: Callable,  # the same for the peer
    *,
    repeats: int = 101,  # timed runs of each
    warmup: int = 5,  # runs of each before the clock counts
) -> dict:
    """Milliseconds of both (medians) and the ratio theirs / ours: above 1 we are faster.

    The two run by turns, the order changing, so that a busy machine slows both. The interval is a
    percentile bootstrap of the ratio of medians over pairs of neighboring runs. Then one run of
    each is watched for the megabytes that it holds at most."""
    if MEMORY_ONLY:
        repeats, warmup = 3, min(warmup, 1)
    for _ in range(warmup):
        ours(), theirs()
    seconds = np.zeros((repeats, 2))
    for i in range(repeats):
        for j in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            (ours, theirs)[j]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[i, j] = time.perf_counter() - start
    mine, peer = np.median(seconds, axis=0).tolist()
    ratio = ratio_interval(seconds)
    return {
        "ours_ms": round(1e3 * mine, 3),
        "peer_ms": round(1e3 * peer, 3),
        "ratio": round(ratio.mean, 3),
        "low": round(ratio.low, 3),
        "high": round(ratio.high, 3),
        "repeats": repeats,
        **({"ours_mb": held(ours)} if mine < LONG else {}),
        **({"peer_mb": held(theirs)} if peer < LONG else {}),
    }


def ratio_interval(
    seconds: np.ndarray,  # (runs, 2): ours and the peer's, one row a pair of neighboring runs
) -> Interval:
    "The ratio of the medians, peer / ours, with its 95 % bootstrap interval."
    draws = np.random.default_rng(0).integers(len(seconds), size=(4000, len(seconds)))
    ours, theirs = np.median(seconds[draws], axis=1).T
    low, high = np.quantile(theirs / ours, [0.025, 0.975])
    mine, peer = np.median(seconds, axis=0)
    return Interval(float(peer / mine), float(low), float(high))


def peak_megabytes(
    update: Callable,  # called once before, and then while its memory is watched
) -> float:
    "Megabytes that one update holds at most, over what was held before."
    update()
    return held(update)


def held(update: Callable) -> float:
    """As `peak_megabytes`, for an update that has run before: what torch allocates, and Python.

    NumPy's arrays are seen (Python's), the memory of solvers and other compiled code is not."""
    tracemalloc.start()
    update()
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            update()
        found.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    sizes = [(e["ts"], e["args"]) for e in events if e["name"] == "[memory]"]
    sizes = [x for _, x in sorted(sizes, key=itemgetter(0))]
    start = sizes[0]["Total Allocated"] - sizes[0]["Bytes"] if sizes else 0
    torch_peak = max((x["Total Allocated"] for x in sizes), default=0) - start
    return round((torch_peak + python) / 1e6, 1)


def both_ways(
    loss_fn: Callable,  # of tensors, to a scalar
    *xs: torch.Tensor,  # leaves that require gradients
) -> Callable:
    "A function that makes a forward and a backward pass, and returns the first gradient."

    def run():
        for x in xs:
            x.grad = None
        loss_fn(*xs).backward()
        return xs[0].grad

    return run


def machine() -> str:
    "The processor and the number of threads used, in words."
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} thread(s)"


def save(
    chapter: str,  # the chapter's name
    peer: str,  # the peer's package and version
    rows: list[dict],  # one measurement each: a "what" and what `interleaved` returned
    **more,  # what else the file holds, as JSON takes it
) -> Path:
    "Write results/bench-<chapter>.json with date, machine and torch; print its table."
    file = RESULTS / f"bench-{chapter}.json"
    if MEMORY_ONLY:
        return write_atomic(file, json.dumps(with_memory(file, rows), indent=1) + "\n")
    found = {
        "chapter": chapter,
        "peer": peer,
        "date": date.today().isoformat(),
        "machine": machine(),
        "torch": torch.__version__,
        "rows": rows,
        **more,
    }
    write_atomic(file, json.dumps(found, indent=1) + "\n")
    print(bench_table(chapter))
    return file


def row_name(row: dict) -> tuple:
    "What a row compares, without the megabytes that some name in words."
    return re.sub(r"[\d.]+ MB", "MB", row["what"]), row.get("beside")


def with_memory(
    file: Path,  # a stored benchmark
    rows: list[dict],  # the same rows, measured again
) -> dict:
    "The stored benchmark with the memory of the new rows; ValueError if these are other rows."
    found = json.loads(file.read_text(encoding="utf-8"))
    before, now = ([row_name(r) for r in own] for own in (found["rows"], rows))
    if before != now:
        raise ValueError(f"{file.name} has other rows than this script: make bench first")
    for old, new in zip(found["rows"], rows, strict=True):
        old |= {key: new[key] for key in ("ours_mb", "peer_mb") if key in new}
    return found
