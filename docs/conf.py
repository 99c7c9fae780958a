"""The site's configuration. Sphinx reads the repository root; settings.ini has the addresses."""

import sys
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

from nbdev.config import get_config  # noqa: E402

_settings = get_config()


def _get(key):
    return str(_settings.get(key, "") or "").strip()


project = _get("title") or _get("lib_name")
author = _get("author")
copyright = _get("copyright")
version = release = _get("version")

extensions = [
    "myst_nb",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx.ext.viewcode",
    "notebooks",
    "chapter",
    "pages",
    "held",
    "speed",
    "api",
    "classroom",
]
include_patterns = ["index.ipynb", "nbs/**/*.ipynb", "docs/*.md", "docs/api/*.md"]
exclude_patterns = [
    "docs/front.md",
    "docs/_build",
    "docs/node_modules",
    "**/.ipynb_checkpoints",
    "**/_*",
]
root_doc = "index"
templates_path = ["_templates"]

# notebooks: nbdev's processors, then MyST-NB; nothing is executed
nb_custom_formats = {".ipynb": ["notebooks.read", {}, False]}
nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"
nb_ipywidgets_js = {
    "vendor/require/require.js": {},
    "widgets.js": {},
    "vendor/widgets/embed-amd.js": {"data-jupyter-widgets-cdn-only": "false"},
}
myst_enable_extensions = [
    "dollarmath",
    "amsmath",
    "colon_fence",
    "deflist",
    "attrs_inline",
    "attrs_block",
    "smartquotes",
]
myst_heading_anchors = 4
myst_update_mathjax = False
suppress_warnings = ["mystnb.unknown_mime_type"]
nitpicky = False
add_module_names = False
toc_object_entries_show_parents = "hide"
viewcode_line_numbers = True

# addresses, from settings.ini; links that need one hide while it is empty
site_user, site_repo, site_branch = _get("user"), _get("repo"), _get("branch") or "main"
site_host, site_base = _get("doc_host").rstrip("/"), _get("doc_baseurl")

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = [
    "vendor/fonts/serif/wght.css",
    "vendor/fonts/serif/wght-italic.css",
    "vendor/fonts/sans/wght.css",
    "vendor/fonts/code/wght.css",
    "site.css",
]
html_js_files = [("site.js", {"defer": "defer"})]
html_favicon = "_static/mark.svg"
html_sourcelink_suffix = ""
html_copy_source = True
html_show_sphinx = False
html_last_updated_fmt = None
html_baseurl = f"{site_host}{site_base}/" if site_host else ""
html_context = {"default_mode": "auto"}
html_additional_pages = {"404": "404.html"}
html_theme_options = {
    "logo": {
        "text": project,
        "image_light": "_static/mark.svg",
        "image_dark": "_static/mark.svg",
        "alt_text": "",
    },
    "use_download_button": False,
    "use_fullscreen_button": False,
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "max_navbar_depth": 2,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "github-dark",
    "article_header_start": ["toggle-primary-sidebar.html"],
    "article_header_end": ["page-actions.html"],
    "toc_title": "On this page",
    "footer_content_items": ["site-footer.html"],
    "back_to_top_button": False,
}
html_sidebars = {"**": ["navbar-logo.html", "search-button-field.html", "sbt-sidebar-nav.html"]}

mathjax_path = "vendor/mathjax/tex-svg.js"
mathjax3_config = {
    "options": {"menuOptions": {"settings": {"assistiveMml": True}}},
    "svg": {"fontCache": "global", "scale": 1},
    "tex": {"tags": "none"},
}
copybutton_exclude = ".linenos, .gp, .go"
copybutton_selector = (
    "div.cell_input div.highlight pre, div.highlight-bash pre, div.highlight-python pre"
)


def setup(app):
    code = sorted((HERE / "_ext").glob("*.py"))
    app.add_config_value(
        "site_code", "".join(sha256(f.read_bytes()).hexdigest()[:8] for f in code), "env"
    )
    for name in ("site_user", "site_repo", "site_branch", "site_host", "site_base"):
        app.add_config_value(name, "", "html")
    app.connect("builder-inited", keep_outputs_apart, priority=600)


def keep_outputs_apart(app):
    "Keep the images that MyST-NB writes beside its cache out of the site's folder and of docs/."
    app.env.mystnb_config = app.env.mystnb_config.copy(
        output_folder=str(Path(app.doctreedir).parent / "outputs")
    )
