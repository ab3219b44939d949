"""Imports point one way, from the networks down to the integral, and never in a circle.

A module may import those of its own folder and those of the layers under it, at its top or inside of a function. The
package's front page, `itnet/__init__.py`, hands on names from all of them and is imported by none.
"""
import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "itnet"
LAYERS = [("sizes", "terminal"), ("data", "gpu", "measure"), ("conv",), ("kernel",), ("rule",), ("transform", "stream"),
          ("special_cases", "nets", "compression"), ("training",), ("recipes",), ("bench",), ("experiments",), ("cli",), ("__main__",)]
LEVEL = {room: i for i, rooms in enumerate(LAYERS) for room in rooms}
ONLY = {"conv": {"gpu", "sizes"}}                            # a convolution is of use without kernels and measures
BESIDE = {("stream", "transform"), ("nets", "special_cases")}                   # within one layer
OBSERVERS = {"atlas", "testing", "pictures", "doctor", "interop", "docs"}        # look at all that is under experiments
FACE = "__init__"


def modules(root: Path) -> dict[str, str]:
    "Modules of a package by dotted name within it, `folder.__init__` for a folder's own."
    return {".".join(p.relative_to(root).with_suffix("").parts): p.read_text(encoding="utf-8")
            for p in sorted(root.rglob("*.py")) if p.name != "_modidx.py"}


def room(name: str) -> str:
    return name.split(".")[0]


def imports(name: str, source: str, names: set[str]) -> Iterator[tuple[int, str]]:
    "Line and module of each import from the same package, wherever it stands."
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first == "itnet" and rest: yield node.lineno, resolve(rest, names)
                elif first == "itnet" and reads_face(tree): yield node.lineno, FACE
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level: base = [*name.split("."), ""][:-node.level - 1] + module
            elif module and module[0] == "itnet": base = module[1:]
            else: continue
            for alias in node.names:
                target = resolve([*base, alias.name], names, resolve(base, names))
                if target != FACE or alias.name != "__version__": yield node.lineno, target


def resolve(parts: list[str], names: set[str], default: str | None = None) -> str:
    "The module that dotted parts name, a folder's own for a folder; `default` where there is none of that name."
    for found in (".".join(parts), ".".join([*parts, FACE])):
        if found in names: return found
    return default or ".".join(parts)


def reads_face(tree: ast.Module) -> bool:
    "Whether names of `itnet` are read beyond those that every package has, such as `itnet.__version__`."
    return any(isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "itnet"
               and not n.attr.startswith("__") for n in ast.walk(tree))


def allowed(here: str, there: str) -> bool:
    "Whether a module may import another."
    a, b = room(here), room(there)
    if b == FACE: return a in ("cli", "experiments")
    if a == b: return True
    if a == FACE or a in OBSERVERS: return b not in ("experiments", "cli")
    if b in OBSERVERS: return LEVEL[a] >= LEVEL["recipes"]
    if a in ONLY: return b in ONLY[a]
    return LEVEL[b] < LEVEL[a] or (a, b) in BESIDE


def upward(name: str, source: str, names: set[str]) -> list[str]:
    "Imports of a module that its layer does not allow."
    found = imports(name, source, names)
    return [f"{name}:{line}: imports {target}" for line, target in found if not allowed(name, target)]


def circles(sources: dict[str, str]) -> list[list[str]]:
    "Modules that import each other, directly or around, imports inside of functions included."
    reached = {name: {target for _, target in imports(name, source, set(sources))} for name, source in sources.items()}
    edges = {name: sorted(targets & sources.keys() - {name}) for name, targets in reached.items()}
    found, done = [], set()

    def visit(name: str, path: list[str]) -> None:
        if name in path: found.append(path[path.index(name):] + [name])
        elif name not in done:
            for target in edges[name]: visit(target, [*path, name])
            done.add(name)
    for name in edges: visit(name, [])
    return found


SOURCES = modules(ROOT)


@pytest.mark.parametrize("name", SOURCES)
def test_imports_point_down(name):
    assert room(name) in LEVEL.keys() | OBSERVERS | {FACE}, f"{room(name)} has no layer: give it one in this file"
    found = upward(name, SOURCES[name], set(SOURCES))
    assert not found, "\n".join(["", *found])


