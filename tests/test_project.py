"""What holds for the project as a whole and belongs in no notebook: metadata, pins, the sidebar, conventions, README."""
import ast
import importlib.metadata as metadata
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(NBS).parts))
# folders of one machine; `/home/me` is an example
HERE = re.compile(r"/(?:home|Users)/(?!(?:me|you|user)\b)\w|/(?:root|work)/\w|/tmp/tmp\w|[A-Z]:\\\\Users\b")


def settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines), "constraints.txt holds plain name==version lines"
    return {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}


def tracked() -> list[Path]:
    "Files of the checkout that git keeps or would keep."
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True)
    if listed.returncode: pytest.skip("not a git checkout")
    return [p for p in (ROOT / name for name in listed.stdout.splitlines()) if p.is_file()]


# --- packaging

def test_installed_metadata_is_settings_ini():
    cfg, dist = settings(), metadata.distribution("itnet")
    assert dist.version == cfg["version"]
    assert dist.metadata["Requires-Python"] == f">={cfg['min_python']}"
    assert {(e.group, e.name, e.value) for e in dist.entry_points} == {
        ("console_scripts", "itnet", "itnet.cli:main"), ("nbdev", "itnet", "itnet._modidx:d")}
    declared = {Requirement(r).name for r in cfg["requirements"].split()}
    assert declared <= {Requirement(r).name for r in dist.requires or []}


def test_version_is_the_packages():
    import itnet
    assert itnet.__version__ == settings()["version"]


@pytest.mark.parametrize("kind", [key for key in settings() if key.endswith("requirements")])
def test_constraints_pin_every_requirement(kind):
    versions = pins()
    for requirement in map(Requirement, settings()[kind].split()):
        version = versions.get(requirement.name.lower().replace("_", "-"))
        assert version, f"{requirement.name} is in settings.ini and not in constraints.txt: run tools/pins.py"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} does not allow the pinned {version}"


def test_imports_are_declared():
    "Every package that itnet/ imports, at the top of a module or inside a function, is a requirement of settings.ini."
    names = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}
    of = lambda key: {names.get(n, n) for n in (Requirement(r).name for r in settings()[key].split())}
    declared = of("requirements").union({"itnet"}, *(of(f"{extra}_requirements") for extra in ("train", "hub", "lab")))
    for file in (ROOT / "itnet").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in (f.split(".")[0] for f in found):
                optional = of("gpu_requirements") if file.is_relative_to(ROOT / "itnet/gpu") else set()        # imported when a GPU asks for it
                assert name in declared | optional or name in sys.stdlib_module_names, f"{file.relative_to(ROOT)} imports {name}"


def test_extras():
    "What the package says of its extras is what settings.ini has, and the libraries that were asked for are declared."
    import itnet

    names = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}
    of = {extra: {names.get(n, n) for n in (Requirement(r).name for r in settings()[f"{extra}_requirements"].split())} for extra in itnet._EXTRAS}
    for extra, brings in itnet._EXTRAS.items(): assert set(brings) <= of[extra], extra
    light = {Requirement(r).name for r in settings()["requirements"].split()}
    assert light == {"numpy", "torch", "fastcore", "platformdirs"}
    assert {"nbdev", "lightning", "torchmetrics", "datasets", "matplotlib", "jupyterlab"} <= set().union(*of.values())
    extras = {e for e in metadata.distribution("itnet").metadata.get_all("Provides-Extra") or []}
    assert {"dev", "gpu"} <= extras


def test_a_kernel_of_the_lab_finds_its_widgets():
    "The notebooks' libraries ask for ipywidgets, and warn in red where it is missing."
    from jupyter_client.manager import start_new_kernel

    kernel, client = start_new_kernel(kernel_name="python3")
    shown = []
    try: client.execute_interactive("from tqdm.auto import tqdm", timeout=60, output_hook=lambda m: shown.append(m["content"].get("text", "")))
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert "IProgress" not in "".join(shown)


# --- notebooks

