"""The catalogue: the table, what is found out from the files, and files that are whole or old."""

import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponderlearn import catalogue
from ponderlearn.catalogue import (
    CATALOGUE,
    PAPERS,
    PARTS,
    ROUTES,
    chapter,
    read_json,
    write_atomic,
)

METHODS = [c for c in CATALOGUE if c.kind == "method"]


def python(code, **options):
    "Run a Python process."
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options
    )


@pytest.fixture
def course(tmp_path, monkeypatch):
    "An empty course that this process takes for its own; call it with a path and what to write."
    monkeypatch.setattr(catalogue, "course_root", lambda: tmp_path)

    def write(path, content):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / path

    write("nbs/empty", "")
    return write


def cell(source, kind="code", **metadata):
    return {"cell_type": kind, "source": source, "metadata": metadata}


# The table


def test_papers_stand_in_nine_parts():
    assert {c.part for c in PAPERS} == set(range(1, 10))
    assert set(PARTS) == set(range(10))
    assert {c.kind for c in CATALOGUE if c.part == 0} == {"foundation"}
    assert {(c.module, c.part, c.number) for c in METHODS} >= {
        ("ponderlearn.contrastive.infonce", 3, 0),
        ("ponderlearn.generative.gan", 4, 0),
        ("ponderlearn.transport.sinkhorn", 8, 0),
    }


def test_names_titles_and_places_are_told_apart():
    for key in (lambda c: c.name, lambda c: c.short, lambda c: c.module, catalogue.notebook_path):
        assert len({key(c) for c in CATALOGUE}) == len(CATALOGUE)
    for n in PARTS:
        own = [c for c in CATALOGUE if c.part == n]
        first = 0 if own[0].kind != "paper" else 1
        assert [c.number for c in own] == list(range(first, first + len(own)))
    assert all(c.claim.endswith(".") and len(c.short) <= 34 for c in CATALOGUE)


def test_the_foundations_have_the_numbers_of_their_files():
    paths = [catalogue.notebook_path(c) for c in CATALOGUE if c.part == 0]
    names = "before_you_start course catalogue records cards check nested data training metrics viz"
    assert paths == [
        f"nbs/00_foundations/{i:02d}_{name}.ipynb"
        for i, name in enumerate([*names.split(), "cli", "execution", "views", "words"])
    ]
    assert chapter("check").module == "ponderlearn._check"
    assert chapter("nested").module == "ponderlearn._nested"
    assert chapter("act").module == "ponderlearn.adaptive.act"


@pytest.mark.parametrize("c", PAPERS, ids=lambda c: c.name)
def test_every_paper_is_credited(c):
    assert c.title and c.authors and c.venue and c.year >= 2016
    assert re.fullmatch(r"\d{4}\.\d{5}", c.arxiv) and re.fullmatch(r"(https://\S+)?", c.code)
    assert c.review and c.know
    assert all((c.review.reviewer, c.review.language, c.review.where, c.review.recommendation))
    own = c.review.where == "written for this course"
    default = tuple(TABLE["review"][key] for key in ("reviewer", "language"))
    assert not own or (c.review.reviewer, c.review.language) != default, (
        f"{c.name} has no review: say who asks its questions, and in which language"
    )
    assert c.bibtex.count("{") == c.bibtex.count("}") and c.arxiv in c.bibtex


@pytest.mark.parametrize("c", METHODS, ids=lambda c: c.name)
def test_a_method_has_no_paper(c):
    assert c.know and not (c.authors or c.year or c.arxiv or c.review or c.bibtex)
    assert any(c.name in other.prerequisites for other in PAPERS)


def test_prerequisites_come_before():
    names = [c.name for c in CATALOGUE]
    for c in CATALOGUE:
        for p in c.prerequisites:
            assert p in names and chapter(p).kind != "foundation"
            # a method may stand in a later part, as Sinkhorn's algorithm does for SwAV
            assert chapter(p).kind == "method" or names.index(p) < names.index(c.name)
    assert chapter("swav").prerequisites == ("infonce", "sinkhorn")


@pytest.mark.parametrize("file", ["settings.ini", "index.ipynb", "README.md", "CITATION.cff"])
def test_the_number_of_papers_is_the_same_in_prose(file):
    path = Path(catalogue.__file__).parents[1] / file
    found = re.findall(r"(\d+) (?:deep-learning )?papers", path.read_text(encoding="utf-8"))
    remedy = "run: make readme" if file == "README.md" else "change the number there"
    assert found and set(found) == {str(len(PAPERS))}, (
        f"{file} speaks of {' and '.join(sorted(set(found))) or 'no'} papers, the catalogue has "
        f"{len(PAPERS)}: {remedy} (CONTRIBUTING.md, step 5)"
    )


def test_routes_lead_through_chapters_that_exist():
    assert len(ROUTES) >= 3 and all(r.title and r.time and r.gain and r.stops for r in ROUTES)
    assert all(chapter(s.chapter) and s.what for r in ROUTES for s in r.stops)


