"""The page of speed: its numbers, its dots, its tables."""

import re
from pathlib import Path

import held  # docs/_ext, see conftest.py
import pytest
import speed

from ponderlearn.catalogue import CATALOGUE

TOP = Path(__file__).resolve().parents[2]
FOUND = speed.benches(TOP)
PAGE = (TOP / "docs" / "speed.md").read_text(encoding="utf-8")


def row(ratio=2.0, low=1.9, high=2.1, **more):
    return {
        "what": "w",
        "ours_ms": 1.0,
        "peer_ms": 2.0,
        "ratio": ratio,
        "low": low,
        "high": high,
    } | more


def bench(*rows):
    return speed.Bench(CATALOGUE[-1], {"peer": "a loop", "rows": list(rows)})


def test_every_paper_is_measured_and_every_row_sound():
    assert {b.chapter.name for b in FOUND} >= {c.name for c in CATALOGUE if c.year and c.notebook}
    for b in FOUND:
        for r in b.rows:
            assert 0 < r["low"] <= r["ratio"] <= r["high"], (b.chapter.name, r["what"])
            assert r["ratio"] == pytest.approx(r["peer_ms"] / r["ours_ms"], rel=0.1, abs=0.01)


def test_the_memory_of_most_comparisons_is_known():
    rows = [r for b in FOUND for r in b.rows]
    assert sum("ours_mb" in r and "peer_mb" in r for r in rows) > 0.95 * len(rows)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(1.01, 1.2, "faster"), (0.9, 0.99, "slower"), (0.9, 1.1, "level"), (1.0, 1.2, "level")],
)
def test_the_whole_interval_decides(low, high, wanted):
    assert speed.side(row(1.0, low, high)) == wanted


def test_memory_is_compared_from_a_megabyte_on():
    assert speed.lean(row()) is None
    assert speed.lean(row(ours_mb=0.1, peer_mb=0.9)) is None
    assert speed.lean(row(ours_mb=1.0, peer_mb=2.0)) == "less"
    assert speed.lean(row(ours_mb=2.0, peer_mb=1.0)) == "more"
    assert speed.lean(row(ours_mb=2.0, peer_mb=2.1)) == "equal"


def test_the_numbers_add_up():
    n = {k: float(v) for k, v in speed.facts(FOUND).items()}
    assert n["n_faster"] + n["n_level"] + n["n_slower"] == n["n"]
    assert n["n_less"] + n["n_equal"] + n["n_more"] == n["n_watched"] <= n["n"]
    own = speed.facts([bench(row(), row(0.5, 0.4, 0.6), row(4.0))])
    assert own["n"] == "3" and own["n_slower"] == "1" and own["median_ratio"] == "2.0"
    assert speed.facts([])["n"] == "0"


def test_the_page_says_numbers_by_name_only():
    found = held.filled(PAGE, speed.facts(FOUND), "docs/speed.md")
    assert not held.NAME.search(found)
    assert set(re.findall(r"\d+(?: %)?", PAGE)) == {"95 %", "10", "6", "1"}


def test_marks_beyond_the_axis_stand_at_its_edge():
    assert speed.place(1e6) == 100 and speed.place(0.01) == 0
    assert 0 < speed.place(0.9) < speed.place(1) < speed.place(1.1) < 100


def test_a_strip_says_what_it_shows():
    html = speed.strips([bench(row(), row(0.5, 0.4, 0.6))], lambda c: "#x")
    assert 'aria-label="2 comparisons, 0.50 to 2.00 times: 1 faster, 1 slower"' in html
    assert html.count("<b ") == 2 and 'title="w: 2.00 [1.90, 2.10]"' in html
    assert "0.50 [0.40, 0.60]" in speed.slower([bench(row(0.5, 0.4, 0.6))], lambda c: "#x")


def test_the_script_that_measures_sees_torch_and_numpy(monkeypatch):
    np, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(TOP / "benchmarks"))
    import compare

    assert compare.peak_megabytes(lambda: torch.zeros(250_000)) == pytest.approx(1.0, abs=0.1)
    assert compare.peak_megabytes(lambda: np.zeros(250_000)) == pytest.approx(2.0, abs=0.1)
    assert compare.peak_megabytes(lambda: None) == pytest.approx(0.0, abs=0.1)


def test_memory_goes_beside_the_stored_times_of_the_same_rows(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(TOP / "benchmarks"))
    import json

    import compare

    file = tmp_path / "bench-x.json"
    file.write_text(json.dumps({"rows": [row()]}))
    found = compare.with_memory(file, [row(9.0, ours_mb=1.0, peer_mb=2.0)])
    assert found["rows"] == [row(ours_mb=1.0, peer_mb=2.0)]
    with pytest.raises(ValueError, match="make bench first"):
        compare.with_memory(file, [row(what="another")])
