"""The distributions: what is in them, and that each installs and runs by itself."""
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from suite import cases

ROOT = Path(__file__).resolve().parent.parent
MODULES = {p.relative_to(ROOT).as_posix() for p in (ROOT / "itnet").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
BUILT_FROM = "settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"


def outside(*command: str, cwd: Path) -> str:
    "Output of a command in a folder from which the checkout cannot be imported."
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copied(source: Path) -> Path:
    "What the package is built from, in a folder of its own."
    for name in BUILT_FROM: shutil.copy2(ROOT / name, source)
    shutil.copytree(ROOT / "itnet", source / "itnet", ignore=shutil.ignore_patterns("__pycache__"))
    return source


def environment(folder: Path) -> tuple[str, Path]:
    "The Python of a fresh environment that sees this one's libraries, but not its installation of the package."
    outside(sys.executable, "-m", "venv", "--without-pip", "env", cwd=folder)
    python = str(folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python")
    site = Path(outside(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python, site


def install(python: str, what: list[str], folder: Path) -> None:
    outside(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index",
            "--no-build-isolation", "--ignore-installed", *what, cwd=folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    "The source distribution, and the wheel that is built from it: `python -m build`."
    source = copied(tmp_path_factory.mktemp("source"))
    for folder in ("tests", "nbs"): (source / folder).mkdir()
    (source / "tests" / "test_x.py").touch()
    outside(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", cwd=source)
    return {"sdist": next((source / "dist").glob("*.tar.gz")), "wheel": next((source / "dist").glob("*.whl"))}


def test_contents(built):
    "The wheel is the package and nothing else; the source distribution adds what builds it."
    wheel = set(zipfile.ZipFile(built["wheel"]).namelist())
    info = next(n.partition("/")[0] for n in wheel if ".dist-info/" in n)
    assert {n for n in wheel if not n.startswith(info)} == MODULES and f"{info}/licenses/LICENSE" in wheel
    with tarfile.open(built["sdist"]) as tar: names = {m.name.partition("/")[2] for m in tar if m.isfile()}
    extra = {n for n in names if not n.startswith("itnet.egg-info/")}
    assert extra == MODULES | set(BUILT_FROM) | {"PKG-INFO", "setup.cfg"}


def test_the_description_can_be_read_elsewhere(built):
    "On an index of packages there is no checkout: every link is absolute, to a page of the site or the repository."
    wheel = zipfile.ZipFile(built["wheel"])
    metadata = wheel.read(next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))).decode()
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)", metadata)
    assert len(links) > 10 and all(url.startswith("https://") for _, url in links), links
    assert not any(url.endswith(".ipynb") for _, url in links) and {url.split("/raw/")[1] for image, url in links if image} == {"main/index_files/figure-1.png"}
    assert any(url.endswith("/start/own_data.html") for _, url in links) and any(url.endswith("/face.html") for _, url in links)
    assert "$$" not in metadata and {"train", "hub", "lab", "gpu", "all", "dev"} <= set(re.findall(r"^Provides-Extra: (\w+)", metadata, re.M))
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert len(needed) == 4, needed


@pytest.mark.parametrize("kind", cases(["wheel"], ["sdist"]))       # of the source distribution, which it is built from
def test_installs_and_runs(built, kind, tmp_path):
    python, site = environment(tmp_path)
    install(python, [str(built[kind])], tmp_path)
    program = "import itnet, itnet.transform as t; from importlib.metadata import version; print(t.__file__, itnet.__version__, version('itnet'))"
    file, *versions = outside(python, "-c", program, cwd=tmp_path).split()
    assert Path(file).is_relative_to(site) and len(set(versions)) == 1
    assert "train" in outside(str(Path(python).with_name("itnet")), "--help", cwd=tmp_path)


def test_in_place_it_is_found_beside_its_checkout(tmp_path):
    "The folder `itnet` beside which Python starts is the checkout, not the package: it must not be taken for one."
    (tmp_path / "itnet").mkdir()
    copied(tmp_path / "itnet")
    python, site = environment(tmp_path)
    install(python, ["-e", str(tmp_path / "itnet")], tmp_path)
    (tmp_path / "script.py").write_text("import itnet; print(itnet.__version__, itnet.__file__)")
    version, file = outside(python, "script.py", cwd=tmp_path).split()
    assert Path(file) == tmp_path / "itnet" / "itnet" / "__init__.py"
    for words in (["-m", "itnet"], ["-m", "itnet.cli"]): assert outside(python, *words, "--version", cwd=tmp_path) == f"itnet {version}\n"
