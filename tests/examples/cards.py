from mistakes import Call, ok, words

from ponderlearn import cards

ROWS = [{"arm": "a", "loss": 0.25}, {"arm": "b", "loss": 0.5}]


def by_name(f, argument="chapter"):
    return lambda: Call(f, **{argument: "act"})


EXAMPLES = {
    "table": lambda: Call(
        cards.table, rows=ok(ROWS, "entry less"), caption=words("scores"), fmt=".3f"
    ),
    "table, a format a column": lambda: Call(
        cards.table,
        rows=ok(ROWS, "entry less"),
        fmt=ok({"loss": ".3f"}, "empty", "None inside", "text"),
    ),
    "rules_table": by_name(cards.rules_table),
    "claims_table": by_name(cards.claims_table),
    "bench_table": by_name(cards.bench_table),
    "card": by_name(cards.card, "name"),
}
WITHOUT = {"Table": "made by table, not by hand", "Page": "made by card, not by hand"}
ALLOWED = {}
