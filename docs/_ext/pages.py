"""The parts of the site that are made from tables: the front page, the results, the notation, the glossary."""

import re
import tomllib
from collections import Counter
from html import escape
from pathlib import Path

import chapter as page
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from ponderlearn.course import CATALOGUE, PARTS, _ends, _number, results

ROUTES = [  # (title, how long, what you can do afterwards, [(chapter, what to do there)])
    (
        "An evening",
        "two hours",
        "You can say what it means that a network decides how long to think.",
        [
            ("before_you_start", "the self-test; read only what you could not answer"),
            ("act", "the first picture, the idea, and the slider"),
            ("pondernet", "the first picture, the slider, and the results"),
        ],
    ),
    (
        "A week",
        "an hour a day",
        "You can add adaptive computation to a model of yours and say what it costs.",
        [
            ("before_you_start", "all of it"),
            ("act", "read, predict, run at the scale quick, first two exercises"),
            ("pondernet", "read, run, then use it on your own model"),
            ("training", "how the experiments are run, killed and resumed"),
            ("viz", "how to read and make the figures"),
        ],
    ),
    (
        "A semester",
        "a chapter a week",
        "You can read a new paper, rebuild it, and test what it claims.",
        [
            ("before_you_start", "first week"),
            ("act", "with all exercises, run at full"),
            ("pondernet", "with all exercises; compare your run with the stored one"),
            ("metrics", "before you quote a number"),
            ("data", "what is measured on what"),
        ],
    ),
]
VERDICTS = {  # verdict -> (sign, words for one claim, words for several)
    "yes": ("✓", "holds", "hold"),
    "no": ("✗", "does not hold", "do not hold"),
    "partly": ("◐", "holds in part", "hold in part"),
    "not tested at this scale": ("–", "not tested at this scale", "not tested at their scale"),
}


def doc_of(c) -> str | None:
    "The page of a chapter, or None while it is not written."
    return c.notebook.removesuffix(".ipynb") if c.notebook else None


def by_name() -> dict:
    return {c.name: c for c in CATALOGUE}


def minutes(c) -> str:
    return f"{c.minutes} min" if c.notebook and c.minutes else ""


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

    def run(self):
        return [nodes.raw("", self.html(), format="html")]


# ---- the front page


class Parts(Html):
    "The nine parts as cards, with a picture of each written chapter."

    def html(self):
        self.depend_on_notebooks()
        return '<div class="parts">' + "".join(self.part(n) for n in PARTS if n) + "</div>"

    def part(self, n: int) -> str:
        _, title, blurb = PARTS[n]
        chapters = [c for c in CATALOGUE if c.part == n]
        shots, rows = [], []
        for c in chapters:
            doc = doc_of(c)
            if not doc:
                rows.append(f'<li class="unwritten">{escape(short(c))}</li>')
                continue
            rows.append(
                f'<li><a href="{self.link(doc)}">{escape(short(c))}</a> <span class="minutes">{minutes(c)}</span></li>'
            )
            found = page.picture_file(self.env.app, doc)
            if found:
                src = "../" * self.env.docname.count("/") + found[0]
                shots.append(
                    f'<a class="shot" href="{self.link(doc)}"><img src="{src}" '
                    f'alt="{escape(short(c))}: {escape(found[1])}" '
                    'loading="lazy"></a>'
                )
        strip = f'<div class="shots">{"".join(shots)}</div>' if shots else ""
        state = (
            "" if any(doc_of(c) for c in chapters) else ' <span class="soon">in preparation</span>'
        )
        return (
            f'<section class="part{" written" if strip else ""}" aria-labelledby="part-{n}">{strip}'
            f'<div class="part-text">'
            f'<h3 id="part-{n}"><span class="part-number">{n}</span> {escape(title)}{state}</h3>'
            f"<p>{escape(blurb[0].upper() + blurb[1:])}.</p><ul>{''.join(rows)}</ul></div></section>"
        )


