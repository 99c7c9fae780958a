"""What `ponderlearn.course` hands on, and what importing it costs."""

import subprocess
import sys

import pytest

from ponderlearn import cards, catalogue, course, records


def python(code):
    "Run a Python process."
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("module", [catalogue, records, cards], ids=lambda m: m.__name__)
def test_every_public_name_is_handed_on(module):
    assert module.__all__
    for name in module.__all__:
        assert getattr(course, name) is getattr(module, name)


@pytest.mark.parametrize("module", ["", ".catalogue", ".records", ".cards", ".course", ".cli"])
def test_import_brings_no_heavy_package(module):
    heavy = {"torch", "numpy", "matplotlib", "pandas", "nbformat"}
    done = python(f"import sys, ponderlearn{module}; print({heavy} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


def test_a_table_of_claims_needs_no_heavy_package():
    done = python(
        "import sys; import ponderlearn.course as c\n"
        "c.card('act'), c.rules_table('act'), c.results(), c.table([{'a': 1}])\n"
        "print({'torch', 'numpy', 'pandas'} & set(sys.modules))"
    )
    assert done.stdout.strip() == "set()", done.stderr
