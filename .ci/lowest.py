"""Prints, as pip constraints, the lowest versions that settings.ini allows: `torch>=2.6` becomes `torch==2.6.*`."""

import re
from configparser import ConfigParser
from pathlib import Path

parser = ConfigParser(delimiters=["="])
parser.read(Path(__file__).parents[1] / "settings.ini", encoding="utf-8")
for key in ("requirements", "course_requirements", "lab_requirements"):
    for word in parser["DEFAULT"][key].split():
        name, lowest = re.fullmatch(r"([\w.-]+)>=([\d.]+)", word).groups()
        print(f"{name}=={lowest}.*")