def short(c) -> str:
    "A chapter's title before its colon, unless that says nothing."
    head = c.title.split(":")[0]
    return head if len(head) > 12 or ":" not in c.title or c.part == 1 else c.title


class Routes(Html):
    "Three ways through the course."

    def html(self):
        self.depend_on_notebooks()
        chapters, cards = by_name(), []
        for title, long, gain, stops in ROUTES:
            items = "".join(
                f"<li>{self.stop(chapters[name])}<span>{escape(what)}</span></li>"
                for name, what in stops
            )
            cards.append(
                f'<section class="route"><h3>{title}</h3><p class="route-time">{long}</p><ol>{items}</ol>'
                f'<p class="route-gain">{escape(gain)}</p></section>'
            )
        return f'<div class="routes">{"".join(cards)}</div>'

    def stop(self, c) -> str:
        doc, name = doc_of(c), escape(LABELS.get(c.name, c.title))
        return (
            f'<a href="{self.link(doc)}">{name}</a>'
            if doc
            else f'<span class="unwritten">{name} (not written yet)</span>'
        )


class Graph(Html):
    "What builds on what, as an SVG drawing: a band a part, an arrow from a chapter to those that build on it."

    row, width, label, left, gap = 34, 206, 172, 16, 46

    def html(self):
        self.depend_on_notebooks()
        chapters, at, y, bands = by_name(), {}, 10, []
        for n in list(PARTS)[1:]:
            own = [c for c in CATALOGUE if c.part == n]
            first = [c for c in own if not any(p in {o.name for o in own} for p in c.prerequisites)]
            top = y
            for c in first:
                at[c.name] = (self.label + self.left, y)
                later = [o for o in own if c.name in o.prerequisites]
                for k, o in enumerate(later):
                    at[o.name] = (self.label + self.left + self.width + self.gap, y + k * self.row)
                y += self.row * max(1, len(later))
            bands.append((n, top, y))
            y += 14
        arrows = "".join(
            self.arrow(at[p], at[c.name])
            for c in CATALOGUE
            for p in c.prerequisites
            if p in at and c.name in at
        )
        boxes = "".join(self.box(chapters[name], *xy) for name, xy in at.items())
        total = self.label + self.left + 2 * self.width + self.gap + 12
        labels = "".join(
            f'<rect class="band" x="0" y="{a - 4}" width="{total}" height="{b - a + 4}" rx="6"/>'
            f'<text class="band-label" x="14" y="{a + 18}">{n} {escape(PARTS[n][1])}</text>'
            for n, a, b in bands
        )
        pairs = "; ".join(
            f"{short(c)} builds on {' and '.join(short(chapters[p]) for p in c.prerequisites)}"
            for c in CATALOGUE
            if c.prerequisites
        )
        return (
            f'<div class="graph" role="region" aria-label="Which chapter builds on which" tabindex="0">'
            f'<svg role="group" viewBox="0 0 {total} {y}" width="{total}" height="{y}" '
            'aria-labelledby="graph-title graph-text">'
            f'<title id="graph-title">Which chapter builds on which</title><desc id="graph-text">{escape(pairs)}. '
            'All other chapters stand alone.</desc><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
            'markerWidth="7" markerHeight="7" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>'
            f"{labels}{arrows}{boxes}</svg></div>"
        )

    def box(self, c, x, y) -> str:
        doc, name = doc_of(c), LABELS.get(c.name, c.name.replace("_", " "))
        body = (
            f'<rect class="box" x="{x}" y="{y}" width="{self.width}" height="{self.row - 8}" rx="5"/>'
            f'<text x="{x + 12}" y="{y + 18}">{escape(name)}</text>'
        )
        return (
            f'<a class="written" href="{self.link(doc)}">{body}</a>'
            if doc
            else f'<g class="unwritten">{body}</g>'
        )

    def arrow(self, a, b) -> str:
        h = (self.row - 8) / 2
        x0, y0, x1, y1 = a[0] + self.width, a[1] + h, b[0], b[1] + h
        if b[0] == a[0]:  # to another part: down the left side
            way = f"M{a[0]} {y0} h-5 q-7 0 -7 7 V{y1 - 7} q0 7 7 7 H{x1 - 2}"
            return f'<path class="arrow" d="{way}" marker-end="url(#tip)"/>'
        middle = (x0 + x1) / 2
        return f'<path class="arrow" d="M{x0} {y0} C{middle} {y0} {middle} {y1} {x1 - 2} {y1}" marker-end="url(#tip)"/>'


