"""The lowest versions that settings.ini allows, for `make test-lowest`.

    python tools/lowest.py            prints them as pip constraints: `torch>=2.6` is `torch==2.6.*`
    python tools/lowest.py no-cuda    spares this environment the 2 GB of CUDA that torch asks for

The second is for a torch from PyPI on Linux, installed without what it asks for: the large CUDA
packages get an entry in the environment but no files, and each shared library of theirs that torch
opens becomes one whose functions do nothing (this takes a C compiler and `readelf`). What runs on a
CPU is then tested with torch's own code; its GPU side is not."""

import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import distribution, distributions
from pathlib import Path
from tempfile import TemporaryDirectory

# ipywidgets 7 asks for any notebook: without this pip tries one after the other, all too new
NEEDED_TO_END = ["notebook==7.0.*"]
SMALL = ("nvidia-cuda-runtime-cu12", "nvidia-nvtx-cu12")  # torch calls them on a CPU too,
SMALL_EXTRAS = {"cudart": "nvidia-cuda-runtime"}  # of cuda-toolkit, which newer ones ask for
REAL = ("libcudart.", "libnvToolsExt.", "libcuda.")  # so these stay real, as does the driver's


def constraints() -> list[str]:
    parser = ConfigParser(delimiters=["="])
    parser.read(Path(__file__).parents[1] / "settings.ini", encoding="utf-8")
    found = []
    for key in ("requirements", "course_requirements", "lab_requirements"):
        for word in parser["DEFAULT"][key].split():
            name, lowest = re.fullmatch(r"([\w.-]+)>=([\d.]+)", word).groups()
            found.append(f"{name}=={lowest}.*")
    return found + NEEDED_TO_END


def without_cuda() -> None:
    torch = distribution("torch")
    site = Path(torch.locate_file(""))
    here = {d.name.lower() for d in distributions() if d.files}  # those made here have none
    for line in torch.requires or []:
        # such as nvidia-nccl-cu12==2.21.5, cuda-toolkit[cudart,nvtx]==13.0.3, triton~=3.8.0
        name = re.match(r"(?:nvidia-|cuda-toolkit|triton)[\w-]*", line)
        if name and name[0] not in here and name[0] not in SMALL:
            rest = re.match(r"(?:\[(.*)\])? ?\(?[=~]= ?([\d.]+)", line[name.end() :])
            extras, version = rest.groups()
            pretend(site, name[0], version, (extras or "").split(","))
    libraries = [f.locate() for f in torch.files if re.search(r"torch/lib/[^/]*\.so", str(f))]
    text = "".join(read_elf(library) for library in libraries)
    functions = set(re.findall(r" UND ((?:cu|nv|nccl)\w+)(?:@(\S+))?", text))
    versions = dict(re.findall(r"File: (lib(?:cu|nv|nccl)[\w.-]+) .*\n.*Name: (\S+)", text))
    for name in set(re.findall(r"NEEDED.*\[(lib(?:cu|nv|nccl)[\w.-]+)\]", text)):
        path, version = site / "torch" / "lib" / name, versions.get(name, name)
        if not name.startswith(REAL) and path not in libraries:
            own = {f for f, its_version in functions if its_version in ("", version)}
            empty_library(path, sorted(own), version)


def pretend(site: Path, name: str, version: str, extras: list[str]) -> None:
    "An entry for a package that is not there. What is small among its extras it asks for."
    for old in site.glob(f"{name.replace('-', '_')}-*.dist-info"):
        shutil.rmtree(old)
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras if extra]
    release = ".".join(version.split(".")[:2])
    for extra in set(extras) & set(SMALL_EXTRAS):
        lines.append(f"Requires-Dist: {SMALL_EXTRAS[extra]}=={release}.*; extra == '{extra}'")
    (info / "METADATA").write_text("\n".join([*lines, ""]))
    (info / "RECORD").write_text("")


def read_elf(library: Path) -> str:
    "What a shared library needs: its libraries, their versions and its undefined functions."
    command = ["readelf", "--wide", "--dynamic", "--version-info", "--dyn-syms", library]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def empty_library(path: Path, functions: list[str], version: str) -> None:
    "A shared library with these functions, all of this version; they do nothing."
    with TemporaryDirectory() as folder:
        source, script = Path(folder, "empty.c"), Path(folder, "versions")
        source.write_text("".join(f"void {name}(void) {{}}\n" for name in functions))
        script.write_text(f"{version} {{ *; }};\n")
        link = f"-Wl,-soname,{path.name},--version-script,{script}"
        subprocess.run(["cc", "-w", "-shared", "-fPIC", link, source, "-o", path], check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["no-cuda"]:
        without_cuda()
    else:
        print(*constraints(), sep="\n")
