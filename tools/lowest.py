"""The lowest versions that settings.ini allows, for `make test-lowest`.

    python tools/lowest.py            prints them as pip constraints: `torch>=2.6` is `torch==2.6.*`
    python tools/lowest.py no-cuda    spares this environment the 2 GB of CUDA that torch asks for

The second is for a torch from PyPI on Linux, installed without what it asks for: the large CUDA
packages get an entry in the environment but no files, and each shared library of theirs that torch
opens becomes one whose functions do nothing (this takes a C compiler and `readelf`). What runs on a
CPU is then tested with torch's own code; its GPU side is not."""

import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import distribution, distributions
from pathlib import Path
from tempfile import TemporaryDirectory

# ipywidgets 7 asks for any notebook: without this pip tries one after the other, all too new
NEEDED_TO_END = ["notebook==7.0.*"]
SMALL = ("nvidia-cuda-runtime-cu12", "nvidia-nvtx-cu12")  # torch calls them on a CPU too,
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
    here = {d.name.lower() for d in distributions()}
    for line in torch.requires or []:
        found = re.match(r"((?:nvidia-|triton)[\w-]*) ?\(?==([\w.]+)", line)
        if found and found[1] not in here and found[1] not in SMALL:
            pretend(site, *found.groups())
    libraries = list((site / "torch" / "lib").glob("*.so*"))
    text = "".join(read_elf(library) for library in libraries)
    functions = set(re.findall(r" UND ((?:cu|nv|nccl)\w+)(?:@(\S+))?", text))
    for name in set(re.findall(r"NEEDED.*\[(lib(?:cu|nv|nccl)[\w.-]+)\]", text)):
        if not name.startswith(REAL):
            own = sorted(f for f, version in functions if version in ("", name))
            empty_library(site / "torch" / "lib" / name, own)


def pretend(site: Path, name: str, version: str) -> None:
    "An entry for a package that is not there."
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", ""]
    (info / "METADATA").write_text("\n".join(lines))
    (info / "RECORD").write_text("")


def read_elf(library: Path) -> str:
    "What a shared library needs: its libraries and its undefined functions."
    command = ["readelf", "--wide", "--dynamic", "--dyn-syms", library]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def empty_library(path: Path, functions: list[str]) -> None:
    "A shared library with these functions, all of its own version; they do nothing."
    if path.exists():
        return
    with TemporaryDirectory() as folder:
        source, versions = Path(folder, "empty.c"), Path(folder, "versions")
        source.write_text("".join(f"void {name}(void) {{}}\n" for name in functions))
        versions.write_text(f"{path.name} {{ *; }};\n")
        link = f"-Wl,-soname,{path.name},--version-script,{versions}"
        subprocess.run(["cc", "-w", "-shared", "-fPIC", link, source, "-o", path], check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["no-cuda"]:
        without_cuda()
    else:
        print(*constraints(), sep="\n")
