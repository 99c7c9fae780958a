"""What the site makes from tables: the front page, the results, the notation, the glossary."""

import re
import tomllib
from functools import cache
from html import escape
from pathlib import Path

import chapter as page
import claims
import graph
import held
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from ponderlearn import catalogue
from ponderlearn.catalogue import CATALOGUE, PAPERS, PARTS
from ponderlearn.records import results


def doc_of(c) -> str | None:
    "The page of a chapter, or None while it is not written."
    return c.notebook.removesuffix(".ipynb") if c.notebook else None


def by_name() -> dict:
    return {c.name: c for c in CATALOGUE}


@cache
def minutes_of(c) -> int | None:
    "The chapter's minutes, counted once a build: its notebook is read for it."
    return c.minutes


def minutes(c) -> str:
    return f"{minutes_of(c)} min" if c.notebook else ""


class Html(SphinxDirective):
    "A directive that makes HTML; `self.link(docname)` is relative to the page it stands on."

    has_content = False

    def link(self, docname: str, anchor: str = "") -> str:
        here = self.env.docname
        up = "../" * here.count("/")
        return f"{up}{docname}.html" + (f"#{anchor}" if anchor else "")

    def depend_on_notebooks(self):
        for file in (Path(self.env.srcdir) / "nbs").glob("*/*.ipynb"):
            self.env.note_dependency(str(file))

    def depend_on_results(self):
        for file in (Path(self.env.srcdir) / "results").glob("*.json"):
            self.env.note_dependency(str(file))

    def named(self, c) -> nodes.Node:
        "The chapter's short name, a link where it has a page."
        name, doc = nodes.Text(c.short), doc_of(c)
        return nodes.reference("", "", name, refuri=self.link(doc), internal=True) if doc else name

    def run(self):
        return [raw(self.html())]


# ---- the front page


class FirstSteps(Html):
    "The three links under the title."

    def html(self):
        first = next(c for c in PAPERS if doc_of(c))
        return (
            f'<p class="call"><a href="{self.link(doc_of(first))}">Read the first chapter</a>'
            f'<a href="#where-to-begin">Choose a route</a>'
            f'<a href="{self.link("docs/what_held")}">See what held</a></p>'
        )


class Gallery(Html):
    "The chapters by parts: opening picture, claim, minutes, what held."

    def html(self):
        self.depend_on_notebooks()
        self.depend_on_results()
        rows = held.laptop(results())
        return "".join(self.part(n, rows) for n in PARTS if n)

    def part(self, n: int, rows: list[dict]) -> str:
        part = PARTS[n]
        cards = "".join(
            self.card(c, [r for r in rows if r["chapter"] == c.name])
            for c in CATALOGUE
            if c.part == n
        )
        return (
            f'<section class="part" aria-labelledby="part-{n}"><h3 id="part-{n}">'
            f'<span class="part-number">{n}</span> {escape(part.title)}</h3>'
            f'<p class="part-about">{escape(part.about[0].upper() + part.about[1:])}.</p>'
            f'<ul class="gallery">{cards}</ul></section>'
        )

    def card(self, c, rows: list[dict]) -> str:
        doc, name = doc_of(c), escape(c.short)
        title = f'<a href="{self.link(doc)}">{name}</a>' if doc else name
        facts = [minutes(c) if doc else "in preparation", source(c)]
        return (
            f'<li class="card-{"written" if doc else "unwritten"}">{self.shot(c, doc)}'
            f'<div class="card-text"><h4>{title}</h4>'
            f'<p class="card-claim">{escape(c.claim)}</p>'
            f'<p class="card-facts">{" · ".join(facts)} '
            f"{held.counts(rows) if rows else ''}</p></div></li>"
        )

    def shot(self, c, doc: str | None) -> str:
        found = doc and page.picture_file(self.env.app, doc)
        if not found:
            return '<span class="shot empty"></span>'
        width, height = page.size_of(Path(self.env.app.outdir) / found[0])
        src = "../" * self.env.docname.count("/") + found[0]
        return (
            f'<a class="shot" href="{self.link(doc)}" tabindex="-1">'
            f'<img src="{src}" alt="{escape(c.short)}: {escape(found[1])}" width="{width}" '
            f'height="{height}" loading="lazy"></a>'
        )


