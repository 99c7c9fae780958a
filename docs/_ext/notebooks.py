"""The reader between nbdev and MyST-NB: nbdev's processors, then cell options as MyST-NB's.

A problem (an image without alternative text, an unknown directive, a missing output) raises
`NotebookError`, which names the notebook and the cell and fails the build. A page that cannot be
trusted is worse than no page.
"""

import ast
import io
import json
import os
import re
import sys
import tokenize
from functools import cache
from pathlib import Path

import nbformat
import yaml
from execnb.nbio import dict2nb
from fastcore.basics import AttrDict
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import extract_directives, first_code_ln
from nbdev.processors import FilterDefaults, add_links, insert_warning, rm_export
from pages import contents

NBDEV = {
    "default_exp",
    "export",
    "exports",
    "exporti",
    "hide",
    "hide_line",
    "filter_stream",
    "exec_doc",
}
QUARTO = {
    "echo",
    "output",
    "include",
    "eval",
    "warning",
    "error",
    "code-fold",
    "code-summary",
    "fig-cap",
    "fig-alt",
    "label",
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
IMAGES = ("image/png", "image/jpeg", "image/svg+xml", "image/gif")
_IMG = re.compile(r"<img\b[^>]*>", re.I)
_ALT = re.compile(r"""\balt\s*=\s*(?:"[^"]*\S[^"]*"|'[^']*\S[^']*'|[^\s"'>]+)""", re.I)
_path = {
    "now": "notebook",
    "top": ".",
}  # the notebook being read: MyST-NB hands its readers the text alone


class NotebookError(Exception):
    "A notebook that must not become a page."


def draft() -> bool:
    "Whether PONDERLEARN_DOCS_DRAFT asks for a preview of notebooks without stored outputs."
    return os.environ.get("PONDERLEARN_DOCS_DRAFT", "") not in ("", "0")


def where(i: int, cell) -> str:
    "How a message names a cell: its number as a reader counts, its id, and its first line."
    line = next(
        (
            s.strip()
            for s in cell["source"].splitlines()
            if s.strip() and not s.lstrip().startswith("#|")
        ),
        "empty",
    )
    return f"cell {i + 1} (id {cell.get('id', '?')}, {line[:60]!r})"


# ---- what a cell says about itself


def known_directives() -> set[str]:
    "nbdev's directives, Quarto's options that this site knows, and settings.ini's test flags."
    return NBDEV | QUARTO | set(get_config().get("tst_flags", "").split())


def options(source: str) -> tuple[dict, str]:
    "The `key: value` options at the top of a cell, read as YAML, and the source without them."
    lines = source.splitlines()
    top = first_code_ln([s + "\n" for s in lines])
    found, rest = {}, []
    for s in lines[: len(lines) if top is None else top]:
        m = re.match(r"\s*#\s*\|\s*([\w-]+)\s*:\s?(.*)$", s)
        if not m:
            rest.append(s)
            continue
        try:
            found[m[1]] = yaml.safe_load(m[2])
        except yaml.YAMLError as e:
            raise ValueError(f"the option {m[1]!r} is not YAML: {m[2]!r}") from e
    return found, "\n".join(rest + ([] if top is None else lines[top:])).strip("\n")


def stray_directives(source: str) -> list[str]:
    "Lines that look like directives but stand below the first line of code, unread."
    lines = source.splitlines(True)
    top = first_code_ln(lines)
    if top is None:
        return []
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):
        return []
    return [
        t.string
        for t in tokens
        if t.type == tokenize.COMMENT
        and t.start[0] > top
        and re.match(r"#\s?\|", t.string)
        and "hide_line" not in t.string
    ]


def shows_something(source: str) -> bool:
    "Whether a run of this cell must leave an output: it prints or displays, or ends in a value."
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    for s in body:
        if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call):
            f = s.value.func
            if isinstance(f, ast.Name) and f.id in ("print", "display"):
                return True
            if (
                isinstance(f, ast.Attribute)
                and f.attr == "show"
                and isinstance(f.value, ast.Name)
                and f.value.id == "plt"
            ):
                return True
    values = (
        ast.BinOp,
        ast.Compare,
        ast.Subscript,
        ast.JoinedStr,
        ast.List,
        ast.Tuple,
        ast.Dict,
        ast.ListComp,
    )
    return (
        bool(body)
        and isinstance(body[-1], ast.Expr)
        and isinstance(body[-1].value, values)
        and not source.rstrip().endswith(";")
    )


def only_imports(source: str) -> bool:
    "Whether a cell does nothing but import."
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    return bool(body) and all(isinstance(s, (ast.Import, ast.ImportFrom)) for s in body)


