"""The recorded claims as charts and tables: by part and chapter, what failed first."""

from collections import Counter
from html import escape
from typing import NamedTuple

from ponderlearn.records import measured, number


class Verdict(NamedTuple):
    "How the site says one of HOLDS."

    sign: str  # stands before the words
    one: str  # said of one claim
    several: str  # said of several
    meaning: str  # a sentence for the legend


VERDICTS = {  # in the order of a chapter's table: what failed first
    "no": Verdict(
        "✗", "does not hold", "do not hold", "The rule, fixed before the run, was not met."
    ),
    "partly": Verdict(
        "◐", "holds in part", "hold in part", "A part of the claim, named in the rule, was met."
    ),
    "suggestive": Verdict(
        "≈",
        "is suggestive",
        "are suggestive",
        "The rule was met, but with so many claims tested at once in the chapter that may be "
        "chance: it does not survive Holm's correction.",
    ),
    "yes": Verdict(
        "✓",
        "holds",
        "hold",
        "The rule was met, and where there is a p-value it survives Holm's correction within "
        "the chapter.",
    ),
    "not testable at this size": Verdict(
        "∅",
        "is not testable at this size",
        "are not testable at this size",
        "Declared before the run: at the size that fits here the claim cannot be decided.",
    ),
    "not tested at this scale": Verdict(
        "–",
        "is not tested at this scale",
        "are not tested at this scale",
        "The run was too small for this claim; its setting is there for a larger one.",
    ),
}
TESTED = ("no", "partly", "suggestive", "yes")


def css(verdict: str) -> str:
    return "is-" + "-".join(verdict.split()[:2])


def failures_first(rows: list[dict]) -> list[dict]:
    order = list(VERDICTS)
    return sorted(rows, key=lambda r: order.index(r["holds"]))


def tally(rows: list[dict]) -> str:
    "The verdicts in one sentence: '12 of 44 claims do not hold, 2 hold in part'."
    count = Counter(r["holds"] for r in rows)
    n = sum(count[v] for v in TESTED)
    claims = "claim" if n == 1 else "claims"
    if not n:
        said = "no claim is tested"
    elif not count["no"]:
        said = f"none of {n} {claims} fails"
    else:
        said = f"{count['no']} of {n} {claims} {words('no', count['no'])}"
    more = [
        f"{count[v]} {words(v, count[v])}" for v in VERDICTS if v not in ("no", "yes") and count[v]
    ]
    return ", ".join([said, *more])


def words(verdict: str, n: int) -> str:
    return VERDICTS[verdict].one if n == 1 else VERDICTS[verdict].several


def bar(rows: list[dict], most: int) -> str:
    "A bar of the verdicts, as long as there are claims; `most` claims fill the line."
    count = Counter(r["holds"] for r in rows)
    pieces = "".join(
        f'<span class="{css(v)}" style="flex-grow:{count[v]}"></span>' for v in VERDICTS if count[v]
    )
    width = f"{100 * len(rows) / most:.1f}%"
    return f'<span class="bar" style="width:{width}" aria-hidden="true">{pieces}</span>'


def chip(verdict: str) -> str:
    v = VERDICTS[verdict]
    sign = f'<span aria-hidden="true">{v.sign}</span>'
    return f'<span class="verdict {css(verdict)}">{sign} {v.one}</span>'


def chips(rows: list[dict]) -> str:
    "All verdicts with their counts, and what each means."
    count = Counter(r["holds"] for r in rows)
    items = "".join(
        f'<div><dt class="verdict {css(k)}"><span aria-hidden="true">{v.sign}</span> '
        f"<strong>{count[k]}</strong> {words(k, count[k])}</dt><dd>{v.meaning}</dd></div>"
        for k, v in VERDICTS.items()
    )
    return f'<dl class="verdicts">{items}</dl>'


def overview(groups: dict[int, list[dict]], titles: dict[int, str]) -> str:
    "A line for each part: its name, its claims as a bar, and the count in words."
    most = max(len(rows) for rows in groups.values())
    lines = "".join(
        f'<li><a href="#results-part-{n}">{n} · {escape(titles[n])}</a>{bar(rows, most)}'
        f'<span class="tally">{tally(rows)}</span></li>'
        for n, rows in groups.items()
    )
    return f'<ul class="tallies" aria-label="Claims by part">{lines}</ul>'


def table(rows: list[dict], name: str, link) -> str:
    "A chapter's claims; `link(row)` is the address of the cell that measured it, or None."
    heads = ("Holds?", "Claim", "Paper", "Here [95 % interval]", "Seeds", RULE, "Run")
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    body = "".join(line(r, link(r)) for r in rows)
    return (
        f'<div class="table-scroll" role="region" aria-label="Claims of {escape(name)}">'
        f'<table class="claims-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


RULE = "Rule, fixed before the run"


def line(r: dict, address: str | None) -> str:
    "A claim as a row; on a phone the names of the columns stand before the cells."
    claim = escape(r["claim"])
    claim = f'<a href="{address}">{claim}</a>' if address else claim
    note = f'<p class="note">{escape(r["note"])}</p>' if r.get("note") else ""
    seeds = "" if r.get("n_seeds") is None else str(r["n_seeds"])
    cells = [
        ("Paper", escape(number(r["paper"], r["unit"]))),
        ("Here", here(r)),
        ("Seeds", seeds),
        ("Rule", escape(r["rule"])),
        ("Run", run(r)),
    ]
    return (
        f'<tr><td data-label="Holds?">{chip(r["holds"])}</td>'
        f'<th scope="row">{claim}{note}</th>'
        + "".join(
            f'<td data-label="{label}"><div class="cell-text">{text}</div></td>'
            for label, text in cells
        )
        + "</tr>"
    )


def here(r: dict) -> str:
    "What was measured, with its interval and its p-value where there is one."
    text = escape(measured(r))
    return text if r.get("p") is None else f"{text}, p = {escape(number(r['p']))} (two-sided)"


def run(r: dict) -> str:
    "Where a row comes from: scale, device, version, day."
    facts = [f"{escape(r['scale'])}, {escape(r['device'])}"]
    if r.get("torch"):
        facts.append(f"PyTorch {escape(str(r['torch']).split('+')[0])}")
    if r.get("date"):
        day = escape(str(r["date"])[:10])
        facts.append(f'<time datetime="{day}">{day}</time>')
    return "<br>".join(facts)