LABELS = {
    "act": "Adaptive Computation Time",
    "pondernet": "PonderNet",
    "sire": "SIRE: order-invariant RNNs",
    "performer": "Performer",
    "perceiver": "Perceiver",
    "ipt": "Image Processing Transformer",
    "alignment_uniformity": "Alignment and uniformity",
    "swav": "SwAV",
    "relic": "ReLIC",
    "seqclr": "SeqCLR",
    "drs": "Discriminator rejection",
    "ratio_clipping": "Ratio clipping",
    "transgan": "TransGAN",
    "exemplar_vae": "Exemplar VAE",
    "vaebm": "VAEBM",
    "guided_diffusion": "Guided diffusion",
    "latent_directions": "Latent directions",
    "gan_control": "GAN-Control",
    "stylex": "StylEx",
    "neuron_shapley": "Neuron Shapley",
    "aum": "Area under the margin",
    "early_stopping": "Early stopping",
    "sam": "Sharpness-aware",
    "functional_entropy": "Functional entropy",
    "supsup": "SupSup",
    "commentaries": "Commentaries",
    "meta_augmentation": "Meta-augmentation",
    "robust_ot": "Robust optimal transport",
    "otdd": "Data set distances",
    "prism": "Prism",
    "infobert": "InfoBERT",
    "summarize_feedback": "Summaries from feedback",
}


# ---- results


class Results(Html):
    "Every recorded claim: the paper's number, ours, and whether it holds."

    def html(self):
        self.depend_on_notebooks()
        for file in (Path(self.env.srcdir) / "results").glob("*.json"):
            self.env.note_dependency(str(file))
        rows = results()
        if not rows:
            return '<p class="empty">No run has been recorded yet.</p>'
        count = Counter(r["holds"] for r in rows)
        chips = "".join(
            f'<li class="verdict {css(v)}"><span aria-hidden="true">{mark}</span> '
            f"<strong>{count[v]}</strong> {one if count[v] == 1 else several}</li>"
            for v, (mark, one, several) in VERDICTS.items()
        )
        chapters = by_name()
        tables = []
        for name in dict.fromkeys(r["chapter"] for r in rows):
            c, doc = chapters[name], doc_of(chapters[name])
            source = Path(self.env.srcdir) / c.notebook if doc else None
            labels = anchors(source) if doc and source.exists() else {}
            body = "".join(self.row(r, doc, labels) for r in rows if r["chapter"] == name)
            title = f'<a href="{self.link(doc)}">{escape(c.title)}</a>' if doc else escape(c.title)
            head = "".join(
                f'<th scope="col">{h}</th>'
                for h in (
                    "Claim",
                    "Paper",
                    "Here [95 % interval]",
                    "Seeds",
                    "Rule, fixed before the run",
                    "Holds?",
                    "Run",
                )
            )
            tables.append(
                f'<section class="claims" aria-labelledby="claims-{name}"><h2 id="claims-{name}">{title}</h2>'
                f'<div class="table-scroll" role="region" aria-label="Claims of {escape(short(c))}" tabindex="0">'
                f'<table class="claims-table"><thead><tr>{head}</tr></thead>'
                f"<tbody>{body}</tbody></table></div></section>"
            )
        return (
            f'<ul class="verdicts" aria-label="All claims by verdict">{chips}</ul>{"".join(tables)}'
        )

    def row(self, r: dict, doc: str | None, labels: dict) -> str:
        mark, words, _ = VERDICTS[r["holds"]]
        span = _ends(r.get("interval"))
        span = f' <span class="interval">{span}</span>' if span else ""
        claim = escape(r["claim"])
        if doc:
            claim = f'<a href="{self.link(doc, labels.get(r.get("cell") or "", ""))}">{claim}</a>'
        note = f'<p class="note">{escape(r["note"])}</p>' if r.get("note") else ""
        where = f"{escape(r['scale'])}, {escape(r['device'])}"
        if r.get("torch"):
            where += f"<br>PyTorch {escape(str(r['torch']).split('+')[0])}"
        if r.get("date"):
            where += f'<br><time datetime="{escape(str(r["date"])[:10])}">{escape(str(r["date"])[:10])}</time>'
        seeds = "" if r.get("n_seeds") is None else str(r["n_seeds"])
        cells = [
            ("Paper", escape(_number(r["paper"], r["unit"]))),
            ("Here", escape(_number(r["here"], r["unit"])) + span),
            ("Seeds", seeds),
            ("Rule", escape(r["rule"])),
            (
                "Holds?",
                f'<span class="verdict {css(r["holds"])}"><span aria-hidden="true">{mark}</span> {words}</span>',
            ),
            ("Run", where),
        ]
        return (
            f'<tr><th scope="row" data-label="Claim">{claim}{note}</th>'
            + "".join(
                f'<td data-label="{label}"><div class="cell-text">{text}</div></td>'
                for label, text in cells
            )
            + "</tr>"
        )