def named_code(source: str) -> str:
    "What a closed fold is called: the names that its code builds, if they are few."
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return "Code"
    names = [s.name for s in body if isinstance(s, (ast.FunctionDef, ast.ClassDef))]
    names += [
        t.id
        for s in body
        if isinstance(s, ast.Assign)
        for t in s.targets
        if isinstance(t, ast.Name)
    ]
    return f"Code: {', '.join(names)}" if 0 < len(names) < 4 else "Code"


# ---- what may not become a page


def _text(x) -> str:
    return "".join(x) if isinstance(x, list) else x


def check_alts(html: str, what: str) -> list[str]:
    "One problem for each <img> in `html` without alternative text."
    return [
        f"{what} holds an image without alternative text"
        for img in _IMG.findall(html)
        if not _ALT.search(img)
    ]


def check_cell(i: int, cell, widgets: dict, stored: bool) -> list[str]:
    "What is wrong with a code cell, as sentences."
    directives = extract_directives(AttrDict(cell_type="code", source=cell.source), remove=False)
    names = {k.rstrip(":") for k in directives}
    problems = [f"unknown directive {k!r}" for k in sorted(names - known_directives())]
    problems += [
        f"the directive {s!r} stands below the first line of code"
        for s in stray_directives(cell.source)
    ]
    try:
        option, source = options(cell.source)
    except ValueError as e:
        return [*problems, str(e)]
    if (
        names & {"hide", "default_exp", "exporti"}
        or option.get("include") is False
        or option.get("eval") is False
    ):
        return problems
    images = 0
    for out in cell.outputs:
        if out.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
            problems.append(
                f"its stored output is the error {out.get('ename')}: {out.get('evalue')}"
            )
        data = out.get("data", {})
        if WIDGET_VIEW in data:
            if data[WIDGET_VIEW].get("model_id") not in widgets:
                problems.append("its widget has no stored state")
        elif "text/html" in data:
            problems += check_alts(_text(data["text/html"]), "its output")
        elif any(m in data for m in IMAGES):
            images += 1
    alts = option.get("fig-alt")
    alts = alts if isinstance(alts, list) else [alts] if images else []
    if images and (len(alts) != images or not all(isinstance(a, str) and a.strip() for a in alts)):
        problems.append('an image output has no alternative text (#| fig-alt: "...")')
    figure = {"fig-cap", "fig-alt"} & option.keys()
    if stored and not draft() and not cell.outputs and (figure or shows_something(source)):
        problems.append("it shows something, but no output is stored")
    return problems


def check(nb) -> None:
    "Raise `NotebookError` with all that is wrong with a notebook."
    path, problems = _path["now"], []
    widgets = nb.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    run = nb.metadata.get("ponderlearn")
    if run is not None:
        missing = [k for k in ("scale", "device", "torch", "date") if not run.get(k)]
        if missing:
            problems.append("metadata['ponderlearn'] has no " + ", ".join(missing))
    if (
        run is None
        and path != "index.ipynb"
        and not draft()
        and any(
            c.cell_type == "code" and shows_something(options(c.source)[1])
            for c in nb.cells
            if "hide"
            not in extract_directives(AttrDict(cell_type="code", source=c.source), remove=False)
        )
    ):
        problems.append(
            "no outputs are stored: run it with `ponderlearn run NAME --scale full --commit`, "
            "or set PONDERLEARN_DOCS_DRAFT=1 for a preview"
        )
    else:
        for i, cell in enumerate(nb.cells):
            if cell.cell_type == "code":
                problems += [
                    f"{where(i, cell)}: {p}" for p in check_cell(i, cell, widgets, run is not None)
                ]
            elif "solution" in cell.metadata.get("tags", []) and re.search(
                r"^#{1,6} ", cell.source, re.M
            ):
                problems.append(f"{where(i, cell)}: a folded solution cannot hold a heading")
        for key, model in widgets.items():
            html = model.get("state", {}).get("value")
            if isinstance(html, str):
                problems += check_alts(html, f"the widget {key}")
    if problems:
        raise NotebookError(f"{path}: " + f"\n{path}: ".join(problems))


# ---- nbdev's processors


@cache
def symbols(index: str, stamp: float) -> dict:
    "name -> qualified names in nbdev's index of exports, in the order of the modules."
    space: dict = {}
    exec(compile(Path(index).read_text(encoding="utf-8"), index, "exec"), space)
    found: dict = {}
    for names in space["d"]["syms"].values():
        for full in names:
            if not any(part.startswith("_") for part in full.split(".")):
                found.setdefault(full, full)
                module = next(m for m in space["d"]["syms"] if full.startswith(m + "."))
                found.setdefault(full.removeprefix(module + "."), full)
    return found


