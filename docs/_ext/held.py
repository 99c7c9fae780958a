"""What held, over all chapters: every claim as a mark, counts by part and kind, why some failed."""

import re
import tomllib
from collections import Counter
from functools import cache
from html import escape
from pathlib import Path

import claims

from ponderlearn.catalogue import CATALOGUE, PAPERS, PARTS
from ponderlearn.records import measured, results

ORDER = (
    "yes",
    "suggestive",
    "partly",
    "no",
    "not testable at this size",
    "not tested at this scale",
)
FAILED = ("no", "partly")
PICTURE = Path(__file__).resolve().parents[1] / "held.svg"  # the README's, by `make readme`


def laptop(rows: list[dict]) -> list[dict]:
    "The claims of the runs that a laptop does: scale full on a CPU."
    return [r for r in rows if r["scale"] == "full" and r["device"] == "cpu"]


# ---- the table of kinds


@cache
def _table(path: str, stamp: float) -> dict:
    return tomllib.loads(Path(path).read_text(encoding="utf-8"))


def table_file(srcdir) -> Path:
    return Path(srcdir) / "docs" / "claims.toml"


def table(srcdir) -> dict:
    "docs/claims.toml: the kinds, the reasons, and the claims of each chapter."
    path = table_file(srcdir)
    return _table(str(path), path.stat().st_mtime)


def entry(row: dict, of: dict) -> dict:
    "What the table says about a claim; empty while it is not sorted."
    return of["claims"].get(row["chapter"], {}).get(row["claim"], {})


def problems(rows: list[dict], of: dict) -> list[str]:
    """What is missing in the table or no longer true, as lines that say what to do.

    What is missing comes first, as lines to copy below the header of their chapter."""
    kinds, whys = ([x["key"] for x in of[k]] for k in ("kind", "why"))
    copy, found, failed, seen = {}, [], set(), {}
    for row in rows:
        key = (row["chapter"], row["claim"])
        seen.setdefault(key, row)
        if row["holds"] in FAILED:
            failed.add(key)
    for (chapter, claim), row in seen.items():
        own, key = entry(row, of), toml_text(claim)
        why = f', why = "{"|".join(whys)}"' if (chapter, claim) in failed else ""
        if own.get("kind") not in kinds or (why and own.get("why") not in whys):
            line = f'{key} = {{ kind = "{"|".join(kinds)}"{why} }}'
            copy.setdefault(f"[claims.{chapter}]", []).append(line)
        elif own.get("why") and not why:
            found.append(f"[claims.{chapter}] {key}: it has not failed, take its `why` away")
    for chapter, own in of["claims"].items():
        found += [
            f"[claims.{chapter}] {toml_text(c)}: no such claim is recorded, take the line away"
            for c in own
            if (chapter, c) not in seen
        ]
    for why in of["why"]:
        found += [
            f"[[why]] {why['key']}: the example {toml_text(claim)} is no claim of {chapter}"
            for chapter, claim in why["examples"]
            if (chapter, claim) not in seen
        ]
    return [line for header, own in copy.items() for line in (header, *own)] + found


def toml_text(s: str) -> str:
    return '"' + s.replace("\\", "\\\\").replace('"', '\\"') + '"'


# ---- numbers


LINE = r"the 95 % interval lies (above|below) ([−\-\d.]+)"
RANGE = r"the 95 % interval lies within \[([−\-\d.]+), ([−\-\d.]+)\]"


def distance(row: dict) -> str | None:
    """How far a failed claim is from its rule, where that is one interval against one bound.

    "near": the mean lies on the claimed side; "open": it does not, but a part of the interval does;
    "against": the whole interval lies on the other side."""
    one, two = re.fullmatch(LINE, row["rule"]), re.fullmatch(RANGE, row["rule"])
    if not (one or two) or not row["interval"] or isinstance(row["here"], str):
        return None
    bounds = [float(x.replace("−", "-")) for x in (one.groups()[1:] if one else two.groups())]
    if one:
        bounds = [bounds[0], float("inf")] if one[1] == "above" else [float("-inf"), bounds[0]]
    low, high = row["interval"]
    if bounds[0] < row["here"] < bounds[1]:
        return "near"
    return "against" if high < bounds[0] or low > bounds[1] else "open"