def test_a_route_brings_what_its_chapters_need_and_each_chapter_once():
    for route in ROUTES:
        names = [s.chapter for s in route.stops]
        assert len(set(names)) == len(names), route.title
        for place, name in enumerate(names):
            assert set(chapter(name).prerequisites) <= set(names[:place]), (route.title, name)


TABLE = tomllib.loads(Path(catalogue.__file__).with_name("catalogue.toml").read_text("utf-8"))


@pytest.mark.parametrize("route", TABLE["route"], ids=lambda r: r["title"])
def test_the_minutes_of_a_route_fit_its_sittings(route):
    names = [s["chapter"] for s in route["stops"]]
    sittings = route.get("sittings", [names])
    assert [n for sitting in sittings for n in sitting] == names, (
        "the sittings must have the stops, in their order"
    )
    assert set(route["minutes"]) <= set(names)
    longest = 75  # of a chapter by its card: what one that is not written yet may take
    took = []
    for sitting in sittings:
        whole = {name: chapter(name).minutes or longest for name in sitting}
        for name in set(whole) & set(route["minutes"]):
            assert route["minutes"][name] <= whole[name], f"{name} has {whole[name]} minutes"
        took.append(sum((whole | route["minutes"])[name] for name in sitting))
        assert took[-1] <= route["most"], (
            f"{', '.join(sitting)} take {took[-1]} minutes, {route['most']} is the most: move a "
            "chapter over a border of `sittings`"
        )
    assert sum(took) >= 0.7 * route["most"] * len(took), "more time is promised than there is to do"


def test_the_times_of_the_routes_are_told_rightly():
    evening, week, semester = TABLE["route"]
    assert evening["time"] == "two hours" and evening["most"] == 120
    assert week["time"] == "an hour a day" and week["most"] == 60 and len(week["sittings"]) == 7
    assert semester["time"].startswith("fifteen weeks: two hours")
    assert len(semester["sittings"]) == 15
    own = [s["chapter"] for s in semester["stops"]]
    written = [chapter(n).minutes for n in own if chapter(n).minutes]
    assert 100 <= sum(written) / len(written) * len(own) / 15 <= 140  # about two hours a week
    parts = {chapter(s["chapter"]).part for s in week["stops"]} - {0}
    assert len(parts) == 7 and "each of seven parts" in week["gain"]


# Which chapter helps me with ...?

PROBLEMS = [row for group in TABLE["problems"] for row in group["rows"]]


def test_every_paper_and_method_helps_with_something():
    names = {row["chapter"] for row in PROBLEMS}
    missing = {c.name for c in CATALOGUE if c.kind != "foundation"} - names
    assert not missing, (
        f"in ponderlearn/catalogue.toml no row of [[problems]] names {', '.join(sorted(missing))}: "
        "say what the chapter helps with (CONTRIBUTING.md, step 5)"
    )
    assert names <= {c.name for c in CATALOGUE}
    said = [row["problem"] for row in PROBLEMS]
    assert len(set(said)) == len(said) and 25 <= len(said) <= 60
    assert all(text.endswith((".", "?")) for text in said)


@pytest.mark.parametrize("row", PROBLEMS, ids=lambda row: row["problem"])
def test_what_a_problem_says_to_import_is_there(row):
    c = chapter(row["chapter"])
    if not c.notebook:
        pytest.skip(f"{c.name} is not written yet")
    public = importlib.import_module(c.module).__all__
    assert set(row.get("names", ())) <= set(public), f"{c.module} has {public}"


def test_the_longest_route_has_every_chapter_that_is_written():
    longest = max(ROUTES, key=lambda r: len(r.stops))
    written = {c.name for c in CATALOGUE if c.kind != "foundation" and c.notebook}
    missing = written - {s.chapter for s in longest.stops}
    assert not missing, (
        f"in ponderlearn/catalogue.toml the route {longest.title!r} lacks "
        f"{', '.join(sorted(missing))}: a stop in `stops` and, at the same place, its name in "
        "`sittings` (CONTRIBUTING.md, step 5)"
    )


