"""The reader between nbdev and MyST-NB: what it does to cells, and what it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbdev")
pytest.importorskip("myst_nb")
import notebooks  # docs/_ext, see conftest.py

TOP = Path(__file__).resolve().parents[2]
RUN = {
    "scale": "full",
    "device": "cpu",
    "torch": "2.13.0",
    "seconds": 3.0,
    "date": "2026-11-21",
    "fingerprint": "0" * 16,
}
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJ"
    "RU5ErkJggg=="
)


def picture(**more):
    return nbformat.v4.new_output(
        "display_data", data={"image/png": PNG, "text/plain": "<Figure>", **more}
    )


def stream(text):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def code(source, *outputs, tags=()):
    return nbformat.v4.new_code_cell(
        source, outputs=list(outputs), metadata={"tags": list(tags)} if tags else {}
    )


def text(source, tags=()):
    return nbformat.v4.new_markdown_cell(source, metadata={"tags": list(tags)} if tags else {})


def notebook(*cells, **metadata):
    nb = nbformat.v4.new_notebook(cells=[text("# A title\n\n> A claim."), *cells])
    nb.metadata = nbformat.from_dict({"ponderlearn": RUN, **metadata})
    for i, cell in enumerate(nb.cells):
        cell["id"] = f"cell{i}"
    return nb


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(TOP)
    monkeypatch.delenv("PONDERLEARN_DOCS_DRAFT", raising=False)
    monkeypatch.setitem(notebooks._path, "now", "nbs/09/01_x.ipynb")


def convert(*cells, **metadata):
    return notebooks.convert(nbformat.writes(notebook(*cells, **metadata)))


def refuse(*cells, **metadata):
    with pytest.raises(notebooks.NotebookError) as e:
        convert(*cells, **metadata)
    assert "nbs/09/01_x.ipynb" in str(e.value)
    return str(e.value)


# ---- what is refused


def test_image_without_alternative_text():
    message = refuse(code("draw()", picture()))
    assert "cell 2 (id cell1, 'draw()')" in message and "alternative text" in message
    assert "alternative text" in refuse(code('#| fig-alt: "  "\ndraw()', picture()))
    assert "alternative text" in refuse(code('#| fig-alt: "one"\ndraw()', picture(), picture()))


def test_html_image_without_alternative_text():
    html = nbformat.v4.new_output("display_data", data={"text/html": "<img src='data:,'>"})
    assert "alternative text" in refuse(code("draw()", html))
    html["data"]["text/html"] = "<img alt='A dot.' src='data:,'>"
    convert(code("draw()", html))


def test_widget_without_state_or_alternative_text():
    view = nbformat.v4.new_output("display_data", data={notebooks.WIDGET_VIEW: {"model_id": "m1"}})
    assert "no stored state" in refuse(code("frames()", view))
    state = lambda html: {notebooks.WIDGET_STATE: {"state": {"m1": {"state": {"value": html}}}}}
    assert "the widget m1" in refuse(code("frames()", view), widgets=state("<img src='data:,'>"))
    convert(code("frames()", view), widgets=state('<img src="data:," alt="One dot.">'))


@pytest.mark.parametrize("line", ["#| hidee", '#| fig-capt: "x"', "#|exprot"])
def test_unknown_directive(line):
    assert "unknown directive" in refuse(code(f"{line}\nx = 1"))


def test_directive_that_nobody_reads():
    assert "below the first line of code" in refuse(code("x = 1\n#| export"))
    convert(code('x = """\n#| export\n"""'))  # inside a string it is text


def test_option_that_is_not_yaml():
    assert "not YAML" in refuse(code('#| fig-alt: "open\ndraw()', picture()))


@pytest.mark.parametrize("source", ["print(1)", "plt.show()", "x + 1", '#| fig-cap: "x"\ndraw()'])
def test_missing_output(source, monkeypatch):
    assert "no output is stored" in refuse(code(source))
    monkeypatch.setenv("PONDERLEARN_DOCS_DRAFT", "1")
    convert(code(source))


@pytest.mark.parametrize(
    "source", ["x = 1", "f(x)", "x + 1;", "#| hide\nprint(1)", "#| eval: false\nprint(1)"]
)
def test_no_output_wanted(source):
    convert(code(source))


def test_notebook_that_was_never_run():
    nb = notebook(code("print(1)"))
    del nb.metadata["ponderlearn"]
    with pytest.raises(notebooks.NotebookError, match="--scale full --commit"):
        notebooks.convert(nbformat.writes(nb))


def test_broken_metadata():
    assert "no device, date" in refuse(ponderlearn={"scale": "full", "torch": "2.13"})
    with pytest.raises(notebooks.NotebookError, match="not a valid notebook"):
        notebooks.convert("{")
    broken = json.loads(nbformat.writes(notebook(code("x = 1"))))
    broken["cells"][1]["metadata"] = 3
    with pytest.raises(notebooks.NotebookError, match=r"01_x\.ipynb: not a valid notebook"):
        notebooks.convert(json.dumps(broken))