def source(c) -> str:
    "Who wrote the paper and when, as a card says it."
    if not c.year:
        return "a method that chapters share"
    first, *others = c.authors.split(", ")
    return escape(f"{first.split()[-1]}{' et al.' if others else ''}, {c.year}")


class Problems(Html):
    "Which chapter helps with what, and what to import."

    def html(self):
        self.depend_on_notebooks()
        self.env.note_dependency(str(TABLE))
        chapters = by_name()
        return (
            '<div class="problems">'
            + "".join(
                f"<section><h3>{escape(group['title'])}</h3><ul>"
                + "".join(self.row(row, chapters[row["chapter"]]) for row in group["rows"])
                + "</ul></section>"
                for group in front()["problems"]
            )
            + "</div>"
        )

    def row(self, row: dict, c) -> str:
        doc, name = doc_of(c), escape(c.short)
        to = f'<a href="{self.link(doc)}">{name}</a>' if doc else f"{name} (in preparation)"
        names = " ".join(
            f'<a href="{self.link(f"docs/api/{c.module}", f"{c.module}.{x}")}"><code>{x}</code></a>'
            for x in row.get("names", ())
            if doc
        )
        return (
            f'<li><p>{escape(row["problem"])}</p><p class="helps"><span>{to}</span> '
            f"{names}</p></li>"
        )


TABLE = Path(catalogue.__file__).with_name("catalogue.toml")


def front() -> dict:
    "The catalogue's table: what the front page has beside chapters, problems and sittings."
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def sittings(route: dict) -> list[tuple[str, list[dict]]]:
    'A route\'s stops by sitting, each as (its name or "", its stops).'
    stops = {s["chapter"]: s for s in route["stops"]}
    if "sittings" not in route:
        return [("", list(stops.values()))]
    return [
        (f"{route['unit']} {i}", [stops[name] for name in names])
        for i, names in enumerate(route["sittings"], 1)
    ]


def time_of(stop: dict, route: dict) -> int | None:
    "Minutes that a stop takes: the route's, else its chapter's; None while that is not written."
    return route["minutes"].get(stop["chapter"], minutes_of(by_name()[stop["chapter"]]))


class Routes(Html):
    "Three ways through the course, each with its sittings, minutes, and what to do."

    def html(self):
        self.depend_on_notebooks()
        self.env.note_dependency(str(TABLE))
        return '<div class="routes">' + "".join(map(self.route, front()["route"])) + "</div>"

    def route(self, route: dict) -> str:
        groups = sittings(route)
        body = "".join(self.sitting(*group, route) for group in groups)
        body = f'<div class="sittings">{body}</div>'
        if len(groups) > 7:
            body = f"<details><summary>The {len(groups)} weeks</summary>{body}</details>"
        return (
            f'<section class="route"><h3>{escape(route["title"])}</h3>'
            f'<p class="route-time">{escape(route["time"][0].upper() + route["time"][1:])}</p>'
            f'<p class="route-gain">{escape(route["gain"])}</p>{body}</section>'
        )

    def sitting(self, name: str, stops: list[dict], route: dict) -> str:
        items = "".join(
            f"<li>{self.stop(s, route)}<span>{escape(s['what'])}</span></li>" for s in stops
        )
        known = [time_of(s, route) for s in stops]
        total = f'<span class="minutes">{sum(known)} min</span>' if None not in known else ""
        head = f'<p class="sitting">{name} {total}</p>' if name else ""
        return f"<div>{head}<ul>{items}</ul></div>" if name else f"<ul>{items}</ul>"

    def stop(self, stop: dict, route: dict) -> str:
        c = by_name()[stop["chapter"]]
        doc, name, time = doc_of(c), escape(c.short), time_of(stop, route)
        if not doc:
            return f'<span class="unwritten">{name} (in preparation)</span>'
        took = f' <span class="minutes">{time} min</span>' if time else ""
        return f'<a href="{self.link(doc)}">{name}</a>{took}'