class Links(NbdevLookup):
    "nbdev's doc links, for this site: a name in backticks becomes a link to its entry in the API."

    def __init__(self, own: str | None):
        index = Path(get_config().lib_path) / "_modidx.py"
        self.own, self.aliases = own, {}
        self.syms = symbols(str(index), index.stat().st_mtime) if index.exists() else {}

    def _link_sym(self, m):
        name = m.group(1)
        full = self[f"{self.own}.{name}"] or self[name]
        return m.group(0) if full is None else f"{{py:obj}}`{m.group(0)[1:-1]} <{full}>`"


class SiteFilter(FilterDefaults):
    "nbdev's processors but Quarto's own. An exported cell stays: the code is the lesson."

    def __init__(self, own: str | None):
        self.links = Links(own)

    def base_procs(self):
        def site_links(cell):
            if cell.cell_type == "markdown":
                cell.source = self.links.linkify(cell.source)

        def rm_hidden(cell):
            if cell.directives_ and cell.directives_.keys() & {"exporti", "hide", "default_exp"}:
                del cell["source"]

        swap = {
            FrontmatterProc: None,
            insert_warning: None,
            add_links: site_links,
            rm_export: rm_hidden,
        }
        return [p for p in (swap.get(p, p) for p in super().base_procs()) if p is not None]


# ---- MyST-NB's metadata


def to_myst(cell, module: str | None) -> None:
    "Turn the options at the top of a code cell into the tags and the metadata that MyST-NB reads."
    option, cell["source"] = options(cell.source)
    meta = cell.metadata
    tags, myst = list(meta.get("tags", [])), dict(meta.get("mystnb", {}))
    for key, value, tag in (
        ("echo", False, "remove-input"),
        ("output", False, "remove-output"),
        ("include", False, "remove-cell"),
    ):
        if option.get(key) is value:
            tags.append(tag)
    fold, summary = option.get("code-fold"), option.get("code-summary")
    if fold is None and only_imports(cell.source) and not cell.outputs:
        fold, summary = True, "Imports"
    if fold in (True, "true", "show"):
        tags.append("hide-input")
        myst["code_prompt_show"] = myst["code_prompt_hide"] = summary or named_code(cell.source)
        if fold == "show":
            tags.append("fold-open")
    images = sum(
        1
        for o in cell.outputs
        if WIDGET_VIEW not in o.get("data", {})
        and "text/html" not in o.get("data", {})
        and any(m in o.get("data", {}) for m in IMAGES)
    )
    alt = option.get("fig-alt")
    if alt and images:
        myst["image"] = {**myst.get("image", {}), "alt": alt[0] if isinstance(alt, list) else alt}
        meta["alts"] = alt if isinstance(alt, list) else [alt]
    if images == 1 and option.get("fig-cap"):
        myst["figure"] = {"caption": option["fig-cap"]}
    elif option.get("fig-cap"):
        meta["caption"] = option["fig-cap"]
    if option.get("label"):
        meta["label"] = option["label"]
    meta["anchor"] = f"cell-{cell.id}"
    if module and cell.directives_.keys() & {"export", "exports"} and not only_imports(cell.source):
        meta["exports"] = module
    meta["tags"], meta["mystnb"] = tags, myst


_DISPLAY = re.compile(r"^\$\$(.+?)\$\$[ \t]*(\([^()\n]+\))?[ \t]*$", re.M | re.S)


def number_equations(cells: list, stem: str) -> list:
    "Each displayed equation gets a label if it has none; the name of a label in prose leads to it."
    prose = [c.source for c in cells if c.cell_type == "markdown"]
    own = {m[2][1:-1] for source in prose for m in _DISPLAY.finditer(source) if m[2]}
    named = re.compile(rf"(?<!\$\$ )\(({'|'.join(map(re.escape, sorted(own))) or '(?!)'})\)")
    n = 0

    def label(m):
        nonlocal n
        n += 1
        return m[0] if m[2] else f"$${m[1]}$$ (eq-{stem}-{n})"

    for cell in cells:
        if cell.cell_type == "markdown":
            parts = re.split(r"(^```.*?^```[ \t]*$)", cell.source, flags=re.M | re.S)
            cell["source"] = "".join(
                p if p.startswith("```") else named.sub(to_equation, _DISPLAY.sub(label, p))
                for p in parts
            )
    return cells