def test_every_notebook_is_in_the_catalogue():
    found = {
        p.relative_to(catalogue.course_root()).as_posix()
        for p in (catalogue.course_root() / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts
    }
    alone = sorted(found - {c.notebook for c in CATALOGUE if c.notebook})
    assert not alone, (
        f"no row of ponderlearn/catalogue.toml has the place of {', '.join(alone)}: a row was put "
        "in the middle of a part, or a notebook has no row"
    )


@pytest.mark.parametrize(
    "name, near", [("atc", "act"), ("PonderNet", "pondernet"), ("swaw", "swav")]
)
def test_the_nearest_name_is_suggested(name, near):
    with pytest.raises(ValueError, match=re.escape(f"no chapter {name!r}; did you mean {near!r}?")):
        chapter(name)


def test_a_far_name_points_to_the_list():
    with pytest.raises(ValueError, match="ponderlearn list"):
        chapter("zzzzzzzz")


# What is found out


def test_an_announced_chapter_has_no_notebook_and_no_minutes(course):
    for name in ("nested", "act", "sinkhorn"):
        assert chapter(name).notebook is None and chapter(name).minutes is None


def test_minutes_count_what_a_reader_sees(course):
    path = catalogue.notebook_path(chapter("act"))
    code = "\n".join(f"x{i} = {i}" for i in range(150))
    seen = [cell("word " * 2000, "markdown"), cell(code)]  # 10 and 10 minutes
    course(path, {"cells": seen})
    assert chapter("act").minutes == 20
    figures = [cell("#| fig-alt: A line.\n#| code-fold: true\n" + code)] * 10  # 5 minutes
    course(path, {"cells": [*seen, *figures]})
    assert chapter("act").minutes == 25
    unseen = [
        *(cell(f"#| {d}\n{code}") for d in ("hide", "echo: false", "code-fold: true")),
        cell(code, tags=["solution"]),
        cell("word " * 2000, "markdown", tags=["solution"]),
        cell("\n\n" * 300),
        cell("## Appendix\n\n" + "word " * 2000, "markdown"),
        cell(code),
        cell("### Part of it\n\n" + "word " * 2000, "markdown"),
    ]
    course(path, {"cells": [*seen, *figures, *unseen]})
    assert chapter("act").minutes == 25
    course(path, {"cells": [*unseen, *figures, cell("## Back\n\n" + "w " * 1000, "markdown")]})
    assert chapter("act").minutes == 5  # the figures after the appendix's heading are its own
    course(path, {"cells": []})
    assert chapter("act").minutes == 5


@pytest.mark.parametrize("text", ["", "{", '{"cells": [', "[1, 2]", "\x00"])
def test_a_damaged_notebook_is_named(course, text):
    file = course(catalogue.notebook_path(chapter("act")), text)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))} is damaged .*; restore it"):
        read_json(file)
    with pytest.raises(ValueError, match=r"01_act\.ipynb is damaged"):
        _ = chapter("act").minutes


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_links_hide_until_there_is_an_address(course):
    course("settings.ini", "[DEFAULT]\nuser =\nrepo = ponderlearn\nbranch = main\ndoc_host =\n")
    assert catalogue.links("act") == {}
    course(
        "settings.ini",
        "[DEFAULT]\nuser = somebody\nrepo = r\nbranch = main\n"
        "doc_host = https://example.org\ndoc_baseurl = /r\n",
    )
    place = "somebody/r/blob/main/nbs/01_adaptive/01_act.ipynb"
    assert catalogue.links("act") == {
        "Open in Colab": f"https://colab.research.google.com/github/{place}",
        "Source": f"https://github.com/{place}",
        "On the site": "https://example.org/r/nbs/01_adaptive/01_act.html",
    }


def test_the_installed_package_finds_its_course(tmp_path):
    package = tmp_path / "ponderlearn"
    ignore = shutil.ignore_patterns("_course", "__pycache__", "_data")
    shutil.copytree(Path(catalogue.__file__).parent, package, ignore=ignore)
    code = (
        "import ponderlearn.catalogue as c\n"
        "print(c.in_checkout(), c.course_root().name, c.chapter('act').notebook)"
    )
    run = lambda: python(code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert "install ponderlearn again" in run().stderr
    (package / "_course" / "nbs" / "01_adaptive").mkdir(parents=True)
    (package / "_course" / "nbs" / "01_adaptive" / "01_act.ipynb").write_text("{}")
    assert run().stdout.split() == ["False", "_course", "nbs/01_adaptive/01_act.ipynb"]


# Files that are whole or old


@given(st.text())
def test_write_atomic_keeps_every_text(tmp_path_factory, text):
    file = write_atomic(tmp_path_factory.mktemp("w") / "deep" / "a.txt", text)
    assert file.read_bytes() == text.encode()
    assert [p.name for p in file.parent.iterdir()] == ["a.txt"]


def test_write_atomic_takes_text_and_bytes_only(tmp_path):
    with pytest.raises(TypeError, match="data must be text or bytes, got int"):
        write_atomic(tmp_path / "new" / "a", 5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, where):
    file = write_atomic(tmp_path / "a.json", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(where, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(file, "new" * 1000)
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(os.name != "posix", reason="limits of file sizes are POSIX")
def test_a_disk_that_fills_while_writing_leaves_the_old_file(tmp_path):
    file = write_atomic(tmp_path / "a.bin", b"old")
    done = python(
        "import resource, signal, sys; from ponderlearn.catalogue import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"write_atomic({str(file)!r}, b'n' * 1_000_000)"
    )
    assert (
        "OSError" in done.stderr
        and file.read_bytes() == b"old"
        and os.listdir(tmp_path) == ["a.bin"]
    )


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_kill_while_writing_leaves_one_whole_file(tmp_path):
    file = write_atomic(tmp_path / "a.bin", b"0" * 3_000_000)
    code = (
        "from ponderlearn.catalogue import write_atomic\nprint('go', flush=True)\n"
        f"for i in range(10_000): write_atomic({str(file)!r}, str(i % 10).encode() * 3_000_000)"
    )
    for pause in (0.0, 0.003, 0.011, 0.02):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        data = file.read_bytes()
        assert len(data) == 3_000_000 and len(set(data)) == 1
