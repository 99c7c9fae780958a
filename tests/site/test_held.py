"""What held: the table of kinds, the numbers in the prose, the pictures."""

import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import claims  # docs/_ext, see conftest.py
import held
import pytest

from ponderlearn.catalogue import CATALOGUE, PAPERS, PARTS
from ponderlearn.records import HOLDS, results

TOP = Path(__file__).resolve().parents[2]
ROWS = held.laptop(results())
TABLE = held.table(TOP)
PAGE = (TOP / "docs" / "what_held.md").read_text(encoding="utf-8")


def row(claim="it is faster", holds="yes", chapter="act", **more):
    found = {"chapter": chapter, "claim": claim, "holds": holds, "scale": "full", "device": "cpu"}
    found |= {"paper": 2.0, "here": 1.5, "interval": [1.0, 2.0], "unit": "points", "p": 0.01}
    return found | {"rule": "the 95 % interval lies above 0"} | more


def table(**of_act):
    "A table that sorts claims of the chapter act."
    return {**TABLE, "why": [w | {"examples": []} for w in TABLE["why"]], "claims": {"act": of_act}}


# ---- the table


def test_every_recorded_claim_has_a_kind_and_every_failure_a_reason():
    wrong = held.problems(results(), TABLE)
    assert not wrong, (
        "docs/claims.toml sorts every recorded claim by kind, and those that are no or partly by "
        "why they failed (CONTRIBUTING.md, step 5: Around it). Copy these lines, the header only "
        "if it does not stand there yet, and choose one of the words between the bars:\n"
        + "\n".join(wrong)
    )


def test_what_is_missing_is_said_as_lines_to_copy():
    rows = [row('a "new" claim'), row("y", chapter="sam"), row("x", "no")]
    kind = 'kind = "better|mechanism|cost|robustness"'
    assert held.problems(rows, table(x={"kind": "cost"})) == [
        "[claims.act]",
        f'"a \\"new\\" claim" = {{ {kind} }}',
        f'"x" = {{ {kind}, why = "less|size|rival|part|other" }}',
        "[claims.sam]",
        f'"y" = {{ {kind} }}',
    ]
    (said,) = held.problems([row("x")], table(x={"kind": "cost", "why": "size"}))
    assert "take its `why` away" in said
    (said,) = held.problems([], table(x={"kind": "cost"}))
    assert "no such claim is recorded" in said
    assert not held.problems([row("x", "partly")], table(x={"kind": "cost", "why": "less"}))


def test_claims_that_are_not_sorted_yet_do_not_break_the_page():
    rows, of = [row("x", "no"), row("y")], table(y={"kind": "cost"})
    assert "Not sorted yet" in held.kinds(rows, of)
    assert "Not sorted yet" in held.matrix(rows, of, str)
    assert "<strong>1</strong> Not sorted yet" in held.reasons(rows, of, lambda r: "#")
    assert held.facts(rows, of)["n_failed"] == "1"
    assert held.facts([], of)["percent_yes"] == "none"


# ---- the numbers


@pytest.mark.parametrize(
    ("rule", "here", "interval", "wanted"),
    [
        ("above 0", 1.0, [-1, 3], "near"),
        ("above 0", -1.0, [-3, 1], "open"),
        ("above 0", -2.0, [-3, -1], "against"),
        ("below −0.5", -0.6, [-0.9, -0.3], "near"),
        ("below 5", 40.2, [38.6, 41.8], "against"),
        ("within [-0.05, 0.05]", 0.0, [-0.1, 0.1], "near"),
        ("within [-0.05, 0.05]", 0.06, [0.02, 0.1], "open"),
        ("within [-0.05, 0.05]", 0.08, [0.06, 0.1], "against"),
    ],
)
def test_how_far_a_failure_is_from_its_rule(rule, here, interval, wanted):
    found = row(holds="no", rule=f"the 95 % interval lies {rule}", here=here, interval=interval)
    assert held.distance(found) == wanted
    assert held.distance(found | {"rule": "on every seed below 0"}) is None
    assert held.distance(found | {"interval": None}) is None


def test_the_numbers_add_up():
    n = {k: int(v) for k, v in held.facts(ROWS, TABLE).items() if v.isdigit()}
    assert n["n_yes"] + n["n_suggestive"] + n["n_partly"] + n["n_no"] == n["n_tested"]
    assert n["n_tested"] + n["n_untestable"] == n["n"] == len(ROWS)
    assert n["n_near"] + n["n_open"] + n["n_against"] == n["n_bound"] <= n["n_no"]
    assert n["n_paper"] + n["n_ours"] == n["n_tested"]
    assert n["n_failed"] == n["n_no"] + n["n_partly"] == n["n_paper_no"] + n["n_ours_no"]
    sorted_ = sum(n[f"n_{why['key']}"] for why in TABLE["why"])
    assert sorted_ == sum(
        bool(held.entry(r, TABLE).get("why")) for r in ROWS if r["holds"] in held.FAILED
    )


def test_a_run_on_a_gpu_or_at_quick_is_not_counted():
    rows = [row("x"), row("x", scale="gpu", device="cuda"), row("x", scale="quick")]
    assert held.laptop(rows) == rows[:1]


# ---- the prose


def test_the_page_says_numbers_by_name_only():
    found = held.filled(PAGE, held.facts(ROWS, TABLE))
    assert not held.NAME.search(found) and f"have recorded {len(ROWS)} of them" in found
    assert set(re.findall(r"\d+(?: %)?", PAGE)) == {"5 %"}  # Holm's level, no result
    with pytest.raises(ValueError, match="n_wrong"):
        held.filled("{n_wrong} claims", {})
    directive = "```{toctree}\n:hidden:\n```"
    assert held.filled(directive, {}) == directive


