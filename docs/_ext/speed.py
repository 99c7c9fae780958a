"""Speed, over all methods: every comparison with a peer as a dot, then the tables."""

import math
from html import escape
from pathlib import Path
from statistics import median
from typing import NamedTuple

import held

from ponderlearn.catalogue import CATALOGUE, PARTS, read_json
from ponderlearn.records import number

TICKS = (0.25, 0.5, 1, 2, 5, 10, 100, 1000)
ENDS = 0.2, 5000.0  # of the axis; what lies beyond is drawn at its edge
SIDES = {"faster": "is-yes", "level": "is-not-testable", "slower": "is-no"}


class Bench(NamedTuple):
    "A chapter with what its benchmark measured."

    chapter: object
    found: dict

    @property
    def rows(self) -> list[dict]:
        return self.found["rows"]


def benches(srcdir) -> list[Bench]:
    "The stored benchmarks, in the order of the course."
    files = {c: Path(srcdir) / "results" / f"bench-{c.name}.json" for c in CATALOGUE}
    return [Bench(c, read_json(file)) for c, file in files.items() if file.is_file()]


def side(row: dict) -> str:
    "Which side the whole 95 % interval of the ratio lies on."
    return "faster" if row["low"] > 1 else "slower" if row["high"] < 1 else "level"


def lean(row: dict) -> str | None:
    "Which of the two holds less memory, by more than a tenth; None where it was not watched."
    ours, other = row.get("ours_mb"), row.get("peer_mb")
    if ours is None or other is None or max(ours, other) < 1:
        return None
    return "less" if ours < other / 1.1 else "more" if ours > other * 1.1 else "equal"


def facts(found: list[Bench]) -> dict[str, str]:
    "The numbers that the prose of docs/speed.md may name, each as text."
    rows = [r for b in found for r in b.rows]
    sides, leans = ([f(r) for r in rows] for f in (side, lean))
    middle = [median(r["ratio"] for r in b.rows) for b in found]
    return {
        "n": str(len(rows)),
        "n_methods": str(len(found)),
        "n_faster": str(sides.count("faster")),
        "n_level": str(sides.count("level")),
        "n_slower": str(sides.count("slower")),
        "with_slower": str(sum(any(side(r) == "slower" for r in b.rows) for b in found)),
        "median_ratio": f"{median(middle):.1f}" if middle else "none",
        "n_watched": str(sum(x is not None for x in leans)),
        "n_less": str(leans.count("less")),
        "n_equal": str(leans.count("equal")),
        "n_more": str(leans.count("more")),
    }


# ---- every comparison as a dot


def place(ratio: float) -> float:
    "Where a ratio stands on the axis, in percent of its length."
    low, high = (math.log(x) for x in ENDS)
    return 100 * (min(max(math.log(ratio), low), high) - low) / (high - low)


def times(x: float) -> str:
    return f"{x:.2f}" if x < 10 else f"{x:.1f}" if x < 100 else f"{x:,.0f}"


def interval(row: dict) -> str:
    return f"{times(row['ratio'])} [{times(row['low'])}, {times(row['high'])}]"


def dot(row: dict, i: int, n: int) -> str:
    "A comparison: its ratio, and a line over its interval; the dots of a method stand in a slope."
    low, mid, high = (place(row[key]) for key in ("low", "ratio", "high"))
    top = 50 if n == 1 else 12 + 76 * i / (n - 1)
    title = escape(f"{row['what']}{beside(row)}: {interval(row)}")
    return (
        f'<i class="{SIDES[side(row)]}" style="top:{top:.0f}%;left:{low:.1f}%;'
        f'width:{max(high - low, 0.3):.1f}%" title="{title}">'
        f'<b style="left:{100 * (mid - low) / max(high - low, 0.3):.0f}%"></b></i>'
    )


def beside(row: dict) -> str:
    return f", beside {row['beside']}" if "beside" in row else ""


def said(rows: list[dict]) -> str:
    "A method's comparisons in words, for those who do not see the dots."
    ratios = [r["ratio"] for r in rows]
    sides = [side(r) for r in rows]
    count = ", ".join(f"{sides.count(s)} {s}" for s in SIDES if s in sides)
    return f"{len(rows)} comparisons, {times(min(ratios))} to {times(max(ratios))} times: {count}"


