"""The API pages: signatures and docments of what a module exports, with links to its lesson.

Pages are written to docs/api/ before Sphinx reads its sources, and only when their text changed.
"""

import ast
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import NamedTuple

from fastcore.basics import AttrDict
from fastcore.docments import docments
from nbdev.config import get_config
from nbdev.process import extract_directives


class Entry(NamedTuple):
    "A name that a module exports."

    name: str  # e.g. "ACTCell" or "ACTCell.forward"
    kind: str  # "class", "function", "method", "property" or "data"
    summary: str  # first sentence of its docstring
    cell: str  # id of the cell that builds it


def exports(path: Path) -> tuple[str | None, str, dict[str, str]]:
    "A notebook's module, its title, and the cell in which each exported name is built."
    nb = json.loads(path.read_text(encoding="utf-8"))
    module, title, where = None, path.stem, {}
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            found = re.match(r"#\s+(.*)", source)
            title = found[1] if found and title == path.stem else title
            continue
        directives = extract_directives(AttrDict(cell_type="code", source=source), remove=False)
        if "default_exp" in directives:
            module = f"{get_config().lib_name}.{directives['default_exp'][0]}"
        if not {"export", "exports"} & directives.keys():
            continue
        for s in ast.parse(source).body:
            if isinstance(s, (ast.FunctionDef, ast.ClassDef)):
                owner = patched(s)
                where[f"{owner}.{s.name}" if owner else s.name] = cell["id"]
                if isinstance(s, ast.ClassDef):
                    where |= {
                        f"{s.name}.{m.name}": cell["id"]
                        for m in s.body
                        if isinstance(m, ast.FunctionDef)
                    }
            elif isinstance(s, (ast.Assign, ast.AnnAssign)):
                for t in s.targets if isinstance(s, ast.Assign) else [s.target]:
                    names = (n for n in ast.walk(t) if isinstance(n, ast.Name))
                    where |= {n.id: cell["id"] for n in names if isinstance(n.ctx, ast.Store)}
    return module, title, where


def patched(s) -> str | None:
    "The class that a function marked with fastcore's @patch joins."
    marks = [d.func if isinstance(d, ast.Call) else d for d in s.decorator_list]
    if isinstance(s, ast.FunctionDef) and any(
        isinstance(d, ast.Name) and d.id == "patch" for d in marks
    ):
        note = s.args.args[0].annotation
        return note.id if isinstance(note, ast.Name) else None
    return None


# ---- one entry


def docstring(o) -> str:
    "An object's own docstring, not one that it inherits; its examples as blocks of code."
    doc = inspect.cleandoc(getattr(o, "__doc__", None) or "")
    return re.sub(
        r"(?m)^>>> (?:.+\n?)+", lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", doc
    )


def sentence(o) -> str:
    "The first sentence of a docstring."
    doc = docstring(o).split("\n\n")[0].replace("\n", " ")
    found = re.match(r"(.*?)(?<!\.)[.;](?:\s|$)", doc)
    return found[1] if found else doc


SILENT = "ponderlearn|torch|collections|typing|pandas|numpy|matplotlib|fastcore"


def type_name(t) -> str:
    "A type as it is written, without the module names that say nothing."
    if t is inspect.Parameter.empty or t is None:
        return ""
    name = t if isinstance(t, str) else inspect.formatannotation(t)
    return re.sub(rf"\b(?:{SILENT})(?:\.\w+)*\.(?=[A-Z_a-z])", "", name)


def default_text(x) -> str:
    "A default as it is written."
    if x is inspect.Parameter.empty:
        return "required"
    return f"`{x.__name__ if callable(x) and hasattr(x, '__name__') else x!r}`"


def cell_text(s: str) -> str:
    "Text for a cell of a Markdown table."
    return " ".join(str(s).split()).replace("|", "\\|")


def signature(name: str, f) -> str:
    "The signature without annotations: the table below it has them."
    try:
        sig = inspect.signature(f)
    except (TypeError, ValueError):
        return f"{name}()"
    plain = [
        p.replace(
            annotation=inspect.Parameter.empty,
            default=p.default if p.default is inspect.Parameter.empty else Written(p.default),
        )
        for n, p in sig.parameters.items()
        if n not in ("self", "cls")
    ]
    return f"{name}{sig.replace(parameters=plain, return_annotation=inspect.Signature.empty)}"


class Written:
    "A default value that shows itself as it is written."

    def __init__(self, x):
        self.x = x

    def __repr__(self):
        return default_text(self.x).strip("`") if "<" not in repr(self.x) else "..."