def test_stored_error():
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    assert "the error ValueError: no" in refuse(code("f()", error))
    convert(code("f()", error, tags=["raises-exception"]))


def test_heading_in_a_solution():
    assert "cannot hold a heading" in refuse(text("## No", tags=["solution"]))


def test_all_problems_are_named_at_once():
    message = refuse(code("#| nope\nx = 1"), code("print(1)"))
    assert "unknown directive 'nope'" in message and "no output is stored" in message


# ---- what is done


def test_hidden_cells_go_and_exported_ones_stay():
    nb = convert(
        code("#| default_exp course"),
        code("#| hide\nimport os"),
        code("#| exporti\ny = 1"),
        code("#| export\ndef f():\n    return 1"),
    )
    cells = [c for c in nb.cells if c.cell_type == "code"]
    assert [c.source for c in cells] == ["def f():\n    return 1"]
    assert (
        cells[0].metadata["exports"] == "ponderlearn.course"
        and cells[0].metadata["anchor"] == "cell-cell4"
    )


def test_options_become_tags_and_metadata():
    figure = (
        '#| echo: false\n#| label: fig-a\n#| fig-cap: "A **dot**."\n'
        '#| fig-alt: "One dot: blue."\ndraw()'
    )
    nb = convert(
        code(figure, picture()),
        code('#| code-fold: true\n#| code-summary: "Helper"\nx = 1'),
        code("import os"),
        code("#| output: false\nprint(1)", stream("1\n")),
    )
    a, b, c, d = (x for x in nb.cells if x.cell_type == "code")
    assert a.source == "draw()" and a.metadata["tags"] == ["remove-input"]
    assert (
        a.metadata["mystnb"]["figure"] == {"caption": "A **dot**."}
        and a.metadata["label"] == "fig-a"
    )
    assert a.metadata["mystnb"]["image"]["alt"] == "One dot: blue."
    assert (
        b.metadata["tags"] == ["hide-input"]
        and b.metadata["mystnb"]["code_prompt_show"] == "Helper"
    )
    assert c.metadata["mystnb"]["code_prompt_show"] == "Imports"
    assert d.metadata["tags"] == ["remove-output"]


def test_filter_stream():
    nb = convert(code("#| filter_stream Warning\nprint(1)", stream("kept\nWarning: gone\n")))
    assert nb.cells[1].outputs[0].text == "kept\n"


def test_solutions_are_folded():
    nb = convert(
        text("Exercise."),
        text("Answer.", tags=["solution"]),
        code("x = 1", tags=["solution"]),
        text("Next."),
    )
    sources = [c.source for c in nb.cells]
    assert sources[2].startswith("<details") and sources[5] == "</div></details>"
    assert sources[3:5] == ["Answer.", "x = 1"]


def test_equations_get_labels():
    nb = convert(text("$$x=1$$\n\ntext\n\n$$\ny=2\n$$ (own)\n\n```\n$$z$$\n```\n\n$$w=3$$"))
    assert nb.cells[1].source == (
        "$$x=1$$ (eq-01_x-1)\n\ntext\n\n$$\ny=2\n$$ (own)\n\n```\n$$z$$\n```\n\n$$w=3$$ (eq-01_x-3)"
    )


def test_labels_in_prose_lead_to_the_equation():
    nb = convert(text("$$x=1$$ (own-x)\n\nBy (own-x), not (x).\n\n```\n(own-x)\n```"))
    link = '<a class="to-equation" href="#equation-own-x">(own-x)</a>'
    wanted = f"$$x=1$$ (own-x)\n\nBy {link}, not (x).\n\n```\n(own-x)\n```"
    assert nb.cells[1].source == wanted


def test_names_in_backticks_become_links():
    nb = convert(text("`write_atomic` and `no_such_name`\n\n```\n`write_atomic`\n```"))
    assert nb.cells[1].source.startswith(
        "{py:obj}`write_atomic <ponderlearn.catalogue.write_atomic>` and `no_such_name`"
    )
    assert nb.cells[1].source.endswith("```\n`write_atomic`\n```")


def test_names_of_other_modules_lead_to_their_own_entries():
    import api  # docs/_ext, see conftest.py

    page = lambda path: api.page(TOP / "nbs" / "00_foundations" / path, TOP)
    _, _, entries, text = page("01_course.ipynb")
    assert not entries and "{py:obj}`card <ponderlearn.cards.card>`" in text
    _, _, entries, text = page("10_viz.ipynb")
    names = {e.name for e in entries}
    assert {"PALETTE", "BLUE", "frames"} <= names and "table" not in names
    assert "{py:obj}`table <ponderlearn.cards.table>`" in text