def css(verdict: str) -> str:
    return "is-" + verdict.split()[0]


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
    "The symbols: what they mean, their name in code, where they come from. From docs/notation.toml."

    def run(self):
        path = Path(self.env.srcdir) / "docs" / "notation.toml"
        self.env.note_dependency(str(path))
        chapters, out = by_name(), []
        for group in tomllib.loads(path.read_text(encoding="utf-8"))["group"]:
            lines = ["| symbol | meaning | in code | chapter |", "| --- | --- | --- | --- |"]
            for s in group["symbol"]:
                code = " ".join(f"`{x}`" for x in s.get("code", []))
                where = ", ".join(
                    f"[{LABELS.get(n, short(chapters[n]))}](/{chapters[n].notebook})"
                    if chapters[n].notebook
                    else LABELS.get(n, short(chapters[n]))
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
    "The hidden tables of contents of the front page: a part that has notebooks, each under its title."
    out = []
    for n, (folder, title, _) in sorted(PARTS.items()):
        files = sorted((srcdir / "nbs" / folder).glob("[0-9]*.ipynb"))
        if files:
            caption = title if n == 0 else f"{n} · {title}"
            names = "\n".join(f"/nbs/{folder}/{f.stem}" for f in files)
            out.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{names}\n```")
    out.append(
        "```{toctree}\n:hidden:\n:caption: Reference\n\n"
        "/docs/results\n/docs/api/index\n/docs/notation\n/docs/glossary\n```"
    )
    return "\n\n".join(out)


def new_pages(app, env, added, changed, removed):
    "The front page and the results list other files: read them again when there are more or fewer."
    files = sorted(p.name for p in (Path(app.srcdir) / "results").glob("*.json"))
    more = added or removed or files != getattr(env, "result_files", files)
    env.result_files = files
    return [d for d in ("index", "docs/results") if more and d in env.found_docs]


def setup(app):
    for name, directive in (
        ("parts", Parts),
        ("routes", Routes),
        ("prerequisites", Graph),
        ("results", Results),
        ("notation", Notation),
        ("glossary-terms", Glossary),
    ):
        app.add_directive(name, directive)
    app.connect("env-get-outdated", new_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
