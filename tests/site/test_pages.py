"""The built site in Chromium: what loads, what moves, what can be read, reached and found."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from PIL import Image

pytestmark = pytest.mark.browser
TOP = Path(__file__).resolve().parents[2]
AXE = TOP / "docs" / "node_modules" / "axe-core" / "axe.min.js"
CHAPTER = "nbs/01_adaptive/01_act.html"
SLIDERS = ["nbs/00_foundations/10_viz.html", CHAPTER, "nbs/01_adaptive/02_pondernet.html"]


class Links(HTMLParser):
    "The ids of a page, and what it refers to."

    def __init__(self):
        super().__init__()
        self.ids, self.refs, self.images = set(), [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag == "a" and attrs.get("name"):
            self.ids.add(attrs["name"])
        for key in ("href", "src"):
            if attrs.get(key) and tag in ("a", "img", "script", "link"):
                self.refs.append(attrs[key])
        if tag == "img":
            self.images.append(attrs)


@pytest.fixture(scope="session")
def parsed(built):
    "Every HTML file of the site, parsed."
    found = {}
    for path in built.rglob("*.html"):
        if "_static" not in path.relative_to(built).parts:
            found[path] = Links()
            found[path].feed(path.read_text(encoding="utf-8"))
    return found


def test_every_internal_link_and_anchor_resolves(built, parsed):
    broken = []
    for path, page in parsed.items():
        for ref in page.refs:
            if urlparse(ref).scheme or ref.startswith("//"):
                continue
            target, anchor = urldefrag(unquote(ref))
            file = Path(urlparse(urljoin(path.as_uri(), target)).path) if target else path
            file = Path(unquote(str(file))).resolve()
            if not file.exists():
                broken.append(f"{path.relative_to(built)}: {ref}")
            elif anchor and file.suffix == ".html" and anchor not in parsed[file].ids:
                broken.append(f"{path.relative_to(built)}: {ref} (no such anchor)")
    assert not broken, "\n".join(sorted(set(broken))[:40])


def test_nothing_is_asked_from_another_host(parsed):
    foreign = {
        ref for page in parsed.values() for ref in page.refs if re.match(r"(https?:)?//", ref)
    }
    loaded = {
        r
        for p in parsed
        for r in re.findall(
            r'<(?:script|img|link)\b[^>]*(?:src|href)="((?:https?:)?//[^"]+)"',
            p.read_text(encoding="utf-8"),
        )
        if "canonical" not in r
    }
    assert not loaded, loaded
    assert foreign  # links that a reader may follow are there


def test_every_image_has_alternative_text(built, parsed):
    silent = [
        f"{p.relative_to(built)}: {i.get('src', '')[:60]}"
        for p, page in parsed.items()
        for i in page.images
        if "alt" not in i
    ]
    assert not silent, silent


FORMULAS = """async () => {
    await window.MathJax?.startup?.promise;
    await new Promise(requestAnimationFrame);
    const wide = [...document.querySelectorAll('mjx-container[display]')]
        .filter(e => e.querySelector('svg').getBoundingClientRect().width > e.clientWidth + 1);
    return [wide.length, wide.filter(e => {
        e.scrollLeft = 10000;
        return e.tabIndex !== 0 || e.scrollLeft === 0;
    }).map(e => e.textContent)];
}"""


def formulas(page) -> tuple[int, list[str]]:
    "How many formulas are wider than their place, and those that then do not scroll or take keys."
    return page.evaluate(FORMULAS)


def test_every_page_loads_and_fits_a_phone(open_page, address, pages):
    page = open_page(address, width=360, height=740)
    trouble, wide = [], 0
    for name in pages:
        page.wrong.clear()
        page.asked.clear()
        page.goto(address + name, wait_until="load")
        found, cut = formulas(page)
        wide += found
        trouble += [f"{name}: cut: {c}" for c in cut]
        width = page.evaluate("document.documentElement.scrollWidth")
        trouble += [f"{name}: {w}" for w in page.wrong]
        trouble += [
            f"{name}: asks {u}" for u in page.asked if not u.startswith((address, "data:", "blob:"))
        ]
        trouble += [f"{name}: {width} pixels wide"] if width > 360 else []
        left = page.evaluate("""Math.min(0,
            ...[...document.querySelectorAll('mjx-container[display]')]
            .map(e => e.getBoundingClientRect().left))""")
        trouble += (
            [f"{name}: a formula begins {-left:.0f} pixels left of the page"] if left < 0 else []
        )
        described = page.evaluate("document.querySelector('meta[name=description]')?.content")
        trouble += (
            []
            if described or name in ("search.html", "genindex.html", "py-modindex.html", "404.html")
            else [f"{name}: no description"]
        )
    assert not trouble, "\n".join(trouble)
    assert wide  # else no formula has tried to scroll


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_sliders_change_the_picture_and_have_names(open_page, address, built, scheme):
    base = address if scheme == "http" else built.as_uri() + "/"
    for name in SLIDERS if scheme == "http" else SLIDERS[:1]:
        page = open_page(base + name)
        slider = page.locator('.jupyter-widgets [role="slider"]').first
        slider.wait_for(timeout=120_000)
        page.wait_for_function(
            "document.querySelector('.jupyter-widgets [role=slider]').hasAttribute('aria-label')"
        )
        assert len(slider.get_attribute("aria-label")) > 2
        shown = """() => [...document.querySelectorAll('.widget-html-content img')]
            .filter(i => i.offsetParent).map(i => i.alt).join('|')"""
        before = page.wait_for_function(shown).json_value()
        slider.focus()
        slider.press("ArrowRight")
        page.wait_for_function(
            f"(old) => {{ const now = ({shown})(); return now && now !== old }}", arg=before
        )
        assert not page.wrong, page.wrong


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_search_finds_halting(open_page, address, built, scheme):
    base = address if scheme == "http" else built.as_uri() + "/"
    page = open_page(base + "search.html?q=halting")
    page.get_by_text("Search finished, found").wait_for(
        timeout=120_000
    )  # the results are listed one by one before
    found = page.locator("#search-results").inner_text()
    assert "Adaptive Computation Time" in found
    assert not page.wrong, page.wrong
    assert ("from files" in page.locator("body").inner_text()) == (scheme == "file")


def test_from_files(open_page, built):
    for name in ["index.html", "nbs/00_foundations/09_metrics.html", "docs/results.html"]:
        page = open_page((built / name).as_uri())
        page.evaluate("() => window.MathJax?.startup?.promise")
        assert not page.wrong, (name, page.wrong)
        assert all(u.startswith(("file:", "data:", "blob:")) for u in page.asked)


def brightest(locator) -> int:
    "The brightest gray of an element as it is shown, 0 to 255."
    picture = Image.open(io.BytesIO(locator.screenshot())).convert("L")
    return picture.getextrema()[1]


def test_dark_mode_keeps_figures_readable_without_glare(open_page, address):
    "A figure is drawn dark on light: its card is light in both modes, and dimmed in the dark one."
    for dark, low, high in ((False, 250, 255), (True, 200, 230)):
        page = open_page(address + CHAPTER, dark=dark)
        assert page.evaluate("document.documentElement.dataset.theme") == ("light", "dark")[dark]
        assert low <= brightest(page.locator(".cell_output img").first) <= high
        page.goto(address)
        assert low <= brightest(page.locator(".shot").first) <= high
    page.set_viewport_size({"width": 1280, "height": 80})
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"


CUT = """() => {
    document.querySelectorAll('details').forEach(d => { d.open = true; });
    return [...document.querySelectorAll('.bd-article div.highlight pre')]
        .map(e => [Math.max(...e.textContent.split('\\n').map(s => s.length)),
                   e.scrollWidth - e.clientWidth, e.textContent.slice(0, 60)])
        .filter(([columns, over]) => columns <= 100 && over > 0);
}"""


def test_100_columns_and_formulas_at_1280(open_page, address, pages):
    page = open_page(address)
    for name in (n for n in pages if n.startswith("nbs/")):
        page.goto(address + name, wait_until="load")
        assert not page.evaluate(CUT), name
        assert not formulas(page)[1], name


@pytest.mark.parametrize(("width", "folded"), [(1280, True), (1499, True), (1500, False)])
def test_contents_of_a_page_fold_where_code_needs_the_room(open_page, address, width, folded):
    page = open_page(address + CHAPTER, width=width)
    contents, button = page.locator(".page-toc").first, page.locator(".secondary-toggle")
    assert contents.is_visible() != folded
    assert button.is_visible() == folded
    if folded:
        button.click()
        page.locator("dialog .page-toc").first.wait_for(state="visible")
        page.wait_for_timeout(400)  # it slides in
        box = page.locator("dialog .page-toc").first.bounding_box()
        assert box["x"] + box["width"] <= width


def test_sidebars_open_on_a_phone(open_page, address):
    page = open_page(address + CHAPTER, width=360)
    for button, inside in ((".primary-toggle", "nav.bd-links"), (".secondary-toggle", ".page-toc")):
        page.locator(button).click()
        page.locator(f"dialog {inside}").first.wait_for(state="visible")
        cover = page.locator("dialog[open]").evaluate("e => getComputedStyle(e).backgroundColor")
        assert cover.startswith("rgb("), cover  # nothing shines through
        page.keyboard.press("Escape")
        page.locator(f"dialog {inside}").first.wait_for(state="hidden")


def test_sidebar_folds_by_part(open_page, address):
    page = open_page(address + CHAPTER)
    folds = page.locator(".bd-sidebar-primary details.nav-part")
    opened = [
        f.locator(":scope > summary").inner_text() for f in folds.all() if f.evaluate("e => e.open")
    ]
    assert opened == ["1 · Learning to ponder", "Reference"]
    link = folds.first.get_by_role("link", name="Before you start")
    assert not link.is_visible()
    folds.first.locator(":scope > summary").press("Enter")
    assert link.is_visible()


def test_graph_is_a_list_on_a_phone(open_page, address):
    for width in (1280, 360):
        page = open_page(address, width=width)
        assert page.locator(".graph").is_visible() == (width == 1280)
        assert page.locator(".graph-outline").is_visible() == (width == 360)


def test_gallery_shows_every_chapter_and_is_light(open_page, address, built):
    from ponderlearn.catalogue import CATALOGUE

    chapters = [c for c in CATALOGUE if c.part]
    page = open_page(address)
    cards = page.locator(".gallery > li")
    assert cards.count() == len(chapters)
    pictures = page.locator(".gallery img")
    assert pictures.count() == sum(bool(c.notebook) for c in chapters)
    assert set(pictures.evaluate_all("all => all.map(i => i.loading)")) == {"lazy"}
    files = {p.split("/", 1)[-1] for p in pictures.evaluate_all("all => all.map(i => i.src)")}
    sizes = [(built / "_images" / "first" / f.rsplit("/", 1)[-1]).stat().st_size for f in files]
    assert sum(sizes) < 2_000_000
    for i in (0, pictures.count() - 1):
        pictures.nth(i).scroll_into_view_if_needed()
        page.wait_for_function(
            "i => i.complete && i.naturalWidth", arg=pictures.nth(i).element_handle()
        )


def test_routes_say_what_to_do_and_how_long_it_takes(open_page, address):
    from ponderlearn.catalogue import ROUTES

    page = open_page(address)
    routes = page.locator(".route")
    assert routes.count() == len(ROUTES)
    for route, shown in zip(ROUTES, routes.all(), strict=True):
        shown.locator("details").evaluate_all("all => all.forEach(d => { d.open = true; })")
        stops = shown.locator("li")
        assert stops.count() == len(route.stops)
        for stop, item in zip(route.stops, stops.all(), strict=True):
            text = item.inner_text()
            assert stop.what in text and (" min" in text or "in preparation" in text), text
    assert [r.locator(".sitting").count() for r in routes.all()] == [0, 7, 15]


@pytest.mark.parametrize("width", [360, 1280])
def test_marks_of_all_claims_are_seen_and_told_apart(open_page, address, width):
    import held  # docs/_ext, see conftest.py

    from ponderlearn.records import results

    rows = held.laptop(results())
    for name in ("index.html", "docs/what_held.html"):
        page = open_page(address + name, width=width)
        marks = page.locator(".wall .marks use")
        assert marks.count() == len(rows)
        for box in marks.evaluate_all("all => all.map(m => m.getBoundingClientRect().toJSON())"):
            assert 8 < box["width"] < 14 and 0 <= box["left"] and box["right"] <= width
        colors = marks.evaluate_all(
            "all => all.map(m => [m.href.baseVal, getComputedStyle(m).color])"
        )
        assert len({c for _, c in colors}) == len({h for h, _ in colors}) > 3
    assert not re.search(r"\{\w+\}", page.locator("article").inner_text())
    table = page.locator(".table-scroll:has(.held-table)")
    assert table.evaluate("e => e.scrollWidth <= e.clientWidth + 1")


@pytest.mark.parametrize("width", [360, 1280])
def test_every_comparison_is_seen_on_the_axis_and_in_a_table(open_page, address, width):
    import speed  # docs/_ext, see conftest.py

    found = speed.benches(TOP)
    page = open_page(address + "docs/speed.html", width=width)
    boxes = page.locator(".dots b").evaluate_all("""all => all
        .map(b => [b, b.closest('.dots')].map(e => e.getBoundingClientRect()))
        .map(([b, d]) => [b.left - d.left, d.right - b.right, b.top - d.top, d.bottom - b.bottom])
    """)
    assert len(boxes) == sum(len(b.rows) for b in found)
    assert min(min(box) for box in boxes) > -5
    assert page.locator(".speed-table").count() == len(found)
    assert page.locator(".speed-table tbody tr").count() == len(boxes)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def serious(page) -> list[str]:
    "axe-core's violations of level serious or critical."
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.add_script_tag(path=str(AXE))
    found = page.evaluate("""async () =>
        (await axe.run(document, {resultTypes: ['violations']})).violations
        .filter(v => ['serious', 'critical'].includes(v.impact))
        .map(v => v.id + ': ' + v.nodes.slice(0, 4)
            .map(n => n.target.join(' ') + ' ' + (n.any[0]?.message || '')).join('; '))""")
    return found


@pytest.mark.parametrize(
    "name",
    [
        "index.html",
        CHAPTER,
        "docs/api/ponderlearn.adaptive.act.html",
        "docs/results.html",
        "docs/what_held.html",
        "docs/speed.html",
    ],
)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_serious_barrier(open_page, address, name, dark):
    assert not serious(open_page(address + name, dark=dark))


@pytest.mark.slow
def test_no_serious_barrier_on_any_page(open_page, address, pages):
    found = {name: bad for name in pages if (bad := serious(open_page(address + name)))}
    assert not found, json.dumps(found, indent=1)


def test_keyboard_reaches_the_content_first(open_page, address):
    page = open_page(address + "docs/results.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#main-content"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_reduced_motion(open_page, address):
    page = open_page(address, reduced_motion="reduce")
    slow = page.evaluate("""[...document.querySelectorAll('*')]
        .filter(e => getComputedStyle(e).transitionDuration
        .split(',').some(t => parseFloat(t) > .02)).length""")
    assert slow == 0


def test_print_shows_the_text_alone(open_page, address):
    page = open_page(address + CHAPTER)
    page.emulate_media(media="print")
    gone = ".bd-sidebar-primary", ".bd-header-article", ".prev-next-footer", "details.solution"
    for part in (*gone, "details.hide", ".slider-container"):
        assert not page.locator(part).first.is_visible(), part
    for part in (".bd-article h1", ".ponder-frames img"):
        assert page.locator(part).first.is_visible(), part
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for part in ("details.solution pre", "details.hide pre"):  # what the reader unfolds is printed
        assert page.locator(part).first.is_visible(), part


PAPER = {"a4": (794, 1123), "letter": (816, 1056), "a5": (559, 794)}  # pixels of 1/96 inch
MARGIN = 57  # 15 mm
CUT_ON_PAPER = """() => {
    const width = document.documentElement.clientWidth;
    const shown = e => e.checkVisibility() && e.getBoundingClientRect().width > 0;
    const parts = document.querySelectorAll(
        '.bd-article :is(pre, img, table, mjx-container, h1, h2, h3, p, figure)');
    return [...parts].filter(shown)
        .filter(e => e.getBoundingClientRect().right > width + 1
            || (e.matches('pre') && e.scrollWidth > e.clientWidth + 1))
        .map(e => `${e.tagName}: ${e.textContent.slice(0, 60)}`);
}"""
PALE = """() => [...document.querySelectorAll('.bd-article :is(p, pre, span, th, td, h1, h2)')]
    .filter(e => e.checkVisibility() && e.textContent.trim())
    .map(e => getComputedStyle(e).color.match(/[0-9]+/g).slice(0, 3).map(Number))
    .filter(c => Math.min(...c) > 160).length"""


@pytest.mark.parametrize("paper", PAPER)
@pytest.mark.parametrize("unfolded", [False, True])
def test_nothing_is_cut_off_on_paper(open_page, address, paper, unfolded):
    width, height = PAPER[paper]
    page = open_page(address + CHAPTER, width=width - 2 * MARGIN, height=height)
    page.emulate_media(media="print")
    if unfolded:
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.evaluate("window.MathJax.startup.promise")
    assert not page.evaluate(CUT_ON_PAPER)


def test_a_chapter_becomes_a_pdf_in_light_colors(open_page, address):
    page = open_page(address + CHAPTER, dark=True)
    page.evaluate("window.MathJax.startup.promise")
    before = page.evaluate("document.documentElement.dataset.theme")
    pdf = page.pdf(prefer_css_page_size=True, format="A4")
    assert page.evaluate("document.documentElement.dataset.theme") == before == "dark"
    assert pdf.startswith(b"%PDF") and 15 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 45
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.evaluate(PALE) == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_plan_for_a_class(open_page, address):
    page = open_page(address + "docs/classroom.html")
    assert not page.wrong and page.locator("dl.week").count() == 12
    assert page.locator("dl.week a[href$='#exercises']").count() >= 40
    assert page.locator("section#the-plan tbody tr").count() == 12


def test_formulas_are_numbered_linkable_and_read_aloud(open_page, address):
    page = open_page(address + CHAPTER)
    page.evaluate("() => window.MathJax.startup.promise")
    assert page.locator("div.math .eqno").count() == page.locator("div.math").count() > 3
    assert page.locator("div.math mjx-assistive-mml math").count() > 3
    anchor = page.locator("div.math .eqno a").first.get_attribute("href")
    assert page.locator(anchor.replace(":", "\\:")).count() == 1


@pytest.mark.parametrize("width", [360, 1280])
def test_labels_of_formulas_stand_beside_or_below_them(open_page, address, width):
    page = open_page(address + "nbs/02_architectures/03_perceiver.html", width=width)
    page.evaluate("() => window.MathJax.startup.promise")
    assert "(perceiver-cost)" in page.locator("#equation-perceiver-cost .eqno").inner_text()
    boxes = page.evaluate("""[...document.querySelectorAll("div.math:has(> .eqno)")].map(d => {
        const formula = d.querySelector("mjx-container");
        return [d, d.querySelector(".eqno"), formula].map(e => e.getBoundingClientRect().toJSON())
            .concat(formula.scrollWidth > formula.clientWidth + 1);
    })""")
    for place, label, formula, scrolls in boxes:
        assert place["left"] <= label["left"] and label["right"] <= place["right"]
        assert label["height"] < 30  # one line
        beside, below = label["left"] >= formula["right"], label["top"] >= formula["bottom"]
        assert below or (beside and not scrolls)
    links = page.locator("a.to-equation")
    assert links.count() > 2
    for target in links.evaluate_all("all => all.map(a => a.getAttribute('href'))"):
        assert page.locator(target).count() == 1


def test_what_a_chapter_offers(open_page, address):
    page = open_page(address + CHAPTER)
    assert "at scale full" in page.locator(".provenance").inner_text()
    solution = page.locator("details.solution").first
    assert not solution.evaluate("e => e.open")
    assert page.locator(".page-actions a[download='01_act.ipynb']").count() == 1
    assert page.locator("a .glossary-term").count() > 3
    assert "/docs/api/ponderlearn.adaptive.act.html" in page.locator(
        ".exported-to a"
    ).first.get_attribute("href")


def test_results_show_failures_first(open_page, address):
    import claims  # docs/_ext, see conftest.py

    from ponderlearn.records import results

    page = open_page(address + "docs/results.html")
    rows = page.locator(".claims-table tbody tr")
    assert rows.count() == len(results()) > 0
    for verdict in {r["holds"] for r in results()}:
        chips = page.locator(f".claims-table .{claims.css(verdict)}")
        assert chips.count() == sum(r["holds"] == verdict for r in results())
        assert all(chips.nth(i).is_visible() for i in range(chips.count()))
    for table in page.locator(".claims-table").all():
        assert table.locator("thead th").first.inner_text() == "Holds?"
        said = [v.removeprefix("✗ ") for v in table.locator("td .verdict").all_inner_texts()]
        failed = said.count("does not hold")
        assert said[:failed] == ["does not hold"] * failed


def test_link_previews(built):
    for name in (
        "index.html",
        CHAPTER,
        "docs/results.html",
        "docs/what_held.html",
        "docs/speed.html",
    ):
        html = (built / name).read_text(encoding="utf-8")
        found = dict(re.findall(r'<meta property="og:([\w:]+)" content="([^"]*)"', html))
        assert (
            len(found["title"]) > 5
            and len(found["description"]) > 40
            and len(found["image:alt"]) > 10
        )
        picture = found["image"]
        assert (
            urlparse(picture).scheme or (built / name).parent.joinpath(picture).resolve().exists()
        ), picture


def test_glossary_directions(open_page, address):
    page = open_page(address + "docs/glossary.html")
    hebrew = page.locator(".term-he")
    assert hebrew.count() > 20
    assert hebrew.first.evaluate("e => [e.lang, getComputedStyle(e).direction]") == ["he", "rtl"]
    assert page.locator(".term-ru").first.get_attribute("lang") == "ru"


def test_what_is_not_there(open_page, built):
    page = open_page((built / "404.html").as_uri())
    assert page.locator("article h1").inner_text() == "This page is not here"
    assert not page.wrong
