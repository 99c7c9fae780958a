"""What builds on what: a drawing with a column a level, and lists for narrow windows."""

from html import escape
from typing import NamedTuple

ROW, BOX, GAP, BAND = 34, 26, 40, 31  # pixels: a row, a box in it, between columns, a part's title
LANE, PAD = 9, 12  # between the lines of two sources that other parts build on; around the drawing


class Place(NamedTuple):
    "Where a chapter stands in its part."

    level: int  # 0 for a chapter that builds on nothing in its part
    row: int  # from the top of the part
    parent: str | None  # the chapter it stands behind


def places(rows: list) -> dict[str, Place]:
    "The place of each chapter of one part: behind the prerequisite with the highest level."
    own = {c.name: c for c in rows}
    levels: dict[str, int] = {}

    def level(name, above=()):
        if name in above:
            raise ValueError(f"{' needs '.join([*above, name])}: a chapter cannot need itself")
        if name not in levels:
            first = [p for p in own[name].prerequisites if p in own]
            levels[name] = max((level(p, (*above, name)) + 1 for p in first), default=0)
        return levels[name]

    for name in own:
        level(name)
    parent = {
        c.name: max((p for p in c.prerequisites if p in own), key=levels.get, default=None)
        for c in rows
    }
    found: dict[str, Place] = {}
    free = 0

    def put(name):
        nonlocal free
        row = free
        for child in (c.name for c in rows if parent[c.name] == name):
            put(child)
        free = max(free, row + 1)
        found[name] = Place(levels[name], row, parent[name])

    for c in rows:
        if parent[c.name] is None:
            put(c.name)
    return found


def wide(text: str) -> int:
    "How many pixels a box needs for its words, at 14.5 pixels of a narrow sans."
    return round(7.3 * len(text)) + 26


class Drawing:
    "The graph of chapters (name, part, short, kind, prerequisites); `href` gives a page or None."

    def __init__(self, rows: list, titles: dict[int, str], href):
        self.rows, self.href = rows, href
        self.chapters = {c.name: c for c in rows}
        self.parts = {n: [c for c in rows if c.part == n] for n in titles}
        self.parts = {n: own for n, own in self.parts.items() if own}
        self.titles = titles
        self.place = {k: p for own in self.parts.values() for k, p in places(own).items()}
        self.edges = [(p, c.name) for c in rows for p in c.prerequisites if p in self.chapters]
        self.lanes = list(dict.fromkeys(p for p, c in self.edges if self.between_parts(p, c)))
        self.measure()

    def between_parts(self, a: str, b: str) -> bool:
        return self.chapters[a].part != self.chapters[b].part

    def measure(self):
        "Where columns, bands and boxes lie."
        n_levels = 1 + max(p.level for p in self.place.values())
        widths = [
            max(wide(self.chapters[k].short) for k, p in self.place.items() if p.level == i)
            for i in range(n_levels)
        ]
        x = PAD + LANE * (len(self.lanes) + 1)
        self.columns = []
        for width in widths:
            self.columns.append((x, width))
            x += width + GAP
        self.width = x - GAP + PAD
        self.at, self.bands, y = {}, [], 4
        for n, own in self.parts.items():
            top = y
            y += BAND
            for c in own:
                place = self.place[c.name]
                self.at[c.name] = (self.columns[place.level][0], y + ROW * place.row)
            y += ROW * (1 + max(self.place[c.name].row for c in own))
            self.bands.append((n, top, y))
            y += 12
        self.height = y - 8

    def svg(self) -> str:
        arrows = "".join(self.arrow(a, b) for a, b in self.edges)
        return (
            f'<svg role="group" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" aria-labelledby="graph-title">'
            '<title id="graph-title">Which chapter builds on which</title>'
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>'
            f"{''.join(self.band(*b) for b in self.bands)}{arrows}"
            f"{''.join(self.box(c) for c in self.rows if c.name in self.at)}</svg>"
        )

    def band(self, n: int, top: int, end: int) -> str:
        return (
            f'<rect class="band" x="0" y="{top}" width="{self.width}" height="{end - top}" rx="6"/>'
            f'<text class="band-label" x="{self.columns[0][0]}" y="{top + 19}">'
            f"{n} · {escape(self.titles[n])}</text>"
        )

    def box(self, c) -> str:
        (x, y), width = self.at[c.name], self.columns[self.place[c.name].level][1]
        round_ = BOX / 2 if c.kind == "method" else 5
        href = self.href(c)
        body = (
            f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{BOX}" rx="{round_}"/>'
            f'<text x="{x + 12}" y="{y + 18}">{escape(c.short)}</text>'
        )
        kind = f"{'written' if href else 'unwritten'} {c.kind}"
        if href:
            return f'<a class="{kind}" href="{href}">{body}</a>'
        return f'<g class="{kind}"><title>{escape(c.short)}: not written yet</title>{body}</g>'

    def arrow(self, a: str, b: str) -> str:
        "From a chapter to one that builds on it, between columns and rows, never through a box."
        (xa, ya), (xb, yb) = self.at[a], self.at[b]
        from_level, to_level = self.place[a].level, self.place[b].level
        middle, out = BOX / 2, xa + self.columns[from_level][1]
        before = xb - GAP / 2  # a vertical way in the gap before the target
        if self.between_parts(a, b):
            lane = PAD + LANE * self.lanes.index(a)
            start = (
                f"M{xa} {ya + middle} H{lane}"
                if from_level == 0
                else f"M{out} {ya + middle} h{GAP / 4} V{ya - 4} H{lane}"
            )
            end = f"V{yb + middle}" if to_level == 0 else f"V{yb - 4} H{before} V{yb + middle}"
            way = f"{start} {end} H{xb - 2}"
        elif to_level == from_level + 1:
            way = (
                f"M{out} {ya + middle} C{before} {ya + middle} {before} {yb + middle} "
                f"{xb - 2} {yb + middle}"
            )
        else:
            way = f"M{out} {ya + middle} h{GAP / 3} V{yb - 4} H{before} V{yb + middle} H{xb - 2}"
        return (
            f'<path class="arrow" data-from="{a}" data-to="{b}" d="{way}" marker-end="url(#tip)"/>'
        )

    def outline(self) -> str:
        "The same as nested lists: who builds on a chapter of its part stands under it."
        return "".join(
            f'<p class="graph-part">{n} · {escape(self.titles[n])}</p>' + self.branch(own, None)
            for n, own in self.parts.items()
        )

    def branch(self, own: list, parent: str | None) -> str:
        items = "".join(
            f"<li>{self.item(c)}{self.branch(own, c.name)}</li>"
            for c in own
            if self.place[c.name].parent == parent
        )
        return f"<ul>{items}</ul>" if items else ""

    def item(self, c) -> str:
        href, others = (
            self.href(c),
            [
                self.chapters[p].short
                for p in c.prerequisites
                if p in self.chapters and p != self.place[c.name].parent
            ],
        )
        name = escape(c.short)
        name = (
            f'<a href="{href}">{name}</a>'
            if href
            else f'<span class="unwritten">{name} <span class="soon">not written yet</span></span>'
        )
        word = "builds on" if self.place[c.name].parent is None else "also builds on"
        also = f' <span class="also">{word} {escape(" and ".join(others))}</span>' if others else ""
        return name + also
