import json
import tempfile
from pathlib import Path

from mistakes import Call, words

from ponderlearn import catalogue

FOLDER = Path(tempfile.mkdtemp())
TEXT, OBJECT = FOLDER / "a.txt", FOLDER / "a.json"
OBJECT.write_text(json.dumps({"a": 1}))


def written(path):
    return path.read_text()


EXAMPLES = {
    "chapter": lambda: Call(catalogue.chapter, name="act"),
    "notebook_path": lambda: Call(catalogue.notebook_path, c=catalogue.chapter("act")),
    "read_json": lambda: Call(catalogue.read_json, path=OBJECT),
    "links": lambda: Call(catalogue.links, name="act"),
    "write_atomic": lambda: Call(catalogue.write_atomic, path=TEXT, data=words("text")).then(
        written
    ),
}
ALLOWED = {}
