"""make chapter, the notebooks' limit and the tests' limit: tools/ and conftest.py."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from ponderlearn.catalogue import CATALOGUE, PARTS, Chapter, Review, notebook_path

pytest.importorskip("nbdev")
ROOT = Path(__file__).parents[1]
# A paper at the end of the last part, by the row that CONTRIBUTING.md has to copy, and a method at
# the head of a part that has none.
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAPER = textwrap.dedent(re.search(r"(?ms)^ *```toml\n(.*?)^ *```", CONTRIBUTING)[1])
METHOD = """\
[[part.chapter]]
name = "shared_idea"
kind = "method"
title = "A shared idea"
claim = "What several chapters use."
know = "nothing"
"""
WITH = {c.part for c in CATALOGUE if c.kind != "paper"}
HEAD, TAIL = min(set(PARTS) - WITH), max(PARTS)


def made_up(row: str, part: int, number: int) -> Chapter:
    "The row as the catalogue would read it, as far as the tests ask."
    found = tomllib.loads(row)["part"]["chapter"][0]
    kind, title = found.get("kind", "paper"), found["title"]
    return Chapter(found["name"], part, number, kind, title, title, found["claim"], "")


LAST = [c.number for c in CATALOGUE if c.part == TAIL][-1]
NEW = [made_up(PAPER, TAIL, LAST + 1), made_up(METHOD, HEAD, 0)]


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
    file = top / "ponderlearn" / "catalogue.toml"
    table = file.read_text(encoding="utf-8")
    first = table.index("[[part.chapter]]", table.index(f'folder = "{PARTS[HEAD].folder}"'))
    table = table[:first] + METHOD + "\n" + table[first:]
    end = table.index("# ---- Reading routes")
    file.write_text(table[:end] + PAPER + "\n" + table[end:], encoding="utf-8")
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


def test_the_row_to_copy_keeps_to_the_rules():
    row = tomllib.loads(PAPER)["part"]["chapter"][0]
    assert len(row["short"]) <= 34 and row["claim"].endswith(".")
    assert set(row) <= set(Chapter._fields)
    assert set(row["review"]) <= set(Review._fields) - {"url"}


def test_other_names_are_refused():
    said = "did you mean 'performer'?\nA new chapter first needs its row"
    for name, words in (("training", "is a foundation"), ("performr", said)):
        text, good = run(ROOT, "tools/chapter.py", "new", name)
        assert not good and words in text


def test_a_row_that_lacks_fields_is_refused(tmp_path):
    for folder in ("ponderlearn", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    file = tmp_path / "ponderlearn" / "catalogue.toml"
    row = '[[part.chapter]]\nname = "bare"\nclaim = "."\n'
    row += 'title = "A title of over thirty-four characters"'
    table = file.read_text(encoding="utf-8").replace("# ---- Reading", f"{row}\n\n# ---- Reading")
    file.write_text(table, encoding="utf-8")
    text, good = run(tmp_path, "tools/chapter.py", "new", "bare")
    assert not good and not (tmp_path / "nbs").exists()
    assert "lacks: authors, year, venue, arxiv, know, review, short (at most 34 char" in text


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