def to_equation(m) -> str:
    "A link to the equation with this label."
    return f'<a class="to-equation" href="#equation-{m[1]}">({m[1]})</a>'


def fold_solutions(cells: list) -> list:
    "Put consecutive cells tagged `solution` into one closed <details>."
    out, inside = [], False
    for cell in cells:
        now = "solution" in cell.metadata.get("tags", [])
        if now and not inside:
            out.append(
                nbformat.v4.new_markdown_cell(
                    '<details class="solution"><summary>Solution</summary><div>'
                )
            )
        if inside and not now:
            out.append(nbformat.v4.new_markdown_cell("</div></details>"))
        out.append(cell)
        inside = now
    return out + ([nbformat.v4.new_markdown_cell("</div></details>")] if inside else [])


def default_exp(nb) -> str | None:
    "The full name of the module that a notebook writes."
    for cell in nb.cells:
        if cell.cell_type == "code" and (
            m := re.search(r"^\s*#\s*\|\s*default_exp\s+(\S+)", cell.source, re.M)
        ):
            return f"{get_config().lib_name}.{m[1]}"
    return None


def read(text: str):
    "A notebook's text as MyST-NB wants it. A problem ends the build with its place."
    try:
        return convert(text)
    except NotebookError as e:
        sys.exit(
            f"The site was not built.\n{e}"
        )  # any other exception makes Sphinx print pages about itself


def convert(text: str):
    "A notebook's text as a notebook for MyST-NB; NotebookError if it must not become a page."
    path = _path["now"]
    try:
        nb = nbformat.reads(text, as_version=4)
        nbformat.validate(nb)
    except Exception as e:  # nbformat raises many types, none of which names the file
        raise NotebookError(f"{path}: not a valid notebook: {str(e).splitlines()[0]}") from e
    check(nb)
    module = default_exp(nb)
    exec_nb = dict2nb(json.loads(nbformat.writes(nb)))
    exec_nb["path_"] = path
    for cell in exec_nb.cells:
        cell.source = _text(cell.source)
        for out in cell.get("outputs", []):
            if out.output_type == "stream":
                out["text"] = _text(out.text).splitlines(True)  # nbdev filters line by line
    SiteFilter(module)(exec_nb)
    cells = []
    for cell in exec_nb.cells:
        new = nbformat.from_dict({k: v for k, v in cell.items() if not k.endswith("_")})
        for out in new.get("outputs", []):
            if out.output_type == "stream":
                out["text"] = _text(out.text)
            for mime, data in out.get("data", {}).items():
                out.data[mime] = data if isinstance(data, dict) else _text(data)
        if new.cell_type == "code":
            new.outputs = [o for o in new.outputs if o.output_type != "stream" or o.text]
            new["directives_"] = cell.directives_
            to_myst(new, module)
            del new["directives_"]
        cells.append(new)
    nb.cells = fold_solutions(number_equations(cells, Path(path).stem))
    if path == "index.ipynb":
        nb.cells = with_front_page(nb.cells, Path(_path["top"]))
    return nb


_FILE = re.compile(r"\[([^\]]+)\]\(([A-Z][\w-]*(?:\.(?:md|cff))?|constraints\.txt)\)")


def repository_file(m) -> str:
    "A link to a file at the top of the repository: on GitHub, or a copy while it has no address."
    c = get_config()
    if c.get("user", ""):
        return f"[{m[1]}](https://github.com/{c.user}/{c.repo}/blob/{c.branch}/{m[2]})"
    return f"{{download}}`{m[1]} </{m[2]}>`"


ON_THE_FRONT = ("## The course", "## Which chapter helps me")


def with_front_page(cells: list, top: Path) -> list:
    "index.ipynb is the README too: on the site docs/front.md stands in for its picture and tables."
    front = (top / "docs" / "front.md").read_text(encoding="utf-8") + "\n\n" + contents(top)
    rest = [
        c for c in cells[1:] if c.cell_type == "markdown" and not c.source.startswith(ON_THE_FRONT)
    ]
    for c in rest:
        c["source"] = _FILE.sub(
            repository_file, c.source.replace("](results)", "](docs/results.md)")
        )
    return [cells[0], nbformat.v4.new_markdown_cell(front), *rest]


def note_path(app, docname, source) -> None:
    "Remember which notebook is being read."
    _path["now"], _path["top"] = (
        Path(app.env.doc2path(docname)).relative_to(app.srcdir).as_posix(),
        str(app.srcdir),
    )
    if docname == "index":
        app.env.note_dependency(str(Path(app.srcdir) / "docs" / "front.md"))


def setup(app):
    app.connect("source-read", note_path)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
