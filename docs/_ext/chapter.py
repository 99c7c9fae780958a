"""What a page has beside its notebook: anchors, provenance, glossary links, buttons, metadata."""

import base64
import io
import json
import re
import tomllib
from functools import cache
from html import escape
from pathlib import Path
from urllib.parse import quote

import matplotlib
import yaml
from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from PIL import Image, ImageDraw, ImageFont
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

from ponderlearn.catalogue import PAPERS

log = logging.getLogger(__name__)
SITE_PICTURE = "_images/first/site.png"


def text_of(x) -> str:
    return "".join(x) if isinstance(x, list) else x


# ---- what the notebooks hold, for pages that show them


@cache
def _notebook(path: str, stamp: float) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def notebook(path: Path) -> dict:
    "The notebook as a dict, read once."
    return _notebook(str(path), path.stat().st_mtime)


def first_picture(path: Path) -> tuple[bytes, str] | None:
    "The first figure of a notebook, as image bytes, and its alternative text."
    for cell in notebook(path)["cells"]:
        if cell["cell_type"] != "code" or re.search(
            r"^#\|\s*hide\s*$", text_of(cell["source"]), re.M
        ):
            continue
        for out in cell.get("outputs", []):
            png = out.get("data", {}).get("image/png")
            if png:
                alt = re.search(r"^#\|\s*fig-alt\s*:\s*(.*)$", text_of(cell["source"]), re.M)
                words = yaml.safe_load(alt[1]) if alt else ""
                return base64.b64decode(text_of(png)), words[0] if isinstance(
                    words, list
                ) else words or ""
    return None


def picture_file(app, docname: str) -> tuple[str, str] | None:
    "Where the page's first figure lies in the site (written when it changed), and its alt text."
    path = Path(app.srcdir) / f"{docname}.ipynb"
    found = first_picture(path) if path.exists() else None
    if found is None:
        return None
    to = Path(app.outdir) / "_images" / "first" / (docname.replace("/", "-") + ".png")
    if not to.exists() or to.stat().st_mtime < path.stat().st_mtime:
        to.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(io.BytesIO(found[0]))
        if max(image.size) > 1000:
            image = image.convert("RGB")
            image.thumbnail((1000, 1000))
            image.save(to, optimize=True)
        else:
            to.write_bytes(found[0])  # stored as light as it gets
    return to.relative_to(app.outdir).as_posix(), found[1]


def size_of(path: Path) -> tuple[int, int]:
    "Width and height of a picture."
    with Image.open(path) as image:
        return image.size


def site_picture(path: Path, lines: list[str]) -> None:
    "The picture of pages that have none: the bars of the mark and a few words."
    image = Image.new("RGB", (1200, 630), "#14435f")
    draw = ImageDraw.Draw(image)
    for i, height in enumerate((200, 290, 210, 150, 105, 72, 48)):
        color = "#E69F00" if i == 6 else "#fdfcfa"
        draw.rounded_rectangle((90 + 64 * i, 400 - height, 132 + 64 * i, 400), 8, fill=color)
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    draw.text(
        (90, 440),
        lines[0],
        fill="#ffffff",
        font=ImageFont.truetype(fonts / "DejaVuSans-Bold.ttf", 60),
    )
    draw.text(
        (90, 525), lines[1], fill="#dbe7ee", font=ImageFont.truetype(fonts / "DejaVuSans.ttf", 30)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)


# ---- transforms of the document


class Cells(SphinxTransform):
    "Anchors, alternative texts, captions and module badges on code cells."

    default_priority = 400

    def apply(self, **kwargs):
        for cell in list(self.document.findall(nodes.container)):
            if cell.get("nb_element") != "cell_code":
                continue
            meta = cell["cell_metadata"]
            cell["ids"] = [nodes.make_id(meta[key]) for key in ("anchor", "label") if key in meta]
            pictures = list(cell.findall(nodes.image))
            for image, alt in zip(pictures, meta.get("alts", []), strict=False):
                image["alt"] = alt
            if meta.get("caption"):
                cell += nodes.paragraph("", meta["caption"], classes=["cell-caption"])
            if meta.get("exports") and cell.children:
                module = meta["exports"]
                ref = addnodes.pending_xref(
                    "",
                    nodes.inline("", module, classes=["module-name"]),
                    refdomain="py",
                    reftype="mod",
                    reftarget=module,
                    refdoc=self.env.docname,
                    refwarn=False,
                )
                cell.children[0].insert(
                    0, nodes.paragraph("", "", nodes.Text("in "), ref, classes=["exported-to"])
                )


