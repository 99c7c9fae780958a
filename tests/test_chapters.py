"""Every notebook: in step with its module, whole in its parts, with the outputs of its own code."""

import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest

from ponderlearn.catalogue import CATALOGUE, PAPERS, course_root
from ponderlearn.execution import fingerprint
from ponderlearn.records import HOLDS

ROOT = course_root()
NOTEBOOKS = [c for c in CATALOGUE if c.notebook]
CHAPTERS = [c for c in PAPERS if c.notebook]
METHODS = [c for c in NOTEBOOKS if c.kind == "method"]
FILES = [Path(c.notebook) for c in NOTEBOOKS] + [Path("index.ipynb")]
SECTIONS = [
    "Summary",
    "In one picture",
    "The problem",
    "The idea",
    "The method, step by step",
    "Making it fast",
    "The data",
    "The experiment",
    "Play with it",
    "Use it",
    "The reviewer's questions",
    "Exercises",
    "Where it went next",
    "Appendix",
]
OPTIONAL = {"Making it fast", "The data", "Appendix"}
# Those of a notebook of kind "method", which several chapters share.
METHOD_SECTIONS = [
    "In one picture",
    "The method, step by step",
    "Making it fast",
    "Checks",
    "Play with it",
    "Exercises",
]
WIDGETS = "application/vnd.jupyter.widget-state+json"
MACHINE = (
    r"/work/|/root/|/home/\w|/Users/\w|/opt/\w|[A-Z]:\\\\Users|site-packages|"
    r"--index-url file:|\.pyenv"
)
UNSEEN = r"(?m)^#\|\s*(hide\s*$|default_exp|(echo|include):\s*false|code-fold:\s*true)"


class Size(NamedTuple):
    "How large a notebook is. Lines are those that one reads: see `lengths`."

    wide: int  # lines of code over 100 columns; `#|` lines do not count
    kilobytes: int  # of the file
    sliders: int  # kilobytes of the pictures behind sliders
    longest: int  # lines of the longest cell
    typical: float = 0  # lines of the median cell; not of foundations, like what follows
    lines: int = 0  # lines in all
    minutes: int = 0  # to read, by the card


LIMIT = Size(0, 750, 350, 30, 8, 500, 75)
METHOD_LIMIT = LIMIT._replace(minutes=30)


every = pytest.mark.parametrize("path", FILES, ids=str)
notebooks = pytest.mark.parametrize("c", NOTEBOOKS, ids=lambda c: c.name)
chapters = pytest.mark.parametrize("c", CHAPTERS, ids=lambda c: c.name)
lessons = pytest.mark.parametrize("c", CHAPTERS + METHODS, ids=lambda c: c.name)


@cache
def text(path):
    "What stands in a file of the checkout."
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def read(path):
    "A notebook with its sources joined; read once, not to be changed."
    nb = json.loads(text(Path(path)))
    for cell in nb["cells"]:
        cell["source"] = "".join(cell["source"])
    return nb


def code(nb):
    return [c for c in nb["cells"] if c["cell_type"] == "code"]


def outputs(nb):
    "Pairs of a cell and one of its outputs."
    return [(c, o) for c in code(nb) for o in c["outputs"]]


def text_of(value):
    return value if isinstance(value, str) else "".join(value)


def widget_html(nb):
    "The HTML held by the widgets of a notebook."
    state = nb["metadata"].get("widgets", {}).get(WIDGETS, {"state": {}})["state"]
    return [m["state"].get("value", "") for m in state.values() if m["model_name"] == "HTMLModel"]


def headings(nb, level=2):
    "Text of the headings of a level, in order."
    prose = "\n\n".join(c["source"] for c in nb["cells"] if c["cell_type"] == "markdown")
    return re.findall(rf"(?m)^{'#' * level} (.+?)\s*$", re.sub(r"(?ms)^```.*?^```", "", prose))


def length(source):
    "Lines of code to read: no blank line, directive or docstring; a signature counts as one."
    lines = source.splitlines()
    skip = {i for i, x in enumerate(lines, 1) if not x.strip() or x.startswith("#|")}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            start = 1 if ast.get_docstring(node) is not None else 0
            first = node.body[start].lineno if len(node.body) > start else node.end_lineno + 1
            skip |= set(range(node.lineno + 1, first))
    return len(lines) - len(skip)


