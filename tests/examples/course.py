import tempfile
from pathlib import Path

from mistakes import Call, ok, words

from ponderlearn import course

PATH = Path(tempfile.mkdtemp()) / "a.txt"
ACT = course.chapter("act")


def by_name(f, argument="chapter"):
    return lambda: Call(f, **{argument: "act"})


def record():
    return Call(
        course.record,
        chapter="act",
        claim=words("it learns"),
        paper=ok(0.9, -1, 0, 1.5, 10**30, "text"),
        here=ok(0.8, -1, 0, 1.5, 10**30, "text"),
        interval=(0.7, 0.9),
        unit=words("points"),
        n_seeds=3,
        seeds=(0, 1, 2),
        rule=words("above 0.5"),
        holds=ok(True, "text"),
        cell=words("fig-a"),
        note=words("no"),
    )


EXAMPLES = {
    "chapter": by_name(course.chapter, "name"),
    "notebook_path": lambda: Call(course.notebook_path, c=ACT),
    "write_atomic": lambda: Call(course.write_atomic, path=PATH, data=words("text")).then(
        lambda path: path.read_text()
    ),
    "by_scale": lambda: Call(
        course.by_scale,
        full=ok({"steps": 3}, "None inside"),
        quick=ok({"steps": 1}, "empty", "None inside"),
        gpu=ok({"steps": 9}, "empty", "None inside"),
    ),
    "record": record,
    "html_table": lambda: Call(
        course.html_table,
        header=["a", "b"],
        rows=ok([["1", "2"]], "empty", "entry less"),
        caption=words("c"),
    ),
    "claims_table": by_name(course.claims_table),
    "runs": by_name(course.runs),
    "results": by_name(course.results),
    "links": by_name(course.links, "name"),
    "card": by_name(course.card, "name"),
}
WITHOUT = {"Page": "made by html_table and card, not by hand"}
ALLOWED = {}
