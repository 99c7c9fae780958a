"""The catalogue, the scale, the record and the files that are whole or old."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponderlearn import course
from ponderlearn.course import (
    CATALOGUE,
    PARTS,
    by_scale,
    card,
    chapter,
    claims_table,
    record,
    write_atomic,
)

PAPERS = [c for c in CATALOGUE if c.part]
ORDER = """act pondernet sire performer perceiver ipt alignment_uniformity swav relic seqclr drs ratio_clipping transgan
exemplar_vae vaebm guided_diffusion latent_directions gan_control stylex neuron_shapley aum early_stopping sam
functional_entropy supsup commentaries meta_augmentation robust_ot otdd prism infobert summarize_feedback""".split()


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("PONDERLEARN_SCALE", "PONDERLEARN_DEVICE", "PONDERLEARN_RECORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(course, "_recorded", {})


def python(code, **options):
    "Run a Python process."
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **options
    )


# The catalogue


def test_32_papers_in_nine_parts():
    assert sorted(c.name for c in PAPERS) == sorted(ORDER)
    assert {c.part for c in PAPERS} == set(range(1, 10)) and set(PARTS) == set(range(10))
    assert len({c.name for c in CATALOGUE}) == len(CATALOGUE)
    for part in PARTS:
        first = 0 if part == 0 else 1
        numbers = [c.number for c in CATALOGUE if c.part == part]
        assert numbers == list(range(first, first + len(numbers)))


@pytest.mark.parametrize("c", PAPERS, ids=lambda c: c.name)
def test_every_paper_is_credited(c):
    assert c.title and c.claim.endswith(".") and c.authors and c.venue and 2016 <= c.year <= 2021
    assert re.fullmatch(r"\d{4}\.\d{5}", c.arxiv) and re.fullmatch(r"(https://\S+)?", c.code)
    assert (
        c.review.language in ("Hebrew", "Russian")
        and c.review.reviewer
        and c.review.recommendation
        and c.know
    )
    names = [x.name for x in CATALOGUE]
    assert all(names.index(p) < names.index(c.name) for p in c.prerequisites)
    assert c.bibtex.count("{") == c.bibtex.count("}") and c.arxiv in c.bibtex
    assert (c.review.recommendation == "not rated") == (c.name == "act")


def test_every_notebook_is_in_the_catalogue():
    found = {
        p.relative_to(course.course_root()).as_posix()
        for p in (course.course_root() / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts
    }
    assert found == {c.notebook for c in CATALOGUE if c.notebook}
    assert (
        chapter("act").module == "ponderlearn.adaptive.act"
        and chapter("check").module == "ponderlearn._check"
    )


@pytest.mark.parametrize(
    "name, near", [("atc", "act"), ("PonderNet", "pondernet"), ("swaw", "swav")]
)
def test_the_nearest_name_is_suggested(name, near):
    with pytest.raises(ValueError, match=re.escape(f"no chapter {name!r}; did you mean {near!r}?")):
        chapter(name)


def test_a_far_name_points_to_the_list():
    with pytest.raises(ValueError, match="ponderlearn list"):
        chapter("zzzzzzzz")
    for f in (card, claims_table, course.results, course.runs):
        with pytest.raises(ValueError, match="did you mean 'act'"):
            f("atc")


# Import


@pytest.mark.parametrize("module", ["ponderlearn", "ponderlearn.course", "ponderlearn.cli"])
def test_import_brings_no_heavy_package(module):
    heavy = {"torch", "numpy", "matplotlib", "pandas", "nbformat"}
    done = python(f"import sys, {module}; print({heavy} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


def test_import_is_fast():
    code = "import time; t = time.process_time(); import ponderlearn; print(time.process_time() - t)"  # not the waiting
    assert min(float(python(code).stdout) for _ in range(5)) < 0.3
    code = code.replace("import ponderlearn;", "import ponderlearn.course;")
    assert min(float(python(code).stdout) for _ in range(5)) < 0.3


# Scale and device


def test_scale(monkeypatch):
    assert course.scale() == "full"
    for name in ("quick", "full", "gpu"):
        monkeypatch.setenv("PONDERLEARN_SCALE", name)
        assert course.scale() == name
    monkeypatch.setenv("PONDERLEARN_SCALE", "fast")
    with pytest.raises(
        ValueError, match="PONDERLEARN_SCALE must be one of 'quick', 'full', 'gpu', got 'fast'"
    ):
        course.scale()


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
    assert course.device() == torch.device("cpu")
    monkeypatch.setenv("PONDERLEARN_DEVICE", "abacus")
    with pytest.raises(ValueError, match="PONDERLEARN_DEVICE must be a torch device"):
        course.device()
    if not torch.cuda.is_available():
        monkeypatch.setenv("PONDERLEARN_DEVICE", "cuda")
        with pytest.raises(
            RuntimeError, match="must name a device that PyTorch finds here, got 'cuda'"
        ):
            course.device()


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
        "device": course.device().type,
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
    }


def test_rows_are_keyed_by_claim_scale_and_device(monkeypatch):
    claim(here=1.0)
    claim(here=2.0, holds=np.bool_(False))
    monkeypatch.setenv("PONDERLEARN_SCALE", "quick")
    claim(here=3.0, holds="not tested at this scale")
    rows = [(r.scale, r.here, r.holds) for r in course._recorded.values()]
    assert rows == [("full", 2.0, "no"), ("quick", 3.0, "not tested at this scale")]


@pytest.mark.parametrize(
    "changes, error",
    [
        (dict(here=float("nan")), "here must be finite"),
        (dict(paper=float("inf")), "paper must be finite"),
        (
            dict(holds="perhaps"),
            "holds must be a bool or one of 'yes', 'no', 'partly', 'not tested at this scale'",
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
            "seeds must be integers and n_seeds their number, got 5 and None",
        ),
        (dict(seeds="12"), TypeError, "seeds must be integers"),
        (dict(seeds=(0.5,)), TypeError, "seeds must be integers"),
        (
            dict(seeds=(1, 2), n_seeds=3),
            ValueError,
            "n_seeds must be the number of seeds, 2, got 3",
        ),
        (dict(rule=" "), ValueError, "rule must not be empty, got ' '"),
        (dict(rule=None), TypeError, "rule must be text, got NoneType"),
        (dict(cell=3), TypeError, "cell must be text, got int"),
        (dict(text=""), ValueError, "claim must not be empty"),
    ],
)
def test_a_refused_claim_leaves_no_trace(tmp_path, monkeypatch, changes, kind, error):
    monkeypatch.setenv("PONDERLEARN_RECORD", str(tmp_path))
    with pytest.raises(kind, match=error):
        claim(**changes)
    assert not course._recorded and not list(tmp_path.iterdir())


def test_claims_table_is_accessible_and_escaped():
    claim("a < b & c", interval=(0.3, 0.5), unit="steps", seeds=[1, 2])
    page = claims_table("act")
    html = page._repr_html_()
    assert html.count('<th scope="col"') == 6 and html.count('<th scope="row"') == 1
    assert "a &lt; b &amp; c" in html and "<caption>" in html
    assert "0.4 steps [0.3, 0.5]" in repr(page) and "below the paper" in repr(page)


# The committed results


def test_results_join_claims_with_their_run(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "nbs").mkdir()
    row = claim()._asdict()
    run = {
        "scale": "full",
        "device": row["device"],
        "torch": "2.13.0",
        "seconds": 61.0,
        "date": "2026-01-01",
    }
    (tmp_path / "results" / "act.json").write_text(
        json.dumps({"chapter": "act", "runs": [run], "claims": [row]})
    )
    monkeypatch.setattr(course, "course_root", lambda: tmp_path)
    (found,) = course.results()
    assert found["chapter"] == "act" and found["holds"] == "yes"
    assert (found["torch"], found["seconds"]) == ("2.13.0", 61.0)
    assert course.results("pondernet") == []
    assert chapter("act").seconds == {"quick": None, "full": 61.0, "gpu": None}
    assert chapter("act").notebook is None and "not written yet" in card("act").text


def test_links_hide_until_there_is_an_address(tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    monkeypatch.setattr(course, "course_root", lambda: tmp_path)
    (tmp_path / "settings.ini").write_text(
        "[DEFAULT]\nuser =\nrepo = ponderlearn\nbranch = main\ndoc_host =\n"
    )
    assert course.links("act") == {} and "colab" not in card("act").html
    (tmp_path / "settings.ini").write_text(
        "[DEFAULT]\nuser = somebody\nrepo = r\nbranch = main\ndoc_host = https://example.org\ndoc_baseurl = /r\n"
    )
    assert course.links("act") == {
        "Open in Colab": "https://colab.research.google.com/github/somebody/r/blob/main/nbs/01_adaptive/01_act.ipynb",
        "Source": "https://github.com/somebody/r/blob/main/nbs/01_adaptive/01_act.ipynb",
        "On the site": "https://example.org/r/nbs/01_adaptive/01_act.html",
    }
    assert "Open in Colab</a>" in card("act").html


def test_card_says_whose_opinions():
    for c in PAPERS:
        page = card(c.name)
        assert "the opinions are the reviewer's" in page.text and c.review.reviewer in page.text
        assert c.arxiv in page.html and "<details>" in page.html and "<img" not in page.html


def test_the_installed_package_finds_its_course(tmp_path):
    package = tmp_path / "ponderlearn"
    ignore = shutil.ignore_patterns("_course", "__pycache__", "_data")
    shutil.copytree(Path(course.__file__).parent, package, ignore=ignore)
    code = "import ponderlearn.course as c; print(c.in_checkout(), c.course_root().name, c.chapter('act').notebook)"
    run = lambda: python(code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert "install ponderlearn again" in run().stderr
    (package / "_course" / "nbs" / "01_adaptive").mkdir(parents=True)
    (package / "_course" / "nbs" / "01_adaptive" / "01_act.ipynb").write_text("{}")
    assert run().stdout.split() == ["False", "_course", "nbs/01_adaptive/01_act.ipynb"]


# Files that are whole or old


@given(st.text())
def test_write_atomic_keeps_every_text(tmp_path_factory, text):
    file = write_atomic(tmp_path_factory.mktemp("w") / "deep" / "a.txt", text)
    assert file.read_bytes() == text.encode()
    assert [p.name for p in file.parent.iterdir()] == ["a.txt"]


def test_write_atomic_takes_text_and_bytes_only(tmp_path):
    with pytest.raises(TypeError, match="data must be text or bytes, got int"):
        write_atomic(tmp_path / "new" / "a", 5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, where):
    file = write_atomic(tmp_path / "a.json", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(where, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(file, "new" * 1000)
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(os.name != "posix", reason="limits of file sizes are POSIX")
def test_a_disk_that_fills_while_writing_leaves_the_old_file(tmp_path):
    file = write_atomic(tmp_path / "a.bin", b"old")
    done = python(
        "import resource, signal, sys; from ponderlearn.course import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"write_atomic({str(file)!r}, b'n' * 1_000_000)"
    )
    assert (
        "OSError" in done.stderr
        and file.read_bytes() == b"old"
        and os.listdir(tmp_path) == ["a.bin"]
    )


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_kill_while_writing_leaves_one_whole_file(tmp_path):
    file = write_atomic(tmp_path / "a.bin", b"0" * 3_000_000)
    code = (
        "from ponderlearn.course import write_atomic\nprint('go', flush=True)\n"
        f"for i in range(10_000): write_atomic({str(file)!r}, str(i % 10).encode() * 3_000_000)"
    )
    for pause in (0.0, 0.003, 0.011, 0.02):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        data = file.read_bytes()
        assert len(data) == 3_000_000 and len(set(data)) == 1