def lengths(nb):
    "Lines of each cell that one reads: none that is hidden, folded, a solution or in the appendix."
    appendix, found = False, []
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            for heading in re.findall(r"(?m)^## (.+)", cell["source"]):
                appendix = heading.startswith("Appendix")
        elif not (
            appendix
            or "solution" in cell["metadata"].get("tags", [])
            or re.search(UNSEEN, cell["source"])
        ):
            found.append(length(cell["source"]))
    return found


def wide(cell):
    "How many lines of code are over 100 columns; an alternative text is one long `#|` line."
    lines = cell["source"].splitlines()
    return sum(len(line) > 100 and not line.startswith("#|") for line in lines)


class Images(HTMLParser):
    "Collects the attributes of all <img>."

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.found.append(dict(attrs))


# In step with the modules


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the notebooks and settings, exported and cleaned by nbdev."
    pytest.importorskip("nbdev")
    top = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "settings.ini", top)
    for path in FILES:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, top / path)
    ignore = shutil.ignore_patterns("__pycache__", "_data", "_course")
    shutil.copytree(ROOT / "ponderlearn", top / "ponderlearn", ignore=ignore)
    env = os.environ | {"PYTHONPATH": str(top), "OMP_NUM_THREADS": "1"}
    for command in (
        "from nbdev.doclinks import nbdev_export as f",
        "from nbdev.clean import nbdev_clean as f",
    ):
        subprocess.run(
            [sys.executable, "-c", f"{command}; f()"],
            cwd=top,
            env=env,
            check=True,
            capture_output=True,
        )
    return top


def test_modules_are_in_step_with_notebooks(copy):
    def modules(top):
        return {
            p.relative_to(top): p.read_text(encoding="utf-8")
            for p in (top / "ponderlearn").rglob("*.py")
            if "_course" not in p.parts
        }

    here, made = modules(ROOT), modules(copy)
    assert set(here) == set(made)
    stale = [str(p) for p in made if here[p] != made[p]]
    assert not stale, "run: make export"
    sources = {
        m for m in re.findall(r"File to edit: (?:\.\./)+(\S+\.ipynb)", "".join(here.values()))
    }
    assert sources <= {str(p) for p in FILES}


@every
def test_notebook_is_clean(copy, path):
    cleaned = (copy / path).read_text(encoding="utf-8")
    assert cleaned == text(path), "run: make export"


# What every notebook keeps to


