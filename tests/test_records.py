"""Scale, numbers as text, rules, the record, Holm's correction and the committed results."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponderlearn import catalogue, records
from ponderlearn.catalogue import CATALOGUE, chapter
from ponderlearn.records import (
    HOLDS,
    Rule,
    above,
    below,
    by_scale,
    expect,
    expected,
    measured,
    number,
    record,
    recorded,
    settle,
    within,
)

pytestmark = pytest.mark.usefixtures("clean_records")


class Interval:
    "An interval that knows its p-values, as `metrics.Interval` does."

    def __init__(self, mean, low, high, n=5, p=0.01):
        self.mean, self.low, self.high, self.n, self._p = mean, low, high, n, p
        self.asked = []

    def p(self, null=0.0):
        self.asked.append(null)
        return self._p


ONE_SEED = Interval(0.5, math.nan, math.nan, n=1, p=None)


# Scale and device


def test_scale(monkeypatch):
    assert records.scale() == "full"
    for name in ("quick", "full", "gpu"):
        monkeypatch.setenv("PONDERLEARN_SCALE", name)
        assert records.scale() == name
    monkeypatch.setenv("PONDERLEARN_SCALE", "fast")
    with pytest.raises(
        ValueError, match="PONDERLEARN_SCALE must be one of 'quick', 'full', 'gpu', got 'fast'"
    ):
        records.scale()


def test_by_scale_falls_back_to_full(monkeypatch):
    numbers = dict(quick=dict(steps=5), full=dict(steps=100, width=8), gpu=dict(width=64))
    assert by_scale(**numbers) == {"steps": 100, "width": 8}
    monkeypatch.setenv("PONDERLEARN_SCALE", "quick")
    assert by_scale(**numbers).steps == 5 and by_scale(**numbers).width == 8
    monkeypatch.setenv("PONDERLEARN_SCALE", "gpu")
    assert by_scale(**numbers) == {"steps": 100, "width": 64}
    with pytest.raises(
        ValueError, match=r"quick must only hold names that full has, got \['stps'\]"
    ):
        by_scale(full=dict(steps=1), quick=dict(stps=1))


def test_device(monkeypatch):
    monkeypatch.setenv("PONDERLEARN_DEVICE", "cpu")
    assert records.device() == torch.device("cpu")
    monkeypatch.setenv("PONDERLEARN_DEVICE", "abacus")
    with pytest.raises(ValueError, match="PONDERLEARN_DEVICE must be a torch device"):
        records.device()
    if not torch.cuda.is_available():
        monkeypatch.setenv("PONDERLEARN_DEVICE", "cuda")
        with pytest.raises(
            RuntimeError, match="must name a device that PyTorch finds here, got 'cuda'"
        ):
            records.device()


# Numbers as text


@pytest.mark.parametrize(
    "x, text",
    [
        (0.1234567, "0.123"),
        (0.5, "0.5"),
        (1.0, "1"),
        (-37.24, "-37.2"),
        (1234.5, "1234"),
        (9999.7, "10,000"),
        (1_234_567.8, "1,234,568"),
        (0.00012345, "0.000123"),
        (0.000012345, "1.23e-05"),
        (1e16, "1e+16"),
        (0.0, "0"),
        (-0.0, "0"),
        (5, "5"),
        (2021, "2021"),
        (12345, "12,345"),
        (math.inf, "inf"),
        (math.nan, "–"),
        (None, "–"),
        (True, "yes"),
        (np.bool_(False), "no"),
        (np.float32(0.25), "0.25"),
        (np.int64(3), "3"),
        (torch.tensor(2.0), "2"),
        (torch.tensor([0.5, 2.0]), "[0.5, 2]"),
        ("text", "text"),
        ((0.1, math.nan), "[0.1, –]"),
        (Interval(0.12, 0.1, 0.14), "0.12 [0.1, 0.14]"),
        (ONE_SEED, "0.5"),
    ],
)
def test_a_number_as_text(x, text):
    assert number(x) == text


def test_a_number_with_unit_and_format():
    assert number(0.5, "points") == "0.5 points" and number("none", "points") == "none"
    assert number(None, "points") == "–" and number(True, "points") == "yes"
    assert number(Interval(0.12, 0.1, 0.14), "nats", ".3f") == "0.120 nats [0.100, 0.140]"
    assert number(0.25, spec=lambda v: f"{v:.0%}") == "25%" and number(7, spec="03d") == "007"
    assert number((0.5, 2), spec=".1f") == "[0.5, 2.0]"


@given(st.floats(1e-300, 1e300) | st.floats(-1e300, -1e-300))
def test_three_digits_are_kept(x):
    assert float(number(x).replace(",", "")) == pytest.approx(x, rel=5.1e-3)


# Rules


def test_the_three_rules():
    gain = Interval(3.0, 1.0, 5.0)
    for rule, holds in [
        (above(0), "yes"),
        (above(1), "no"),  # the bound itself is not above
        (below(6), "yes"),
        (below(5), "no"),
        (within(1, 5), "yes"),
        (within(1.1, 5), "no"),
        (within(1, 4.9), "no"),
    ]:
        assert rule.verdict(gain) == holds, rule.words
    assert (above(0).null, below(-2.5).null, within(0, 1).null) == (0, -2.5, None)
    assert below(-20).words == "the 95 % interval lies below -20"
    assert within(-1, 1).words == "the 95 % interval lies within [-1, 1]"


def test_an_interval_without_ends_meets_no_rule():
    always = Rule("always", lambda x: True)
    for rule in (above(0), below(1), within(0, 1), always):
        assert rule.verdict(ONE_SEED) == "no"
    half_open = SimpleNamespace(mean=0.5, low=0.1, high=math.nan)
    assert always.verdict(half_open) == "no" and always.verdict(0.5) == "yes"


def test_own_rules_answer_with_a_bool_or_a_word():
    rule = Rule("two parts", lambda parts: {0: "no", 1: "partly", 2: "yes"}[sum(parts)])
    assert [rule.verdict(p) for p in ((0, 0), (1, 0), (1, 1))] == ["no", "partly", "yes"]
    assert Rule("r", lambda x: np.bool_(x > 0)).verdict(1) == "yes"
    assert Rule("r", lambda x: torch.tensor(x > 0)).verdict(-1) == "no"
    with pytest.raises(ValueError, match="holds must be a bool or one of 'yes', 'suggestive'"):
        Rule("r", lambda x: "perhaps").verdict(1)
    with pytest.raises(ValueError, match=r"holds must be one value, got ndarray of shape \(2,\)"):
        Rule("r", lambda x: np.array([True, False])).verdict(1)


@pytest.mark.parametrize("rule", [above(0), below(0), within(0, 1)], ids=lambda rule: rule.words)
def test_rules_on_intervals_refuse_a_number(rule):
    with pytest.raises(TypeError, match=r"evidence must be an interval .*, got float; .* own Rule"):
        rule.verdict(0.5)


def test_a_table_with_columns_mean_low_and_high_is_no_interval():
    frame = pd.DataFrame({"mean": [1.0], "low": [math.nan], "high": [2.0], "p": [0.5]})
    rule = Rule("means above 0", lambda f: (f["mean"] > 0).all(), null=0)
    row = expect("act", "wins", paper=0, rule=rule).record("all", evidence=frame)
    assert (row.holds, row.p) == ("yes", None)


def test_a_level_other_than_95_is_refused():
    with pytest.raises(ValueError, match=r"evidence must be a 95 % interval, got level 0\.9"):
        above(0).verdict(SimpleNamespace(mean=1, low=0.5, high=2, level=0.9))


def test_within_wants_its_ends_in_order():
    with pytest.raises(ValueError, match="low and high must be in order, got 1 and 0"):
        within(1, 0)


# Expect, then record


def test_one_object_from_the_sentence_to_the_row():
    gain = expect("act", "ACT <wins>", paper=5, unit="points", rule=above(0), cell="fig-x")
    assert repr(gain) == ("ACT <wins> – paper: 5 points – holds if the 95 % interval lies above 0")
    assert "<strong>ACT &lt;wins&gt;</strong> – paper: 5 points" in gain._repr_html_()
    assert expected("act") == [gain] and not records._recorded
    interval = Interval(3.1, 0.4, 5.8)
    row = gain.record(interval, seeds=range(5), note="frozen")
    assert row._asdict() == {
        "claim": "ACT <wins>",
        "scale": "full",
        "device": records.device().type,
        "paper": 5,
        "here": 3.1,
        "interval": (0.4, 5.8),
        "unit": "points",
        "n_seeds": 5,
        "seeds": (0, 1, 2, 3, 4),
        "rule": "the 95 % interval lies above 0",
        "holds": "yes",
        "cell": "fig-x",
        "note": "frozen",
        "p": 0.01,
        "timing": False,
    }
    assert repr(row) == (
        "yes: ACT <wins> – here: 3.1 points [0.4, 5.8] – if the 95 % interval lies above 0"
    )
    assert interval.asked == [0] and measured(row._asdict()) == "3.1 points [0.4, 5.8]"


def test_a_quick_run_gives_no_verdict(monkeypatch):
    gain = expect("act", "wins", paper=5, rule=above(0))
    monkeypatch.setenv("PONDERLEARN_SCALE", "quick")
    row = gain.record(ONE_SEED)
    assert (row.here, row.interval, row.n_seeds, row.p) == (0.5, None, 1, None)
    assert row.holds == "not tested at this scale"
    assert gain.record(Interval(3.0, 1.0, 5.0)).holds == "not tested at this scale"
    assert claim(holds=True).holds == claim(holds="no").holds == "not tested at this scale"
    with pytest.raises(ValueError, match="holds must be"):  # a wrong word is found at quick too
        claim(holds="perhaps")


def test_evidence_may_differ_from_what_is_shown():
    both = Rule("error below 5 % in both", lambda errors: max(errors) < 0.05)
    ours = expect("act", "solves it", paper="below 5 %", rule=both, note="64 bits in the paper")
    row = ours.record("errors 1 % and 3 %", evidence=(0.01, 0.03), n_seeds=5, note="8 bits here")
    assert (row.holds, row.n_seeds, row.p) == ("yes", 5, None)
    assert row.note == "64 bits in the paper; 8 bits here"
    assert ours.record(0.06, (0.01, 0.06), interval=(0.04, 0.08)).holds == "no"
    with pytest.raises(TypeError, match="evidence must be given when here is text"):
        ours.record("errors 1 % and 3 %")


def test_a_claim_about_time_says_so():
    fast = expect("act", "is fast", paper="2 times", rule=above(1), timing=True)
    assert fast.record(Interval(2.0, 1.5, 2.5)).timing and claim(timing=True).timing
    assert not claim().timing


def test_what_cannot_be_tested_here_is_said_before_the_run():
    why = "needs 50,000 updates"
    big = expect("act", "scales", paper="yes", rule=above(0), testable=False, note=why)
    (row,) = recorded("act")
    assert row["holds"] == "not testable at this size" and row["here"] == "not measured"
    assert row["note"] == why and f"not testable at this size: {why}" in repr(big)
    assert big.record(Interval(3.0, 1.0, 5.0)).holds == "not testable at this size"
    with pytest.raises(ValueError, match="note must not be empty"):
        expect("act", "scales", paper="yes", rule=above(0), testable=False)


@pytest.mark.parametrize(
    "changes, kind, error",
    [
        (dict(rule="above 0"), TypeError, r"rule must be a Rule such as above\(0\) .*, got str"),
        (dict(rule=Rule(" ", bool)), ValueError, "rule must not be empty"),
        (dict(paper=math.nan), ValueError, "paper must be finite"),
        (dict(claim=""), ValueError, "claim must not be empty"),
        (dict(chapter="atc"), ValueError, "did you mean 'act'"),
        (dict(unit=5), TypeError, "unit must be text, got int"),
        (dict(cell=5), TypeError, "cell must be text, got int"),
    ],
)
def test_expect_refuses_before_the_run(changes, kind, error):
    good = dict(chapter="act", claim="wins", paper=5, rule=above(0))
    with pytest.raises(kind, match=error):
        expect(**good | changes)
    assert not records._expected and not records._recorded


# The record


def claim(text="it works", **changes):
    "Record a claim of ACT."
    return record(
        "act", text, **(dict(paper=0.5, here=0.4, rule="below the paper", holds=True) | changes)
    )


def test_record_writes_only_when_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claim()
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("PONDERLEARN_RECORD", str(tmp_path / "record"))
    claim(
        "another",
        here=np.float32(0.25),
        interval=(torch.tensor(0.1), np.float64(0.3)),
        seeds=range(3),
    )
    stored = json.loads((tmp_path / "record" / "act.json").read_text())
    assert [r["claim"] for r in stored["claims"]] == ["it works", "another"]
    assert stored["claims"][1] == {
        "claim": "another",
        "scale": "full",
        "device": records.device().type,
        "paper": 0.5,
        "here": 0.25,
        "interval": [pytest.approx(0.1), pytest.approx(0.3)],
        "unit": "",
        "n_seeds": 3,
        "seeds": [0, 1, 2],
        "rule": "below the paper",
        "holds": "yes",
        "cell": None,
        "note": "",
        "p": None,
        "timing": False,
    }


def test_examples_of_foundations_and_methods_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PONDERLEARN_RECORD", str(tmp_path))
    for name in ("records", "sinkhorn"):
        record(name, "an example", paper=1, here=1, rule="r", holds=True)
        assert len(recorded(name)) == 1 and not list(tmp_path.iterdir())


def test_rows_are_keyed_by_claim_scale_and_device(monkeypatch):
    claim(here=1.0)
    claim(here=2.0, holds=np.bool_(False))
    monkeypatch.setenv("PONDERLEARN_SCALE", "quick")
    claim(here=3.0, holds="not tested at this scale")
    rows = [(r.scale, r.here, r.holds) for r in records._recorded.values()]
    assert rows == [("full", 2.0, "no"), ("quick", 3.0, "not tested at this scale")]


@pytest.mark.parametrize(
    "changes, error",
    [
        (dict(here=float("nan")), "here must be finite"),
        (dict(paper=float("inf")), "paper must be finite"),
        (
            dict(holds="perhaps"),
            "holds must be a bool or one of 'yes', 'suggestive', 'partly', 'no'",
        ),
        (dict(interval=(2.0, 1.0)), r"interval must be \(low, high\)"),
        (dict(interval=(1.0, 2.0, 3.0)), r"interval must be \(low, high\)"),
    ],
)
def test_record_refuses(changes, error):
    with pytest.raises(ValueError, match=error):
        claim(**changes)
    with pytest.raises(TypeError, match="here must be a number or text, got list"):
        claim(here=[1])


@pytest.mark.parametrize(
    "changes, kind, error",
    [
        (dict(here=np.ones(2)), ValueError, r"here must be one value, got ndarray of shape \(2,\)"),
        (
            dict(holds=torch.tensor([True, False])),
            ValueError,
            r"holds must be one value, got Tensor of shape \(2,\)",
        ),
        (dict(interval=3.0), TypeError, r"interval must be \(low, high\), got float"),
        (dict(interval="12"), TypeError, r"interval must be \(low, high\), got str"),
        (
            dict(seeds=5),
            TypeError,
            "seeds must be integers, got 5",
        ),
        (dict(seeds="12"), TypeError, "seeds must be integers"),
        (dict(seeds=(0.5,)), TypeError, "seeds must be integers"),
        (
            dict(seeds=(1, 2), n_seeds=3),
            ValueError,
            "n_seeds must be the number of seeds, 2, got 3",
        ),
        (dict(n_seeds=0), ValueError, "n_seeds must be >= 1, got 0"),
        (dict(p=1.5), ValueError, r"p must lie in \[0, 1\], got 1.5"),
        (dict(rule=" "), ValueError, "rule must not be empty, got ' '"),
        (dict(rule=None), TypeError, "rule must be text, got NoneType"),
        (dict(cell=3), TypeError, "cell must be text, got int"),
        (dict(text=""), ValueError, "claim must not be empty"),
        (dict(p=math.nan), ValueError, "p must be finite"),
    ],
)
def test_a_refused_claim_leaves_no_trace(tmp_path, monkeypatch, changes, kind, error):
    monkeypatch.setenv("PONDERLEARN_RECORD", str(tmp_path))
    with pytest.raises(kind, match=error):
        claim(**changes)
    assert not records._recorded and not list(tmp_path.iterdir())


# Holm's correction


@pytest.fixture
def holm(monkeypatch):
    "A double of `metrics.holm` that is called in the right order of p-values or not at all."
    from ponderlearn import metrics

    def adjusted(p):
        order = sorted(range(len(p)), key=lambda i: p[i])
        found, so_far = [0.0] * len(p), 0.0
        for rank, i in enumerate(order):
            so_far = found[i] = max(so_far, min(1.0, (len(p) - rank) * p[i]))
        return found

    monkeypatch.setattr(metrics, "holm", adjusted, raising=False)


def rows_of(*rows):
    return [{"scale": "full", "device": "cpu", "holds": "yes", "p": p} | more for p, more in rows]


def verdicts(rows):
    return [row["holds"] for row in rows]


def test_a_lucky_yes_becomes_suggestive(holm):
    rows = rows_of((0.001, {}), (0.03, {}), (0.04, {}), (None, {}), (0.9, {"holds": "no"}))
    assert verdicts(settle(rows)) == ["yes", "suggestive", "suggestive", "yes", "no"]
    assert verdicts(rows)[1] == "yes" and settle(settle(rows)) == settle(rows)
    assert verdicts(settle(rows_of((0.03, {})))) == ["yes"]


def test_each_scale_and_device_is_a_family_of_its_own(holm):
    two = [{"scale": "gpu", "device": "cuda"}, {"scale": "full", "device": "cuda"}]
    rows = rows_of((0.03, {}), (0.03, two[0]), (0.03, two[1]))
    assert verdicts(settle(rows)) == ["yes"] * 3
    assert verdicts(settle(rows_of((0.03, {}), (0.03, {})))) == ["suggestive"] * 2


def test_what_was_not_tested_is_not_counted(holm):
    untested = [{"holds": h} for h in HOLDS if h.startswith("not ")]
    rows = rows_of((0.03, {}), *((0.5, u) for u in untested))
    assert verdicts(settle(rows)) == ["yes", *(u["holds"] for u in untested)]


def test_old_rows_without_p_are_left_alone():
    rows = [{"scale": "full", "device": "cpu", "holds": "yes"}] * 3  # stored before there was a p
    assert settle(rows) == rows and settle([]) == []


def test_recorded_rows_are_settled(holm):
    for name in "ab":
        expect("act", name, paper=0, rule=above(0)).record(Interval(1, 0.1, 2, p=0.04))
    assert verdicts(recorded("act")) == ["suggestive"] * 2
    assert {c.holds for c in records._recorded.values()} == {"yes"}


# The committed results


@pytest.fixture
def stored(tmp_path, monkeypatch):
    "Writes the results of ACT in a course that this process takes for its own."
    monkeypatch.setattr(catalogue, "course_root", lambda: tmp_path)
    for folder in ("results", "nbs"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "results" / "act.json"
    return lambda found: file.write_text(found if isinstance(found, str) else json.dumps(found))


RUN = {"scale": "full", "device": "cpu", "torch": "2.13.0", "seconds": 61.0, "date": "2026-01-01"}


def test_results_join_claims_with_their_run(stored, monkeypatch):
    monkeypatch.setenv("PONDERLEARN_DEVICE", "cpu")
    old = {k: v for k, v in claim()._asdict().items() if k != "p"}
    new = claim("another", p=0.01)._asdict()
    stored({"chapter": "act", "runs": [RUN], "claims": [old, new]})
    first, second = records.results()
    assert first["chapter"] == "act" and (first["holds"], first["p"]) == ("yes", None)
    assert (first["torch"], first["seconds"]) == ("2.13.0", 61.0) and second["p"] == 0.01
    assert first["timing"] is False and set(first) == set(second)
    assert records.results("pondernet") == []
    assert chapter("act").seconds == {"quick": None, "full": 61.0, "gpu": None}


@pytest.mark.parametrize(
    "damage",
    [
        "",
        '{"chapter": "act", "runs": [{"sca',
        "[]",
        {},
        {"runs": []},
        {"runs": 3, "claims": []},
        {"runs": [{"scale": "full"}], "claims": []},
        {"runs": [RUN, RUN], "claims": []},
        {"runs": [RUN], "claims": [{"claim": "a"}]},
        {"runs": [RUN], "claims": ["a"]},
    ],
    ids=str,
)
def test_damaged_results_are_named(stored, damage):
    stored(damage)
    calls = (records.results, lambda: records.runs("act"), lambda: chapter("act").seconds)
    for call in calls:
        with pytest.raises(ValueError, match=r"act\.json is damaged .*restore it with git"):
            call()


def test_a_damaged_foundation_does_not_hide_the_results(stored, tmp_path, monkeypatch):
    monkeypatch.setenv("PONDERLEARN_DEVICE", "cpu")
    stored({"runs": [RUN], "claims": [claim()._asdict()]})
    path = tmp_path / catalogue.notebook_path(chapter("viz"))
    path.parent.mkdir()
    path.write_text("{")
    assert len(records.results()) == 1
    with pytest.raises(ValueError, match=r"10_viz\.ipynb is damaged"):
        records.runs("viz")


@pytest.mark.parametrize("change", [{"holds": "perhaps"}, None])
def test_rows_twice_and_strange_verdicts_are_damage(stored, change):
    row = claim()._asdict()
    stored({"runs": [RUN], "claims": [row, row] if change is None else [row | change]})
    with pytest.raises(ValueError, match=r"act\.json is damaged"):
        records.results()


def test_the_present_run_counts_once_it_is_timed(stored, tmp_path, monkeypatch):
    stored({"runs": [RUN], "claims": []})
    now = [RUN | {"seconds": 59.0}, RUN | {"scale": "quick", "seconds": 9.0}]
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / "act.json").write_text(json.dumps({"runs": now, "claims": []}))
    monkeypatch.setenv("PONDERLEARN_RECORD", str(tmp_path / "record"))
    assert chapter("act").seconds == {"quick": 9.0, "full": 59.0, "gpu": None}


def test_what_is_committed_is_sound():
    rows = records.results()
    assert rows and {r["holds"] for r in rows} <= set(HOLDS)
    assert all(r["chapter"] in {c.name for c in CATALOGUE} for r in rows)
    assert all(re.search(r"\S", measured(r)) for r in rows)