def test_api_page_of_a_method():
    import api  # docs/_ext, see conftest.py

    _, _, entries, text = api.page(TOP / "nbs" / "01_adaptive" / "01_act.ipynb", TOP)
    assert {"ACTCell.make", "ACTRNN.forward"} <= {e.name for e in entries}
    assert "{py:method} make(cell_type, input_size, hidden_size, **kwargs)" in text
    assert "| `remainder` | `Tensor` | (B,): R, float32 or float64" in text
    assert "`*args`" not in text and "`cls`" not in text
    assert "```pycon\n>>> ACTCell.make(nn.LSTMCell, 6, 5).cell\nLSTMCell(7, 5)\n```" in text


def test_notation_names_exist():
    import tomllib

    code = "".join(p.read_text(encoding="utf-8") for p in (TOP / "ponderlearn").rglob("*.py"))
    for path in TOP.glob("nbs/*/*.ipynb"):  # without their outputs, which are long
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code += "".join("".join(cell["source"]) + "\n" for cell in cells)
    groups = tomllib.loads((TOP / "docs" / "notation.toml").read_text(encoding="utf-8"))["group"]
    names = {
        name for group in groups for symbol in group["symbol"] for name in symbol.get("code", [])
    }
    words = set(re.findall(r"\w+", code))
    rest = {name for name in names if name not in words}
    assert not {name for name in rest if not re.search(rf"\b{re.escape(name)}\b", code)}


# ---- whole builds of a small course


def small_course(folder: Path, *cells) -> Path:
    "A course of one notebook, with the site's own configuration."
    (folder / "docs").mkdir(parents=True)
    for name in [
        "settings.ini",
        "index.ipynb",
        *(p.relative_to(TOP) for p in (TOP / "docs").glob("*.md")),
        *(p.relative_to(TOP) for p in (TOP / "docs").glob("*.toml")),
        "LICENSE",
        "CONTRIBUTING.md",
        "constraints.txt",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE-text",
        "THIRD_PARTY.md",
    ]:
        (folder / name).write_bytes((TOP / name).read_bytes())
    (folder / "ponderlearn").symlink_to(TOP / "ponderlearn")
    (folder / "nbs" / "00_foundations").mkdir(parents=True)
    (folder / "results").mkdir()
    nbformat.write(notebook(*cells), folder / "nbs" / "00_foundations" / "01_course.ipynb")
    return folder


def build(folder: Path, *options):
    "Run sphinx-build; the finished process."
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-c",
        str(TOP / "docs"),
        "-d",
        str(folder / "cache" / "doctrees"),
        *options,
        str(folder),
        str(folder / "site"),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("PONDERLEARN_DOCS_DRAFT", None)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_a_bad_notebook_fails_the_build(tmp_path):
    folder = small_course(tmp_path / "c", code("draw()", picture()))
    done = build(folder, "-D", "include_patterns=nbs/**")  # the other pages are not asked
    assert done.returncode != 0
    assert (
        "nbs/00_foundations/01_course.ipynb: cell 2 (id cell1, 'draw()'): an image output has no"
        in done.stderr
    )


@pytest.mark.slow
def test_addresses_and_second_build(tmp_path):
    folder = small_course(
        tmp_path / "c",
        code('#| fig-alt: "One dot."\ndraw()', picture()),
        text("The entropy of it."),
    )
    options = "-D", "site_user=octo", "-D", "html_baseurl=https://octo.example/ponderlearn/"
    done = build(folder, *options)
    page = folder / "site" / "nbs" / "00_foundations" / "01_course.html"
    assert page.exists(), done.stderr
    html = page.read_text(encoding="utf-8")
    place = "octo/ponderlearn/blob/main/nbs/00_foundations/01_course.ipynb"
    assert (
        f"https://colab.research.google.com/github/{place}" in html
        and f"https://github.com/{place}" in html
    )
    assert "https://github.com/octo/ponderlearn/issues/new?title=" in html
    assert 'property="og:image" content="https://octo.example/ponderlearn/_images/first/' in html
    assert 'alt="One dot."' in html and "at scale <strong>full</strong> on a CPU, 3 s" in html
    assert "glossary.html#term-entropy" in html
    assert "<loc>https://octo.example/ponderlearn/nbs/00_foundations/01_course.html</loc>" in (
        folder / "site" / "sitemap.xml"
    ).read_text(encoding="utf-8")
    lost = (folder / "site" / "404.html").read_text(encoding="utf-8")
    assert '<base href="https://octo.example/ponderlearn/">' in lost

    stamps = lambda: {
        p: p.stat().st_mtime_ns
        for p in (folder / "site").rglob("*.html")
        if p.parent.name != "_modules"
    }
    before = stamps()
    build(folder, *options)
    written = {p.name for p, t in stamps().items() if before.get(p) != t}
    assert written <= {"search.html", "404.html", "genindex.html", "py-modindex.html"}, written


def test_lock_names_no_host():
    lock = json.loads((TOP / "docs" / "package-lock.json").read_text(encoding="utf-8"))
    assert lock["packages"] and not [
        name for name, p in lock["packages"].items() if "resolved" in p
    ]
