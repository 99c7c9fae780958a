"""make chapter, the notebooks' limit and the tests' limit: tools/ and conftest.py."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ponderlearn.catalogue import CATALOGUE, notebook_path

pytest.importorskip("nbdev")
ROOT = Path(__file__).parents[1]
UNWRITTEN = [c for c in CATALOGUE if c.kind != "foundation" and not c.notebook]
NEW = list({c.kind: c for c in UNWRITTEN}.values())  # one of each kind


def run(top, *command):
    "What a command in the folder `top` prints, and whether it succeeds."
    env = os.environ | {"PYTHONPATH": str(top), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=top, env=env, capture_output=True, text=True
    )
    return done.stdout + done.stderr, done.returncode == 0


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    "A copy of the checkout without its notebooks, with one new chapter of each kind."
    top = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("nbs", "tests"):
        (top / folder).mkdir()
    for folder in ("ponderlearn", "tools", "benchmarks"):
        shutil.copytree(ROOT / folder, top / folder, ignore=ignore)
    for file in ("settings.ini", "pyproject.toml", "tests/test_chapters.py"):
        shutil.copy(ROOT / file, top / file)
    for c in NEW:
        text, good = run(top, "tools/chapter.py", "new", c.name)
        assert good, text
    return top


new = pytest.mark.parametrize("c", NEW, ids=lambda c: c.kind)


@new
def test_a_new_chapter_keeps_to_the_rules(top, c):
    files = notebook_path(c), f"tests/test_{c.name}.py", f"tests/examples/{c.name}.py"
    select = ["-m", "not stored", "-k", f"{c.name} and not test_notebook_is_clean"]
    for command in (
        ["ruff", "check", *files, f"benchmarks/{c.name}.py"],
        ["pytest", *select, "tests/test_chapters.py"],
    ):
        text, good = run(top, "-m", *command)
        assert good, text


@new
def test_a_new_chapter_is_not_written_over(top, c):
    before = (top / notebook_path(c)).read_bytes()
    text, good = run(top, "tools/chapter.py", "new", c.name)
    assert not good and f"nothing was written, for these exist: {notebook_path(c)}" in text
    assert (top / notebook_path(c)).read_bytes() == before


@pytest.mark.slow
@new
def test_a_new_chapter_runs(top, c):
    text, good = run(top, "tools/notebooks.py", notebook_path(c))
    assert good, text
    text, good = run(top, "-m", "pytest", f"tests/test_{c.name}.py")
    assert good, text


def test_other_names_are_refused():
    for name, words in (("training", "is a foundation"), ("performr", "did you mean 'performer'")):
        text, good = run(ROOT, "tools/chapter.py", "new", name)
        assert not good and words in text


def notebook(path, code):
    cell = {"cell_type": "code", "id": "0a1b2c3d", "metadata": {}, "source": code}
    cell |= {"execution_count": None, "outputs": []}
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    found = {"cells": [cell], "metadata": {"kernelspec": kernel}}
    path.write_text(json.dumps(found | {"nbformat": 4, "nbformat_minor": 5}))


def test_notebooks_that_fail_or_take_long(top):
    tool = top / "tools" / "notebooks.py"
    tool.write_text(tool.read_text().replace("LIMIT = 20", "LIMIT = 0"))
    notebook(top / "long.ipynb", "assert True")
    notebook(top / "wrong.ipynb", "raise ValueError('so it is')")
    text, good = run(top, "tools/notebooks.py", "long.ipynb", "wrong.ipynb")
    assert not good and "0 passed, 2 failed" in text
    assert "long.ipynb  over 0 s" in text
    assert "wrong.ipynb  failed" in text and "so it is" in text


def test_a_long_test_carries_slow(tmp_path):
    limit = (ROOT / "tests" / "conftest.py").read_text().replace("LIMIT = 5", "LIMIT = 0.1")
    (tmp_path / "conftest.py").write_text(limit)
    body = """
    import subprocess, sys, time, pytest
    def spin():
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    def test_short(): pass
    def test_waits(): time.sleep(0.3)
    def test_long(): spin()
    def test_long_child(): subprocess.run([sys.executable, "-c", "sum(range(10**7))"])
    @pytest.mark.slow
    def test_marked(): spin()
    """
    (tmp_path / "test_it.py").write_text(textwrap.dedent(body))
    text, good = run(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py")
    assert not good and "2 failed, 3 passed" in text and "it carries pytest.mark.slow" in text