@every
def test_cells(path):
    ids = [c["id"] for c in read(path)["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(c["execution_count"] is None for c in code(read(path)))


@notebooks
def test_sizes(c):
    nb = read(c.notebook)
    seen = lengths(nb)
    found = Size(
        sum(map(wide, code(nb))),
        len(text(Path(c.notebook)).encode()) // 1000,
        sum(map(len, widget_html(nb))) // 1000,
        max(seen),
        *((median(seen), sum(seen), c.minutes) if c.kind != "foundation" else ()),
    )
    limit = METHOD_LIMIT if c.kind == "method" else LIMIT
    over = {
        name: f"{x}, at most {most}"
        for name, x, most in zip(Size._fields, found, limit, strict=True)
        if x > most
    }
    assert not over


@pytest.mark.parametrize("path", ["index.ipynb", "Makefile", ".ci/run"])
def test_lines_have_100_columns(path):
    "`test_sizes` looks at the notebooks with a chapter's name, ruff at the Python files."
    if path.endswith(".ipynb"):
        assert not any(map(wide, code(read(path))))
    else:
        assert not [line for line in text(path).splitlines() if len(line) > 100]


@every
def test_imports(path):
    for cell in code(read(path)):
        # the command line takes nbdev for --commit, inside the function and in a checkout alone
        assert not re.search(
            r"(?m)^(from|import)\s+nbdev\b|^\s*from\s+\S+\s+import\s+\*|show_doc", cell["source"]
        )
        assert path.name == "12_execution.ipynb" or not re.search(
            r"(?m)^\s*(from|import)\s+nbdev\b", cell["source"]
        )


@every
def test_nothing_of_the_machine_it_was_made_on(path):
    found = re.search(MACHINE, text(path))
    assert not found, found
    for _, output in outputs(read(path)):
        assert "/tmp/" not in text_of(output.get("text", "")) + text_of(
            output.get("data", {}).get("text/plain", "")
        )


@every
def test_opens_with_a_title_and_a_claim(path):
    first = read(path)["cells"][0]
    assert first["cell_type"] == "markdown" and re.match(r"# \S.*\n\n> \S", first["source"])
    assert len(headings(read(path), 1)) == 1


@chapters
def test_the_first_line_of_the_module_names_the_paper(c):
    assert c.title in text(f"{c.module.replace('.', '/')}.py").splitlines()[0]


@every
def test_every_picture_has_a_text(path):
    nb = read(path)
    for cell, output in outputs(nb):
        data = output.get("data", {})
        if any(k.startswith("image/") for k in data):
            alt = re.search(r"(?m)^#\|\s*fig-alt:\s*(.+)$", cell["source"])
            assert alt and len(alt[1].strip("\"' ")) > 10, cell["source"][:80]
        for image in Images(text_of(data.get("text/html", ""))).found:
            assert image.get("alt", "").strip()
    for image in Images("".join(widget_html(nb))).found:
        assert image.get("alt", "").strip()


@every
def test_a_caption_stands_under_one_output(path):
    "The page puts a cell's caption under each picture and table that the cell shows."
    for cell in code(read(path)):
        if "fig-cap" in cell["source"]:
            assert sum("data" in o for o in cell["outputs"]) <= 1, cell["source"][:80]


@every
def test_frames_keep_their_budget(path):
    html = widget_html(read(path))
    images = Images("".join(html)).found
    assert len(images) <= 80
    for image in images:
        kind, picture = re.match(r"data:image/(\w+);base64,(.+)", image["src"]).groups()
        assert kind in ("webp", "png") and base64.b64decode(picture, validate=True)


# Stored outputs


@pytest.mark.stored
@notebooks
def test_outputs_are_those_of_this_code(c):
    nb = read(c.notebook)
    facts = nb["metadata"].get("ponderlearn")
    assert facts, f"no committed run: ponderlearn run {c.name} --scale full --commit"
    assert facts["scale"] == "full" and set(facts) >= {"device", "torch", "seconds", "date"}
    again = "--verify if the claims must be the same, --commit if this is a new experiment"
    assert facts["fingerprint"] == fingerprint(nb), (
        f"the code has changed: ponderlearn run {c.name} {again}"
    )
    assert facts["seconds"] <= 600  # 10 minutes on 2 cores


@every
def test_other_tools_know_the_language(path):
    assert read(path)["metadata"]["language_info"]["file_extension"] == ".py"


@pytest.mark.stored
@notebooks
def test_outputs_hold_no_error_and_no_noise(c):
    nb = read(c.notebook)
    for cell, output in outputs(nb):
        assert output["output_type"] != "error", cell["source"][:80]
        assert output.get("name") != "stderr" or "Warning" not in text_of(output["text"]), text_of(
            output["text"]
        )
    state = nb["metadata"].get("widgets", {}).get(WIDGETS, {"state": {}})["state"]
    views = [
        o["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
        for _, o in outputs(nb)
        if "application/vnd.jupyter.widget-view+json" in o.get("data", {})
    ]
    assert all(v in state for v in views)


# The anatomy of a chapter


@lessons
def test_sections(c):
    order = METHOD_SECTIONS if c.kind == "method" else SECTIONS
    found = [h for h in headings(read(c.notebook)) if h in order]
    wanted = [h for h in order if h in found or h not in OPTIONAL]
    assert found == wanted


@lessons
def test_first_code_cell_installs_on_colab_only(c):
    first = code(read(c.notebook))[0]["source"]
    assert re.match(r"#\|\s*(hide|echo:\s*false)\b", first)
    assert "google.colab" in first and "ponderlearn[course]" in first


@lessons
def test_card_stands_before_the_first_section(c):
    cells = read(c.notebook)["cells"]
    where = next(
        i
        for i, x in enumerate(cells)
        if x["cell_type"] == "markdown" and "## In one picture" in x["source"]
    )
    call = rf'(?m)^card\("{c.name}"\)'
    cards = [x for x in cells[:where] if x["cell_type"] == "code" and re.search(call, x["source"])]
    assert len(cards) == 1
    assert read(c.notebook)["metadata"].get("accelerator") == "GPU"


@pytest.mark.stored
@chapters
def test_the_card_says_whose_the_opinions_are(c):
    (card,) = [x for x in code(read(c.notebook)) if f'card("{c.name}")' in x["source"]]
    assert "the opinions are the reviewer" in json.dumps(card["outputs"])


def section(nb, name):
    "The cells of a section."
    inside, found = False, []
    for cell in nb["cells"]:
        heads = (
            re.findall(r"(?m)^## (.+?)\s*$", cell["source"])
            if cell["cell_type"] == "markdown"
            else []
        )
        inside = heads[-1] == name if heads else inside
        if inside or name in heads:
            found.append(cell)
    return found


@pytest.mark.stored
@lessons
def test_first_section_draws_and_the_widget_moves(c):
    nb = read(c.notebook)
    drawn = [
        o for x in section(nb, "In one picture") if x["cell_type"] == "code" for o in x["outputs"]
    ]
    assert any(
        "image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {}) for o in drawn
    )
    cells = [x for x in section(nb, "Play with it") if x["cell_type"] == "code"]
    assert any("frames(" in x["source"] for x in cells)
    assert any(
        "application/vnd.jupyter.widget-view+json" in o.get("data", {})
        for x in cells
        for o in x["outputs"]
    )
    pictures = len(Images("".join(widget_html(nb))).found)
    assert pictures >= 15, f"the sliders of Play with it have {pictures} pictures, wanted: 15"


@pytest.mark.stored
@chapters
def test_five_figures_are_computed(c):
    labeled = {
        cell["source"]
        for cell, output in outputs(read(c.notebook))
        if re.search(r"(?m)^#\|\s*label:\s*fig-", cell["source"])
        and any(kind.startswith("image/") for kind in output.get("data", {}))
    }
    assert len(labeled) >= 5, f"{len(labeled)} figures with a label fig-*, wanted: 5"


@pytest.mark.stored
@chapters
def test_claims_are_recorded_and_shown(c):
    nb = read(c.notebook)
    shown = [x for x in code(nb) if re.search(rf'(?m)^claims_table\("{c.name}"\)', x["source"])]
    assert shown and "text/html" in shown[-1]["outputs"][-1]["data"]
    stored = json.loads((ROOT / "results" / f"{c.name}.json").read_text(encoding="utf-8"))
    claims = [r for r in stored["claims"] if r["scale"] == "full"]
    assert claims and all(r["rule"] and r["holds"] in HOLDS for r in claims)
    tested = [r for r in claims if not r["holds"].startswith("not test")]
    assert any(r["interval"] and r["n_seeds"] >= 5 for r in tested)
    run = [
        r
        for r in stored["runs"]
        if r["scale"] == "full" and r["device"] == nb["metadata"]["ponderlearn"]["device"]
    ]
    assert run == [nb["metadata"]["ponderlearn"]]


@lessons
def test_exercises_have_solutions(c):
    cells = section(read(c.notebook), "Exercises")
    solved, number = {}, None
    for cell in cells:
        tagged = "solution" in cell["metadata"].get("tags", [])
        if cell["cell_type"] == "markdown" and not tagged:
            for found in re.finditer(r"(?m)^(?:#{3,} |\*\*)(?:Exercise )?(\d+)", cell["source"]):
                number = int(found[1])
                solved[number] = 0
        elif tagged and number is not None:
            solved[number] += cell["cell_type"] == "code"
    assert len(solved) >= (3 if c.kind == "method" else 5)
    assert list(solved) == list(range(1, len(solved) + 1))
    assert all(solved.values()), (
        f"exercises without a solution that runs: {[n for n, k in solved.items() if not k]}"
    )


@chapters
def test_summary_is_five_lines(c):
    cells = section(read(c.notebook), "Summary")
    prose = "\n".join(x["source"] for x in cells if x["cell_type"] == "markdown")
    prose = prose.split("## Summary", 1)[1].split("\n## ")[0]
    assert 4 <= len(re.findall(r"(?m)^\s*(?:[-*]|\d+\.) ", prose)) <= 6
