"""The writer of tables, the tables of a chapter, and its card."""

import json
import math
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from ponderlearn import catalogue
from ponderlearn.cards import (
    Table,
    bench_table,
    card,
    claims_table,
    rules_table,
    table,
)
from ponderlearn.catalogue import CATALOGUE, PAPERS
from ponderlearn.records import above, expect

pytestmark = pytest.mark.usefixtures("clean_records")


def gain(mean, low, high):
    "An interval."
    return SimpleNamespace(mean=mean, low=low, high=high)


@pytest.fixture
def root(tmp_path, monkeypatch):
    "An empty course that this process takes for its own."
    monkeypatch.setattr(catalogue, "course_root", lambda: tmp_path)
    (tmp_path / "nbs").mkdir()
    (tmp_path / "results").mkdir()
    return tmp_path


class Cells(HTMLParser):
    "What a table says: (tag, scope, text)."

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.open and self.open[-1][0] in ("th", "td", "caption"):
            self.found.append((self.open[-1][0], self.open[-1][1].get("scope"), data))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag


# Tables


def test_table_has_headings_with_scope_and_a_caption():
    made = table(
        [{"arm": "a<b", "loss": 0.12345, "n": 5, "ok": True}, {"arm": "c", "loss": None, "n": 6}],
        caption='Losses & "more"',
        fmt={"loss": ".2f"},
    )
    html = made._repr_html_()
    found = Cells(html).found
    assert found[0] == ("caption", None, 'Losses & "more"')
    columns = [text for tag, scope, text in found if scope == "col"]
    assert columns == ["arm", "loss", "n", "ok"]
    assert [f for f in found if f[1] == "row"] == [("th", "row", "a<b"), ("th", "row", "c")]
    assert [text for tag, _, text in found if tag == "td"] == ["0.12", "5", "yes", "–", "6", "–"]
    assert 'role="region"' in html and 'tabindex="0"' in html and "overflow-x:auto" in html


def test_table_as_text_is_aligned():
    lines = repr(table([{"arm": "a", "n": 5}, {"arm": "long", "n": 12}], caption="Count"))
    assert lines.splitlines() == ["Count", "arm    n", "----  --", "a      5", "long  12"]


def test_numbers_and_intervals_stand_at_the_right():
    rows = [
        {"arm": "a", "loss": 0.5, "gain": gain(1, 0, 2), "one seed": gain(1, math.nan, math.nan)},
        {"arm": "b", "loss": None, "gain": None, "one seed": None},
    ]
    made = table(rows, fmt=".1f")
    assert made.numeric == [False, True, True, True]
    assert made.cells == [["a", "0.5", "1.0 [0.0, 2.0]", "1.0"], ["b", "–", "–", "–"]]
    assert made._repr_html_().count("text-align:right") == 3 * 3


def test_table_from_a_dataframe_with_groups():
    frame = pd.DataFrame({"arm": ["a", "a", "b"], "loss": [1.0, 2.0, 4.0]})
    made = table(frame.groupby("arm").agg(["mean", "size"]), fmt=".1f")
    assert made.columns == ["arm", "loss mean", "loss size"]
    assert made.cells == [["a", "1.5", "2"], ["b", "4.0", "1"]]
    assert table(frame).columns == ["arm", "loss"]


def test_two_columns_of_one_name_are_both_kept():
    frame = pd.DataFrame([["a", 1.0, 2], ["b", 3.0, 4]], columns=["arm", "loss", "loss"])
    made = table(frame, fmt={"loss": ".1f"})
    assert made.columns == ["arm", "loss", "loss"]
    assert made.cells == [["a", "1.0", "2.0"], ["b", "3.0", "4.0"]]
    named = pd.DataFrame({"arm": ["x", "y"]}, index=pd.Index(["a", "b"], name="arm"))
    assert table(named).cells == [["a", "x"], ["b", "y"]]
    made = table(
        pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a b", "c"), ("a", "b c")]))
    )
    assert made.cells == [["1", "2"]] and made.columns == ["a b c", "a b c"]


