"`import itnet`: its names, what they load, and what is said about a name that is not there."
import ast
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import itnet

ROOT = Path(__file__).parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
NAMES = [name for name in itnet.__all__ if name != "__version__"]
HEAVY = {"torch", "numpy", "scipy", "lightning", "transformers", "matplotlib", "datasets", "sklearn"}


def python(code):
    "What a fresh process prints."
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(code):
    "Which heavy modules are there after some code."
    return set(python(f"{code}\nimport sys\nprint(*{HEAVY!r} & sys.modules.keys())").split())


def test_import_loads_nothing_heavy():
    assert not loaded("import itnet\ndir(itnet)\nitnet.__version__")
    before = os.times()
    python("import itnet")
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2.5


@pytest.mark.parametrize("names, needs", [
    ("Measure IntegralTransform apply explain step fft_conv gated_fft_conv Kernel Taps Pairwise Selective ITNet build_model", {"torch", "numpy"}),
    ("from_torch relax from_pretrained_model", {"torch", "numpy"}),
    ("compress", {"torch", "numpy", "scipy"}),
])
def test_a_name_loads_what_it_needs(names, needs):
    assert loaded("import itnet\n" + "\n".join(f"itnet.{name}" for name in names.split())) == needs


def test_names():
    "Each name is what it says, is found by all ways of importing it, and no module is hidden by it."
    assert 20 <= len(NAMES) <= 30 and len(set(NAMES)) == len(NAMES) and set(NAMES) <= set(dir(itnet))
    for name in NAMES:
        value = getattr(itnet, name)
        assert value.__name__ == name and value.__module__.startswith("itnet.") and value.__doc__, name
    assert not {module.name for module in pkgutil.iter_modules(itnet.__path__)} & set(NAMES)
    scope = {}
    exec("from itnet import *\nfrom itnet import IntegralTransform as T", scope)
    assert scope["T"] is itnet.transform.IntegralTransform is scope["IntegralTransform"] and set(itnet.__all__) <= scope.keys()


def typed() -> dict[str, str]:
    "The names that a type checker sees, with the modules that they come from."
    tree = ast.parse(Path(itnet.__file__).read_text())
    block, = (s for s in tree.body if isinstance(s, ast.If) and ast.unparse(s.test) == "TYPE_CHECKING")
    return {alias.name: found.module for found in block.body for alias in found.names}


def test_type_checkers_the_table_and_the_page_agree():
    assert typed().keys() == set(NAMES)
    for name, module in typed().items():
        assert getattr(importlib.import_module(module), name) is getattr(itnet, name), name
    page = json.loads((ROOT / "nbs/face.ipynb").read_text())
    table, = ("".join(cell["source"]) for cell in page["cells"] if cell["id"] == "names")
    listed = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert listed == itnet.__all__


def test_modules_are_attributes():
    code = ("import itnet\nassert itnet.kernel.base.Kernel is itnet.Kernel\nprint(itnet.rule.dense.__name__, itnet.transform.__name__)\n"
            "from itnet import rule, stream\nfrom itnet.special_cases import rosetta\nprint(rule.monte_carlo.__name__, itnet.special_cases.hub_cases.__name__)\n"
            "import itnet.measure.lags, itnet.kernel.given as given\nprint(itnet.measure.pairs.__name__, given is itnet.kernel.given)")
    assert python(code).split() == ["itnet.rule.dense", "itnet.transform", "itnet.rule.monte_carlo", "itnet.special_cases.hub_cases",
                                    "itnet.measure.pairs", "True"]
    folders = [module.name for module in pkgutil.iter_modules(itnet.__path__) if module.ispkg]
    for folder in folders:
        modules = {module.name for module in pkgutil.iter_modules(getattr(itnet, folder).__path__)}
        assert modules <= set(dir(getattr(itnet, folder))) and folder in dir(itnet)


@pytest.mark.parametrize("where, name, says", [
    (itnet, "Mesure", r"module 'itnet' has no attribute 'Mesure': nearest: Measure, measure"),
    (itnet, "integraltransform", r"nearest: IntegralTransform"),
    (itnet, "operator", r"module 'itnet' has no attribute 'operator'"),
    (itnet, "xyzzy", r"'xyzzy': dir\(itnet\) lists what it has"),
    (itnet.rule, "dens", r"module 'itnet.rule' has no attribute 'dens': nearest: dense"),
    (itnet.special_cases, "from_troch", r"nearest: from_torch"),
    (itnet, "_private", r"no attribute '_private'"),
])
def test_unknown_names(where, name, says):
    with pytest.raises(AttributeError, match=says): getattr(where, name)
    assert not hasattr(where, name)
    with pytest.raises(ImportError, match=name): exec(f"from {where.__name__} import {name}")


def test_an_error_inside_a_module_is_not_hidden(tmp_path, monkeypatch):
    "A module that cannot be imported says why, and is not mistaken for a name that is missing."
    (tmp_path / "broken_room.py").write_text("import no_such_package_anywhere")
    monkeypatch.setattr(itnet, "__path__", [*itnet.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"): itnet.broken_room
