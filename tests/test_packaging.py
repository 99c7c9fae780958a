"""The wheel, what it asks for, what works without the extras; the README; make's messages."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ponderlearn.catalogue import CATALOGUE

ROOT = Path(__file__).parents[1]
METHODS = [c.module for c in CATALOGUE if c.kind != "foundation" and c.notebook]
LIGHT = ("course", "catalogue", "records", "cards")  # they import no torch
BASE = ("torch", "numpy", "fastcore", "typer")  # what the package asks for without extras
cfg = ConfigParser(delimiters=["="])
cfg.read(ROOT / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]


def python(*args, env=None, cwd=None, executable=sys.executable):
    "Output of a Python process that must succeed."
    done = subprocess.run(
        [executable, *map(str, args)], capture_output=True, text=True, env=env, cwd=cwd, timeout=300
    )
    assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(source, goal):
    "The wheel of `source`, built without network into `goal`."
    python(
        "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", goal, source
    )
    (path,) = Path(goal).glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as z:
        (name,) = [n for n in z.namelist() if n.endswith(".dist-info/METADATA")]
        return Parser().parsestr(z.read(name).decode())


def closure(names):
    "The installed distributions that these need, themselves included."
    found, todo = {}, list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name not in found:
            found[name] = distribution(name)
            needs = map(Requirement, found[name].requires or [])
            todo += [n.name for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return found.values()


@pytest.fixture(scope="module")
def base_python(wheel, tmp_path_factory):
    "Python of a clean environment: the wheel and, lent by this one, what the base install needs."
    top = tmp_path_factory.mktemp("base")
    python("-m", "venv", "--without-pip", top / "venv")
    (executable,) = [
        p for p in ((top / "venv/bin/python"), (top / "venv/Scripts/python.exe")) if p.exists()
    ]
    python("-m", "pip", "--python", executable, "install", "--no-deps", "--no-index", wheel)
    lent = top / "lent"
    lent.mkdir()
    for dist in closure(BASE):
        for first in {f.parts[0] for f in dist.files if f.parts[0] not in ("..", "__pycache__")}:
            if not (lent / first).exists():
                (lent / first).symlink_to(dist.locate_file(first))
    site = python(
        "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", executable=executable
    ).strip()
    Path(site, "lent.pth").write_text(f"{lent}\n", encoding="utf-8")
    return executable


@pytest.fixture
def in_base(base_python, tmp_path):
    "Runs code in the base-only environment, far from the checkout."

    def run(*args):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PONDERLEARN"))}
        return subprocess.run(
            [base_python, *args], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=300
        )

    return run


# The wheel


def test_wheel_carries_the_course(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
        top = "ponderlearn/_course/"
        packed = {n.removeprefix(top): z.read(n) for n in names if n.startswith(top)}
    wanted = [ROOT / "index.ipynb", ROOT / "settings.ini", ROOT / "docs" / "held.svg"]
    wanted += [*(ROOT / "nbs").rglob("*.ipynb"), *(ROOT / "results").glob("*.json")]
    wanted = [
        p for p in wanted if ".ipynb_checkpoints" not in p.parts and not p.name.startswith("_")
    ]
    assert packed == {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in wanted}
    assert {"ponderlearn/py.typed", "ponderlearn/catalogue.toml"} <= names
    assert "ponderlearn/_modidx.py" not in names, "the site alone needs nbdev's index"
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT / "ponderlearn/_data").iterdir()} <= names
    assert not [n for n in names if n.startswith(("tests/", "docs/", "nbs/", "benchmarks/"))]
    assert {n.rsplit("/", 1)[1] for n in names if "/licenses/" in n} == {
        "LICENSE",
        "LICENSE-text",
        "THIRD_PARTY.md",
    }


def test_building_leaves_no_notebooks_behind(wheel):
    assert not (ROOT / "build").exists()
    assert not (ROOT / "ponderlearn/_course").exists()


def test_sdist_makes_the_same_wheel(wheel, tmp_path):
    leave = shutil.ignore_patterns(
        ".git", ".venv*", "_build", "node_modules", "__pycache__", "*.egg-info", ".*_cache"
    )
    copy = shutil.copytree(
        ROOT, tmp_path / "copy", ignore=leave
    )  # sdist works inside the tree that it packs
    python("-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path / "sdist", copy)
    (sdist,) = (tmp_path / "sdist").iterdir()
    with tarfile.open(sdist) as t:
        t.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    for name in (
        "Makefile",
        "constraints.txt",
        "CONTRIBUTING.md",
        ".ci/run",
        "tests/test_packaging.py",
    ):
        assert (source / name).is_file(), f"the source distribution lacks {name}"
    again = build(source, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as a, zipfile.ZipFile(again) as b:
        assert {i.filename: i.CRC for i in a.infolist() if "dist-info" not in i.filename} == {
            i.filename: i.CRC for i in b.infolist() if "dist-info" not in i.filename
        }


def test_extras(metadata):
    needs = {None: set(), **{extra: set() for extra in metadata.get_all("Provides-Extra")}}
    for line in metadata.get_all("Requires-Dist"):
        need = Requirement(line)
        extra = re.search(r'extra == "(\w+)"', line)
        needs[extra and extra[1]].add((need.name, str(need.specifier)))
    assert set(needs) == {None, "course", "lab", "dev"}
    assert needs["course"] < needs["lab"] < needs["dev"]
    assert {name for name, _ in needs[None]} == set(BASE)
    for name, bound in needs[None] | needs["lab"]:
        assert re.fullmatch(r">=[\d.]+", bound), (
            f"{name}{bound}: what users install has lower bounds only"
        )
    assert metadata["Requires-Python"] == f">={cfg['min_python']}"
    assert metadata["Version"] == cfg["version"]


def test_constraints_are_plain_versions_that_fit():
    lines = [
        s
        for s in (ROOT / "constraints.txt").read_text().splitlines()
        if s and not s.startswith("#")
    ]
    fixed = {}
    for line in lines:
        name, version = re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups()
        fixed[re.sub(r"[-_.]+", "-", name).lower()] = version
    for key in (k for k in cfg if k.endswith("requirements")):
        for need in map(Requirement, cfg[key].split()):
            if need.name not in ("setuptools", "wheel"):
                assert need.specifier.contains(fixed[need.name.lower()]), (
                    f"constraints.txt against {need}"
                )


# Without the extras


def test_base_environment_is_clean(in_base):
    done = in_base(
        "-c",
        "import importlib.util as u; print([n for n in ('pandas', 'matplotlib', 'nbdev', "
        "'sklearn', 'IPython', 'scipy', 'tqdm', 'nbclient') if u.find_spec(n)])",
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_base_environment_imports_every_method_module(in_base, wheel):
    names = [f"ponderlearn.{name}" for name in (*LIGHT, "_check", "_nested", "cli")]
    names += METHODS
    done = in_base(
        "-c",
        f"import importlib, ponderlearn\nfor n in {names}: importlib.import_module(n)\n"
        "print(ponderlearn.__file__)",
    )
    assert done.returncode == 0, done.stderr
    assert "site-packages" in done.stdout, "the wheel is not what was imported"


def test_import_is_light(in_base):
    names = ", ".join(f"ponderlearn.{name}" for name in LIGHT)
    look = "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = in_base("-c", f"import sys, {names}; {look}")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import ponderlearn.training as t; t.sweep(lambda seed: 1.0, seeds=2)",
        "import ponderlearn.viz as v; v.look()",
        "import ponderlearn.data as d; d.digits()",
        "import ponderlearn.data as d; d.mnist()",
    ],
)
def test_missing_extra_is_named(in_base, code):
    done = in_base("-c", code)
    assert done.returncode == 1
    words = r'ImportError: [\w.]+ is missing: pip install "ponderlearn\[course\]"$'
    assert re.search(words, done.stderr.strip()), done.stderr


def test_shipped_text_is_found(in_base):
    done = in_base("-c", "from ponderlearn.data import text; print(len(text().train) > 100_000)")
    assert done.stdout.strip() == "True", done.stderr


def test_command_line_without_extras(in_base, base_python):
    done = in_base(base_python.parent / "ponderlearn", "list")
    assert done.returncode == 0, done.stderr
    assert all(c.name in done.stdout for c in CATALOGUE)
    done = in_base(base_python.parent / "ponderlearn", "run", "act", "--scale", "quick")
    assert done.returncode != 0
    assert "ponderlearn[lab]" in done.stdout + done.stderr


@pytest.mark.parametrize("module", METHODS)
def test_method_modules_import_only_the_base(module):
    path = ROOT / (module.replace(".", "/") + ".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    extra = found - set(sys.stdlib_module_names) - {"torch", "numpy", "fastcore", "ponderlearn"}
    assert not extra, f"{module} imports {extra}"


# The front page and the other texts


def test_readme_is_made_from_the_index():
    nbconvert = pytest.importorskip("nbconvert")
    text, _ = nbconvert.MarkdownExporter(exclude_input=True).from_filename(
        str(ROOT / "index.ipynb")
    )
    assert (ROOT / "README.md").read_text(encoding="utf-8").strip() == text.strip(), (
        "run: make readme"
    )


def test_code_in_the_readme_runs(capsys):
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    exec(code, {})
    assert capsys.readouterr().out == "torch.Size([8, 10, 32]) torch.Size([8, 10])\n"


def test_index_shows_what_is_written_and_measured_now():
    cells = json.loads((ROOT / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    pytest.importorskip("IPython")
    names, shown = {}, 0
    for cell in (c for c in cells if c["cell_type"] == "code"):
        stored = "".join(cell["outputs"][0]["data"]["text/markdown"])
        *lines, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(lines, []), "index.ipynb", "exec"), names)
        now = eval(compile(ast.Expression(last.value), "index.ipynb", "eval"), names).data
        assert stored == now, "run: make readme"
        shown += 1
    assert shown == 3  # the picture with its counts, the problems, the chapters


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "THIRD_PARTY.md"])
def test_links_to_files_lead_somewhere(name):
    links = re.findall(r"\]\((?![a-z]+:|#)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert not [link for link in links if not (ROOT / link).exists()]


def test_one_version_everywhere():
    import ponderlearn

    assert ponderlearn.__version__ == cfg["version"]
    assert f"version: {cfg['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {cfg['version']}" in (ROOT / "CHANGELOG.md").read_text()


# make


@pytest.fixture
def make(tmp_path):
    "Runs make in a copy of the checkout's top; it sees the programs named and the scripts given."
    gnu_make = shutil.which("make")
    if gnu_make is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "settings.ini", "setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "sed", "head", "awk", "touch", "mkdir"):
        (programs / name).symlink_to(shutil.which(name))

    def run(*goals, **scripts):
        for name, body in scripts.items():
            (programs / name).write_text(f"#!{shutil.which('sh')}\n{body}\n")
            (programs / name).chmod(0o755)
        env = {"PATH": str(programs), "CI": "true"}
        return subprocess.run(
            [gnu_make, *goals], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
        )

    return run


def test_make_without_python(make):
    done = make("course")
    assert done.returncode != 0
    assert "ponderlearn needs Python 3.11 or later; found: no Python" in done.stderr
    assert "make PYTHON=" in done.stderr


@pytest.mark.parametrize("goal", ["course", "test", "lab", "test-lowest", "test-newest", "bench"])
def test_make_with_an_old_python(make, goal):
    done = make(goal, python3='[ "$1" = --version ] && echo Python 3.9.18; exit 1')
    assert done.returncode != 0
    wanted = "found: no Python" if goal == "test-lowest" else "found: Python 3.9.18 (python3)"
    assert wanted in done.stderr


def test_make_without_the_venv_module(make):
    done = make("course", python3='case "$2" in *ensurepip*) exit 1;; esac')
    assert done.returncode != 0
    assert "python3 has no venv module" in done.stderr
    assert "apt install python3-venv" in done.stderr


def test_make_takes_the_python_it_is_told(make):
    done = make("course", "PYTHON=mine", mine='case "$2" in *ensurepip*) exit 1;; esac')
    assert "mine has no venv module" in done.stderr


def test_make_alone_lists_the_commands(make):
    done = make()
    assert done.returncode == 0
    assert {"course", "lab", "test", "bench", "docs"} <= set(
        re.findall(r"make ([\w-]+)", done.stdout)
    )


def test_ci_script():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