def test_values_of_numpy_and_torch():
    row = {"x": np.float32(0.5), "y": np.int64(3), "z": torch.tensor(2.0), "i": (0.1, np.nan)}
    made = table([row | {"ok": np.bool_(True), "many": np.array([1.0, 2.0])}])
    assert made.cells == [["0.5", "3", "2", "[0.1, –]", "yes", "[1, 2]"]]
    assert made.numeric == [True, True, True, False, False, False]


def test_table_formats_by_function():
    rows = [{"x": "a", "loss": 0.5, "n": 3}]
    made = table(rows, fmt={"loss": lambda v: f"{v:.0%}", "n": "03d"})
    assert made.cells == [["a", "50%", "003"]]
    assert table(rows, fmt=lambda v: f"<{v}>").cells == [["<a>", "<0.5>", "3"]]


def test_a_column_of_whole_numbers_stays_whole_with_a_gap():
    assert table([{"n": 5}, {"n": None}], fmt=".2f").cells == [["5"], ["–"]]
    assert table([{"n": 5}, {"n": 0.5}], fmt=".2f").cells == [["5.00"], ["0.50"]]


@pytest.mark.parametrize(
    "call, kind, error",
    [
        (
            lambda: table([1, 2]),
            TypeError,
            r"^rows must be a list of dicts or a DataFrame, got list",
        ),
        (lambda: table("ab"), TypeError, r"^rows must be a list of dicts or a DataFrame, got str"),
        (lambda: table([]), ValueError, r"^rows must hold at least one row and one column"),
        (lambda: table([{}]), ValueError, r"^rows must hold at least one row and one column"),
        (lambda: table(pd.DataFrame()), ValueError, r"^rows must hold at least one row"),
        (
            lambda: table([{"a": 1}], fmt={"b": ".2f"}),
            ValueError,
            r"^fmt must name columns of the table \(a\), got \['b'\]$",
        ),
    ],
)
def test_table_refuses_what_is_no_table(call, kind, error):
    with pytest.raises(kind, match=error):
        call()


def test_a_table_of_no_rows_still_shows_its_head():
    empty = Table(["a", "bc"], [])
    assert repr(empty) == "a  bc\n-  --" and 'scope="col"' in empty._repr_html_()


# Rules and claims


def test_claims_show_the_verdict_first_and_fold_the_rule():
    expect("act", "a < b & c", paper=0.5, unit="steps", rule=above(0)).record(
        gain(0.4, 0.3, 0.5), seeds=[1, 2], note="frozen"
    )
    shown = claims_table("act")
    assert shown.columns == ["holds?", "claim", "here [95 % interval]", "paper"]
    assert shown.cells == [["yes", "a < b & c", "0.4 steps [0.3, 0.5]", "0.5 steps"]]
    assert shown.folds == ["Holds if the 95 % interval lies above 0; 2 seeds; frozen"]
    html = shown._repr_html_()
    found = Cells(html).found
    assert [f for f in found if f[1] == "row"] == [("th", "row", "a < b & c")]
    assert html.count("<details ") == 1 and "lies above 0" in html and "<caption" in html
    assert "lies above 0" in repr(shown)


def test_a_claim_that_was_stated_cannot_get_lost(monkeypatch):
    first = expect("act", "first", paper=1, rule=above(0))
    expect("act", "second", paper=2, rule=above(1))
    assert rules_table("act").cells == [
        ["first", "1", "the 95 % interval lies above 0"],
        ["second", "2", "the 95 % interval lies above 1"],
    ]
    first.record(gain(1, 0.5, 2))
    assert [row[:2] for row in claims_table("act").cells] == [
        ["yes", "first"],
        ["not measured yet", "second"],
    ]
    monkeypatch.setenv("PONDERLEARN_SCALE", "quick")
    assert [row[0] for row in claims_table("act").cells] == ["not measured yet"] * 2


def test_a_wrong_name_gets_the_nearest():
    for f in (card, claims_table, rules_table, bench_table):
        with pytest.raises(ValueError, match="did you mean 'act'"):
            f("atc")