def of_the_paper(row: dict) -> bool:
    "Whether the paper says anything on it; where it does not, the column `paper` begins with not."
    return not str(row["paper"]).startswith("not ")


def facts(rows: list[dict], of: dict) -> dict[str, str]:
    "The numbers that the prose of docs/what_held.md may name, each as text."
    count = Counter(r["holds"] for r in rows)
    tested = [r for r in rows if r["holds"] in claims.TESTED]
    failed = [r for r in rows if r["holds"] in FAILED]
    own = [r for r in tested if of_the_paper(r)]
    ours = [r for r in tested if not of_the_paper(r)]
    ways = Counter(distance(r) for r in failed if r["holds"] == "no")
    chapters = list(dict.fromkeys(r["chapter"] for r in rows))
    found = {
        "n_papers": len(PAPERS),
        "n_chapters": len(chapters),
        "n": len(rows),
        "n_tested": len(tested),
        "n_yes": count["yes"],
        "n_suggestive": count["suggestive"],
        "n_partly": count["partly"],
        "n_no": count["no"],
        "n_untestable": count["not testable at this size"],
        "n_failed": len(failed),
        "n_p": sum(r.get("p") is not None for r in tested),
        "n_paper": len(own),
        "n_paper_yes": sum(r["holds"] == "yes" for r in own),
        "n_paper_no": sum(r["holds"] in FAILED for r in own),
        "n_ours": len(ours),
        "n_ours_yes": sum(r["holds"] == "yes" for r in ours),
        "n_ours_no": sum(r["holds"] in FAILED for r in ours),
        "n_bound": sum(n for way, n in ways.items() if way),
        "n_near": ways["near"],
        "n_open": ways["open"],
        "n_against": ways["against"],
        "n_chance": number_word(round(0.05 * len(chapters))),
        "percent_yes": share(count["yes"], len(tested)),
        "percent_paper": share(sum(r["holds"] == "yes" for r in own), len(own)),
        "percent_ours": share(sum(r["holds"] == "yes" for r in ours), len(ours)),
        "with_failures": sum(
            any(r["chapter"] == c and r["holds"] in FAILED for r in rows) for c in chapters
        ),
        "kinds_by_share": by_share(rows, of),
        "parts_by_share": parts_by_share(rows),
    }
    rival = [r for r in failed if entry(r, of).get("why") == "rival"]
    found["n_rival_ahead"] = sum(distance(r) == "against" for r in rival)
    found |= {"n_" * isinstance(v, int) + k: v for k, v in of["second"].items()}
    for why in of["why"]:
        found[f"n_{why['key']}"] = sum(entry(r, of).get("why") == why["key"] for r in failed)
    return {k: str(v) for k, v in found.items()}


def number_word(n: int) -> str:
    return ("none", "one", "two", "three")[n] if n < 4 else str(n)


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "none"


def held_of(rows: list[dict]) -> tuple[int, int]:
    "How many claims hold, of those tested."
    tested = [r for r in rows if r["holds"] in claims.TESTED]
    return sum(r["holds"] == "yes" for r in tested), len(tested)


def ranked(groups: list[tuple[str, list[dict]]]) -> str:
    "The groups by the share of claims that hold, the best first, as a phrase."
    counted = [(title, *held_of(rows)) for title, rows in groups]
    best = sorted((g for g in counted if g[2]), key=lambda g: -g[1] / g[2])
    said = [f"{title} ({held} of {tested})" for title, held, tested in best]
    return ", ".join(said[:-1]) + f" and {said[-1]}" if len(said) > 1 else "".join(said)


def by_share(rows: list[dict], of: dict) -> str:
    return ranked([(f"*{k['title']}*", own) for k, own in by_kind(rows, of) if k["key"]])


def parts_by_share(rows: list[dict]) -> str:
    of_part = part_of()
    return ranked(
        [
            (f"*{part.title}*", [r for r in rows if of_part[r["chapter"]] == n])
            for n, part in PARTS.items()
            if n
        ]
    )


