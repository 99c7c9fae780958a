"""Side by side with a peer in one process: medians of interleaved runs, and their ratio."""

import json
import platform
import time
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


def interleaved(
    ours: Callable,  # runs our side once; returns what must agree, or None
    theirs: Callable,  # the same for the peer
    *,
    repeats: int = 101,  # timed runs of each
    warmup: int = 5,  # runs of each before the clock counts
) -> dict:
    """Milliseconds of both (medians) and the ratio theirs / ours: above 1 we are faster.

    The two run by turns, the order changing, so that a busy machine slows both. The interval is a
    percentile bootstrap of the ratio of medians over pairs of neighboring runs."""
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
    update: Callable,  # called once before, and once while its memory is watched
) -> float:
    "Megabytes that torch holds at most during one update, over what it held before."
    update()
    with TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            update()
        found.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    sizes = [(e["ts"], e["args"]) for e in events if e["name"] == "[memory]"]
    sizes = [x for _, x in sorted(sizes, key=itemgetter(0))]
    start = sizes[0]["Total Allocated"] - sizes[0]["Bytes"]
    return round((max(x["Total Allocated"] for x in sizes) - start) / 1e6, 1)


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
    found = {
        "chapter": chapter,
        "peer": peer,
        "date": date.today().isoformat(),
        "machine": machine(),
        "torch": torch.__version__,
        "rows": rows,
        **more,
    }
    file = write_atomic(RESULTS / f"bench-{chapter}.json", json.dumps(found, indent=1) + "\n")
    print(bench_table(chapter))
    return file
