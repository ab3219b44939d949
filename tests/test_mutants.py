"The list of planted mistakes fits the code, and the tool that plants them tells what is found from what is not."
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("tools_mutants", ROOT / "tools" / "mutants.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
MUTANTS = tool.mutants()


def test_there_are_enough_and_no_two_are_the_same():
    assert len(MUTANTS) >= 60 and len({m["name"] for m in MUTANTS}) == len({(m["file"], m["new"], m["old"]) for m in MUTANTS}) == len(MUTANTS)
    assert {m["name"].partition(":")[0] for m in MUTANTS} == {"operator", "nets", "training", "data"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m["name"])
def test_it_fits_the_code(mutant):
    assert tool.unfit(mutant) is None


@pytest.fixture
def small(tmp_path):
    "A checkout of one module and one test."
    (tmp_path / "m.py").write_text("def f(): return 1\ndef g(): return 2\n")
    (tmp_path / "test_m.py").write_text("from m import f\ndef test_f(): assert f() == 1\n")
    return tmp_path


@pytest.mark.parametrize("old, new, came", [
    ("return 1", "return 3", "found"), ("return 2", "return 3", "not found by"), ("return", "pass", "stands 2 times"),
    ("return 1", "return 1", "changes nothing"), ("return 9", "return 1", "stands 0 times"), ("def f", "def (", "could not run")])
def test_what_becomes_of_a_mistake(small, old, new, came):
    before = (small / "m.py").read_text()
    said = tool.planted({"file": "m.py", "old": old, "new": new, "tests": ["test_m.py"]}, small)
    assert said == "found" if came == "found" else came in said
    assert (small / "m.py").read_text() == before
