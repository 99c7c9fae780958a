// Runs between RequireJS and the widget manager.
(() => {
  // Where the manager finds its icon fonts, on this host.
  window.__jupyter_widgets_assets_path__ = document.currentScript.src.replace(/[^/]*$/, "") + "vendor/widgets/";
  // The manager typesets labels by the interface of MathJax 2; hand the work to MathJax 3.
  window.addEventListener("load", () => {
    const mathjax = window.MathJax;
    if (mathjax && !mathjax.Hub) {
      mathjax.Hub = { Queue: (job) => job?.[2] && mathjax.startup?.promise.then(() => mathjax.typesetPromise([job[2]])) };
    }
  });
})();
