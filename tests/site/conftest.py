"""What the tests of the site share: the built site, a server on loopback, a browser."""

import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
BUILT = TOP / "docs" / "_build"
sys.path.insert(0, str(TOP / "docs" / "_ext"))
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="session")
def built():
    "The folder of the built site."
    if not (BUILT / "index.html").exists():
        pytest.fail("docs/_build is empty: run make docs first")
    return BUILT


@pytest.fixture(scope="session")
def pages(built):
    "All pages of the site, as paths from its folder; the highlighted sources of the modules aside."
    found = sorted(p.relative_to(built).as_posix() for p in built.rglob("*.html"))
    return [p for p in found if not p.startswith(("_static/", "_modules/"))]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def address(built):
    "The address of a server of the built site on this machine."
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(built)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    "Chromium, without a window."
    from playwright.sync_api import sync_playwright

    path = next(
        (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))),
        None,
    )
    if path is None:
        pytest.fail("Chromium is missing: apt install chromium")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    "open_page(address, width=..., dark=...): a page, what went wrong on it, and what it asked for."
    contexts = []

    def open_(url, *, width=1280, height=900, dark=False, **options):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            **options,
        )
        contexts.append(context)
        context.set_default_timeout(120_000)  # a long chapter on a busy machine
        page = context.new_page()
        page.wrong, page.asked = [], []
        page.on(
            "console",
            lambda m: page.wrong.append(f"console: {m.text}") if m.type == "error" else None,
        )
        page.on("pageerror", lambda e: page.wrong.append(f"error: {e}"))
        page.on(
            "requestfailed",
            lambda r: (
                page.wrong.append(f"failed: {r.url}") if r.failure != "net::ERR_ABORTED" else None
            ),
        )  # the test went on to the next page
        page.on(
            "response",
            lambda r: page.wrong.append(f"{r.status}: {r.url}") if r.status >= 400 else None,
        )
        page.on("request", lambda r: page.asked.append(r.url))
        page.goto(url, wait_until="load")
        return page

    yield open_
    for context in contexts:
        context.close()