def test_no_circle():
    found = [" → ".join(circle) for circle in circles(SOURCES)]
    assert not found, "\n".join(["", *found])


# --- what is planted is found

NAMES = {"__init__", "cli", "stream", "transform", "conv.__init__", "conv.fft", "conv.op", "gpu.tile", "kernel.base",
         "measure.pairs", "rule.base", "rule.fft", "training.ledger", "atlas.kernels", "testing", "experiments.speed",
         "experiments.__init__"}


@pytest.mark.parametrize("name, source, targets", [
    ("kernel.base", "from ..measure.pairs import Pairs\nimport torch\nfrom torch import nn\n", ["measure.pairs"]),
    ("kernel.base", "def f():\n    if x: from itnet.rule.fft import fft\n", ["rule.fft"]),
    ("rule.fft", "from . import base\nfrom .. import conv\n", ["rule.base", "conv.__init__"]),
    ("rule.fft", "from ..conv import op, plain\n", ["conv.op", "conv.__init__"]),
    ("stream", "from .kernel.base import Kernel\nfrom . import transform\n", ["kernel.base", "transform"]),
    ("cli", "import itnet.experiments as e\n", ["experiments.__init__"]),
    ("cli", "from itnet.experiments import speed\n", ["experiments.speed"]),
    ("conv.__init__", "from .op import conv\n", ["conv.op"]),
    ("training.ledger", "import itnet\nprint(itnet.__version__)\n", []),
    ("training.ledger", "from itnet import __version__\nfrom .. import __version__\n", []),
    ("training.ledger", "import itnet\nitnet.Kernel\n", ["__init__"]),
    ("training.ledger", "from itnet import Kernel\nfrom .. import Measure\n", ["__init__", "__init__"]),
    ("__init__", "from .kernel.base import Kernel\n", ["kernel.base"]),
])
def test_imports_are_read(name, source, targets):
    assert [t for _, t in imports(name, source, NAMES)] == targets


MAY = [("kernel.base", "conv.op"), ("conv.op", "gpu.tile"), ("rule.fft", "rule.base"), ("stream", "transform"),
       ("training.ledger", "nets.block"), ("bench.timing", "recipes.text"), ("experiments.speed", "bench.timing"),
       ("cli", "experiments.speed"), ("atlas.kernels", "recipes.text"), ("experiments.speed", "atlas.kernels"),
       ("__init__", "kernel.base"), ("cli", "doctor"), ("cli", "__init__")]
MAY_NOT = [("conv.op", "kernel.base"), ("conv.fft", "measure.pairs"), ("measure.pairs", "gpu.tile"),
           ("kernel.base", "rule.base"), ("transform", "stream"), ("rule.fft", "transform"),
           ("special_cases.mamba", "nets.block"), ("nets.block", "training.ledger"), ("data.text", "training.ledger"),
           ("training.ledger", "recipes.text"), ("recipes.text", "bench.timing"),
           ("bench.timing", "experiments.speed"), ("doctor", "experiments.speed"), ("rule.fft", "testing"),
           ("special_cases.case", "atlas.kernels"), ("__init__", "experiments.speed"), ("kernel.base", "__init__"),
           ("testing", "__init__"), ("kernel.base", "cli")]


@pytest.mark.parametrize("here, there, may", [*((*p, True) for p in MAY), *((*p, False) for p in MAY_NOT)])
def test_layers_are_kept(here, there, may):
    assert allowed(here, there) == may


def test_an_import_inside_a_function_counts():
    source = "import torch\ndef f():\n    from itnet.experiments.speed import g\n"
    assert upward("kernel.base", source, NAMES) == ["kernel.base:3: imports experiments.speed"]


def test_circles_are_found():
    straight = {"a": "from .b import f\n", "b": "from .c import f\nfrom .d import g\n",
                "c": "from .d import g\n", "d": ""}
    assert circles(straight) == []
    assert circles({**straight, "d": "def f():\n    from itnet.b import f\n"}) == [["b", "c", "d", "b"]]
    assert circles({"a": "from . import a\n"}) == []
