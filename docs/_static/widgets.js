// Runs between RequireJS and the widget manager: where the manager finds its icon fonts, on this host.
(() => {
  const here = document.currentScript.src.replace(/[^/]*$/, "");
  window.__jupyter_widgets_assets_path__ = here + "vendor/widgets/";
})();