def parameters(f) -> list[str]:
    "The table of a callable's parameters and what it returns, from its docments."
    try:
        notes = docments(f, full=True, returns=True)
    except (TypeError, ValueError, OSError, AttributeError):
        return []
    rows = []
    last = list(notes)[-2] if len(notes) > 1 and "return" in notes else ""
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if (
        last
        and notes[last].kind in stars
        and not notes[last].docment
        and not re.search(r"^\s*\).*:\s*#", inspect.getsource(f), re.M)
    ):
        notes[last].docment, notes["return"].docment = (
            notes["return"].docment,
            None,
        )  # fastcore takes it for the return's
    for name, p in notes.items():
        if name in ("self", "cls", "return"):
            continue
        star = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(
            p.kind, ""
        )
        kind = f"`{type_name(p.anno)}`" if type_name(p.anno) else ""
        default = "" if star else default_text(p.default)
        rows.append(
            f"| `{star}{name}` | {cell_text(kind)} | {cell_text(default)} "
            f"| {cell_text(p.docment or '')} |"
        )
    out = (
        ["| parameter | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
        if rows
        else []
    )
    back = notes.get("return")
    if back and (type_name(back.anno) or back.docment):
        kind = f"`{type_name(back.anno)}`" if type_name(back.anno) else ""
        out += [
            "",
            f"Returns {kind}{': ' if kind and back.docment else ''}"
            f"{' '.join((back.docment or '').split())}",
        ]
    return out


def fields(cls) -> list[str]:
    "The table of a NamedTuple's fields, from its source: their types and the comments beside them."
    rows = ["| field | type | meaning |", "| --- | --- | --- |"]
    for line in inspect.getsource(cls).splitlines():
        found = re.match(r"    (\w+): (.+?)(?: = .+?)?(?:  # (.*))?$", line)
        if found and found[1] in cls._fields:
            kind, meaning = cell_text(found[2]), cell_text(found[3] or "")
            rows.append(f"| `{found[1]}` | `{kind}` | {meaning} |")
    return rows


def members(cls) -> list[tuple[str, str, object]]:
    "The public methods and properties that a class defines itself, and its `__call__`."
    found = []
    for name, o in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(o, property):
            found.append((name, "property", o.fget))
        elif isinstance(o, (staticmethod, classmethod)):
            found.append((name, "method", o.__func__))
        elif inspect.isfunction(getattr(o, "f", None)):  # a class method by fastcore's `patch`
            found.append((name, "method", o.f))
        elif inspect.isfunction(o):
            found.append((name, "method", o))
    return found if not hasattr(cls, "_fields") else [m for m in found if m[0] not in cls._fields]


def links(module, name: str, where: dict, notebook: str, o) -> str:
    "Where a name is built: the cell of its notebook, and its lines in the module."
    out = []
    if name in where:
        out.append(
            f'<a href="../../{notebook.removesuffix(".ipynb")}.html#cell-{where[name]}">'
            "the cell that builds it</a>"
        )
    user = get_config().get("user", "")
    if user:
        try:
            line = inspect.getsourcelines(o)[1]
            path = (
                Path(inspect.getsourcefile(o))
                .relative_to(Path(get_config().lib_path).parent)
                .as_posix()
            )
        except (TypeError, OSError, ValueError):
            return " · ".join(out)
        repo, branch = get_config().get("repo"), get_config().get("branch")
        place = f"https://github.com/{user}/{repo}/blob/{branch}/{path}#L{line}"
        out.append(f"[on GitHub]({place})")
    return " · ".join(out)


def entry(module, name: str, where: dict, notebook: str) -> tuple[list[Entry], list[str]]:
    "An exported name with its members: what the index lists, and the lines of the page."
    o = getattr(module, name)
    if inspect.isclass(o):
        return class_entry(module, name, o, docstring(o), where, notebook)
    place = links(module, name, where, notebook, o)
    if not inspect.isroutine(o):
        what = f"{type(o).__name__}" + (
            f" with {len(o)} entries" if hasattr(o, "__len__") and not isinstance(o, str) else ""
        )
        return [Entry(name, "data", what, where.get(name, ""))], [
            "",
            *directive("data", name, [what, "", place]),
        ]
    body = [docstring(o), "", *parameters(o), "", place]
    return (
        [Entry(name, "function", sentence(o), where.get(name, ""))],
        ["", *directive("function", signature(name, o), body)],
    )


def class_entry(module, name, o, doc, where, notebook):
    "A class: its constructor's parameters, its methods and properties."
    is_tuple = hasattr(o, "_fields")
    lines = [
        doc,
        "",
        *(fields(o) if is_tuple else parameters(o.__init__ if "__init__" in vars(o) else o)),
        "",
        links(module, name, where, notebook, o),
    ]
    entries = [Entry(name, "class", sentence(o), where.get(name, ""))]
    for m, kind, f in members(o):
        inner = [docstring(f), "", *(parameters(f) if kind == "method" else [])]
        place = links(module, f"{name}.{m}", where, notebook, f)
        lines += [
            "",
            *directive(
                kind, signature(m, f) if kind == "method" else m, [*inner, "", place], depth=3
            ),
        ]
        entries.append(Entry(f"{name}.{m}", kind, sentence(f), where.get(f"{name}.{m}", "")))
    return entries, ["", *directive("class", signature(name, o), lines, depth=4)]


def directive(kind: str, head: str, body: list[str], depth: int = 3) -> list[str]:
    "A directive of Sphinx's Python domain."
    fence = ":" * depth
    return [f"{fence}{{py:{kind}}} {head}", "", *body, "", fence]


# ---- pages


def page(path: Path, top: Path) -> tuple[str, str, list[Entry], str] | None:
    "The page of a notebook's module: its name, the notebook's title, what it holds, its text."
    name, title, where = exports(path)
    if name is None or name.rsplit(".", 1)[1].startswith("_"):
        return None
    module = importlib.import_module(name)
    notebook = path.relative_to(top).as_posix()
    doc = docstring(module)
    entries, lines = (
        [],
        [
            f"# {name}",
            "",
            f"```{{py:module}} {name}\n```",
            "",
            doc,
            "",
            f"Built in the notebook [{title}](/{notebook}).",
            "",
        ],
    )
    names, body = getattr(module, "__all__", []), []
    for n in (n for n in names if n in where):
        new, text = entry(module, n, where, notebook)
        entries += new
        body += text
    lines += handed_on(module, [n for n in names if n not in where])
    if entries:
        lines += ["| name | |", "| --- | --- |"]
    lines += [
        f"| {{py:obj}}`{e.name} <{name}.{e.name}>` | {cell_text(e.summary)} |" for e in entries
    ]
    return name, title, entries, "\n".join(lines + body) + "\n"


def handed_on(module, names: list[str]) -> list[str]:
    "A sentence on the names that a module has from other modules, with links to their entries."
    homes = {n: getattr(getattr(module, n), "__module__", None) for n in names}
    found = (f"{{py:obj}}`{n} <{home}.{n}>`" if home else f"`{n}`" for n, home in homes.items())
    return [f"It hands on names of other modules: {', '.join(found)}.", ""] if names else []


def all_names(pages: list) -> str:
    "The page of all names: the modules, then every name in alphabetical order."
    lines = [
        "# All names",
        "",
        "What the package exports, module by module, then all names from A to Z. Each name leads "
        "to its signature, and from there to the cell that builds it.",
        "",
        "```{toctree}",
        ":hidden:",
        "",
    ]
    lines += [f"{name.split('.', 1)[1]} </docs/api/{name}>" for name, *_ in pages] + [
        "```",
        "",
        "## Modules",
        "",
        "| module | built in | names |",
        "| --- | --- | --- |",
    ]
    for name, title, entries, _ in pages:
        lines.append(
            f"| {{py:mod}}`{name}` | {cell_text(title)} "
            f"| {sum('.' not in e.name for e in entries)} |"
        )
    lines += ["", "## From A to Z", "", "| name | module | what it is |", "| --- | --- | --- |"]
    rows = sorted(
        ((e, name) for name, _, entries, _ in pages for e in entries),
        key=lambda r: (r[0].name.lower(), r[1]),
    )
    lines += [
        f"| {{py:obj}}`{e.name} <{name}.{e.name}>` | {{py:mod}}`{name}` | {cell_text(e.summary)} |"
        for e, name in rows
    ]
    return "\n".join(lines) + "\n"


def write(file: Path, text: str) -> None:
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def sources(top: Path) -> list[Path]:
    return sorted((top / "nbs").glob("[0-9]*/[0-9]*.ipynb"))


def generate(top: Path) -> None:
    "Write docs/api/ unless it is newer than the package, the notebooks and this script."
    target = top / "docs" / "api"
    target.mkdir(parents=True, exist_ok=True)
    inputs = [
        *sources(top),
        *(top / get_config().lib_name).rglob("*.py"),
        Path(__file__),
        top / "settings.ini",
    ]
    stamp = target / ".stamp"
    state = "\n".join(f"{p} {p.stat().st_mtime_ns}" for p in sorted(inputs))
    if stamp.exists() and stamp.read_text() == state:
        return
    pages = [p for p in (page(path, top) for path in sources(top)) if p]
    keep = {"index.md", *(f"{name}.md" for name, *_ in pages)}
    for old in target.glob("*.md"):
        if old.name not in keep:
            old.unlink()
    for name, _, _, text in pages:
        write(target / f"{name}.md", text)
    write(target / "index.md", all_names(pages))
    stamp.write_text(state)


def setup(app):
    generate(Path(app.srcdir))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