def by_kind(rows: list[dict], of: dict) -> list[tuple[dict, list[dict]]]:
    "The kinds, in the table's order, with their claims; what is not sorted yet comes last."
    found = [(k, [r for r in rows if entry(r, of).get("kind") == k["key"]]) for k in of["kind"]]
    rest = [r for r in rows if not entry(r, of).get("kind")]
    new = {"key": "", "title": "Not sorted yet", "about": "New claims."}
    return [*found, (new, rest)] if rest else found


def part_of() -> dict[str, int]:
    return {c.name: c.part for c in CATALOGUE}


NAME = re.compile(r"(?<![`{])\{([a-z_]+)\}(?!\})")  # not a directive's: those follow backticks


def filled(text: str, numbers: dict[str, str], file: str = "docs/what_held.md") -> str:
    "The text with {name} replaced; ValueError for a name that is none of the numbers."
    unknown = {m[1] for m in NAME.finditer(text)} - set(numbers)
    if unknown:
        raise ValueError(f"{file}: no number {sorted(unknown)}; see facts() in docs/_ext")
    return NAME.sub(lambda m: numbers[m[1]], text)


# ---- every claim as a mark


SIZE, STEP = 12, 13  # pixels of a mark, and from one to the next
SHAPES = {  # drawn in a square of 12; told apart by shape as well as by color
    "yes": '<rect class="mark-fill" x=".5" y=".5" width="11" height="11" rx="2.5"/>'
    '<path class="mark-paper" d="M3.2 6.2 5.3 8.3 8.9 3.9"/>',
    "suggestive": '<rect class="mark-tint" x="1" y="1" width="10" height="10" rx="2.5"/>'
    '<path class="mark-line" d="M2.8 6.9Q4.4 4.3 6 6.1T9.2 5.2"/>',
    "partly": '<rect class="mark-line" x="1" y="1" width="10" height="10" rx="2.5"/>'
    '<path class="mark-fill" d="M1 3.5A2.5 2.5 0 0 1 3.5 1H6V11H3.5A2.5 2.5 0 0 1 1 8.5Z"/>',
    "no": '<rect class="mark-line" x="1" y="1" width="10" height="10" rx="2.5"/>'
    '<path class="mark-line" d="M3.9 3.9 8.1 8.1M8.1 3.9 3.9 8.1"/>',
    "not testable at this size": '<circle class="mark-line mark-dash" cx="6" cy="6" r="4.4"/>',
    "not tested at this scale": '<path class="mark-line" d="M3 6H9"/>',
}


def shapes() -> str:
    "The shapes, once a page: each mark refers to one."
    groups = "".join(f'<g id="mark-{claims.css(v)}">{shape}</g>' for v, shape in SHAPES.items())
    return f"<defs>{groups}</defs>"


def mark(verdict: str, x: float, y: float, title: str = "") -> str:
    css = claims.css(verdict)
    place = "".join(f' {k}="{v:g}"' for k, v in (("x", x), ("y", y)) if v)
    if title:
        title = f"<title>{escape(title)}</title>"
        return f'<use class="{css}" href="#mark-{css}"{place}>{title}</use>'
    return f'<use class="{css}" href="#mark-{css}"{place}/>'


def in_order(rows: list[dict]) -> list[dict]:
    "What holds first."
    return sorted(rows, key=lambda r: ORDER.index(r["holds"]))


def said(rows: list[dict]) -> str:
    "The verdicts as words: '5 hold, 1 is suggestive, 6 do not hold'."
    count = Counter(r["holds"] for r in rows)
    return ", ".join(f"{count[v]} {claims.words(v, count[v])}" for v in ORDER if count[v])


def counts(rows: list[dict]) -> str:
    "The verdicts as signs with counts, for a card: what each means is said to a screen reader."
    count = Counter(r["holds"] for r in rows)
    signs = "".join(
        f'<span class="{claims.css(v)}">{claims.VERDICTS[v].sign} {count[v]}</span>'
        for v in ORDER
        if count[v]
    )
    return (
        f'<span class="counts" role="img" aria-label="Claims: {said(rows)}" '
        f'title="{said(rows)}">{signs}</span>'
    )


