import json
import tempfile
from pathlib import Path

from mistakes import Call, ok, words

from ponderlearn import execution

NOTEBOOK = Path(tempfile.mkdtemp()) / "a.ipynb"
CELL = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1 + 1", "outputs": []}
NB = {
    "cells": [CELL | {"execution_count": None}],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 5,
}
NOTEBOOK.write_text(json.dumps(NB))


def same_name(module):
    return module.__name__


EXAMPLES = {
    "fingerprint": lambda: Call(execution.fingerprint, notebook=NB),
    "module_fingerprint": lambda: Call(
        execution.module_fingerprint, name=ok("records", "misspelt")
    ),
    "changed": lambda: Call(execution.changed, name="act"),
    "need": lambda: Call(execution.need, module=ok("json", "misspelt"), extra=words("lab")).then(
        same_name
    ),
    "read_notebook": lambda: Call(execution.read_notebook, path=NOTEBOOK),
}
HANDED_ON = "takes what execute returns, not what one types"
WITHOUT = {
    "execute": "the command run calls it; starts a kernel",
    **dict.fromkeys(("as_results", "store_results", "store_outputs", "verified"), HANDED_ON),
    **dict.fromkeys(("same_machine", "differences", "lighter_png"), HANDED_ON),
    "add_results": "the command results calls it; writes into the checkout",
}
ALLOWED = {}
