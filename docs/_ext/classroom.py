"""The teachers' page: the plan of docs/classroom.toml, with what can be counted in the chapters."""

import re
import tomllib
from html import escape
from pathlib import Path
from typing import NamedTuple

import chapter as page
from pages import Html, by_name, doc_of, minutes, minutes_of, raw, titled

from ponderlearn.catalogue import CATALOGUE, PAPERS
from ponderlearn.records import results

LAB = {"easy": 10, "medium": 20, "hard": 40}  # minutes, a guess
SHOW = {"in-one-picture": "picture", "play-with-it": "slider", "what-holds": "what holds"}


class Exercise(NamedTuple):
    n: int  # its number
    level: str  # easy, medium or hard
    text: str  # the question


def plan(docs: Path) -> list[dict]:
    "The weeks."
    weeks = tomllib.loads((docs / "classroom.toml").read_text(encoding="utf-8"))["week"]
    return [{"more": [], "lab": []} | week for week in weeks]


def exercises(nb: dict) -> list[Exercise]:
    "The exercises of a notebook, in order."
    prose = [
        page.text_of(c["source"])
        for c in nb["cells"]
        if c["cell_type"] == "markdown" and "solution" not in c["metadata"].get("tags", [])
    ]
    found = re.split(r"(?m)^(?=## )", "\n\n".join(prose))
    text = "".join(s for s in found if s.startswith("## Exercise"))
    pattern = r"(?ms)^\*\*(\d+) \((\w+)[^)]*\)\.\*\* (.*?)(?=^\*\*\d+ \(|\Z)"
    return [Exercise(int(n), level, words) for n, level, words in re.findall(pattern, text)]


def headings(nb: dict) -> set[str]:
    "The anchors of a notebook's headings."
    text = "\n".join(page.text_of(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown")
    return {page.nodes.make_id(h) for h in re.findall(r"(?m)^#+ (.+)$", text)}


class Plan(Html):
    "The weeks: first a table, then each with what to read, to show and to do."

    def run(self):
        docs = Path(self.env.srcdir) / "docs"
        self.env.note_dependency(str(docs / "classroom.toml"))
        self.depend_on_notebooks()
        weeks = plan(docs)
        rows = "".join(self.row(i, week) for i, week in enumerate(weeks, 1))
        head = "".join(f'<th scope="col">{h}</th>' for h in ("week", "topic", "read", "lab"))
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        out = [raw(f'<div class="table-scroll">{table}</div>')]
        for i, week in enumerate(weeks, 1):
            section = titled(f"week-{i}", page.nodes.Text(f"Week {i}. {week['title']}"))
            section += raw(self.week(week))
            out.append(section)
        return out

    def row(self, i: int, week: dict) -> str:
        lab = sum(LAB[e.level] for _, e, _ in self.lab(week))
        return (
            f'<tr><th scope="row"><a href="#week-{i}">{i}</a></th><td>{escape(week["title"])}</td>'
            f"<td>{self.reading(week)}</td><td>{f'{lab} min' if lab else 'by choice'}</td></tr>"
        )

    def notebook(self, name: str) -> dict | None:
        c = by_name()[name]
        path = Path(self.env.srcdir) / c.notebook if c.notebook else None
        return page.notebook(path) if path and path.exists() else None

    def lab(self, week: dict) -> list[tuple]:
        "The exercises of the lab that are written: chapter, exercise, topic."
        return [
            (by_name()[x["chapter"]], e, x["topic"])
            for x in week["lab"]
            if (nb := self.notebook(x["chapter"]))
            for e in exercises(nb)
            if e.n == x["n"]
        ]

    def reading(self, week: dict) -> str:
        known = [minutes_of(by_name()[name]) for name in week["read"]]
        return f"{sum(known)} min" if all(known) else "in preparation"

    def named(self, name: str) -> str:
        c = by_name()[name]
        if not doc_of(c):
            return f'<span class="unwritten">{escape(c.short)} (in preparation)</span>'
        return f'<a href="{self.link(doc_of(c))}">{escape(c.short)}</a> ({minutes(c)})'

    def show(self, name: str) -> str:
        c, nb = by_name()[name], self.notebook(name)
        anchors = headings(nb) if nb else ()
        links = [
            f'<a href="{self.link(doc_of(c), key)}">{word}</a>'
            for key, word in SHOW.items()
            if key in anchors
        ]
        return f"{escape(c.short)}: {', '.join(links)}" if links else ""

    def choice(self, name: str) -> str:
        "How many exercises a chapter has, by level."
        c, nb = by_name()[name], self.notebook(name)
        levels = [e.level for e in exercises(nb)] if nb else []
        counts = [f"{levels.count(level)} {level}" for level in LAB if level in levels]
        return f"{escape(c.short)}: choose among {', '.join(counts)}" if counts else ""

    def week(self, week: dict) -> str:
        lab = [
            f'<a href="{self.link(doc_of(c), "exercises")}">{escape(c.short)} {e.n}</a> '
            f"({e.level}): {escape(topic)}"
            for c, e, topic in self.lab(week)
        ] or list(filter(None, map(self.choice, week["read"])))
        parts = {
            "Read": [self.named(n) for n in week["read"]],
            "Show": list(filter(None, map(self.show, week["read"]))),
            "Lab": lab,
            "More": [self.named(n) for n in week["more"]],
        }
        rows = "".join(
            f"<div><dt>{k}</dt><dd>{'<br>'.join(v)}</dd></div>" for k, v in parts.items() if v
        )
        return f'<p>{escape(week["aim"])}</p><dl class="week">{rows}</dl>'


class Machine(Html):
    "How long chapters run, and what a GPU adds, from the results."

    def html(self):
        self.depend_on_notebooks()
        self.depend_on_results()
        written = [c for c in PAPERS if c.notebook]
        full = [c.seconds["full"] / 60 for c in written if c.seconds.get("full")]
        rows = results()
        waiting = [r for r in rows if r["holds"] == "not tested at this scale"]
        small = [r for r in rows if r["holds"] == "not testable at this size"]
        on_gpu = sorted({r["chapter"] for r in rows if r["scale"] == "gpu"})
        wait = f", and {len(waiting)} wait for a run at <code>gpu</code>" if waiting else ""
        names = {c.name: escape(c.short) for c in CATALOGUE}
        ran = ", ".join(names[n] for n in on_gpu) or "none yet"
        return (
            "<p><strong>Nothing needs a GPU.</strong> At <code>quick</code> a notebook takes at "
            "most 20 seconds of one core, which a test checks; what it computes is too small to "
            "judge a claim. At <code>full</code>, which made what you see on this site, the "
            f"{len(full)} papers took {min(full):.0f} to {max(full):.0f} minutes each on two "
            f"cores of a CPU, {sum(full) / 60:.1f} hours in all: let a class run it at home, or "
            "show the stored outputs.</p><p><strong>What <code>gpu</code> adds</strong> are sizes "
            "nearer to the paper's, at most 15 minutes and 12 GB a chapter. "
            f"Of {len(rows)} claims, {len(small)} were declared beyond the size of a laptop before "
            f"they were run{wait}. Stored runs on a GPU: {ran}.</p>"
        )


def new_chapters(app, env, added, changed, removed):
    "Read the plan again when there are more or fewer pages."
    return ["docs/classroom"] if (added or removed) and "docs/classroom" in env.found_docs else []


def setup(app):
    app.connect("env-get-outdated", new_chapters)
    app.add_directive("class-plan", Plan)
    app.add_directive("class-machine", Machine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
