"""Packaging: everything that names the package is read from settings.ini, as nbdev does."""

import atexit
import re
import shutil
import tempfile
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(ROOT / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

words = {key: cfg[key].split() for key in cfg if key.endswith("requirements")}
course = words["course_requirements"]
lab = course + words["lab_requirements"]
dev = lab + words["dev_requirements"]

address = cfg["git_url"] or (
    f"https://github.com/{cfg['user']}/{cfg['repo']}" if cfg["user"] else ""
)
site = f"{cfg['doc_host']}{cfg['doc_baseurl']}" if cfg["doc_host"] else ""


def readme() -> str:
    "README.md; where the project has an address, its relative links are made whole."
    text = (
        (ROOT / "README.md").read_text(encoding="utf-8")
        if (ROOT / "README.md").exists()
        else cfg["description"]
    )
    if not address:
        return text
    picture, link = r"(!\[[^\]]*\]\()(?![a-z]+:)([^)]+)", r"(\]\()(?![a-z]+:|#)([^)]+)"
    text = re.sub(picture, rf"\1{address}/raw/{cfg['branch']}/\2", text)
    return re.sub(link, rf"\1{address}/blob/{cfg['branch']}/\2", text)


class BuildWithCourse(build_py):
    """Adds notebooks, results and settings (for the links) to the wheel as `ponderlearn/_course/`.

    An editable install has the checkout. nbdev's index of names is for the site alone."""

    def find_package_modules(self, package, package_dir) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if module[1] != "_modidx"]

    def course_files(self) -> dict[str, str]:
        "Path in the build -> path in the checkout."
        found = [ROOT / "index.ipynb", ROOT / "settings.ini", ROOT / "docs" / "held.svg"]
        found += [*(ROOT / "nbs").rglob("*.ipynb"), *(ROOT / "results").glob("*.json")]
        keep = [path.relative_to(ROOT) for path in found if path.exists()]
        keep = [
            path for path in keep if not any(part.startswith((".", "_")) for part in path.parts)
        ]
        goal = Path(self.build_lib) / cfg["lib_path"] / "_course"
        return {str(goal / path): str(path) for path in sorted(keep)}

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for goal, source in self.course_files().items():
                self.mkpath(str(Path(goal).parent))
                self.copy_file(str(ROOT / source), goal)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        more = [] if self.editable_mode else list(self.course_files())
        return [*super().get_outputs(include_bytecode), *more]


# Nothing is built inside the tree: nbdev would find the copied notebooks there, and later wheels
# would pack old files.
build_base = tempfile.mkdtemp(prefix="ponderlearn-build-")
atexit.register(shutil.rmtree, build_base, ignore_errors=True)

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme(),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"] or None,
    url=address or None,
    project_urls={"Documentation": site} if site else {},
    keywords=cfg["keywords"],
    license_expression="Apache-2.0 AND CC-BY-4.0 AND PSF-2.0",
    license_files=["LICENSE", "LICENSE-text", "THIRD_PARTY.md"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=f">={cfg['min_python']}",
    install_requires=words["requirements"],
    extras_require={"course": course, "lab": lab, "dev": dev},
    packages=find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]),
    package_data={cfg["lib_path"]: ["py.typed", "catalogue.toml", "_data/**/*"]},
    include_package_data=False,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    zip_safe=False,
    cmdclass={"build_py": BuildWithCourse},
    options={"build": {"build_base": build_base}},
)