def strip(rows: list[dict], titles: bool = False) -> str:
    "A chapter's claims as marks: tens, which stand below each other where there is no room."
    rows, tens = in_order(rows), []
    for i in range(0, len(rows), 10):
        ten = rows[i : i + 10]
        marks = "".join(
            mark(
                r["holds"], k * STEP, 0, f"{r['claim']}: {claims.VERDICTS[r['holds']].one}" * titles
            )
            for k, r in enumerate(ten)
        )
        width = len(ten) * STEP - STEP + SIZE
        tens.append(
            f'<svg class="marks" width="{width}" height="{SIZE}" viewBox="0 0 {width} {SIZE}">'
            f"{marks}</svg>"
        )
    return f'<span class="strip" role="img" aria-label="{said(rows)}">{"".join(tens)}</span>'


def legend() -> str:
    "What the marks mean."
    items = "".join(
        f'<li><svg class="marks" aria-hidden="true" width="{SIZE}" height="{SIZE}" '
        f'viewBox="0 0 {SIZE} {SIZE}">{mark(v, 0, 0)}</svg> {claims.VERDICTS[v].one}</li>'
        for v in ORDER[:5]
    )
    return f'<ul class="marks-legend" aria-label="What the marks mean">{items}</ul>'


def wall(rows: list[dict], href, titles: bool = False) -> str:
    "A line for each paper, by parts; `href(chapter)` is where its name leads, or None."
    parts = []
    for n, part in PARTS.items():
        lines = []
        for c in (c for c in PAPERS if c.part == n):
            own, to = [r for r in rows if r["chapter"] == c.name], href(c)
            name = f'<a href="{to}">{escape(c.short)}</a>' if to else escape(c.short)
            marks = strip(own, titles) if own else '<span class="soon">in preparation</span>'
            lines.append(f'<li><span class="wall-name">{name}</span>{marks}</li>')
        if lines:
            title = f'<p class="wall-part">{n} · {escape(part.title)}</p>'
            parts.append(f'<div class="wall-group">{title}<ul>{"".join(lines)}</ul></div>')
    defs = f'<svg class="shapes" aria-hidden="true" width="0" height="0">{shapes()}</svg>'
    return f'{defs}<div class="wall">{"".join(parts)}</div>{legend()}'


STYLE = """
svg{--ink:#23282e;--soft:#5a6068;--paper:#fdfcfa;--edge:#e2ded5;
--yes:#1c6b45;--no:#a3281f;--partly:#7d5300;--sugg:#3f5f14;--not:#555c64}
@media (prefers-color-scheme:dark){svg{--ink:#dadfe5;--soft:#a2abb5;--paper:#15181c;--edge:#333a42;
--yes:#7bd3a2;--no:#f3a198;--partly:#ecc26b;--sugg:#c3d684;--not:#b3bac2}}
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
fill:var(--ink)}
.part,.soft{fill:var(--soft)}.part{font-weight:600;font-size:12.5px}.soft{font-size:12px}
.is-yes{color:var(--yes)}.is-no{color:var(--no)}.is-partly{color:var(--partly)}
.is-suggestive{color:var(--sugg)}.is-not-testable,.is-not-tested{color:var(--not)}
.mark-fill{fill:currentColor}.mark-tint{fill:currentColor;fill-opacity:.22;stroke:currentColor}
.mark-line{fill:none;stroke:currentColor;stroke-width:1.4;stroke-linecap:round}
.mark-dash{stroke-dasharray:1.6 2}.mark-paper{fill:none;stroke:var(--paper);stroke-width:1.7;
stroke-linecap:round;stroke-linejoin:round}
"""


