from mistakes import Call, ok, words

from ponderlearn import records
from ponderlearn.metrics import Interval
from ponderlearn.records import above, expect

ROW = {"interval": (0.7, 0.9), "here": 0.8, "unit": "points"}
CLAIM = {"p": 0.01, "scale": "full", "device": "cpu", "holds": "yes"}
END = -1, 0, 1.5, 10**30
ANY = None, True, "nan", "inf", "text", "list"


def by_name(f):
    return lambda: Call(f, chapter="act")


def number():
    return Call(records.number, x=ok(0.8, *END, *ANY), unit=words("points"), spec=".3f")


def measured():
    return Call(records.measured, row=ok(ROW, "misspelt key", "None inside"))


def settle():
    return Call(records.settle, rows=ok([CLAIM, CLAIM], "empty", "entry less"))


def record():
    return Call(
        records.record,
        chapter="act",
        claim=words("it learns"),
        paper=ok(0.9, *END, "text"),
        here=ok(0.8, *END, "text"),
        interval=(0.7, 0.9),
        unit=words("points"),
        n_seeds=3,
        seeds=(0, 1, 2),
        rule=words("above 0.5"),
        holds=ok(True, "text"),
        cell=words("fig-a"),
        note=words("no"),
        p=ok(0.01, 0),
        timing=False,
    )


def expected():
    return Call(
        expect,
        chapter="act",
        claim=words("it learns"),
        paper=ok(0.9, *END, "text"),
        rule=ok(above(0.5), "None inside"),
        unit=words("points"),
        cell=words("fig-a"),
        testable=True,
        note=words("no"),
        timing=False,
    )


def measurement():
    stated = expect("act", "it learns", paper=0.9, rule=above(0.5))
    return Call(
        stated.record,
        here=ok(0.8, *END, "text"),
        evidence=Interval(0.8, 0.7, 0.9, 3),
        interval=(0.7, 0.9),
        seeds=(0, 1, 2),
        n_seeds=3,
        note=words("no"),
    )


def decision():
    stated = expect("act", "it learns", paper=0.9, rule=above(0.5))
    return Call(stated.decide, evidence=Interval(0.8, 0.7, 0.9, 3))


EXAMPLES = {
    "by_scale": lambda: Call(
        records.by_scale,
        full=ok({"steps": 3}, "None inside"),
        quick=ok({"steps": 1}, "empty", "None inside"),
        gpu=ok({"steps": 9}, "empty", "None inside"),
    ),
    "number": number,
    "above": lambda: Call(records.above, bound=ok(0.5, *END)),
    "below": lambda: Call(records.below, bound=ok(0.5, *END)),
    "within": lambda: Call(records.within, low=ok(0.5, -1, 0), high=ok(1.2, 1.5, 10**30)),
    "Rule.verdict": lambda: Call(above(0.5).verdict, evidence=Interval(0.8, 0.7, 0.9, 3)),
    "measured": measured,
    "record": record,
    "expect": expected,
    "Expectation.record": measurement,
    "Expectation.decide": decision,
    "settle": settle,
    "expected": by_name(records.expected),
    "recorded": by_name(records.recorded),
    "runs": by_name(records.runs),
    "results": by_name(records.results),
}
ALLOWED = {}