def strips(found: list[Bench], href) -> str:
    "A line for each method; `href(chapter)` is where its name leads."
    axis = "".join(
        f'<span style="left:{place(t):.1f}%"{" class=one" if t == 1 else ""}>{t:g}</span>'
        for t in TICKS
    )
    grid = "".join(
        f'<u style="left:{place(t):.1f}%"{" class=one" if t == 1 else ""}></u>' for t in TICKS
    )
    lines = "".join(
        f'<li><a href="{href(b.chapter)}">{escape(b.chapter.short)}</a>'
        f'<span class="dots" role="img" aria-label="{said(b.rows)}">{grid}'
        + "".join(
            dot(r, i, len(b.rows)) for i, r in enumerate(sorted(b.rows, key=lambda r: r["ratio"]))
        )
        + "</span></li>"
        for b in found
    )
    return (
        f'<div class="speed"><p class="axis" aria-hidden="true"><span class="ticks">{axis}</span>'
        f"</p><ul>{lines}</ul></div>"
    )


# ---- the tables


def megabytes(x: float | None) -> str:
    return "–" if x is None else "&lt; 0.1" if x < 0.1 else number(x)


def table(b: Bench) -> str:
    "The comparisons of one method: times, ratio, memory."
    head = ["what, beside what", "ms: ours, other", "times as fast", "MB: ours, other"]
    head = "".join(f'<th scope="col">{h}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row">{escape(r["what"])}<span>{escape(r.get("beside", ""))}</span></th>'
        f"<td>{pair(r['ours_ms'], r['peer_ms'], number)}</td>"
        f'<td class="{SIDES[side(r)]}">{interval(r)}</td>'
        f"<td>{pair(r.get('ours_mb'), r.get('peer_mb'), megabytes)}</td></tr>"
        for r in b.rows
    )
    name = escape(b.chapter.short)
    return (
        f'<div class="table-scroll" role="region" tabindex="0" aria-label="Speed of {name}">'
        f'<table class="speed-table"><caption>{escape(where(b))}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def pair(ours, other, spec) -> str:
    return f"<b>{spec(ours)}</b>, {spec(other)}"


def where(b: Bench) -> str:
    f = b.found
    return f"Beside {f['peer']}; {f['machine']}, PyTorch {f['torch']}, {f['date']}"


def slower(found: list[Bench], href) -> str:
    "Every comparison whose whole interval lies below 1."
    items = "".join(
        f'<li><a href="{href(b.chapter)}">{escape(b.chapter.short)}</a>: {escape(r["what"])}'
        f'{escape(beside(r))} <span class="tally">{interval(r)}</span></li>'
        for b in found
        for r in b.rows
        if side(r) == "slower"
    )
    return f'<ul class="slower">{items}</ul>'


# ---- directives and the page


def setup(app):
    from docutils import nodes
    from pages import Html, raw, titled

    class Speed(Html):
        "A directive on all benchmarks."

        def run(self):
            self.depend_on_results()
            found = benches(self.env.srcdir)
            return self.draw(found) if found else [raw('<p class="empty">Nothing measured.</p>')]

    class Strips(Speed):
        def draw(self, found):
            return [raw(strips(found, lambda c: f"#speed-{c.name}"))]

    class Slower(Speed):
        def draw(self, found):
            return [raw(slower(found, lambda c: f"#speed-{c.name}"))]

    class Tables(Speed):
        def draw(self, found):
            sections = []
            for n in PARTS:
                own = [b for b in found if b.chapter.part == n]
                if own:
                    part = titled(f"speed-part-{n}", nodes.Text(f"{n} · {PARTS[n].title}"))
                    part += [self.chapter(b) for b in own]
                    sections.append(part)
            return sections

        def chapter(self, b):
            section = titled(f"speed-{b.chapter.name}", self.named(b.chapter))
            section += raw(table(b))
            return section

    for name, directive in (
        ("speed-strips", Strips),
        ("speed-slower", Slower),
        ("speed-tables", Tables),
    ):
        app.add_directive(name, directive)
    app.connect("source-read", fill_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def fill_page(app, docname, source) -> None:
    "Write the numbers into docs/speed.md."
    if docname == "docs/speed":
        source[0] = held.filled(source[0], facts(benches(app.srcdir)), "docs/speed.md")
