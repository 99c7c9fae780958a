"""The lowest versions that settings.ini allows, for `make test-lowest`.

    python tools/lowest.py            prints them as pip constraints: `torch>=2.6` is `torch==2.6.*`
    python tools/lowest.py no-cuda    spares this environment the 2 GB of CUDA that torch asks for

The second is for a torch from PyPI on Linux, installed without what it asks for: the large CUDA
packages get an entry in the environment but no files, and each shared library of theirs that torch
opens becomes an empty one (this takes a C compiler and `readelf`). What runs on a CPU is then
tested with torch's own code; its GPU side is not."""

import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import distribution, distributions
from pathlib import Path

# ipywidgets 7 asks for any notebook: without this pip tries one after the other, all too new
NEEDED_TO_END = ["notebook==7.0.*"]
SMALL = ("nvidia-cuda-runtime-cu12", "nvidia-nvtx-cu12")  # real: torch calls them on a CPU too


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
        found = re.match(r"((?:nvidia-|triton)[\w-]*)==([\w.]+)", line)
        if found and found[1] not in here and found[1] not in SMALL:
            name, version = found.groups()
            info = site / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (info / "METADATA").write_text(text)
            (info / "RECORD").write_text("")
    folder = site / "torch" / "lib"
    for library in list(folder.glob("*.so*")):
        header = subprocess.run(
            ["readelf", "-d", library], capture_output=True, text=True, check=True
        )
        for name in re.findall(r"NEEDED.*\[(lib(?:cu|nv|nccl)[\w.-]+)\]", header.stdout):
            if not (folder / name).exists() and not name.startswith(("libcudart", "libnvToolsExt")):
                command = ["cc", "-shared", f"-Wl,-soname,{name}", "-o", folder / name]
                subprocess.run([*command, "-x", "c", "/dev/null"], check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["no-cuda"]:
        without_cuda()
    else:
        print(*constraints(), sep="\n")
