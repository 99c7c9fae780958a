"""The command line, in this process, on tiny notebooks in a course made for the test."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ponderlearn import catalogue, cli, execution
from ponderlearn.catalogue import CATALOGUE, settings, write_atomic
from ponderlearn.cli import html_page, only_solutions, without_solutions
from ponderlearn.execution import Execution, differences, fingerprint, store_outputs, store_results

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook  # noqa: E402

TOP = Path(__file__).resolve().parents[1]
CLAIM = """from ponderlearn.course import card, record, scale
record("act", "six", paper=6, here=6, interval=(5, 7), rule="equal", holds=True)"""
WIDGET = "import ipywidgets\nipywidgets.IntSlider(max=1)"
FIGURE = """#| fig-alt: "a rising line"
import matplotlib.pyplot as plt
plt.plot([0, 1])
plt.show()"""


def notebook(*sources):
    "A notebook with a formula and these code cells."
    text = "# Tiny\n\n> A claim.\n\nHere $a_1 < b$ and\n\n$$\n\\frac{1}{2}\n$$"
    nb = new_notebook(cells=[new_markdown_cell(text), *map(new_code_cell, sources)])
    nb.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
    return nb


def cells(*sources, **more):
    "A notebook of code cells as JSON."
    return {"cells": [{"cell_type": "code", "source": s, **more} for s in sources]}


def read(c):
    "The notebook of a chapter of the real course, as JSON."
    return json.loads((TOP / c.notebook).read_text(encoding="utf-8"))


class Course:
    "A course of one chapter, ACT, that this process takes for its own; a call is a command line."

    def __init__(self, folder, monkeypatch, capsys):
        self.root, self.desk, self.installed = folder / "course", folder / "desk", False
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.path = self.root / "nbs" / "01_adaptive" / "01_act.ipynb"
        self.path.parent.mkdir(parents=True)
        self.desk.mkdir()
        shutil.copy(TOP / "settings.ini", self.root)
        self.write("1")
        monkeypatch.chdir(self.desk)
        monkeypatch.setattr(catalogue, "course_root", lambda: self.root)
        monkeypatch.setattr(catalogue, "in_checkout", lambda: not self.installed)
        monkeypatch.setenv("JUPYTER_DATA_DIR", str(folder / "jupyter"))
        for name in ("PONDERLEARN_SCALE", "PONDERLEARN_RECORD", "COLUMNS", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)

    def write(self, *sources):
        "Write the chapter, as nbdev_clean leaves it."
        nb = json.loads(nbformat.writes(notebook(*sources)))
        for i, cell in enumerate(nb["cells"]):
            cell["id"] = f"cell-{i}"
        text = json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        self.path.write_text(text, encoding="utf-8")

    def __call__(self, *words, status=0):
        self.monkeypatch.setattr(sys, "argv", ["ponderlearn", *map(str, words)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        shown = "".join(self.capsys.readouterr())
        assert (left.value.code or 0) == status, shown
        return shown

    def store(self, **row):
        "Store a row as the chapter's results."
        row = ROW | row
        run = RUN | {"fingerprint": fingerprint(self.nb)}
        store_results("act", run, [row])

    @property
    def nb(self):
        return json.loads(self.path.read_text(encoding="utf-8"))

    @property
    def results(self):
        return json.loads((self.root / "results" / "act.json").read_text(encoding="utf-8"))


RUN = {"scale": "full", "device": "cpu", "torch": "2", "processor": "fast", "threads": 1}
RUN |= {"seconds": 1.0, "date": "2026-11-28", "python": "3.11", "modules": {}}
ROW = {"claim": "six", "scale": "full", "device": "cpu", "paper": 6, "here": 6, "interval": None}
ROW |= {"unit": "", "n_seeds": None, "seeds": None, "rule": "equal", "holds": "yes"}
ROW |= {"cell": None, "note": "", "p": None, "timing": False}


@pytest.fixture
def course(tmp_path, monkeypatch, capsys):
    return Course(tmp_path, monkeypatch, capsys)


# What is printed


def test_list_and_results(course):
    assert "No results are committed yet" in course("results")
    shown = course("list")
    assert "Learning to ponder" in shown and "PonderNet: Learning to Ponder (2021)" in shown
    assert re.search(r"act .*\(2016\) +5 min", shown)
    assert re.search(r"performer .*not written yet", shown)
    course.store()
    assert re.search(r"act +six +6 +6 +yes +full, cpu", course("results"))


def test_names_are_whole_at_40_columns(course, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    shown = course("list")
    assert {c.name for c in CATALOGUE} <= set(shown.split())
    assert max(map(len, shown.splitlines())) <= 40
    course.store()
    assert re.search(r"(?m)^act ", course("results"))


def test_version_and_completion(course, monkeypatch):
    assert course("--version") == f"ponderlearn {settings()['version']}\n"
    assert "--install-completion" in course("--help")
    monkeypatch.setenv("_PONDERLEARN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "ponderlearn run ponder")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert course().split() == ["pondernet"]


def test_what_the_output_cannot_show_becomes_a_question_mark(course, monkeypatch):
    course.store(here="λ = 1 ≤ 2")
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["ponderlearn", "results"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out.flush()
    assert not left.value.code and "? = 1 ? 2" in out.buffer.getvalue().decode("cp1252")


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_closed_pipe_is_no_error():
    end, pipe = os.pipe()
    os.close(end)
    code = "from ponderlearn.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "list"], stdout=pipe, stderr=subprocess.PIPE)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (0, b"")


DAMAGED = ["{", "[]", '{"runs": [], "claims": [{"claim": "c"}]}', '{"claims": []}', "\x00"]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_results_are_named(course, text):
    write_atomic(course.root / "results" / "act.json", text)
    for words in (("results",), ("list",), ("results", "act")):
        shown = course(*words, status=1)
        assert shown.count("\n") == 1 or words == ("list",)
        assert "act.json is damaged" in shown and "Traceback" not in shown
    shown = course("doctor", status=1)  # its table breaks lines in a long path
    assert "act.jsonisdamaged" in "".join(shown.split())


def test_long_claims_leave_room_for_what_was_measured(course):
    course.store(claim="a long claim " * 12, here="difference of the accuracies 0.1")
    assert "difference of the" in course("results")
    rows = [["a long claim " * 12, "1", "difference of the accuracies"]]
    cli._console().print(cli._table(["claim", "paper", "here"], rows))
    assert "difference of the accuracies" in course.capsys.readouterr().out


# Wrong command lines

NEAR = "error: no chapter 'pondernte'; did you mean 'pondernet'?\n"
REFUSED = "must be a notebook, got a file that nbformat refuses\n"
EITHER = "error: run takes either a chapter, or --all, or --part N; see: ponderlearn list\n"
ONE = "error: --commit and --verify take one chapter; for all that changed: make verify\n"
HANDOUT = "error: exercises takes either a chapter or --all; see: ponderlearn list\n"
WRONG = {
    "run pondernte": (2, NEAR),
    "results pondernte": (2, NEAR),
    "run act --scale huge": (2, "error: --scale must be one of quick, full, gpu, got 'huge'\n"),
    "run none.ipynb": (2, "error: there is no notebook none.ipynb\n"),
    "run infobert": (
        1,
        "error: the chapter 'infobert' is announced but not written yet; see: ponderlearn list\n",
    ),
    "run mine.ipynb --commit": (2, "error: --commit takes a chapter's name, not a file\n"),
    "run mine.ipynb --verify": (2, "error: --verify takes a chapter's name, not a file\n"),
    "run": (2, EITHER),
    "run act --all": (2, EITHER),
    "run --all --part 1": (2, EITHER),
    "run --all --commit": (2, ONE),
    "run --part 1 --verify": (2, ONE),
    "run --part 12": (2, "error: --part must be one of 0 to 9, got 12\n"),
    "run --part 9": (
        1,
        "error: no chapter of part 9 is written yet; see: ponderlearn list\n",
    ),
    "exercises": (2, HANDOUT),
    "exercises act mine --all": (2, HANDOUT),
    "exercises pondernte": (2, NEAR),
    "exercises act": (1, "error: the chapter 'act' has no exercises\n"),
    "run text.ipynb": (2, f"error: text.ipynb {REFUSED}"),
    "run json.ipynb": (2, f"error: json.ipynb {REFUSED}"),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_command_line_is_one_sentence(course, words):
    shutil.copy(course.path, course.desk / "mine.ipynb")
    (course.desk / "text.ipynb").write_text("no notebook")
    (course.desk / "json.ipynb").write_text('{"nbformat": 4, "nbformat_minor": 5, "cells": 3}')
    status, text = WRONG[words]
    assert course(*words.split(), status=status) == text


MISSING = {
    "run act": ("nbclient", "lab"),
    "lab": ("jupyterlab", "lab"),
    "run act --commit": ("nbdev.clean", "dev"),
}


@pytest.mark.parametrize("words", MISSING)
def test_a_missing_extra_is_named(course, monkeypatch, words):
    module, extra = MISSING[words]
    monkeypatch.setitem(sys.modules, module, None)
    shown = course(*words.split(), status=1)
    assert shown == f'error: {module} is missing: pip install "ponderlearn[{extra}]"\n'


@pytest.mark.parametrize("words", ["run act --commit", "run act --verify", "results --add x.json"])
def test_storing_needs_a_checkout(course, words):
    course.installed = True
    assert "use it in a checkout" in course(*words.split(), status=1)
    assert not (course.root / "results").exists()


def test_a_run_overwrites_nothing_that_no_run_left(course, monkeypatch):
    monkeypatch.setattr(cli, "execute", lambda *a: Execution(notebook("1"), RUN, [], None, None))
    shutil.copy(course.path, course.desk / "mine.ipynb")
    assert "would overwrite mine.ipynb" in course("run", "mine.ipynb", "--out", ".", status=2)
    out = course.desk / "out"
    (out / "record").mkdir(parents=True)
    (out / "record" / "notes.json").write_text("notes")
    for _ in range(2):  # what a run left may be renewed
        course("run", "mine.ipynb", "--out", "out")
    left = {"mine.ipynb", "mine.html", "mine.json", ".ponderlearn-run.json", "record"}
    assert set(os.listdir(out)) == left and (out / "record" / "notes.json").exists()
    (out / "mine.html").write_text("my notes")
    shown = course("run", "mine.ipynb", "--out", "out", status=2)
    assert "would overwrite mine.html" in shown and (out / "mine.html").read_text() == "my notes"


def test_doctor_names_what_is_missing(course, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1")
    shown = course("doctor")
    assert re.search(r"PyTorch +\d", shown) and re.search(r"threads +\d+ of \d+ cores", shown)
    assert "DejaVu Sans" in shown
    monkeypatch.undo()


def test_doctor_fails_when_something_is_wrong(course):
    ini = course.root / "settings.ini"
    more = ini.read_text().replace("lab_requirements = ", "lab_requirements = no-such-package>=1 ")
    ini.write_text(more)
    shown = course("doctor", status=1)
    assert 'missing no-such-package: pip install "ponderlearn[lab]"' in shown
    assert "error: not as it should be: extra lab" in shown


# JupyterLab


def test_lab_never_overwrites_what_you_changed(course):
    shown = course("lab", "mine", "--no-open")
    mine = course.desk / "mine" / "nbs" / "01_adaptive" / "01_act.ipynb"
    assert mine.read_bytes() == course.path.read_bytes() and "1 files new or renewed" in shown
    assert "0 files" in course("lab", "mine", "--no-open")
    course.write("3")  # an update of the package, the reader changed nothing
    assert "1 files" in course("lab", "mine", "--no-open")
    assert mine.read_bytes() == course.path.read_bytes()
    mine.write_text("my notes")
    course.write("4")
    for _ in range(2):
        shown = course("lab", "mine", "--no-open")
        assert "Kept your version" in shown and "01_act.ipynb" in shown
        assert mine.read_text() == "my notes"


def test_a_notebook_that_was_only_opened_is_not_yours(course):
    course("lab", "mine", "--no-open")
    mine = course.desk / "mine" / "nbs" / "01_adaptive" / "01_act.ipynb"
    nb = json.loads(mine.read_text())
    nb["metadata"]["language_info"] = {"name": "python", "version": "3.11.7"}
    nb["cells"][1] |= {"id": "other", "execution_count": 7, "metadata": {"trusted": True}}
    nb["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "mine"}]
    mine.write_text(json.dumps(nb))
    for _ in range(2):  # its outputs stay as long as the course has the same cells
        assert "0 files" in course("lab", "mine", "--no-open") and '"mine"' in mine.read_text()
    course.write("2")
    shown = course("lab", "mine", "--no-open")
    assert "1 files" in shown and "Kept" not in shown
    assert mine.read_bytes() == course.path.read_bytes()


@pytest.mark.parametrize("option", [[], ["--no-solutions"]])
def test_the_picture_of_the_front_page_comes_along(course, option):
    picture = course.root / "docs" / "held.svg"
    picture.parent.mkdir()
    picture.write_text("<svg/>")
    assert "2 files" in course("lab", "mine", "--no-open", *option)
    assert (course.desk / "mine" / "docs" / "held.svg").read_text() == "<svg/>"


def test_what_is_copied_is_trusted(course):
    from nbformat.sign import NotebookNotary

    course("lab", "mine", "--no-open")
    mine = course.desk / "mine" / "nbs" / "01_adaptive" / "01_act.ipynb"
    nb = nbformat.read(mine, 4)
    assert NotebookNotary().check_signature(nb)
    nb.cells[1].source = "2"
    assert not NotebookNotary().check_signature(nb)


def test_lab_becomes_jupyterlab_with_the_options_given(course, monkeypatch):
    became = []
    monkeypatch.setattr(cli, "_become", became.append)
    course("lab", "--no-solutions", "--", "--port", "9000", "--no-browser", "--allow-root")
    (command,) = became
    assert command[1:3] == ["-m", "jupyterlab"] and command[3] == "_runs/course/index.ipynb"
    assert command[4:] == ["--port", "9000", "--no-browser", "--allow-root"]
    assert "No such option" in course("lab", "--port", "9000", status=2)


@pytest.mark.skipif(os.name != "posix", reason="exec")
def test_signals_reach_jupyterlab_itself():
    code = "import sys; from ponderlearn.cli import _become; _become([sys.executable, '-c', {!r}])"
    inner = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    options = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code.format(inner)], **options) as process:
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


def test_lab_without_solutions(course):
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
    left = [c["source"] for c in without_solutions(nb)["cells"][1:]]
    assert left == ["question = 1", "# your solution\n"]


# Exercises for a class


@pytest.fixture
def solved(course):
    "The course, its chapter with an exercise."
    nb = notebook("from ponderlearn.course import card\ncard('act')", "x = 6", "7 * x")
    nb.cells[3].metadata["tags"] = ["solution"]
    question = "Words.\n\n## Exercises\n\n**1 (easy).** Seven times six?"
    nb.cells.insert(3, new_markdown_cell(question))
    nb.cells.append(new_markdown_cell("## Summary"))
    nb.cells[4].outputs = [nbformat.v4.new_output("stream", text="forty-two")]
    nbformat.write(nb, course.path)
    return course


def test_exercises_and_solutions_apart(solved):
    shown = solved("exercises", "act", "class")
    assert "class/students/01_adaptive/01_act.ipynb" in shown and "2 of 2 files" in shown
    theirs, mine = (
        nbformat.read(f"class/{folder}/01_adaptive/01_act.ipynb", 4)
        for folder in ("students", "solutions")
    )
    assert "# your solution\n" in [c.source for c in theirs.cells]
    assert "7 * x" not in str(theirs) and "forty-two" not in str(theirs)
    title, code, question, answer = mine.cells
    assert title.source.startswith("# Tiny: solutions") and question.source.startswith("## Exerc")
    assert code.source == "#| hide\nfrom ponderlearn.course import card\n\nx = 6"
    assert code.metadata.jupyter == {"source_hidden": True, "outputs_hidden": True}
    assert answer.source == "7 * x" and answer.outputs[0].text == "forty-two"
    for nb in (theirs, mine):
        nbformat.validate(nb)


def test_exercises_overwrite_nothing_that_was_changed(solved):
    assert "2 of 2 files" in solved("exercises", "--all", "class")
    assert "0 of 2 files" in solved("exercises", "act", "class")
    file = Path("class/students/01_adaptive/01_act.ipynb")
    file.write_text(file.read_text().replace("# your solution", "6 * 7"))
    solved.path.write_text(solved.path.read_text().replace("times six", "times 6"))
    shown = solved("exercises", "act", "class")
    assert f"Kept your version: {file}" in shown and "1 of 2 files" in shown
    assert "6 * 7" in file.read_text()
    solved("exercises", "act")
    assert Path("_runs/exercises/solutions/01_adaptive/01_act.ipynb").is_file()


WITH_SOLUTIONS = [c for c in CATALOGUE if c.notebook and only_solutions(read(c))]


@pytest.mark.parametrize("c", WITH_SOLUTIONS, ids=lambda c: c.name)
def test_solutions_run_the_code_of_their_chapter(c):
    nb = read(c)
    last = max(i for i, x in enumerate(nb["cells"]) if "solution" in x["metadata"].get("tags", []))
    for cell in nb["cells"]:
        cell["source"] = re.sub(r"(?m)^card\(.*", "", "".join(cell["source"]))
    nb["cells"] = nb["cells"][: last + 1]
    mine = only_solutions(read(c))
    assert fingerprint(mine) == fingerprint(nb)
    nbformat.validate(nbformat.from_dict(json.loads(json.dumps(mine))))
    theirs = without_solutions(read(c))
    assert not any("solution" in x["metadata"].get("tags", []) for x in theirs["cells"])


# The fingerprint

CODE = '''def f(x, *, y=1):
    "Doc."
    return f"{x!r:>{y}} {x = }" "b" + 'c'


class A:
    """Doc."""

    z: int = 0x10'''
SAME = {
    "comments": CODE.replace("return", "# why\n    return") + "  # sixteen",
    "docstrings": CODE.replace('"Doc."', '"Other."').replace('"""Doc."""', '"Words."'),
    "layout": CODE.replace("def f(x, *, y=1)", "def f(\n    x,\n    *,\n    y=1,\n)"),
    "spelling": CODE.replace("0x10", "1_6").replace("'c'", '"c"'),
    "no docstring": CODE.replace('    """Doc."""\n\n', ""),
}
OTHER = {
    "a name": CODE.replace("y", "w"),
    "a number": CODE.replace("0x10", "0x11"),
    "a default": CODE.replace("y=1", "y=None"),
    "text": CODE.replace("'c'", "'d'"),
    "order": CODE + "\na\nb",
    "the other order": CODE + "\nb\na",
}


def test_the_fingerprint_sees_code_only():
    own = fingerprint(cells(CODE))
    assert {k: fingerprint(cells(v)) for k, v in SAME.items()} == dict.fromkeys(SAME, own)
    found = [own, *(fingerprint(cells(v)) for v in OTHER.values())]
    assert len(set(found)) == len(found)


def test_the_fingerprint_is_the_same_in_every_python():
    assert fingerprint(cells(CODE)) == "9ca0c474593c4d75"


def test_cell_borders_prose_and_outputs_do_not_count():
    nb = cells("a = 1\na", "b")
    own = fingerprint(nb)
    assert (
        own == fingerprint(cells("a = 1", "", "a", "b")) == fingerprint(cells(["a = 1\n", "a\nb"]))
    )
    nb["cells"].insert(0, {"cell_type": "markdown", "source": "words"})
    nb["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    assert own == fingerprint(nb)
    assert own == fingerprint(cells("a = 1\na", "#| eval: false\nc", "b"))
    assert len({own, *(fingerprint(cells(x, "a = 1")) for x in ("%time a", "!ls", "a"))}) == 4


def test_changed_names_code_and_modules(course, monkeypatch):
    nb = course.nb
    assert execution.changed("act") == ["its code"]  # never run
    nb["metadata"]["ponderlearn"] = RUN | {"fingerprint": fingerprint(nb)}
    write_atomic(course.path, json.dumps(nb))
    assert execution.changed("act") == []
    assert "Nothing changed" in course("results", "--stale")
    sums = {m: execution.module_fingerprint(m) for m in ("training", "adaptive.act", "gone")}
    assert sums["gone"] == "" and sums["training"] != sums["adaptive.act"] != ""
    nb["metadata"]["ponderlearn"]["modules"] = sums | {"gone": "there", "training": "other"}
    write_atomic(course.path, json.dumps(nb))
    assert course("results", "--stale") == "act: changed since its run: training, gone\n"
    del nb["metadata"]["ponderlearn"]["modules"]
    write_atomic(course.path, json.dumps(nb))
    assert course("results", "--stale") == "act: unknown, its run did not store the modules\n"


# The page


def test_the_page_leaves_out_machinery():
    figure = '#| fig-alt: "a red < line"\n#| fig-cap: "A & B."\nplain'
    nb = notebook("#| hide\nsecret_1", "#| default_exp x", "#| echo: false\nsecret_2", figure, "w")
    png = {"output_type": "display_data", "data": {"image/png": "iVBORw0KGgo="}, "metadata": {}}
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "m"}, "text/html": "<i>s</i>"}
    nb.cells[4]["outputs"] = [nbformat.from_dict(png)]
    nb.cells[5]["outputs"] = [nbformat.from_dict(png | {"data": view})]
    page = html_page(nb, "T")
    for word in ("secret_1", "default_exp", "secret_2", "#|", "cdnjs", "unpkg", "jsdelivr"):
        assert word not in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    assert "plain" in page and 'alt="a red &lt; line"' in page and page.count("<math") == 2
    assert "<figcaption>A &amp; B.</figcaption>" in page and "<i>s</i>" in page
    assert nb.cells[1].source.startswith("#| hide")  # the notebook itself is as it was


# With a kernel


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    "A run at full, in an environment that would lose every figure; its notebook and where it lies."
    folder = tmp_path_factory.mktemp("ran")
    nbformat.write(notebook(CLAIM, 'card("act")', WIDGET, FIGURE), folder / "act.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "Agg")
        return execution.execute(folder / "act.ipynb", "act", folder / "out", "full")


@pytest.fixture
def done(course, ran, monkeypatch):
    "That run, for `ponderlearn run act`."
    course.write(CLAIM, 'card("act")', WIDGET, FIGURE)
    monkeypatch.setattr(cli, "execute", lambda *a: ran)
    return ran


def test_what_a_run_knows_and_shows(ran):
    assert ran.error is None and [r["here"] for r in ran.claims] == [6]
    assert {"course", "records", "catalogue"} <= set(ran.run["modules"])
    assert "execution" not in ran.run["modules"] and "" not in ran.run["modules"].values()
    facts = {"scale", "device", "torch", "python", "processor", "threads", "seconds", "date"}
    assert set(ran.run) == facts | {"fingerprint", "modules"}
    assert "image/png" in ran.notebook.cells[4].outputs[0].data
    card = ran.notebook.cells[2].outputs[0].data["text/plain"]
    assert re.search(rf"To run: {ran.run['seconds']:.0f} s at full", card)


def test_a_run_leaves_notebook_page_and_rows(course, done):
    shown = course("run", "act", "--scale", "full", "--out", "out")
    assert re.search(r"six +6 +not committed +6 +\[5, 7\] +yes", shown)
    assert "out/act.ipynb" in shown and "out/act.html" in shown
    nbformat.validate(nbformat.read("out/act.ipynb", 4))
    assert 'alt="a rising line"' in Path("out/act.html").read_text(encoding="utf-8")
    assert json.loads(Path("out/act.json").read_text())["runs"] == [done.run]
    assert not list(course.root.rglob("results"))


def test_commit(course, done, ran):
    pytest.importorskip("nbdev")
    from execnb.nbio import nb2str
    from nbdev.clean import clean_nb

    shown = course("run", "act", "--commit")
    nb = course.nb
    state = nb["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    view = nb["cells"][3]["outputs"][0]["data"]["application/vnd.jupyter.widget-view+json"]
    assert shown.count("Stored:") == 2 and view["model_id"] in state
    assert "Results only" not in shown
    assert nb["metadata"]["language_info"] == execution._LANGUAGE
    assert nb["metadata"]["ponderlearn"] == ran.run and ran.run["fingerprint"] == fingerprint(nb)
    assert course.results["runs"] == [ran.run] and len(course.results["claims"]) == 1

    committed = course.path.read_bytes()  # nbdev_clean finds nothing to clean
    keys = (f"allowed_{kind}_keys" for kind in ("metadata", "cell_metadata"))
    clean_nb(nb, False, *(settings()[key].split() for key in keys))
    assert nb2str(nb).encode() == committed

    quick = RUN | {"scale": "quick", "fingerprint": fingerprint(nb)}
    rows = [ROW | {"scale": "quick", "here": 5, "holds": "not tested at this scale"}]
    cli.execute = lambda *a: Execution(notebook("1"), quick, rows, None, None)
    shown = course("run", "act", "--scale", "quick", "--commit")
    assert shown.count("Stored:") == 1 and "Results only: outputs are stored at full" in shown
    assert re.search(r"six +6 +6 +\[5, 7\] +5 +not", shown)
    assert course.path.read_bytes() == committed  # outputs and other rows stay
    assert [(r["scale"], r["here"]) for r in course.results["claims"]] == [
        ("quick", 5),
        ("full", 6),
    ]


def test_an_error_shows_cell_traceback_and_partial_notebook(course):
    course.write("x = 40 + 2\nx", "y = x / 0", "'never'")
    before = course.path.read_bytes()
    shown = course("run", "act", "--commit", status=1)
    assert "code cell 2 of 3" in shown and "y = x / 0" in shown
    assert "ZeroDivisionError: division by zero" in shown
    assert "nbclient" not in shown and "\x1b" not in shown
    partial = nbformat.read("_runs/act-full/act.ipynb", 4)
    assert partial.cells[1].outputs[0].data["text/plain"] == "42" and not partial.cells[3].outputs
    assert "_runs/act-full/act.ipynb" in shown
    assert course.path.read_bytes() == before and not (course.root / "results").exists()


def test_a_kernel_that_dies_is_reported(course):
    course.write("import os\nos._exit(1)")
    shown = course("run", "act", status=1)
    assert "DeadKernelError" in shown and "out of memory" in shown and "code cell 1 of 1" in shown


def test_runs_at_the_same_time_record_in_folders_of_their_own(course, monkeypatch):
    seen = []
    monkeypatch.setattr(execution, "_attempt", lambda c, f, env: seen.append(env))
    for _ in range(2):
        execution.execute(course.path, "act", course.desk, "quick")
    folders = {env["PONDERLEARN_RECORD"] for env in seen}
    assert len(folders) == 2 and not any(map(os.path.exists, folders)) and not os.listdir()


# Many chapters


@pytest.fixture
def two(course):
    "The course with a second chapter, which fails."
    text = course.path.read_text()
    course.write("1 / 0")
    shutil.copy(course.path, course.path.with_name("02_pondernet.ipynb"))
    course.path.write_text(text)
    return course


def test_all_goes_on_after_a_failure(two):
    shown = two("run", "--all", "--scale", "quick", "--out", "many", status=1)
    failed = "code cell 1 of 1: ZeroDivisionError: division by zero"
    assert "Running 2 chapters at scale quick" in shown
    assert re.search(rf"(?m)^act +\d+ *$\n^pondernet +\d+ +{failed}$", shown)
    assert "1 of 2 chapters went through; all is in many" in shown
    assert shown.endswith("error: failed: pondernet\n")
    assert Path("many/act-quick/act.html").is_file()
    assert Path("many/pondernet-quick/pondernet.ipynb").is_file()
    Path("many/act-quick/act.html").write_text("my notes")  # refused before anything runs
    assert "would overwrite act.html" in two(
        "run", "--all", "--scale", "quick", "--out", "many", status=2
    )


def test_many_chapters_count_claims_and_survive_a_full_disk(two, monkeypatch):
    names = []
    rows = [ROW | {"holds": h} for h in ("yes", "no", "suggestive", "not testable at this size")]

    def stub(path, name, folder, scale):
        names.append(name)
        if name == "act":
            raise OSError("No space left on device")
        return Execution(notebook("1"), RUN, rows, None, None)

    monkeypatch.setattr(cli, "execute", stub)
    shown = two("run", "--part", "1", status=1)
    assert names == ["act", "pondernet"] and "error: failed: act\n" in shown
    assert "act: the start: OSError: No space left on device" in shown
    assert re.search(r"(?m)^pondernet +\d+ +1 of 3 *$", shown)
    rows[:] = [ROW | {"holds": "not tested at this scale"}]
    assert re.search(r"(?m)^pondernet +\d+ +not tested *$", two("run", "--part", "1", status=1))
    monkeypatch.setattr(cli, "execute", lambda *a: Execution(notebook("1"), RUN, [], None, None))
    assert "2 of 2 chapters went through; all is in _runs" in two("run", "--all")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("inside", [True, False])
def test_a_signal_ends_all_chapters(two, monkeypatch, inside):
    def stopped(path, name, *_):
        if name == "act":
            return Execution(notebook("1"), RUN, [], None, None)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt as e:
            if inside:  # as `execute` leaves what was stopped
                return Execution(notebook("1"), {}, [], e, None)
            raise

    monkeypatch.setattr(cli, "execute", stopped)
    before = signal.getsignal(signal.SIGINT)
    shown = two("run", "--all", status=130)
    assert re.search(r"(?m)^act +\d+ *$", shown) and "1 of 2 chapters went through" in shown
    assert ("pondernet" in shown) == inside and shown.endswith("error: stopped by SIGINT\n")
    assert signal.getsignal(signal.SIGINT) is before


# Signals

BEFORE = "print('before')"
SLOW = """import os, time
from pathlib import Path
os.fork()
Path(f"pid-{os.getpid()}").touch()
time.sleep(600)"""


def alive(pid):
    "Whether a process runs that is no zombie."
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] not in "ZX"
    except OSError:
        return False


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_nothing_outlives_a_run_that_is_stopped_or_killed(tmp_path):
    nbformat.write(notebook(BEFORE, SLOW), tmp_path / "slow.ipynb")
    command = [
        sys.executable,
        "-c",
        "from ponderlearn.cli import main; main()",
        "run",
        "slow.ipynb",
    ]
    statuses = {"SIGTERM": 143, "SIGKILL": -9}
    options = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    options["env"] = os.environ | {"TMPDIR": str(tmp_path)}  # what is killed leaves a folder there
    started = {s: subprocess.Popen([*command, "--out", s], text=True, **options) for s in statuses}
    workers = {s: lambda s=s: list((tmp_path / s).glob("pid-*")) for s in statuses}
    for name, process in started.items():
        wait_for(lambda name=name: len(workers[name]()) == 2)
        process.send_signal(getattr(signal, name))
    said = {name: process.communicate(timeout=60)[1] for name, process in started.items()}
    assert {name: process.returncode for name, process in started.items()} == statuses
    for name in started:
        wait_for(lambda name=name: not any(alive(f.name[4:]) for f in workers[name]()), 20)
    sentence = (
        "error: slow was stopped by SIGTERM; what was computed so far is in SIGTERM/slow.ipynb"
    )
    assert said["SIGTERM"].splitlines()[-1] == sentence
    partial = nbformat.read(tmp_path / "SIGTERM" / "slow.ipynb", 4)
    assert "before" in partial.cells[1].outputs[0].text


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_every_signal_has_its_exit_status(course, monkeypatch, name):
    number = getattr(signal, name)
    before = signal.getsignal(number)

    def stopped(*_):  # as `execute` leaves what was stopped
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt as e:
            os.kill(os.getpid(), number)  # a second one changes nothing
            return Execution(notebook("1"), {}, [], e, None)

    monkeypatch.setattr(cli, "execute", stopped)
    shown = course("run", "act", status=128 + number)
    kept = "what was computed so far is in _runs/act-full/act.ipynb"
    assert shown.splitlines()[-1] == f"error: act was stopped by {name}; {kept}"
    assert Path("_runs/act-full/act.ipynb").is_file() and signal.getsignal(number) is before
    monkeypatch.setattr(cli, "execute", lambda *_: os.kill(os.getpid(), number))
    assert f"error: act was stopped by {name}\n" in course("run", "act", status=128 + number)


# Storing


@pytest.fixture
def store(course):
    "A checkout with results, and a run of it that printed something."
    pytest.importorskip("nbdev")
    write_atomic(course.root / "results" / "act.json", '{"runs": [], "claims": []}')
    nb = nbformat.read(course.path, 4)
    text = {"output_type": "stream", "name": "stdout", "text": "new " * 1000}
    nb.cells[1].outputs = [nbformat.from_dict(text)]
    course.done = Execution(nb, RUN | {"fingerprint": fingerprint(nb)}, [ROW], None, None)
    return course


STORED = {
    "outputs": lambda course: store_outputs(course.path, course.done),
    "results": lambda course: store_results("act", course.done.run, course.done.claims),
}


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("how", ["killed", "full"])
@pytest.mark.parametrize("what", STORED)
def test_a_broken_commit_leaves_the_old_files_whole(store, monkeypatch, how, what):
    files = [store.path, store.root / "results" / "act.json"]
    before = [f.read_bytes() for f in files]

    def no_space(_):
        raise OSError(28, "No space left on device")

    if how == "full":
        with monkeypatch.context() as disk, pytest.raises(OSError, match="No space left on device"):
            disk.setattr("os.fsync", no_space)
            STORED[what](store)
    else:
        child = os.fork()
        if child == 0:  # a process that is killed when all is written and nothing renamed
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
    store.done.run["fingerprint"] = "other"
    with pytest.raises(ValueError, match=r"01_act\.ipynb was edited while it ran: run it again"):
        store_outputs(store.path, store.done)
    assert store.path.read_bytes() == before


def test_prose_corrected_during_the_run_is_kept(store):
    store.path.write_text(store.path.read_text().replace("A claim", "A better claim"))
    store_outputs(store.path, store.done)
    text = store.path.read_text()
    assert "A better claim" in text and "new new" in text


def test_rows_measured_elsewhere_are_added(course):
    course.store()
    gpu = RUN | {"scale": "gpu", "device": "cuda", "fingerprint": fingerprint(course.nb)}
    rows = [ROW | {"scale": "gpu", "device": "cuda", "here": 7}]
    file = course.desk / "act.json"
    for here in (7, 8):  # a second time replaces the first
        rows[0]["here"] = here
        file.write_text(execution.as_results("act", [gpu], rows))
        assert "Stored:" in course("results", "--add", "act.json")
        assert [(r["device"], r["here"]) for r in course.results["claims"]] == [
            ("cpu", 6),
            ("cuda", here),
        ]
        assert course.results["runs"][1] == gpu


BAD = {
    "no chapter 'pondernte'": {"chapter": "pondernte"},
    "must come from the code of": {"runs": [RUN | {"fingerprint": "other"}]},
    "is damaged": {"claims": [{"claim": "six"}]},
    "must hold one run and its rows": {"claims": [ROW | {"device": "cuda"}]},
    "must hold whole rows, got some without note": {
        "claims": [{k: v for k, v in ROW.items() if k != "note"}]
    },
    "must hold one run and its rows, got [('full', 'cpu')]": {"runs": []},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_rows_are_refused(course, message):
    whole = {"chapter": "act", "claims": [ROW]}
    whole["runs"] = [RUN | {"fingerprint": fingerprint(course.nb)}]
    Path("act.json").write_text(json.dumps(whole | BAD[message]))
    shown = course("results", "--add", "act.json", status=1)
    assert message in shown and shown.count("\n") == 1
    assert not (course.root / "results").exists()


# Verifying

SPAN = ROW | {"here": 0.5, "interval": [0.4, 0.6]}
TEXT = ROW | {"here": "5 bits: 37.2% without, 1,200 with; difference −36.0"}
AGREE = [  # stored, changes, on the same machine, elsewhere
    (SPAN, {}, True, True),
    (SPAN, {"here": 0.5 * (1 + 5e-7)}, True, True),
    (SPAN, {"here": 0.5 * (1 + 5e-6)}, False, True),
    (SPAN, {"here": 0.55, "interval": [0.45, 0.65]}, False, True),
    (SPAN, {"here": 0.65, "interval": [0.55, 0.75]}, False, True),
    (SPAN, {"here": 0.75, "interval": [0.6, 0.9]}, False, True),
    (SPAN, {"here": 0.75, "interval": [0.61, 0.89]}, False, False),
    (SPAN, {"here": 0.3, "interval": [0.21, 0.39]}, False, False),
    (SPAN, {"here": 0.61, "interval": None}, False, False),
    (SPAN, {"interval": None}, False, True),
    (SPAN, {"here": 0.9, "interval": [0.8, 1.0], "timing": True}, True, True),
    (SPAN, {"holds": "no"}, False, False),
    (SPAN, {"holds": "no", "timing": True}, False, False),
    (SPAN, {"holds": "suggestive"}, True, True),
    (SPAN | {"holds": "no"}, {"holds": "suggestive"}, False, False),
    (SPAN | {"holds": "suggestive"}, {"holds": "no"}, False, True),
    (SPAN | {"holds": "suggestive"}, {"holds": "yes"}, False, False),
    (SPAN, {"rule": "in other words"}, True, True),
    (SPAN, {"note": "a remark", "paper": 7, "cell": "fig-other"}, True, True),
    (ROW, {"here": 7}, False, True),  # elsewhere without an interval: the verdict alone
    (ROW, {"here": 6, "interval": [5, 7]}, True, True),
    (TEXT, {"here": "37.2 of 5: 1200, then -36.0"}, False, True),
    (TEXT, {"here": "with 5 bits 37.2 % and 1200; -36"}, True, True),
    (TEXT, {"here": TEXT["here"].replace("37.2", "37.3")}, False, True),
    (TEXT, {"here": -36.04}, True, True),
    (TEXT, {"here": 36.04}, False, True),
    (TEXT, {"here": -36.06}, False, True),
    (SPAN, {"here": "0.5"}, False, True),
]


@pytest.mark.parametrize(("stored", "change", "same", "elsewhere"), AGREE)
def test_what_counts_as_the_same(stored, change, same, elsewhere):
    wrong, allowed = differences([stored], [stored | change], True)
    assert (not wrong) == same and (
        not differences([stored], [stored | change], False)[0]
    ) == elsewhere
    told = {what for _, what, *_ in wrong + allowed}
    assert ("rule" in change) == ("rule" in told) and ("holds" in change) == ("holds?" in told)


def test_claims_that_come_or_go_are_differences():
    other = ROW | {"claim": "seven"}
    for exact in (True, False):
        assert [w[:2] for w in differences([ROW], [other], exact)[0]] == [
            ("six", "claim"),
            ("seven", "claim"),
        ]


def test_the_same_machine_is_known_whole():
    assert execution.same_machine(RUN, RUN)
    for key in ("torch", "processor", "threads"):
        assert not execution.same_machine(RUN | {key: "other"}, RUN)
        assert not execution.same_machine({k: v for k, v in RUN.items() if k != key}, RUN)


def test_verify_stores_what_is_equal_and_nothing_else(course, done, ran):
    pytest.importorskip("nbdev")
    shown = course("run", "act", "--verify", status=1)
    assert "act has no committed run at full that --verify could compare with" in shown
    store_results("act", ran.run | {"device": "cuda"}, [])
    shown = course("run", "act", "--verify", status=1)
    assert "act must have a committed run at full on cpu, got none" in shown
    (course.root / "results" / "act.json").unlink()
    stored = ran.claims[0] | {"here": 6 + 1e-7, "rule": "the same"}
    store_results("act", ran.run | {"seconds": 0.5, "fingerprint": "old"}, [stored])
    shown = course("run", "act", "--verify")
    assert "Changed, and may:" in shown and "Not as stored" not in shown
    assert course.results == {"chapter": "act", "runs": [ran.run], "claims": ran.claims}
    assert course.nb["metadata"]["ponderlearn"] == ran.run and course.nb["cells"][4]["outputs"]

    files = [course.path, course.root / "results" / "act.json"]
    store_results("act", ran.run | {"fingerprint": "old"}, [stored | {"here": 6.1}])
    before = [f.read_bytes() for f in files]
    shown = course("run", "act", "--verify", status=1)
    assert re.search(r"Not as stored:\nclaim +what +stored +now\s+six +here +6\.1 \[5", shown)
    assert "measured other values than the stored ones; nothing was written" in shown
    assert [f.read_bytes() for f in files] == before


LIES = """#!/bin/sh
case "$*" in
*--stale) for n in act sire slow; do grep -q $n done || echo "$n: changed since its run: data"; done
    echo "supsup: unknown, its run did not store the modules";;
