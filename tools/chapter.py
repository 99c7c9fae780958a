"""Begins a chapter and checks one.

    python tools/chapter.py new sam      writes the files of a chapter from its row in the catalogue
    python tools/chapter.py check sam    export, style, a run at quick, tests and page of a notebook

The new files run and pass: what stands in them is replaced bit by bit. Nothing is overwritten."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from ponderlearn.catalogue import Chapter, chapter, notebook_path, write_atomic

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = Path(__file__).with_name("templates")
BIN = Path(sys.executable).parent


def fill(template: str, c: Chapter) -> str:
    "A template with its {{words}} replaced."
    families = [name.split()[-1] for name in c.authors.split(", ") if name]
    if len(families) > 3:
        families = [f"{families[0]} and others"]
    words = {
        "name": c.name,
        "title": c.title,
        "short": c.short,
        "claim": c.claim,
        "credit": f"{' and '.join(families)}, {c.year}",
        "module": c.module,
        "package": c.module.rpartition(".")[0],
        "exp": c.module.partition(".")[2],
        "label": c.name.replace("_", "-"),
    }
    text = (TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: words[found[1]], text)


def notebook(c: Chapter) -> str:
    "The new notebook of a chapter, as JSON."
    cells = []
    for part in re.split(r"(?m)^%% ", fill(c.kind, c))[1:]:
        head, _, source = part.partition("\n")
        kind, *tags = head.split()
        cell = {
            "cell_type": kind,
            "id": uuid4().hex[:8],
            "metadata": {"tags": tags} if tags else {},
        }
        cell["source"] = source.rstrip("\n").splitlines(keepends=True)
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    language = {"file_extension": ".py", "name": "python"}
    metadata = {"accelerator": "GPU", "kernelspec": kernel, "language_info": language}
    found = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def new(c: Chapter) -> None:
    if c.kind == "foundation":
        sys.exit(f"{c.name} is a foundation: only papers and methods are made from a template")
    paper = ("authors", "year", "venue", "arxiv", "know", "review")
    lacks = [key for key in (paper if c.kind == "paper" else ("know",)) if not getattr(c, key)]
    lacks += ["short (at most 34 characters)"] if len(c.short) > 34 else []
    if lacks:
        sys.exit(f"the row of {c.name} in ponderlearn/catalogue.toml lacks: {', '.join(lacks)}")
    files = {
        notebook_path(c): notebook(c),
        f"tests/test_{c.name}.py": fill("test", c),
        f"tests/examples/{c.name}.py": fill("examples", c),
        f"benchmarks/{c.name}.py": fill("benchmark", c),
    }
    there = [path for path in files if (ROOT / path).exists()]
    if there:
        sys.exit(f"nothing was written, for these exist: {', '.join(there)}")
    for path, text in files.items():
        write_atomic(ROOT / path, text)
        print(path)
    clean = ["nbdev_clean", "--fname", notebook_path(c)]
    for command, *rest in (["ruff", "format", "--quiet", *files], ["nbdev_export"], clean):
        subprocess.run([BIN / command, *rest], cwd=ROOT, check=True)


def step(what: str, *command, **environment) -> bool:
    "Whether a command succeeds; its output is shown if not."
    start = time.monotonic()
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown = done.stdout if done.returncode else done.stdout.strip().rpartition("\n")[2]
    print(f"{what}: {time.monotonic() - start:.0f} s  {shown}", flush=True)
    return done.returncode == 0


# The folder before the installed packages, as when the script runs; a peer that is not in .venv is
# no fault.
IMPORT = """
import runpy, sys
sys.path.insert(0, "benchmarks")
try:
    runpy.run_path("benchmarks/{0}.py")
except ImportError as error:
    if error.name.partition(".")[0] in ("ponderlearn", "compare"):
        raise
    print("not imported, .venv has no", error.name)
"""


def check(c: Chapter) -> None:
    path = notebook_path(c)
    names = "tests/test_{}.py", "tests/examples/{}.py", "benchmarks/{}.py"
    files = [file for name in names if (ROOT / (file := name.format(c.name))).exists()]
    first = [
        ("layout", BIN / "ruff", "format", path, *files),
        ("style", BIN / "ruff", "check", "--output-format", "concise", path, *files),
        ("export", BIN / "nbdev_export"),
        ("clean", BIN / "nbdev_clean", "--fname", path),
    ]
    if not all([step(*command) for command in first]):
        sys.exit(1)
    tests = [file for file in files if "/test_" in file]
    tests += [f"tests/test_{name}.py" for name in ("chapters", "wrong_arguments", "catalogue")]
    select = ["-m", "not slow and not browser and not stored"]
    select += ["-k", f"{c.name} and not test_notebook_is_clean"]
    jobs = [
        ("run at quick", BIN / "python", "tools/notebooks.py", path),
        ("tests", BIN / "python", "-m", "pytest", *select, *tests),
    ]
    if files[-1:] == [f"benchmarks/{c.name}.py"]:
        jobs.append(("benchmark's imports", BIN / "python", "-c", IMPORT.format(c.name)))
    if os.environ.get("PAGE") == "0":
        print("page: not built, PAGE is 0")
    elif not shutil.which("npm"):
        print("page: not built, it needs npm (Node.js)")
    else:
        jobs.append(("page", "make", "--no-print-directory", "docs"))
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment["PONDERLEARN_DOCS_DRAFT"] = "1"
    with ThreadPoolExecutor(2) as pool:
        passed = list(pool.map(lambda job: step(*job, **environment), jobs))
    shows = "bench_table(" in (ROOT / path).read_text(encoding="utf-8")
    if shows and not (ROOT / "results" / f"bench-{c.name}.json").exists():
        print(f"bench_table needs a file: .venv-bench/bin/python benchmarks/{c.name}.py writes it")
    sys.exit(not all(passed))


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("new", "check"):
        sys.exit("say which chapter: make chapter NAME=sam, make check NAME=act")
    try:
        row = chapter(sys.argv[2])
    except ValueError as error:
        table = "its row in ponderlearn/catalogue.toml: CONTRIBUTING.md, step 1"
        sys.exit(f"{error}\nA new chapter first needs {table}")
    {"new": new, "check": check}[sys.argv[1]](row)
