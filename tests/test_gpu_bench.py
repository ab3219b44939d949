"The script for a visit to a GPU, kept working where there is none."
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "bench_gpu.py"
SECTIONS = ("machine", "check_conv", "conv", "check_tile", "tile", "check_chunks", "chunks", "conv_more")


def run(*args: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, str(SCRIPT), *args], env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture
def script():
    "The script as a module"
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so(tmp_path):
    done = run("--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 0 and done.stdout.startswith("no NVIDIA GPU here") and done.stdout.count("\n") == 1, done
    assert not any(tmp_path.iterdir())


def test_tiny_runs_every_section(tmp_path):
    out = tmp_path / "gpu.json"
    done = run("--tiny", "--inline", "--out", str(out))
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert tuple(record["sections"]) == SECTIONS and record["published"]["ratios"]["1024"] == 7.9 and "arXiv:2311.05908" in record["published"]["source"]
    for name, section in record["sections"].items():
        assert section["status"] == "done" and section["rows"] and not section["skipped"], (name, section)
        assert all(r["ok"] for r in section["rows"] if "ok" in r), (name, [r for r in section["rows"] if not r.get("ok", True)])
    conv = {(r["n"], r["variant"], r["step"]): r for r in record["sections"]["conv"]["rows"]}
    for n in (16, 33):
        assert {"auto", "unfused", "sdpa", "copy"} <= {v for m, v, step in conv if m == n}
        assert conv[n, "auto", "both"]["error"] < 5e-3 and len(conv[n, "auto", "forward"]["ratio"]) == 3
    from itnet.experiments.gpu_speed import gpu_table
    assert "| 33 | 1 | 2 |" in gpu_table(record)


def test_sections_in_processes_of_their_own(tmp_path):
    out = tmp_path / "gpu.json"
    done = run("--tiny", "--sections", "machine", "--out", str(out))
    assert done.returncode == 0 and json.loads(out.read_text())["sections"]["machine"]["status"] == "done", done


def test_a_failure_is_recorded_and_the_rest_goes_on(script, tmp_path, monkeypatch):
    out = tmp_path / "gpu.json"
    def broken(visit):
        visit.attempt("kernel", lambda: 1 / 0)
        visit.add(n=1)
        raise RuntimeError("first line\nlast line")
    def late(visit):
        for _ in visit.groups([1, 2], 1e9): raise AssertionError
    monkeypatch.setattr(script, "SECTIONS", {"broken": (broken, 20), "late": (late, 20), "machine": script.SECTIONS["machine"]})
    monkeypatch.setattr(sys, "argv", ["bench_gpu", "--tiny", "--inline", "--out", str(out)])
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "1"))
    assert script.main() == 0
    sections = json.loads(out.read_text())["sections"]
    assert [f["error"] for f in sections["broken"]["failed"]] == ["ZeroDivisionError: division by zero", "RuntimeError: first line | last line"]
    assert sections["broken"]["rows"] == [{"n": 1}] and sections["late"]["skipped"] == ["1", "2"] and sections["machine"]["rows"]


def test_those_that_work_take_turns(script, tmp_path):
    size = SimpleNamespace(device="cpu", rounds=4, least=0., memory=False)
    visit, order = script.Visit("race", size, 60., tmp_path / "gpu.json"), []
    times = visit.race({"a": lambda: order.append("a"), "b": lambda: order.append("b"), "c": lambda: 1 / 0}, "N=1")
    assert {name: len(took) for name, took in times.items()} == {"a": 4, "b": 4} and visit.failed[0]["what"] == "c N=1"
    assert "".join(order) == "ab" * 3 + "aabb" * 4                         # twice a warm-up, then each after a call that is not counted


def test_a_section_that_dies_or_never_ends_is_recorded(script, tmp_path, monkeypatch):
    out = tmp_path / "gpu.json"
    script.save(out, sections={"dies": dict(status="running", failed=[], skipped=[], rows=[{"n": 1}])})
    start = subprocess.Popen
    for name, code, seconds in (("dies", "import sys; sys.exit('illegal memory access')", 60.), ("hangs", "import time; time.sleep(60)", -14.)):
        monkeypatch.setattr(script.subprocess, "Popen", lambda command, **how: start([sys.executable, "-c", code], **how))
        script.run_apart(name, SimpleNamespace(out=out, tiny=True), seconds)
    sections = json.loads(out.read_text())["sections"]
    assert sections["dies"]["rows"] == [{"n": 1}] and "illegal memory access" in sections["dies"]["failed"][0]["error"]
    assert sections["hangs"]["status"] == "failed" and "ended after 1 s" in sections["hangs"]["failed"][0]["error"]
