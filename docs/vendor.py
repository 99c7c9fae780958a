"""Copy what the site serves itself from node_modules to _static/vendor."""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = {  # folder under _static/vendor -> (folder under node_modules, patterns)
    "mathjax": (
        "mathjax/es5",
        [
            "tex-svg.js",
            "a11y/**/*.js",
            "sre/**/*.js",
            "sre/mathmaps/en.json",
            "sre/mathmaps/base.json",
            "input/tex/extensions/**/*.js",
            "ui/**/*.js",
        ],
    ),
    "require": ("requirejs", ["require.js"]),
    "widgets": (
        "@jupyter-widgets/html-manager/dist",
        ["embed-amd.js", "*.woff2", "*.woff", "*.ttf"],
    ),
    "fonts/serif": (
        "@fontsource-variable/source-serif-4",
        ["wght.css", "wght-italic.css", "files/*-wght-*.woff2"],
    ),
    "fonts/sans": (
        "@fontsource-variable/source-sans-3",
        ["wght.css", "wght-italic.css", "files/*-wght-*.woff2"],
    ),
    "fonts/code": (
        "@fontsource-variable/source-code-pro",
        ["wght.css", "files/*-wght-normal.woff2"],
    ),
}


def vendor(target: Path = HERE / "_static" / "vendor") -> int:
    "Copy what is missing or changed; return the number of files copied."
    copied = 0
    for folder, (package, patterns) in FILES.items():
        source = HERE / "node_modules" / package
        if not source.is_dir():
            sys.exit(f"{source} is missing: run npm ci in {HERE}")
        root = (
            HERE
            / "node_modules"
            / "/".join(package.split("/")[: 2 if package.startswith("@") else 1])
        )
        files = {f: f.relative_to(source) for p in patterns for f in source.glob(p) if f.is_file()}
        files |= {
            f: f.relative_to(root) for f in root.glob("LICENSE*")
        }  # a licence travels with what it covers
        for file, name in sorted(files.items()):
            to = target / folder / name
            if (
                to.exists()
                and to.stat().st_size == file.stat().st_size
                and to.stat().st_mtime >= file.stat().st_mtime
            ):
                continue
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
            copied += 1
    return copied


if __name__ == "__main__":
    print(f"{vendor()} files copied from node_modules")