def provenance(run: dict, version: str) -> str:
    "One line on where the outputs of a page come from."
    device = {"cpu": "a CPU", "cuda": "a GPU"}.get(
        str(run["device"]).split(":")[0], str(run["device"])
    )
    took = f", {float(run['seconds']):,.0f} s" if run.get("seconds") else ""
    day = escape(str(run["date"])[:10])
    return (
        '<p class="provenance"><span>Outputs of a run at scale '
        f"<strong>{escape(str(run['scale']))}</strong> on {escape(device)}"
        f"{took}</span> <span>PyTorch {escape(str(run['torch']).split('+')[0])}</span> "
        f"<span>ponderlearn {escape(version)}</span> "
        f'<span><time datetime="{day}">{day}</time></span></p>'
    )


class Equations(SphinxTransform):
    "An equation that has a name shows it in place of a number: prose and code call it so."

    default_priority = 400

    def apply(self, **kwargs):
        for node in self.document.findall(nodes.math_block):
            if not node.get("label", "eq-").startswith("eq-"):
                node["number"] = node["label"]


class Head(SphinxTransform):
    "The claim under the title, and the line that says where the outputs come from."

    default_priority = 401

    def apply(self, **kwargs):
        section = next(self.document.findall(nodes.section), None)
        if section is None or not self.env.docname.startswith(("nbs/", "index")):
            return
        at = 1
        if len(section) > 1 and isinstance(section[1], nodes.block_quote):
            section[1]["classes"].append("claim")
            self.env.metadata[self.env.docname]["claim"] = section[1].astext().replace("\n", " ")
            at = 2
        if self.env.docname == "index":
            return
        run = notebook(Path(self.env.doc2path(self.env.docname)))["metadata"].get("ponderlearn")
        line = (
            provenance(run, self.config.version)
            if run
            else (
                '<p class="provenance draft"><span>A draft: no outputs are stored yet.</span></p>'
            )
        )
        section.insert(at, nodes.raw("", line, format="html"))


def open_fold(self, node):
    "MyST-NB's fold with a summary whose name is its text (MyST-NB gives all the same hidden name)."
    self.body.append(f'<details class="hide {" ".join(node["classes"])}">\n')
    self.body.append(
        f'<summary><span class="fold-name">{escape(node["prompt_show"])}</span></summary>\n'
    )


def close_fold(self, node):
    self.body.append("</details>\n")


# ---- the glossary


def glossary_file(srcdir) -> Path:
    return Path(srcdir) / "docs" / "glossary.toml"


@cache
def _glossary(path: str, stamp: float) -> list[dict]:
    return tomllib.loads(Path(path).read_text(encoding="utf-8"))["term"]


def glossary(srcdir) -> list[dict]:
    "The glossary's entries: term, other spellings (`also`), meaning, he, ru."
    path = glossary_file(srcdir)
    return _glossary(str(path), path.stat().st_mtime) if path.exists() else []


def term_id(term: str) -> str:
    return "term-" + nodes.make_id(term)


class GlossaryLinks(SphinxTransform):
    "Link the first use of each glossary term in a notebook's prose to its entry."

    default_priority = 700
    skip = (
        nodes.reference,
        nodes.literal,
        nodes.literal_block,
        nodes.title,
        nodes.math,
        nodes.math_block,
        nodes.raw,
        nodes.caption,
        nodes.term,
        nodes.emphasis,
        addnodes.pending_xref,
        nodes.target,
    )

    def apply(self, **kwargs):
        if not self.env.docname.startswith("nbs/"):
            return
        self.env.note_dependency(str(glossary_file(self.env.srcdir)))
        words = {
            w.lower(): e["term"]
            for e in glossary(self.env.srcdir)
            for w in [e["term"], *e.get("also", [])]
        }
        if not words:
            return
        pattern = re.compile(
            r"(?<![\w-])("
            + "|".join(sorted(map(re.escape, words), key=len, reverse=True))
            + r")(?![\w-])",
            re.I,
        )
        used: set[str] = set()
        for paragraph in list(self.document.findall(nodes.paragraph)):
            if {"exported-to", "cell-caption"} & set(paragraph["classes"]) or isinstance(
                paragraph.parent, nodes.block_quote
            ):
                continue
            for text in list(paragraph.findall(nodes.Text)):
                parent, outside = text.parent, True
                while parent is not None and parent is not paragraph:
                    outside &= not isinstance(parent, self.skip)
                    parent = parent.parent
                if outside:
                    self.link(text, pattern, words, used)

    def link(self, text, pattern, words, used):
        "Replace `text` by itself with links at the first uses."
        string, at, new = text.astext(), 0, []
        for m in pattern.finditer(string):
            term = words[m[1].lower()]
            if term in used:
                continue
            used.add(term)
            new.append(nodes.Text(string[at : m.start()]))
            new.append(
                addnodes.pending_xref(
                    "",
                    nodes.inline("", m[1], classes=["glossary-term"]),
                    refdomain="std",
                    reftype="term",
                    reftarget=term,
                    refdoc=self.env.docname,
                    refwarn=True,
                )
            )
            at = m.end()
        if new:
            text.parent.replace(text, [n for n in [*new, nodes.Text(string[at:])] if n.astext()])