"run slow"*) exit 1;;
*) echo "$2" >> done; date +%N >> nbs/x/01_$2.ipynb;;
esac
"""


@pytest.mark.skipif(not shutil.which("make") or not shutil.which("git"), reason="make and git")
def test_make_verify_commits_each_chapter(tmp_path):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "nbs" / "x").mkdir(parents=True)
    shutil.copy(TOP / "Makefile", tmp_path)
    command = tmp_path / "venv" / "bin" / "ponderlearn"
    command.write_text(LIES)
    command.chmod(0o755)
    for name in ("act", "sire", "slow"):
        (tmp_path / "nbs" / "x" / f"01_{name}.ipynb").touch()
    (tmp_path / "done").touch()
    who = [f"GIT_{kind}_{what}=a" for kind in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
    env = os.environ | dict(x.split("=") for x in who) | {"MAKEFLAGS": ""}
    git = ["git", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "nbs"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=tmp_path, env=env, check=True)
    make = ["make", "-o", "venv/.dev", "VENV=venv", "verify"]
    done = subprocess.run(make, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode and "Not verified: slow" in done.stderr
    log = subprocess.run([*git, "log", "--format=%s"], cwd=tmp_path, capture_output=True, text=True)
    assert log.stdout.split("\n")[:3] == ["Verified again: sire", "Verified again: act", "first"]
    assert (tmp_path / "done").read_text() == "act\nsire\n"