class Graph(Html):
    "What builds on what: a drawing, and lists in its place where the window is narrow."

    def html(self):
        self.depend_on_notebooks()
        titles = {n: part.title for n, part in PARTS.items() if n}
        chapters = [c for c in CATALOGUE if c.part]
        drawing = graph.Drawing(chapters, titles, lambda c: doc_of(c) and self.link(doc_of(c)))
        return (
            f'<div class="graph" role="region" aria-label="Which chapter builds on which">'
            f'{drawing.svg()}</div><div class="graph-outline">{drawing.outline()}</div>'
        )


# ---- results


class Results(Html):
    "Every recorded claim by part and chapter: the paper's number, ours, and whether it holds."

    def run(self):
        self.depend_on_notebooks()
        self.depend_on_results()
        rows = results()
        if not rows:
            return [raw('<p class="empty">No run has been recorded yet.</p>')]
        chapters, groups = by_name(), {}
        for row in rows:
            groups.setdefault(chapters[row["chapter"]].part, []).append(row)
        titles = {n: part.title for n, part in PARTS.items()}
        head = claims.chips(rows) + f'<p class="tally">In all, {claims.tally(rows)}.</p>'
        head += claims.overview(groups, titles)
        return [raw(head), *(self.part(n, titles[n], own) for n, own in sorted(groups.items()))]

    def part(self, n: int, title: str, rows: list[dict]) -> nodes.section:
        section = titled(f"results-part-{n}", nodes.Text(f"{n} · {title}"))
        section += raw(f'<p class="tally">{claims.tally(rows).capitalize()}.</p>')
        for name in dict.fromkeys(r["chapter"] for r in rows):
            section += self.chapter(by_name()[name], [r for r in rows if r["chapter"] == name])
        return section

    def chapter(self, c, rows: list[dict]) -> nodes.section:
        doc, labels = doc_of(c), {}
        if doc:
            source = Path(self.env.srcdir) / c.notebook
            labels = anchors(source) if source.exists() else {}
        section = titled(f"claims-{c.name}", self.named(c))

        def link(row):
            return doc and self.link(doc, labels.get(row.get("cell") or "", ""))

        section += raw(f'<p class="tally">{claims.tally(rows).capitalize()}.</p>')
        section += raw(claims.table(claims.failures_first(rows), c.short, link))
        return section


def raw(html: str) -> nodes.raw:
    return nodes.raw("", html, format="html")


def titled(key: str, title: nodes.Node) -> nodes.section:
    "A section with its title, which the contents of the page then list."
    return nodes.section("", nodes.title("", "", title), ids=[key], names=[key])


def anchors(path: Path) -> dict[str, str]:
    "label or id of a cell -> its anchor on the page."
    found = {}
    for cell in page.notebook(path)["cells"]:
        found[cell.get("id", "")] = f"cell-{cell.get('id', '')}"
        label = re.search(r"^#\|\s*label\s*:\s*(\S+)", page.text_of(cell["source"]), re.M)
        if label:
            found[label[1].strip("\"'")] = nodes.make_id(label[1].strip("\"'"))
    return found


# ---- notation and glossary


class Notation(SphinxDirective):
    "The symbols: meaning, name in code, where they come from. From docs/notation.toml."

    def run(self):
        path = Path(self.env.srcdir) / "docs" / "notation.toml"
        self.env.note_dependency(str(path))
        chapters, out = by_name(), []
        for group in tomllib.loads(path.read_text(encoding="utf-8"))["group"]:
            lines = ["| symbol | meaning | in code | chapter |", "| --- | --- | --- | --- |"]
            for s in group["symbol"]:
                code = " ".join(f"`{x}`" for x in s.get("code", []))
                where = ", ".join(
                    f"[{chapters[n].short}](/{chapters[n].notebook})"
                    if chapters[n].notebook
                    else chapters[n].short
                    for n in s.get("chapters", [])
                )
                lines.append(f"| ${s['tex']}$ | {s['meaning']} | {code} | {where} |")
            out += self.parse_text_to_nodes(
                f"## {group['title']}\n\n" + "\n".join(lines), allow_section_headings=True
            )
        return out