# ---- what the templates need


def page_links(app, pagename: str) -> list[dict]:
    "The buttons of a page: where its notebook runs, its file, its source, a report of an error."
    c, path = app.config, Path(app.srcdir) / f"{pagename}.ipynb"
    found, is_notebook = [], path.exists()
    if not (is_notebook or (Path(app.srcdir) / f"{pagename}.md").exists()):
        return []
    source = f"{pagename}.ipynb" if is_notebook else f"{pagename}.md"
    place = f"{c.site_user}/{c.site_repo}"
    file = f"{place}/blob/{c.site_branch}/{source}"
    if is_notebook and c.site_user and pagename != "index":
        found.append(
            {
                "label": "Colab",
                "icon": "fa-solid fa-rocket",
                "title": "Run this chapter on Google Colab",
                "url": f"https://colab.research.google.com/github/{file}",
            }
        )
    if is_notebook:
        found.append(
            {
                "label": "Notebook",
                "icon": "fa-solid fa-download",
                "download": path.name,
                "local": f"_sources/{source}",
                "title": "Download this page as a Jupyter notebook",
            }
        )
    if c.site_user and not pagename.startswith("docs/api/"):
        found.append(
            {
                "label": "Source",
                "icon": "fa-solid fa-code",
                "title": "The source of this page on GitHub",
                "url": f"https://github.com/{file}",
            }
        )
    elif is_notebook:
        found.append(
            {
                "label": "Source",
                "icon": "fa-solid fa-code",
                "title": "The source of this page, as text",
                "local": f"_sources/{source}",
            }
        )
    if c.site_user:
        title = quote(f"An error in {source}")
        body = quote(
            f"Page: {source}, version {c.version}\n\nWhat is wrong:\n\nWhat you expected:\n"
        )
        found.append(
            {
                "label": "Report an error",
                "icon": "fa-regular fa-comment-dots",
                "title": "Report an error on this page",
                "url": f"https://github.com/{place}/issues/new?title={title}&body={body}",
            }
        )
    return found


def describe(doctree, limit: int = 200) -> str:
    "The first sentences of a page, for a link preview."
    for paragraph in doctree.findall(nodes.paragraph):
        if paragraph.astext().strip() and not {"exported-to", "cell-caption"} & set(
            paragraph["classes"]
        ):
            words = " ".join(paragraph.astext().split())
            return words if len(words) <= limit else words[:limit].rsplit(" ", 1)[0] + " …"
    return ""


def page_context(app, pagename, templatename, context, doctree):
    "Buttons and metadata for the templates."
    context["page_links"] = page_links(app, pagename)
    meta = app.env.metadata.get(pagename, {})
    picture = picture_file(app, pagename) if pagename.startswith("nbs/") else None
    context["preview"] = {
        "description": meta.get("claim")
        or meta.get("description")
        or (describe(doctree) if doctree else ""),
        "picture": (app.config.html_baseurl or context["content_root"])
        + (picture[0] if picture else SITE_PICTURE),
        "alt": picture[1] if picture else "The ponderlearn mark: bars of a halting distribution",
        "url": f"{app.config.html_baseurl}{app.builder.get_target_uri(pagename)}"
        if app.config.html_baseurl
        else "",
        "kind": "article" if pagename.startswith("nbs/") else "website",
    }
    context["base_href"] = app.config.html_baseurl if pagename == "404" else ""


def finish(app, error):
    "A sitemap, once the site has an address."
    if error or app.builder.name != "html":
        return
    out = Path(app.outdir)
    if not (out / SITE_PICTURE).exists():
        site_picture(
            out / SITE_PICTURE,
            [app.config.project, f"{len(PAPERS)} deep-learning papers to read, run and question"],
        )
    if app.config.html_baseurl:
        pages = sorted(app.builder.get_target_uri(d) for d in app.env.found_docs)
        urls = "".join(
            f"<url><loc>{escape(app.config.html_baseurl + p)}</loc></url>\n" for p in pages
        )
        (out / "sitemap.xml").write_text(
            '<?xml version="1.0" encoding="utf-8"?>\n'
            '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
            f"{urls}</urlset>\n",
            encoding="utf-8",
        )
        (out / "robots.txt").write_text(
            f"Sitemap: {app.config.html_baseurl}sitemap.xml\n", encoding="utf-8"
        )
    (out / ".nojekyll").touch()


def setup(app):
    app.add_node(HideCodeCellNode, override=True, html=(open_fold, close_fold))
    for transform in (Cells, Equations, Head, GlossaryLinks):
        app.add_transform(transform)
    app.connect("html-page-context", page_context)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