def test_sidebar_lists_every_notebook_once():
    def entries(contents):
        for entry in contents: yield from entries(entry["contents"]) if isinstance(entry, dict) else [entry]

    sidebar = yaml.safe_load((NBS / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    listed = list(entries(sidebar))
    assert sorted(listed) == [p.relative_to(NBS).as_posix() for p in NOTEBOOKS]


def cells(path: Path) -> list[dict]:
    return [{**c, "source": "".join(c["source"])} for c in json.loads(path.read_text())["cells"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(NBS).as_posix())
def test_notebook_form(path):
    "Title and summary open it, its module is named after it, cell ids are unique and exported imports stand alone."
    found = cells(path)
    opening = next(c["source"] for c in found if c["cell_type"] == "markdown")
    assert re.fullmatch(r"# .+\n+(?:>.*\n?)+", opening), "a notebook opens with `# Title` and a `>` line; of what follows in this cell the site shows nothing"
    ids = [c["id"] for c in found]
    assert len(ids) == len(set(ids))
    code = [c["source"] for c in found if c["cell_type"] == "code"]
    modules = [m[1] for s in code if (m := re.search(r"^#\|\s*default_exp\s+(\S+)", s, re.M))]
    name = re.sub(r"(^|/)\d+_", r"\1", path.relative_to(NBS).with_suffix("").as_posix()).replace("/", ".")
    name = {"face": "__init__", "main": "__main__"}.get(name) or re.sub(r"\.index$", ".__init__", name)        # the front page of a folder is its package
    assert modules in ([], [name]), f"this notebook's module is {name}"
    for source in (s for s in code if re.search(r"^#\|\s*export", s, re.M)):
        kinds = {isinstance(s, (ast.Import, ast.ImportFrom)) for s in ast.parse(source).body}
        assert len(kinds) <= 1, f"imports need their own cell:\n{source[:200]}"


def demo_code() -> list[tuple[str, str]]:
    "Notebook and source of every code cell that is not exported."
    return [(p.relative_to(NBS).as_posix(), c["source"]) for p in NOTEBOOKS for c in cells(p)
            if c["cell_type"] == "code" and not re.search(r"^#\|\s*export", c["source"], re.M)]


def test_demos_share_their_helpers():
    "What `itnet.testing` and `itnet.pictures` define is imported from there and not written again."
    shared = {"relative"}
    for module in ("testing", "pictures"):
        shared |= {n.name for n in ast.parse((ROOT / "itnet" / f"{module}.py").read_text()).body if isinstance(n, ast.FunctionDef)}
    own = {"seconds"}                                    # of as many things as there are to time
    again = [f"{name}: {m[0]}" for name, source in demo_code()
             for m in re.finditer(r"^(?:def (\w+)\(|(\w+) = lambda\b)", source, re.M) if (m[1] or m[2]) in shared - own]
    assert not again


def test_signs_have_one_colour_map():
    "Matrices and kernels with signs are shown by `itnet.pictures`: red is positive on every page."
    diverging = re.compile(r"\b(?:RdBu|seismic|bwr|coolwarm|PuOr|PiYG|PRGn|BrBG|RdGy|RdYlBu|RdYlGn|Spectral)(?:_r)?\b")
    assert not [f"{name}: {m[0]}" for name, source in demo_code() for m in diverging.finditer(source)]


def test_a_page_puts_back_the_methods_that_it_defines_on_classes_of_others():
    "A notebook that patches a class from another page keeps the package's methods, each by name, and ends by putting them back."
    patched = re.compile(r"^@patch(?:\([^)]*\))?\ndef (\w+)\(self: (\w+)", re.M)
    def left(code: str) -> set[str]:
        own = set(re.findall(r"^class (\w+)", code, re.M))
        kept = " ".join(re.findall(r"keep_methods\((.+)\)", code))
        back = re.search(r"^(?:for back in put_back: back\(\)|put_back\(\)) ", code, re.M)
        return {name for name, kind in patched.findall(code) if kind not in own and not (back and f"'{name}'" in kept)}

    page = "@patch\ndef turn(self: Wheel): ...\n"
    assert left(page) == {"turn"} and not left("class Wheel: ...\n" + page)
    assert left("put_back = keep_methods('stop', of=Wheel)\n" + page + "put_back() ") == {"turn"}
    assert not left("put_back = keep_methods('turn', of=Wheel)\n" + page + "put_back() ")
    found = {p.name: names for p in NOTEBOOKS if (names := left("\n".join(c["source"] for c in cells(p) if c["cell_type"] == "code")))}
    assert not found


def test_words_in_figures_can_be_read():
    "No words of 6 points and less."
    small = re.compile(r"(?:fontsize|labelsize|titlesize)(?:'|\")?\s*[:=]\s*[1-6](?:\.\d*)?(?![\d.])")
    assert small.search("legend(fontsize=6)") and small.search("{'legend.fontsize': 6.5}") and not small.search("fontsize=16, labelsize=7")
    sources = [(p.name, "\n".join(c["source"] for c in cells(p) if c["cell_type"] == "code")) for p in NOTEBOOKS]
    assert not [f"{name}: {m[0]}" for name, source in sources for m in small.finditer(source)]


def test_no_error_is_saved():
    broken = [p.name for p in NOTEBOOKS for c in cells(p) if any(o["output_type"] == "error" for o in c.get("outputs", []))]
    assert not broken


# --- the checkout

def test_no_machine_paths():
    found = []
    for path in tracked():
        if path.is_relative_to(ROOT / "vendor") or path.suffix in (".png", ".woff2"): continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {text[max(0, m.start() - 20):m.end() + 30]!r}" for m in HERE.finditer(text)]
    assert not found, "\n".join(found)


def test_readme_is_one_screen():
    "What, for whom, how, one table, where to go: the rest is in pages."
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 100 and len(text) < 9000, (len(text.splitlines()), len(text))
    assert text.count("```python") == 1 and text.count("ms a step") == 1


def test_links_of_notebooks_work_in_the_lab():
    "JupyterLab opens nothing above the folder that it serves: `make lab` serves the checkout, and files are in it."
    lab = re.search(r"^lab:.*\n\t@(.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert "-dir" not in lab and (ROOT / re.search(r"jupyter lab (\S+)", lab)[1]).is_file()
    links = [(p, url) for p in NOTEBOOKS for c in cells(p) if c["cell_type"] == "markdown"
             for url in re.findall(r"\]\(([^)\s#]+)[^)]*\)", re.sub(r"```.*?```|`[^`\n]*`|\$[^$]*\$", "", c["source"], flags=re.S))
             if not re.match(r"[a-z]+:", url) and "/" in url]
    assert len(links) > 200 and not [f"{p.name}: {url}" for p, url in links if not (p.parent / url).resolve().exists()]


def test_readme_links_work_in_the_checkout():
    text = re.sub(r"^```.*?^```", "", (ROOT / "README.md").read_text(), flags=re.S | re.M)
    links = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r'\b(?:src|href)="([^"]+)"', text)
    local = [u.partition("#")[0] for u in links if not re.match(r"[a-z]+:|#", u)]
    assert local and not [u for u in local if not (ROOT / u).exists()]


def test_quarto_finds_the_configuration():
    link = NBS / "_quarto.yml"
    assert link.is_symlink() and link.resolve() == ROOT / "_quarto.yml"


def test_vendored_files_are_unchanged():
    import hashlib
    for line in (ROOT / "vendor" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((ROOT / "vendor" / name).read_bytes()).hexdigest() == digest, name
