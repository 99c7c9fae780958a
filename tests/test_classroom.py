"""The teachers' plan: every chapter once, what it builds on before it, exercises that exist."""

import json
import re
import sys
from pathlib import Path

import pytest

from ponderlearn.catalogue import CATALOGUE, chapter

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "docs" / "_ext"))
pytest.importorskip("myst_nb")
import classroom  # noqa: E402

WEEKS = classroom.plan(TOP / "docs")
weeks = pytest.mark.parametrize("week", WEEKS, ids=[f"week {i}" for i in range(1, len(WEEKS) + 1)])


SMALL = set("with that which from what when than another does into place both cannot two".split())


def found(name):
    "Number -> exercise of a chapter; empty while it is not written."
    path = chapter(name).notebook
    nb = json.loads((TOP / path).read_text(encoding="utf-8")) if path else {"cells": []}
    return {e.n: e for e in classroom.exercises(nb)}


def test_every_paper_and_method_has_a_place():
    assert len(WEEKS) == 12
    names = [name for week in WEEKS for name in (*week["read"], *week["more"])]
    wanted = {"before_you_start", *(c.name for c in CATALOGUE if c.kind != "foundation")}
    missing = wanted - set(names)
    assert not missing, (
        f"docs/classroom.toml has no place for {', '.join(sorted(missing))}: under `more` of a "
        "fitting week it always fits (CONTRIBUTING.md, step 5)"
    )
    assert len(set(names)) == len(names) and set(names) == wanted


def test_what_a_chapter_needs_comes_before_it():
    read, seen = set(), set()
    for week in WEEKS:
        for name in week["read"]:
            assert set(chapter(name).prerequisites) <= read, name
            read.add(name)
        seen |= read
        for name in week["more"]:
            assert set(chapter(name).prerequisites) <= seen, name
            seen.add(name)


@weeks
def test_a_week_can_be_done(week):
    assert sum(chapter(name).minutes or 0 for name in week["read"]) <= 120
    lab = [found(x["chapter"])[x["n"]] for x in week["lab"]]
    assert sum(classroom.LAB[e.level] for e in lab) <= 90
    assert {x["chapter"] for x in week["lab"]} <= set(week["read"])


@weeks
def test_exercises_are_those_that_are_meant(week):
    for x in week["lab"]:
        text = found(x["chapter"])[x["n"]].text.lower()
        words = set(re.findall(r"\w{4,}", x["topic"].lower())) - SMALL
        assert any(word in text for word in words), (x, text[:200])


@pytest.mark.parametrize(
    "c", [c for c in CATALOGUE if c.kind != "foundation"], ids=lambda c: c.name
)
def test_every_exercise_is_found(c):
    numbers = list(found(c.name))
    assert numbers == list(range(1, len(numbers) + 1))
    assert not c.notebook or len(numbers) >= (3 if c.kind == "method" else 5)


@pytest.mark.parametrize("c", [c for c in CATALOGUE if c.notebook], ids=lambda c: c.name)
def test_no_solution_stands_in_an_untagged_cell(c):
    nb = json.loads((TOP / c.notebook).read_text(encoding="utf-8"))
    cells = [(x, "".join(x["source"])) for x in nb["cells"] if x["cell_type"] == "markdown"]
    starts = [i for i, (_, text) in enumerate(cells) if re.search(r"(?m)^## Exercise", text)]
    for cell, text in cells[starts[0] + 1 :] if starts else []:
        if "solution" in cell["metadata"].get("tags", []):
            continue
        assert re.match(r"\*\*\d+ \(|## ", text), text[:200]
        if re.search(r"(?m)^## ", text):
            break


def test_commands_of_the_page_exist():
    from ponderlearn.cli import app

    text = (TOP / "docs" / "classroom.md").read_text(encoding="utf-8")
    names = {c.name or c.callback.__name__ for c in app.registered_commands}
    assert set(re.findall(r"ponderlearn ([a-z]+)", text)) <= names