# The benchmark


BENCH = {"peer": "p 1.0", "machine": "m", "torch": "2.13.0", "date": "2026-01-01"}
SPEED = {"what": "w", "ours_ms": 1.5, "peer_ms": 3.0, "ratio": 2.0, "low": 1.9, "high": 2.1}


def test_bench_table_reads_what_the_benchmark_left(root):
    file = root / "results" / "bench-act.json"
    file.write_text(json.dumps(BENCH | {"rows": [SPEED]}))
    shown = bench_table("act")
    assert shown.cells == [["w", "1.5", "3", "2.00 [1.90, 2.10]"]]
    assert shown.numeric == [False, True, True, True]
    assert all(x in shown.caption for x in ("p 1.0", "m, ", "2.13.0", "2026-01-01"))
    file.write_text(json.dumps(BENCH | {"rows": [SPEED | {"beside": "a loop"}]}))
    assert bench_table("act").cells == [["w", "a loop", "1.5", "3", "2.00 [1.90, 2.10]"]]


def test_bench_table_without_a_sound_file_says_so(root):
    with pytest.raises(FileNotFoundError, match=r"is missing: benchmarks/act\.py writes it"):
        bench_table("act")
    (root / "results" / "bench-act.json").write_text("{")
    with pytest.raises(ValueError, match=r"bench-act\.json is damaged"):
        bench_table("act")
    (root / "results" / "bench-act.json").write_text(json.dumps(BENCH | {"rows": [{"what": "w"}]}))
    with pytest.raises(ValueError, match=r"bench-act\.json is damaged \(.*'ours_ms'"):
        bench_table("act")


@pytest.mark.parametrize("name", [c.name for c in PAPERS if c.notebook])
def test_every_committed_benchmark_is_shown(name):
    file = catalogue.course_root() / "results" / f"bench-{name}.json"
    remedy = f"run: .venv-bench/bin/python benchmarks/{name}.py (CONTRIBUTING.md, step 5)"
    assert file.is_file(), f"{file.name} is missing; {remedy}"
    assert all(row[-1].count(",") >= 1 for row in bench_table(name).cells)


# The card


def test_card_says_whose_opinions():
    for c in PAPERS:
        page = card(c.name)
        assert "the opinions are the reviewer's" in page.text and c.review.reviewer in page.text
        assert f", in {c.review.language} ({c.review.where})" in page.text
        assert c.arxiv in page.html and "<details>" in page.html and "<img" not in page.html


@pytest.mark.parametrize("c", [c for c in CATALOGUE if c.kind != "paper"], ids=lambda c: c.name)
def test_a_card_without_a_paper_credits_nobody(c):
    page = card(c.name)
    assert "arXiv" not in page.text and "Review" not in page.text and "<details>" not in page.html
    assert ("not written yet" in page.text) == (c.notebook is None)


def test_the_card_of_an_announced_chapter(root):
    run = {"scale": "full", "device": "cpu", "seconds": 61.0}
    (root / "results" / "act.json").write_text(json.dumps({"runs": [run], "claims": []}))
    assert card("act").text.count("not written yet") == 2 and "61 s" not in card("act").text
    path = root / catalogue.notebook_path(catalogue.chapter("act"))
    path.parent.mkdir()
    path.write_text('{"cells": []}')
    assert "To run: 61 s at full" in card("act").text and "To read: 5 minutes" in card("act").text
    (root / "settings.ini").write_text(
        "[DEFAULT]\nuser = somebody\nrepo = r\nbranch = main\ndoc_host =\n"
    )
    assert "Open in Colab</a>" in card("act").html


def test_the_card_names_a_damaged_file(root):
    (root / "results" / "act.json").write_text("{")
    path = root / catalogue.notebook_path(catalogue.chapter("act"))
    path.parent.mkdir()
    path.write_text('{"cells": []}')
    with pytest.raises(ValueError, match=r"act\.json is damaged"):
        card("act")
