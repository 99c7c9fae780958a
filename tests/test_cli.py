"""The command line, on tiny notebooks in a checkout or an installed package made for the test."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ponderlearn
from ponderlearn import cli
from ponderlearn.cli import code_sha256, html_page, without_solutions
from ponderlearn.course import write_atomic

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook  # noqa: E402

PACKAGE = Path(ponderlearn.__file__).parent
MAIN = "from ponderlearn.cli import main; main()"
LINES = """
import contextlib, io, json, sys
from ponderlearn.cli import main
shown = []
for words, missing in json.loads(sys.argv[1]):
    sys.argv[1:], text, status = words, io.StringIO(), 0
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        kept = {m: sys.modules.pop(m, None) for m in missing}
        sys.modules.update(dict.fromkeys(missing))
        try:
            main()
        except SystemExit as e:
            status = e.code or 0
        sys.modules.update({m: module for m, module in kept.items() if module})
        [sys.modules.pop(m) for m, module in kept.items() if not module]
    shown.append((status, text.getvalue()))
print(json.dumps(shown))
"""
WIDGETS = """import ipywidgets as w
slider = w.IntSlider(max=1)
pictures = [w.HTML(f'<img alt="picture {i}" src="data:image/webp;base64,AAAA{i}">') for i in range(2)]
stack = w.Stack(pictures, selected_index=1)
w.jslink((slider, "value"), (stack, "selected_index"))
w.VBox([slider, stack])"""
CLAIM = """from ponderlearn.course import card, record, scale
record("act", "six", paper=6, here={"quick": 5, "full": 6}[scale()], rule="equal", holds=scale() == "full")"""


def notebook(*sources):
    "A notebook with a formula and these code cells."
    cells = [
        new_markdown_cell("# Tiny\n\n> A claim.\n\nHere $a_1 < b$ and\n\n$$\n\\frac{1}{2}\n$$")
    ]
    nb = new_notebook(cells=[*cells, *map(new_code_cell, sources)])
    nb.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
    return nb


class Course:
    "A course of one chapter, ACT, as a checkout or as an installed package."

    def __init__(self, folder, *sources, installed=False):
        self.top, self.package = folder, folder / "ponderlearn"
        shutil.copytree(
            PACKAGE, self.package, ignore=shutil.ignore_patterns("_course", "__pycache__", "_data")
        )
        self.root = self.package / "_course" if installed else self.top
        self.root.mkdir(exist_ok=True)
        shutil.copy(PACKAGE.parent / "settings.ini", self.root)
        self.path = self.root / "nbs" / "01_adaptive" / "01_act.ipynb"
        self.path.parent.mkdir(parents=True)
        self.write(*sources)
        self.desk = folder / "desk"
        self.desk.mkdir()

    def write(self, *sources):
        from nbdev.clean import clean_nb

        nb = json.loads(nbformat.writes(notebook(*sources)))
        clean_nb(nb)
        self.path.write_text(json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n")

    def __call__(self, *words, code=MAIN, status=0):
        "Run the command at the desk; what it printed."
        env = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("PONDERLEARN_", "FORCE_", "CLICOLOR"))
        }
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)],
            cwd=self.desk,
            capture_output=True,
            text=True,
            env=env | {"PYTHONPATH": str(self.top)},
            timeout=240,
        )
        assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def lines(self, *lines):
        "Command lines with the modules that are missing, in one process; (status, what it printed) of each."
        return [tuple(x) for x in json.loads(self(json.dumps(lines), code=LINES))]

    @property
    def results(self):
        return json.loads((self.root / "results" / "act.json").read_text())


# Without a kernel


def test_list_and_results(tmp_path):
    (listed, shown), (resulted, none) = Course(tmp_path, "1").lines(
        (("list",), ()), (("results",), ())
    )
    assert listed == resulted == 0 and "No results are committed yet" in none
    assert "Learning to ponder" in shown and "PonderNet: Learning to Ponder (2021)" in shown
    assert re.search(r"act .*\(2016\) +5 min", shown) and re.search(
        r"performer .*not written yet", shown
    )


WRONG = {
    ("run", "pondernte"): (2, "error: no chapter 'pondernte'; did you mean 'pondernet'?\n"),
    ("results", "pondernte"): (2, "error: no chapter 'pondernte'; did you mean 'pondernet'?\n"),
    ("run", "act", "--scale", "huge"): (
        2,
        "error: --scale must be one of quick, full, gpu, got 'huge'\n",
    ),
    ("run", "none.ipynb"): (2, "error: there is no notebook none.ipynb\n"),
    ("run", "infobert"): (
        1,
        "error: the chapter 'infobert' is announced but not written yet; see: ponderlearn list\n",
    ),
    ("run", "mine.ipynb", "--out", "."): (2, "error: --out . would overwrite mine.ipynb\n"),
    ("run", "mine.ipynb", "--commit"): (2, "error: --commit takes a chapter's name, not a file\n"),
    ("run", "text.ipynb"): (
        2,
        "error: text.ipynb must be a notebook, got a file that nbformat refuses\n",
    ),
    ("run", "json.ipynb"): (
        2,
        "error: json.ipynb must be a notebook, got a file that nbformat refuses\n",
    ),
}
MISSING = [
    (("run", "act"), "nbclient", "lab"),
    (("lab",), "jupyterlab", "lab"),
    (("run", "act", "--commit"), "nbdev.clean", "dev"),
]


def test_wrong_command_lines_and_missing_extras_are_one_sentence(tmp_path):
    course = Course(tmp_path, "1")
    shutil.copy(course.path, course.desk / "mine.ipynb")
    (course.desk / "text.ipynb").write_text("no notebook")
    (course.desk / "json.ipynb").write_text('{"nbformat": 4, "nbformat_minor": 5, "cells": 3}')
    shown = course.lines(
        *((words, ()) for words in WRONG), *((words, (module,)) for words, module, _ in MISSING)
    )
    for (words, (status, text)), got in zip(WRONG.items(), shown, strict=False):
        assert got == (status, text), words
    for (_, module, extra), got in zip(MISSING, shown[len(WRONG) :], strict=True):
        assert got == (1, f'error: {module} is missing: pip install "ponderlearn[{extra}]"\n')


def test_commit_needs_a_checkout(tmp_path):
    course = Course(tmp_path, "1", installed=True)
    assert "use it in a checkout" in course("run", "act", "--commit", status=1)
    assert not list(course.root.rglob("results"))


def test_doctor_names_what_is_missing(tmp_path):
    course = Course(tmp_path, "1")
    ini = course.root / "settings.ini"
    ini.write_text(
        ini.read_text().replace("lab_requirements = ", "lab_requirements = no-such-package>=1 ")
    )
    shown = course("doctor")
    assert 'missing no-such-package: pip install "ponderlearn[lab]"' in shown
    assert re.search(r"PyTorch +\d", shown) and re.search(r"threads +\d+ of \d+ cores", shown)
    assert "DejaVu Sans" in shown


def test_lab_never_overwrites_what_you_changed(tmp_path):
    course = Course(tmp_path, "1", "2", installed=True)
    shown = course("lab", "--no-open")
    mine = course.desk / "ponderlearn-course" / "nbs" / "01_adaptive" / "01_act.ipynb"
    assert mine.read_bytes() == course.path.read_bytes() and "1 files new or renewed" in shown
    assert "0 files" in course("lab", "--no-open")
    course.write("3")  # an update of the package, the reader changed nothing
    assert "1 files" in course("lab", "--no-open") and mine.read_bytes() == course.path.read_bytes()
    mine.write_text("my notes")
    course.write("4")
    for _ in range(2):
        shown = course("lab", "--no-open")
        assert (
            "Kept your version" in shown
            and "01_act.ipynb" in shown
            and mine.read_text() == "my notes"
        )


def test_lab_without_solutions(tmp_path):
    course = Course(tmp_path, "1")
    nb = notebook("question = 1", "answer = 42")
    nb.cells[2].metadata["tags"] = ["solution"]
    nb.cells.append(new_markdown_cell("It is forty-two.", metadata={"tags": ["solution"]}))
    for i, cell in enumerate(nb.cells):
        cell["id"] = f"cell-{i}"  # a random one may hold a 42
    nbformat.write(nb, course.path)
    course("lab", "class", "--no-solutions", "--no-open")
    text = (course.desk / "class" / "nbs" / "01_adaptive" / "01_act.ipynb").read_text()
    assert "question" in text and "42" not in text and "forty" not in text
    nbformat.validate(json.loads(text))
    assert [c["source"] for c in without_solutions(nb)["cells"][1:]] == [
        "question = 1",
        "# your solution\n",
    ]


def test_the_fingerprint_sees_code_only():
    nb = json.loads(nbformat.writes(notebook("a = 1\na", "", "b")))
    sha = code_sha256(nb)
    assert sha == code_sha256(notebook("a = 1\na", "", "b"))
    from nbdev.clean import clean_nb

    clean_nb(nb)
    assert sha == code_sha256(nb)
    nb["cells"][0]["source"] = "other prose"
    nb["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    assert sha == code_sha256(nb)
    assert (
        len(
            {
                sha,
                code_sha256(notebook("a = 1\na", "b", "")),
                code_sha256(notebook("a = 1", "a", "", "b")),
            }
        )
        == 3
    )


def test_the_page_leaves_out_machinery():
    nb = notebook(
        "#| hide\nsecret_1",
        "#| default_exp x",
        "#| echo: false\nsecret_2",
        '#| fig-alt: "a red < line"\n#| fig-cap: "A & B."\nplain',
    )
    png = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}, "metadata": {}}
    nb.cells[4]["outputs"] = [nbformat.from_dict(png)]
    page = html_page(nb, "T")
    assert (
        "secret_1" not in page
        and "default_exp" not in page
        and "secret_2" not in page
        and "#|" not in page
    )
    assert "plain" in page and 'alt="a red &lt; line"' in page and page.count("<math") == 2
    assert "<figcaption>A &amp; B.</figcaption>" in page
    assert nb.cells[1].source.startswith("#| hide")  # the notebook itself is as it was


# With a kernel


def test_run_leaves_notebook_page_and_table(tmp_path):
    course = Course(
        tmp_path,
        CLAIM,
        'card("act")',
        WIDGETS,
        "import os; os.environ['PONDERLEARN_SCALE']",
        installed=True,
    )
    shown = course("run", "act", "--scale", "quick")
    folder = course.desk / "runs" / "act-quick"
    assert re.search(r"six +6 +not committed +5 +no", shown)
    assert "Open the course in JupyterLab with: ponderlearn lab" in shown
    assert (
        "runs/act-quick/act.ipynb" in shown
        and "runs/act-quick/act.html" in shown
        and "4/4" in shown
    )
    nb = nbformat.read(folder / "act.ipynb", 4)
    nbformat.validate(nb)
    assert nb.cells[4].outputs[0].data["text/plain"] == "'quick'" and len(nb.cells) == 5
    assert re.search(
        r"To run: \d+ s at quick", nb.cells[2].outputs[0].data["text/plain"]
    )  # the card knows its seconds
    page = (folder / "act.html").read_text()
    assert not re.search(r'(?:src|href)="(?:https?:)?//(?!arxiv|t\.me)', page)
    assert not re.search("cdnjs|unpkg|jsdelivr", page)
    assert 'alt="picture 1"' in page and 'alt="picture 0"' not in page
    assert not list(course.root.rglob("results"))


def test_an_error_shows_cell_traceback_and_partial_notebook(tmp_path):
    course = Course(tmp_path, "x = 40 + 2\nx", "y = x / 0", "'never'")
    before = course.path.read_bytes()
    shown = course("run", "act", "--commit", status=1)
    assert (
        "code cell 2 of 3" in shown
        and "y = x / 0" in shown
        and "ZeroDivisionError: division by zero" in shown
    )
    assert "nbclient" not in shown and "\x1b" not in shown
    partial = nbformat.read(course.desk / "_runs" / "act-full" / "act.ipynb", 4)
    assert partial.cells[1].outputs[0].data["text/plain"] == "42" and not partial.cells[3].outputs
    assert "_runs/act-full/act.ipynb" in shown
    assert course.path.read_bytes() == before and not (course.root / "results").exists()


def test_a_kernel_that_dies_is_reported(tmp_path):
    shown = Course(tmp_path, "import os\nos._exit(1)")("run", "act", status=1)
    assert "DeadKernelError" in shown and "out of memory" in shown and "code cell 1 of 1" in shown


def test_commit(tmp_path):
    course = Course(tmp_path, CLAIM, 'card("act")', WIDGETS)
    sha = code_sha256(json.loads(course.path.read_text()))
    shown = course("run", "act", "--scale", "full", "--commit")
    nb = json.loads(course.path.read_text())
    state = nb["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    view = nb["cells"][3]["outputs"][0]["data"]["application/vnd.jupyter.widget-view+json"]
    assert "Stored:" in shown and view["model_id"] in state and code_sha256(nb) == sha
    assert {m["model_name"] for m in state.values()} >= {
        "StackModel",
        "LinkModel",
        "IntSliderModel",
        "HTMLModel",
    }
    facts = nb["metadata"]["ponderlearn"]
    assert facts["scale"] == "full" and facts["sha256"] == sha and facts["seconds"] > 0
    assert set(facts) == {"scale", "device", "torch", "python", "seconds", "date", "sha256"}
    assert course.results["runs"] == [facts] and [r["here"] for r in course.results["claims"]] == [
        6
    ]
    assert re.search(r"To run: \d+ s at full", json.dumps(nb["cells"][2]["outputs"]))

    committed = course.path.read_bytes()  # nbdev_clean finds nothing to clean
    clean = "from nbdev.clean import nbdev_clean; nbdev_clean()"
    subprocess.run(
        [sys.executable, "-c", clean, "--fname", course.path], cwd=course.top, check=True
    )
    assert course.path.read_bytes() == committed

    shown = course(
        "run", "act", "--scale", "quick", "--commit"
    )  # other rows stay, and so do the outputs
    assert re.search(r"six +6 +6 +5 +no", shown) and course.path.read_bytes() == committed
    rows = [(r["scale"], r["here"], r["holds"]) for r in course.results["claims"]]
    assert rows == [("quick", 5, "no"), ("full", 6, "yes")]
    assert [r["scale"] for r in course.results["runs"]] == ["quick", "full"]
    assert re.search(r"act +six +6 +6 +yes +full, ", course("results", "act"))


# Storing, in this process


@pytest.fixture
def store(tmp_path, monkeypatch):
    "A checkout of one chapter that this process takes for its own, and a run of it that printed something."
    pytest.importorskip("nbdev")
    course = Course(tmp_path, "1")
    monkeypatch.setattr("ponderlearn.course.course_root", lambda: course.root)
    monkeypatch.setattr("ponderlearn.cli.course_root", lambda: course.root)
    write_atomic(course.root / "results" / "act.json", '{"runs": [], "claims": []}')
    nb = nbformat.read(course.path, 4)
    nb.cells[1].outputs = [
        nbformat.from_dict({"output_type": "stream", "name": "stdout", "text": "new " * 1000})
    ]
    run = {"scale": "full", "device": "cpu", "seconds": 1.0, "sha256": code_sha256(nb)}
    claims = [{"claim": "c", "scale": "full", "device": "cpu", "here": 2}]
    course.done = cli.Execution(nb, run, claims, None, None)
    return course


STORED = {
    "outputs": lambda course: cli.store_outputs(course.path, course.done),
    "results": lambda course: cli.store_results("act", course.done),
}


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("how", ["killed", "full"])
@pytest.mark.parametrize("what", STORED)
def test_a_broken_commit_leaves_the_old_files_whole(store, monkeypatch, how, what):
    files = [store.path, store.root / "results" / "act.json"]
    before = [f.read_bytes() for f in files]
    if how == "full":
        with monkeypatch.context() as disk, pytest.raises(OSError, match="No space left on device"):
            disk.setattr(
                "os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )
            STORED[what](store)
    else:
        child = os.fork()
        if (
            child == 0
        ):  # a process of its own that is killed when all is written and nothing renamed
            os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            STORED[what](store)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert [f.read_bytes() for f in files] == before
    STORED[what](store)  # and the next try goes through
    assert [f.read_bytes() for f in files] != before
    assert json.loads(files[0].read_text()) and json.loads(files[1].read_text())


def test_outputs_of_other_code_are_refused(store):
    before = store.path.read_bytes()
    store.done.run["sha256"] = "other"
    with pytest.raises(ValueError, match=r"01_act\.ipynb was edited while it ran: run it again"):
        cli.store_outputs(store.path, store.done)
    assert store.path.read_bytes() == before


def test_prose_corrected_during_the_run_is_kept(store):
    store.path.write_text(store.path.read_text().replace("A claim", "A better claim"))
    cli.store_outputs(store.path, store.done)
    text = store.path.read_text()
    assert "A better claim" in text and "new new" in text
