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


def loaded(*parts):
    "Which heavy modules are there after each part of some code, in one process."
    code = "import sys\n" + "\n".join(f"{part}\nprint(*{HEAVY!r} & sys.modules.keys())" for part in parts)
    return [set(line.split()) for line in python(code).split("\n")[:-1]]


def test_import_loads_nothing_heavy():
    assert loaded("import itnet\ndir(itnet)\nitnet.__version__") == [set()]
    before = os.times()
    python("import itnet")
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2.5


def test_a_name_loads_what_it_needs():
    names = ("Measure IntegralTransform apply explain step fft_conv gated_fft_conv Kernel Taps Pairwise Selective ITNet build_model",
             "from_torch relax from_pretrained_model", "compress")
    parts = ("; ".join(f"itnet.{name}" for name in some.split()) for some in names)
    assert loaded("import itnet", *parts) == [set(), {"torch", "numpy"}, {"torch", "numpy"}, {"torch", "numpy", "scipy"}]


LIGHT = f"""
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec

class Only(PathFinder):
    "Finds everything but what the extras bring."
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {sorted(m for names in itnet._EXTRAS.values() for m in names)} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Only
import itnet
"""


def test_the_light_installation_has_the_operator():
    "Kernels, rules, layers, networks, conversions and streams, without any extra."
    code = """
import torch
k = (itnet.Separable(8, heads=2, rank=2) * itnet.Implicit(2, extent=9, positive=True)).normalise()
T = itnet.IntegralTransform(8, k)
x = torch.randn(1, 30, 8)
for rule in ("auto", "dense", "fft"): itnet.IntegralTransform(8, k, rule=rule)(x).sum().backward()
T.explain(64)
itnet.from_torch(torch.nn.Conv1d(3, 4, 3))(torch.randn(1, 3, 9))
itnet.from_torch(torch.nn.LSTM(3, 4, batch_first=True))(torch.randn(1, 9, 3))
from itnet.data.spec import Spec, accuracy
itnet.build_model(itnet.ITNetConfig(8, 1), Spec("series", 2, 3, (9,), accuracy(3)))(torch.randn(1, 9, 2))
itnet.gated_fft_conv(x, torch.randn(30, 8), x, x)
print("fine", find_spec("lightning"))
"""
    assert python(LIGHT + code).split()[-2:] == ["fine", "None"]


def test_what_is_missing_is_named_with_its_extra():
    said = """
import contextlib, io
def says(extra, name, statement):
    try: exec(statement)
    except ModuleNotFoundError as e: assert str(e) == f"{name} is not installed: pip install 'itnet[{extra}]' brings it" and e.name == name, (statement, e)
    else: raise AssertionError(statement)
says("train", "lightning", "itnet.fit")
says("train", "lightning", "from itnet.training.recipe import fit")
says("train", "scipy", "itnet.compress")
says("train", "kornia", "from itnet.data.augment import operate; import torch; operate(torch.zeros(1, 3, 4, 4), 'rotate', torch.zeros(1))")
says("lab", "matplotlib", "import itnet.pictures")
says("lab", "nbdev", "import itnet.docs")
says("hub", "transformers", "from itnet.nets.hub_images import HubImageConfig; HubImageConfig().build()")
try: import lightning
except ModuleNotFoundError as e: assert "itnet" not in str(e)
from itnet.cli import main
with contextlib.redirect_stderr(io.StringIO()) as err: code = main(["results"])
assert code == 1 and err.getvalue() == "itnet: jsonargparse is not installed: pip install 'itnet[train]' brings it\\n", err.getvalue()
with contextlib.redirect_stdout(io.StringIO()): assert main(["-h"]) == 0
print("fine")
"""
    assert python(LIGHT + said).split() == ["fine"]


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