class Glossary(SphinxDirective):
    "The terms in English, Hebrew and Russian. From docs/glossary.toml."

    def run(self):
        self.env.note_dependency(str(page.glossary_file(self.env.srcdir)))
        domain = self.env.get_domain("std")
        listing = nodes.definition_list(classes=["glossary-list"])
        for e in sorted(page.glossary(self.env.srcdir), key=lambda e: e["term"].lower()):
            key = page.term_id(e["term"])
            term = nodes.term(
                "",
                "",
                nodes.inline("", e["term"], classes=["term-en"]),
                ids=[key],
                classes=["glossary-head"],
            )
            term += nodes.raw(
                "",
                f' <bdi class="term-he" lang="he" dir="rtl">{escape(e["he"])}</bdi>'
                f' <span class="term-ru" lang="ru">{escape(e["ru"])}</span>',
                format="html",
            )
            self.state.document.note_explicit_target(term)
            domain.note_object("term", e["term"], key, location=term)
            meaning = nodes.definition("", *self.parse_text_to_nodes(e["meaning"]))
            listing += nodes.definition_list_item("", term, meaning)
        return [listing]


# ---- the table of contents and the end of the front page


def contents(srcdir: Path) -> str:
    "The front page's hidden tables of contents: the parts that have notebooks, as catalogued."
    out = []
    for n, part in PARTS.items():
        written = [c for c in CATALOGUE if c.part == n and c.notebook]
        names = [f"{c.short} </{doc_of(c)}>" for c in written if (srcdir / c.notebook).exists()]
        if names:
            caption = part.title if n == 0 else f"{n} · {part.title}"
            out.append(toctree(caption, names))
    return "\n\n".join([*out, toctree("Reference", REFERENCE)])


REFERENCE = [
    "/docs/what_held",
    "/docs/results",
    "/docs/speed",
    "/docs/classroom",
    "/docs/api/index",
    "/docs/notation",
    "/docs/glossary",
]


def toctree(caption: str, names: list[str]) -> str:
    lines = "\n".join(names)
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```"


CAPTION = re.compile(r'<p [^>]*class="caption"[^>]*><span class="caption-text">(.*?)</span></p>')


def fold_parts(sidebar: str) -> str:
    "The sidebar with each part under a fold; open are the page's own and the last, the reference."
    before, *pieces = CAPTION.split(sidebar)
    parts = list(zip(pieces[::2], pieces[1::2], strict=True))
    folds = [
        f'<details class="nav-part"{" open" if "current" in pages or i == len(parts) else ""}>'
        f"<summary>{caption}</summary>{pages}</details>"
        for i, (caption, pages) in enumerate(parts, 1)
    ]
    return before + "".join(folds)


def offer_fold(app, pagename, templatename, context, doctree):
    context["fold_parts"] = fold_parts


FROM_RESULTS = "docs/results", "docs/what_held", "docs/speed"


def new_pages(app, env, added, changed, removed):
    "The front page and the results list other files: read them again when there are more or fewer."
    files = sorted(p.name for p in (Path(app.srcdir) / "results").glob("*.json"))
    more = added or removed or files != getattr(env, "result_files", files)
    env.result_files = files
    return [d for d in ("index", *FROM_RESULTS) if more and d in env.found_docs]


def setup(app):
    for name, directive in (
        ("first-steps", FirstSteps),
        ("gallery", Gallery),
        ("problems", Problems),
        ("routes", Routes),
        ("prerequisites", Graph),
        ("results", Results),
        ("notation", Notation),
        ("glossary-terms", Glossary),
    ):
        app.add_directive(name, directive)
    app.connect("env-get-outdated", new_pages)
    app.connect("html-page-context", offer_fold)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
