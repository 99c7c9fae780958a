"""`viz.frames` on a static page: no kernel, no other host, the arrow keys move the picture."""

import functools
import http.server
import json
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the lab extra")
nbclient = pytest.importorskip("nbclient", reason="needs the lab extra")
nbconvert = pytest.importorskip("nbconvert", reason="needs the lab extra")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the dev extra")

ROOT = Path(__file__).parent.parent
WANTED = {"@jupyter-widgets/html-manager": "dist/embed-amd.js", "requirejs": "require.js"}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

DRAW = """
import matplotlib.pyplot as plt
from ponderlearn.viz import frames, look
look()
def draw(*point):
    fig, ax = plt.subplots(figsize=(3, 2))
    ax.plot(range(len(point)), point, "o")
    ax.set(ylim=(0, 20), xlabel="slider", ylabel="value")
    return fig
"""
ONE = "frames(draw, range(12), x_label='height', alt=lambda x: f'height {x}', start=3, dpi=50)"
TWO = (
    "frames(draw, range(7), range(5), x_label='first', y_label='second', "
    "alt=lambda x, y: f'first {x}, second {y}', start=(4, 2), dpi=50)"
)


@pytest.fixture(scope="module")
def vendor(request):
    "Files of the widget manager and RequireJS: the site's own, else fetched once into a cache."
    installed = ROOT / "docs" / "node_modules"
    if all((installed / package / file).is_file() for package, file in WANTED.items()):
        return {package: installed / package / file for package, file in WANTED.items()}
    if shutil.which("npm") is None:
        pytest.skip("npm is missing: the widget manager for the static page comes from it")
    pins = json.loads((ROOT / "docs" / "package.json").read_text())["dependencies"]
    cache, found = Path(request.config.cache.mkdir("widget_manager")), {}
    for package, file in WANTED.items():
        folder = cache / f"{package.replace('/', '-').strip('@')}-{pins[package]}"
        if not (folder / "package" / file).is_file():
            command = [
                "npm",
                "pack",
                "--silent",
                "--pack-destination",
                str(cache),
                f"{package}@{pins[package]}",
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"npm could not fetch {package}: {done.stderr.strip()[-200:]}")
            with tarfile.open(f"{folder}.tgz") as archive:
                archive.extractall(folder, filter="data")
        found[package] = folder / "package" / file
    return found


@pytest.fixture(scope="module")
def page_url(vendor, tmp_path_factory):
    "A notebook with both kinds of slider, executed, exported as a static page and served here."
    folder = tmp_path_factory.mktemp("static")
    cells = [nbformat.v4.new_code_cell(source) for source in (DRAW, ONE, TWO)]
    nb = nbformat.v4.new_notebook(cells=cells)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PONDERLEARN_SCALE", "full")
        nbclient.NotebookClient(nb, timeout=120, kernel_name="python3").execute()
    for file in vendor.values():
        shutil.copy(file, folder)
    exporter = nbconvert.HTMLExporter(
        require_js_url="require.js", widget_renderer_url="embed-amd.js", mathjax_url=""
    )
    (folder / "page.html").write_text(exporter.from_notebook_node(nb)[0])

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/page.html"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def page(page_url):
    "The page in headless Chromium; its requests and errors in `page.seen` and `page.errors`."
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if chromium is None:
        pytest.skip("Chromium is missing (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 800, "height": 1200})
        page.seen, page.errors = [], []
        page.on("request", lambda request: page.seen.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(page_url)
        page.wait_for_selector(".ponder-frames img")
        yield page
        browser.close()


def box(page, n):
    "The n-th frames widget, when its picture is there."
    found = page.locator(".ponder-frames").nth(n)
    found.locator("img").first.wait_for()
    return found


def shows(found, alt):
    "Wait until the picture in view is the one with this alternative text, and the only one."
    picture = found.locator("img:visible")
    sync_api.expect(picture).to_have_count(1)
    sync_api.expect(picture).to_have_attribute("alt", alt)


def press(page, found, slider, key):
    found.get_by_role("slider").nth(slider).focus()
    page.keyboard.press(key)


@pytest.mark.browser
def test_one_slider_moves_the_picture(page):
    found = box(page, 0)
    shows(found, "height 3")
    assert found.locator(".widget-readout").inner_text() == "3"
    assert found.locator(".widget-label").first.inner_text() == "height"
    source = found.locator("img:visible").get_attribute("src")
    press(page, found, 0, "ArrowRight")
    shows(found, "height 4")
    assert found.locator(".widget-readout").inner_text() == "4"
    assert found.locator("img:visible").get_attribute("src") != source
    press(page, found, 0, "End")
    shows(found, "height 11")
    press(page, found, 0, "ArrowLeft")
    shows(found, "height 10")


@pytest.mark.browser
def test_two_sliders_move_the_picture(page):
    found = box(page, 1)
    shows(found, "first 4, second 2")
    press(page, found, 1, "ArrowRight")
    shows(found, "first 4, second 3")
    press(page, found, 0, "ArrowLeft")
    shows(found, "first 3, second 3")
    press(page, found, 0, "End")
    press(page, found, 1, "Home")
    shows(found, "first 6, second 0")


@pytest.mark.browser
def test_the_still_picture_does_not_show_beside_the_widget(page):
    for n, start in enumerate(("height 3", "first 4, second 2")):
        box(page, n)
        assert page.locator(f'figure img[alt="{start}"]').count() == 0
    sync_api.expect(page.locator("img:visible")).to_have_count(2)
    assert page.get_by_text("A still picture of a slider").count() == 0


@pytest.mark.browser
def test_pictures_are_decoded_and_fit_a_phone(page):
    for width in (800, 360):
        page.set_viewport_size({"width": width, "height": 1200})
        for n in range(2):
            image = box(page, n).locator("img:visible")
            assert image.evaluate("i => i.complete && i.naturalWidth > 0")
            assert image.bounding_box()["width"] <= width


@pytest.mark.browser
def test_no_foreign_request_and_no_error(page, page_url):
    box(page, 1)
    home = page_url.rsplit("/", 1)[0]
    assert [url for url in page.seen if not url.startswith((home, "data:", "blob:"))] == []
    assert page.errors == []
