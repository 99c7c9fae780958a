"""The charts of the site, for a course in which all chapters are written."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
import claims  # docs/_ext, see conftest.py
import graph
import pages as site

from ponderlearn.catalogue import CATALOGUE, PAPERS, PARTS
from ponderlearn.records import HOLDS

TITLES = {n: part.title for n, part in PARTS.items() if n}
DEEP = {  # four levels in a part, prerequisites over two levels and from other parts
    "gan_control": ("latent_directions",),
    "stylex": ("gan_control", "latent_directions", "guided_diffusion"),
    "neuron_shapley": ("latent_directions", "stylex"),
}
COURSE = [c._replace(prerequisites=DEEP.get(c.name, c.prerequisites)) for c in CATALOGUE if c.part]


def drawing(written=lambda c: True):
    return graph.Drawing(COURSE, TITLES, lambda c: f"{c.name}.html" if written(c) else None)


def boxes(d) -> dict:
    "name -> left, top, right, bottom of its box."
    sides = {}
    for name, (x, y) in d.at.items():
        width = d.columns[d.place[name].level][1]
        sides[name] = (x, y, x + width, y + graph.BOX)
    return sides


def test_every_chapter_and_every_prerequisite_is_drawn():
    d = drawing()
    svg = ET.fromstring(d.svg())
    links = {a.get("href") for a in svg.iter("a")}
    assert links == {f"{c.name}.html" for c in COURSE} and len(links) >= len(PAPERS) + 3
    arrows = {(p.get("data-from"), p.get("data-to")) for p in svg.iter("path") if p.get("d")}
    wanted = {(p, c.name) for c in COURSE for p in c.prerequisites}
    assert wanted <= arrows and {p.level for p in d.place.values()} == {0, 1, 2, 3}


def test_no_box_covers_another_and_all_lie_in_the_drawing():
    d = drawing()
    found = list(boxes(d).items())
    for i, (a, (left, top, right, bottom)) in enumerate(found):
        assert 0 <= left and right <= d.width and 0 <= top and bottom <= d.height, a
        for b, other in found[i + 1 :]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart, (a, b)


def way(path: str) -> list[tuple[float, float]]:
    "The corners of an arrow; a curve counts by its ends, as it stays between two columns."
    x = y = 0.0
    points = []
    for command, numbers in re.findall(r"([MHVhC])\s*([-\d. ]+)", path):
        n = [float(v) for v in numbers.split()]
        if command in "MC":
            x, y = n[-2:]
        elif command == "V":
            y = n[0]
        else:
            x = n[0] + (x if command == "h" else 0)
        points.append((x, y))
    return points


def test_no_arrow_goes_through_a_box():
    d = drawing()
    for a, b in d.edges:
        points = way(re.search(r' d="([^"]+)"', d.arrow(a, b))[1])
        assert len(points) > 1
        for (x0, y0), (x1, y1) in pairwise(points):
            for name, (left, top, right, bottom) in boxes(d).items():
                crosses = min(x0, x1) < right and max(x0, x1) > left
                crosses &= min(y0, y1) < bottom and max(y0, y1) > top
                assert not crosses, (a, b, name)


def test_a_chapter_stands_right_of_what_it_builds_on():
    d = drawing()
    for a, b in d.edges:
        if not d.between_parts(a, b):
            assert d.place[a].level < d.place[b].level, (a, b)


def test_words_fit_their_boxes_and_the_drawing_a_column():
    d = drawing()
    for c in COURSE:
        assert d.columns[d.place[c.name].level][1] >= graph.wide(c.short)
    assert d.width < 960  # what a window of 1280 pixels leaves for it


def test_chapters_that_are_not_written_are_visibly_so():
    d = drawing(lambda c: c.name == "act")
    svg, outline = d.svg(), d.outline()
    assert svg.count('class="unwritten') == len(COURSE) - 1 and svg.count("<a ") == 1
    assert outline.count("not written yet") == len(COURSE) - 1 and outline.count("<a ") == 1
    assert svg.count("unwritten method") == sum(c.kind == "method" for c in COURSE) == 3


def test_outline_names_every_chapter_once_and_what_else_it_builds_on():
    outline = drawing().outline()
    for c in COURSE:
        assert outline.count(f'href="{c.name}.html"') == 1, c.name
    assert "also builds on Latent directions and Guided diffusion" in outline


def test_a_circle_of_prerequisites_is_named():
    act, ponder = (c for c in CATALOGUE if c.name in ("act", "pondernet"))
    rows = [act._replace(prerequisites=("pondernet",)), ponder]
    with pytest.raises(ValueError, match="act needs pondernet needs act"):
        graph.places(rows)


# ---- results


def rows(chapter="act", **count):
    "Claims with these verdicts, given with _ for spaces."
    return [
        {
            "chapter": chapter,
            "claim": f"claim {i} & more",
            "scale": "full",
            "device": "cpu",
            "paper": 2.0,
            "here": 1.5,
            "interval": [1.0, 2.0],
            "unit": "points",
            "n_seeds": 5,
            "rule": "the interval < 3",
            "holds": verdict.replace("_", " "),
            "note": "",
            "p": 0.02,
            "torch": "2.13.0+cpu",
            "date": "2026-11-21T10:00",
        }
        for verdict, n in count.items()
        for i in range(n)
    ]


def test_every_verdict_has_words_and_a_style():
    assert set(claims.VERDICTS) == set(HOLDS)
    style = (Path(__file__).parents[2] / "docs" / "_static" / "site.css").read_text("utf-8")
    for verdict in HOLDS:
        assert re.search(rf"\.{claims.css(verdict)}\b[^{{]*{{ color", style), verdict
    assert len({claims.css(v) for v in HOLDS}) == len({v.sign for v in claims.VERDICTS.values()})


def test_tally_counts_what_was_tested():
    found = rows(yes=3, no=2, partly=1, not_tested_at_this_scale=4)
    assert claims.tally(found) == (
        "2 of 6 claims do not hold, 1 holds in part, 4 are not tested at this scale"
    )
    assert claims.tally(rows(yes=1)) == "none of 1 claim fails"
    assert claims.tally(rows(no=1, yes=1)) == "1 of 2 claims does not hold"
    assert claims.tally(rows(not_testable_at_this_size=1)) == (
        "no claim is tested, 1 is not testable at this size"
    )


def test_failures_come_first_and_the_rest_keeps_its_order():
    found = claims.failures_first(rows(yes=2, not_testable_at_this_size=1, no=2, suggestive=1))
    assert [r["holds"].split()[0] for r in found] == ["no", "no", "suggestive", "yes", "yes", "not"]
    assert [r["claim"][6] for r in found[:2]] == ["0", "1"]


class Cells(HTMLParser):
    "The texts of a table, a list a row."

    def __init__(self, html):
        super().__init__()
        self.rows = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "br":
            self.rows[-1][-1] += ", "

    def handle_data(self, data):
        self.rows[-1][-1] += data


def test_a_row_keeps_its_provenance():
    head, row = Cells(claims.table(rows(no=1), "ACT", lambda r: "act.html#cell-1")).rows
    assert head[0] == "Holds?" and len(head) == len(row)
    assert row == [
        "✗ does not hold",
        "claim 0 & more",
        "2 points",
        "1.5 points [1, 2], p = 0.02 (two-sided)",
        "5",
        "the interval < 3",
        "full, cpu, PyTorch 2.13.0, 2026-11-21",
    ]


def test_overview_at_full_length():
    groups = {n: rows(yes=n, no=2) for n in TITLES}
    html = claims.overview(groups, TITLES)
    assert html.count("<li>") == len(TITLES) == 9
    assert [float(w) for w in re.findall(r"width:([\d.]+)%", html)] == [
        pytest.approx(100 * (n + 2) / 11, abs=0.05) for n in TITLES
    ]


# ---- the sidebar


def test_sidebar_opens_the_part_of_the_page_and_the_reference():
    part = (
        '<p aria-level="2" class="caption" role="heading"><span class="caption-text">{}</span></p>'
        "\n<ul{}></ul>"
    )
    current = ' class="current nav bd-sidenav"'
    sidebar = "".join(part.format(n, current if n == 4 else "") for n in range(10))
    folded = site.fold_parts(sidebar)
    opened = re.findall(r'<details class="nav-part" open><summary>(\d)</summary>', folded)
    assert (
        opened == ["4", "9"] and folded.count("<details") == folded.count("</ul></details>") == 10
    )
    assert site.fold_parts("no captions") == "no captions"
