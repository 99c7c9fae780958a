// Small things that Sphinx and the widget manager leave open. The pages read without this script.
(() => {
  // Sliders: the manager gives them a role but no name. Theirs is the label that stands beside them.
  const name = () => {
    for (const handle of document.querySelectorAll('.jupyter-widgets [role="slider"]:not([aria-label])')) {
      const box = handle.closest(".widget-slider, .widget-inline-hbox, .jupyter-widgets");
      const label = box?.querySelector(".widget-label")?.textContent.trim();
      handle.setAttribute("aria-label", label || "value");
    }
  };
  if (document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]')) {
    new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
    name();
  }

  // What scrolls sideways says so and can be reached from the keyboard.
  const boxes = [".bd-article pre", ".bd-article div.math", ".bd-article mjx-container[display]", ".bd-article .text_html",
    ".bd-article .table-scroll", ".bd-article .graph", ".pst-scrollable-table-container"].join();
  const reach = () => {
    for (const box of document.querySelectorAll(boxes)) {
      const wide = box.clientWidth > 0 && box.scrollWidth > box.clientWidth + 1;
      box.classList.toggle("scrolls", wide);
      if (wide && !box.hasAttribute("tabindex")) box.setAttribute("tabindex", "0");
    }
  };
  window.addEventListener("load", () => { reach(); window.MathJax?.startup?.promise?.then(reach); });
  window.addEventListener("resize", reach);
  document.addEventListener("toggle", reach, true);

  // A link to something inside a closed fold opens the fold.
  const unfold = () => {
    const id = decodeURIComponent(location.hash.slice(1));
    const target = id && document.getElementById(id);
    for (let e = target; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
    if (target?.querySelector(":scope > details.hide")) target.querySelector(":scope > details.hide").open = true;
    target?.scrollIntoView();
  };
  window.addEventListener("hashchange", unfold);
  if (location.hash) window.addEventListener("load", unfold);

  // Paper is light; what is folded stays out (site.css).
  const html = document.documentElement;
  let theme = null;
  window.addEventListener("beforeprint", () => { theme ??= html.dataset.theme; html.dataset.theme = "light"; });
  window.addEventListener("afterprint", () => { html.dataset.theme = theme ?? html.dataset.theme; theme = null; });
  document.querySelectorAll(".tag_fold-open > details.hide").forEach((d) => { d.open = true; });

  // From a file, a browser may not read other pages: the search then lists titles without excerpts.
  if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
    DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
    const results = document.getElementById("search-results");
    if (results) {
      const note = document.createElement("p");
      note.className = "from-file";
      note.textContent = "You read the site from files: the search lists the pages without excerpts. Everything else works.";
      results.before(note);
    }
  }
})();