def svg(rows: list[dict]) -> str:
    "The wall as one picture in two columns, for pages that show nothing but images: the README."
    line, head = 19, 27  # pixels: a chapter, a part's title
    most = max((n for n in Counter(r["chapter"] for r in rows).values()), default=1)
    names = 12 + round(7.1 * max(len(c.short) for c in PAPERS))
    column = names + STEP * most + 24
    parts = [(n, [c for c in PAPERS if c.part == n]) for n in PARTS if n]
    heights = [head + line * len(own) for _, own in parts]
    first = min(range(len(parts)), key=lambda i: abs(2 * sum(heights[: i + 1]) - sum(heights)))
    drawn, height = [], 0
    for place, own in enumerate((parts[: first + 1], parts[first + 1 :])):
        x, y = 22 + column * place, 8
        for n, chapters in own:
            y += head
            drawn.append(
                f'<text class="part" x="{x}" y="{y - 7}">{n} · {escape(PARTS[n].title)}</text>'
            )
            for c in chapters:
                y += line
                mine = in_order([r for r in rows if r["chapter"] == c.name])
                drawn.append(f'<text x="{x}" y="{y - 7}">{escape(c.short)}</text>')
                drawn += [
                    mark(r["holds"], x + names + STEP * i, y - 17) for i, r in enumerate(mine)
                ] or [f'<text class="soft" x="{x + names}" y="{y - 7}">in preparation</text>']
        height = max(height, y)
    x, y = 22, height + 14
    for v in ORDER[:5]:
        words = claims.VERDICTS[v].one
        drawn.append(mark(v, x, y))
        drawn.append(f'<text class="soft" x="{x + 18}" y="{y + 10}">{words}</text>')
        x += 42 + round(6.4 * len(words))
    width, height = 2 * column + 20, y + 28
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="what"><title id="what">{alt(rows)}</title>'
        f"<style>{STYLE}</style>{shapes()}"
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10" '
        'style="fill:var(--paper);stroke:var(--edge)"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def alt(rows: list[dict]) -> str:
    "What the picture shows, in a sentence."
    n = len({r["chapter"] for r in rows})
    return f"{len(rows)} claims in {n} chapters, each as a mark beside its paper: {said(rows)}."


# ---- by kind and part


def kinds(rows: list[dict], of: dict) -> str:
    "A line for each kind: what it is, its claims as a bar, the count in words."
    groups = by_kind(rows, of)
    most = max((len(own) for _, own in groups), default=1) or 1
    lines = "".join(
        f"<li><span><strong>{escape(k['title'])}</strong></span>{claims.bar(in_order(own), most)}"
        f'<span class="tally">{escape(k["about"])} {said(own).capitalize()}.</span></li>'
        for k, own in groups
    )
    return f'<ul class="tallies kinds" aria-label="Claims by kind">{lines}</ul>'


