"""THIRD_PARTY.md: every peer, every chapter with data of others, every npm package is named."""

import ast
import json
import re
import warnings
from pathlib import Path

import pytest

from ponderlearn.catalogue import CATALOGUE

TOP = Path(__file__).resolve().parents[1]
LINES = (TOP / "THIRD_PARTY.md").read_text(encoding="utf-8").splitlines()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")] for line in LINES if line[:1] == "|"
]
SETS = {  # how a row of data begins: functions that bring these data
    "MNIST, 5000": ("mnist",),
    "Digits of 8 x 8": ("digits", "noisy_digits", "label_noise_errors", "sklearn.load_digits"),
    "CPython's": ("text", "topic_words"),
    "Breast cancer": ("sklearn.load_breast_cancer",),
    "Wine": ("sklearn.load_wine",),
    "Two photographs": ("sklearn.load_sample_images", "sklearn.load_sample_image"),
}
SET_OF = {function: row for row, functions in SETS.items() for function in functions}
WRITTEN = [c for c in CATALOGUE if c.notebook and (TOP / c.notebook).is_file()]


def test_every_peer_is_named():
    named = {re.split("[ ,]", row[0])[0].lower() for row in ROWS}
    peer = True
    for line in (TOP / "benchmarks" / "requirements.txt").read_text().splitlines():
        if line.startswith("# what") and "import" in line:
            peer = False  # up to the next empty line: what a peer imports
        elif not line:
            peer = True
        elif line[0] != "#" and peer:
            assert line.split("==")[0].lower() in named, line


def calls(path):
    "Functions that a notebook calls by name, as `data.name` or from scikit-learn's data."
    found = set()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).splitlines()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # backslashes in texts
            tree = ast.parse("\n".join(line for line in lines if line[:1] not in "%!" or not line))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "sklearn.datasets":
                found |= {f"sklearn.{a.name}" for a in node.names}
            f = node.func if isinstance(node, ast.Call) else None
            if isinstance(f, ast.Name):
                found.add(f.id)
            elif isinstance(f, ast.Attribute) and ast.unparse(f.value) == "data":
                found.add(f.attr)
            elif isinstance(f, ast.Attribute) and "sklearn.datasets" in ast.unparse(f.value):
                found.add(f"sklearn.{f.attr}")
    return found


@pytest.mark.parametrize("c", WRITTEN, ids=lambda c: c.name)
def test_every_chapter_is_named_in_the_rows_of_its_data(c):
    found = calls(TOP / c.notebook)
    unknown = [name for name in found - SET_OF.keys() if re.match(r"sklearn\.(load|fetch)_", name)]
    assert not unknown, f"data without a row: {unknown}"
    for start in {SET_OF[name] for name in found & SET_OF.keys()}:
        (row,) = [row for row in ROWS if row[0].startswith(start)]
        assert f"`{c.name}`" in row[3], f"{c.name} is missing in the row of {start}"


def test_every_npm_package_is_named():
    package = json.loads((TOP / "docs" / "package.json").read_text(encoding="utf-8"))
    for name in package["dependencies"] | package["devDependencies"]:
        assert any(f"`{name}`" in row[0] for row in ROWS), name