PROBE = "New last layer: a probe of the source's hidden layer orders better than OTDD on features"


def test_what_the_page_says_in_words_is_so():
    n = Counter(held.entry(r, TABLE).get("why") for r in ROWS if r["holds"] in held.FAILED)
    assert "rival" in [why for why, _ in n.most_common(2)]  # "A baseline ... is hard to beat."
    assert n["size"] <= sum(n.values()) / 8  # "Only ... are put down to a run that is too small"
    facts = held.facts(ROWS, TABLE)
    near, open_, against = (int(facts[f"n_{k}"]) for k in ("near", "open", "against"))
    assert against < near + open_  # "Most failures are undecided, not refuted."
    assert 0 < int(facts["n_rival_ahead"]) < n["rival"] / 2  # "in the rest ... told apart"
    shares = sorted(
        (held.held_of(own) for _, own in held.by_kind(ROWS, TABLE)), key=lambda g: g[0] / g[1]
    )
    last, *_, second, first = (own / tested for own, tested in shares)
    assert first - second > 0.1 > second - last  # "Only the first stands apart"
    holds = {(r["chapter"], r["claim"]): r["holds"] for r in ROWS}
    assert holds["commentaries", "On clean data the weights do nothing"] == "yes"
    for chapter, claim in (  # "The same shows among the claims that hold"
        ("latent_directions", "World A: the spectral baseline, untrained, is purer"),
        ("otdd", PROBE),
        (
            "functional_entropy",
            "Dropping the color beats the balanced form where the color is wrong",
        ),
    ):
        assert holds[chapter, claim] == "yes", (chapter, claim)
        assert f"results.html#claims-{chapter}" in PAGE


def test_an_order_by_share_begins_with_the_best():
    rows = [row("x", "no"), row("y"), row("z", chapter="sam")]
    assert held.parts_by_share(rows) == (
        "*Training that generalizes* (1 of 1) and *Learning to ponder* (1 of 2)"
    )


# ---- the pictures


def test_the_readme_has_the_picture_of_today():
    assert held.PICTURE.read_text(encoding="utf-8") == held.svg(ROWS), "run: make readme"
    assert "](docs/held.svg)" in (TOP / "README.md").read_text(encoding="utf-8")


def full() -> list[dict]:
    "A course in which all papers are written, one with as many claims as any has."
    most = max(Counter(r["chapter"] for r in ROWS).values())
    return [
        row(f"claim {i}", HOLDS[i % 6], c.name)
        for k, c in enumerate(PAPERS)
        for i in range(most if k % 9 == 0 else 12)
    ]


@pytest.mark.parametrize("rows", [ROWS, full(), []], ids=["now", "full", "empty"])
def test_the_picture_holds_every_claim_and_every_paper(rows):
    svg = ET.fromstring(held.svg(rows))
    name = "{http://www.w3.org/2000/svg}"
    marks = list(svg.iter(name + "use"))
    assert len(marks) == len(rows) + 5  # and the legend
    width, height = (float(svg.get(k)) for k in ("width", "height"))
    spots = {(float(m.get("x", 0)), float(m.get("y", 0))) for m in marks}
    assert len(spots) == len(marks)
    assert all(0 < x < width - held.SIZE and 0 < y < height - held.SIZE for x, y in spots)
    said = [t.text for t in svg.iter(name + "text")]
    assert {c.short for c in PAPERS} <= set(said)
    shapes = {g.get("id") for g in svg.iter(name + "g")}
    assert {m.get("href").removeprefix("#") for m in marks} <= shapes
    assert said.count("in preparation") == len(PAPERS) - len({r["chapter"] for r in rows})


def test_verdicts_are_told_apart_by_shape_and_have_a_style():
    assert set(held.SHAPES) == set(held.ORDER) == set(HOLDS)
    bare = {re.sub(r' class="[^"]*"', "", shape) for shape in held.SHAPES.values()}
    assert len(bare) == len(HOLDS)
    style = (TOP / "docs" / "_static" / "site.css").read_text(encoding="utf-8")
    for name in set(re.findall(r"mark-(?!is)\w+", "".join(held.SHAPES.values()))):
        assert f".{name} {{" in style and f".{name}{{" in held.STYLE


def test_the_wall_says_the_counts_to_those_who_do_not_see_it():
    rows = [row("x & y"), row("z", "no"), row("w", "no")]
    html = held.wall(rows, lambda c: f"#{c.name}", titles=True)
    assert html.count("<li><span") == len(PAPERS) == html.count('href="#') - 3 - 5
    assert 'aria-label="1 holds, 2 do not hold"' in html and "<title>x &amp; y: holds" in html
    assert held.counts(rows).count("<span") == 3
    assert 'aria-label="Claims: 1 holds, 2 do not hold"' in held.counts(rows)


def test_kinds_and_parts_share_out_all_claims():
    assert sum(len(own) for _, own in held.by_kind(ROWS, TABLE)) == len(ROWS)
    html = held.matrix(ROWS, TABLE, lambda n: f"#{n}")
    yes, tested = held.held_of(ROWS)
    assert f">{yes}/{tested}<" in html.split('class="total"')[1]
    assert html.count('<th scope="row">') == len(PARTS) - 1 + 1
    assert html.count('href="#') == len({held.part_of()[r["chapter"]] for r in ROWS})
    for why in TABLE["why"]:
        assert 2 <= len(why["examples"]) <= 4
    assert {c.name for c in CATALOGUE} >= set(TABLE["claims"])


def test_a_failure_has_words_of_the_results_page():
    assert set(held.FAILED) < set(claims.TESTED)