def matrix(rows: list[dict], of: dict, href) -> str:
    "Parts by kinds: how many claims hold of those tested, and a bar of the share."
    groups, part = by_kind(rows, of), part_of()
    head = "".join(f'<th scope="col">{escape(k["title"])}</th>' for k, _ in groups)
    body = ""
    for n in (n for n in PARTS if n):
        own = [[r for r in g if part[r["chapter"]] == n] for _, g in groups]
        name = f"{n} · {escape(PARTS[n].title)}"  # the results have the parts with claims
        body += line(f'<a href="{href(n)}">{name}</a>' if any(own) else name, own)
    body += line("All parts", [g for _, g in groups], "total")
    return (
        '<div class="table-scroll" role="region" aria-label="Claims that hold, by part and kind">'
        '<table class="held-table"><caption>Claims that hold / claims tested</caption>'
        f'<thead><tr><th scope="col">Part</th>{head}<th scope="col">All</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def line(name: str, groups: list[list[dict]], css: str = "") -> str:
    every = [r for g in groups for r in g]
    cells = "".join(f"<td>{cell(g)}</td>" for g in [*groups, every])
    return f'<tr class="{css}"><th scope="row">{name}</th>{cells}</tr>'


def cell(rows: list[dict]) -> str:
    held, tested = held_of(rows)
    if not tested:
        return '<span class="none">–</span>'
    meter = f'<span class="meter" aria-hidden="true"><i style="width:{100 * held / tested:.0f}%">'
    return f"{held}/{tested}{meter}</i></span>"


# ---- why some failed


def reasons(rows: list[dict], of: dict, href) -> str:
    "The reasons, the most frequent first, each with its failures by kind and some examples."
    failed = [r for r in rows if r["holds"] in FAILED]
    by_key = {(r["chapter"], r["claim"]): r for r in rows}
    short = {c.name: c.short for c in CATALOGUE}
    found = []
    for why in of["why"]:
        own = [r for r in failed if entry(r, of).get("why") == why["key"]]
        found.append((why, own))
    found.sort(key=lambda g: -len(g[1]))
    most = max((len(own) for _, own in found), default=1) or 1
    out = []
    for why, own in found:
        examples = "".join(
            f'<li>{escape(short[chapter])}: <a href="{href(r)}">{escape(claim)}</a> '
            f'<span class="tally">{escape(measured(r))}</span></li>'
            for chapter, claim in why["examples"]
            if (r := by_key.get((chapter, claim)))
        )
        out.append(
            f'<li><p class="reason"><strong>{len(own)}</strong> {escape(why["title"])}</p>'
            f'<span class="bar" style="width:{100 * len(own) / most:.0f}%" aria-hidden="true">'
            '<span class="is-no"></span></span>'
            f"<p>{escape(why['about'])}</p><ul>{examples}</ul></li>"
        )
    new = len(failed) - sum(len(own) for _, own in found)
    more = f"<li><p class='reason'><strong>{new}</strong> Not sorted yet</p></li>" if new else ""
    return f'<ol class="reasons">{"".join(out)}{more}</ol>'


# ---- directives and the page


def setup(app):
    from pages import Html, doc_of, raw  # pages uses `counts`

    class Held(Html):
        "A directive on all claims: depends on the results and the table."

        def rows(self):
            self.depend_on_notebooks()
            self.depend_on_results()
            self.env.note_dependency(str(table_file(self.env.srcdir)))
            self.of = table(self.env.srcdir)
            return laptop(results())

        def run(self):
            rows = self.rows()
            return [raw(self.draw(rows))] if rows else [raw('<p class="empty">No claims yet.</p>')]

        def claims_of(self, c) -> str | None:
            return self.link("docs/results", f"claims-{c.name}") if doc_of(c) else None

    class Wall(Held):
        def draw(self, rows):
            return wall(rows, self.claims_of, titles=self.env.docname != "index")

    class Summary(Held):
        "On the front page: the marks, and what they say in one sentence."

        def draw(self, rows):
            n = len({r["chapter"] for r in rows})
            return (
                wall(rows, self.claims_of)
                + f'<p class="wall-caption">Each mark is one claim, measured on a laptop by a rule '
                f"that was fixed before the run: {len(rows)} claims in {n} chapters, of which "
                f'{said(rows)}. <a href="{self.link("docs/what_held")}">What held, and why the '
                f"rest did not</a></p>"
            )

    class Chips(Held):
        def draw(self, rows):
            return claims.chips(rows)

    class Kinds(Held):
        def draw(self, rows):
            return kinds(rows, self.of)

    class Matrix(Held):
        def draw(self, rows):
            return matrix(rows, self.of, lambda n: self.link("docs/results", f"results-part-{n}"))

    class Reasons(Held):
        def draw(self, rows):
            return reasons(
                rows, self.of, lambda r: self.link("docs/results", f"claims-{r['chapter']}")
            )

    for name, directive in (
        ("held-wall", Wall),
        ("held-summary", Summary),
        ("held-verdicts", Chips),
        ("held-kinds", Kinds),
        ("held-matrix", Matrix),
        ("held-reasons", Reasons),
    ):
        app.add_directive(name, directive)
    app.connect("source-read", fill_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def fill_page(app, docname, source) -> None:
    "Write the numbers into docs/what_held.md."
    if docname == "docs/what_held":
        source[0] = filled(source[0], facts(laptop(results()), table(app.srcdir)))


def main() -> None:
    "Write the README's picture."
    PICTURE.write_text(svg(laptop(results())), encoding="utf-8")


if __name__ == "__main__":
    main()
