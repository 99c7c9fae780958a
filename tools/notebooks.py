"""Executes notebooks at the scale quick, two at a time, and prints the CPU seconds of each.

    python tools/notebooks.py             every notebook of the course
    python tools/notebooks.py PATH ...    these

Exits 1 when a notebook fails or takes more than LIMIT seconds. CPU time counts, not the clock: a
busy machine changes little about it. Imports count, and so do the processes that a notebook starts.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ponderlearn.course import CATALOGUE

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 20  # seconds of one thread
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
RUN = """
import sys
from pathlib import Path
from nbdev.test import test_nb

passed, _ = test_nb(Path(sys.argv[1]), skip_flags=["notest"], basepath=sys.argv[2])
sys.exit(not passed)
"""


def run(path: Path) -> tuple[Path, float, int, str]:
    "Path, CPU seconds, exit status and output of one notebook, executed in a process of its own."
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, path, ROOT],
        cwd=ROOT,
        env=os.environ | ONE_THREAD | {"PONDERLEARN_SCALE": "quick"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return path, used.ru_utime + used.ru_stime, process.returncode, output


def main(paths: list[str]) -> int:
    if not paths:
        paths = ["index.ipynb", *(c.notebook for c in CATALOGUE if c.notebook)]
    found = [ROOT / path for path in paths]
    found.sort(key=lambda path: -path.stat().st_size)  # the long ones first: the last are short
    bad = 0
    with ThreadPoolExecutor(2) as pool:
        for path, seconds, status, output in pool.map(run, found):
            late = seconds > LIMIT
            bad += bool(status or late)
            word = "failed" if status else f"over {LIMIT} s" if late else ""
            print(f"{seconds:6.1f} s CPU  {path.relative_to(ROOT)}  {word}".rstrip(), flush=True)
            if status:
                print(output, flush=True)
    print(f"{len(found) - bad} passed, {bad} failed")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
