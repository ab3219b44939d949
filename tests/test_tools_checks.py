"""`tools/test.py`, `tools/run.py`, the hooks and the Makefile: failures are counted, and nothing is installed twice."""
import argparse
import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import hooks

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("project_checks", ROOT / "tools" / "test.py")     # `test` is also a standard module
checks = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = checks
spec.loader.exec_module(checks)

NOTEBOOK = """{"cells": [{"cell_type": "code", "execution_count": null, "id": "a", "metadata": {}, "outputs": [], "source": ["%s"]}],
 "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A small project with this project's settings and conftest."
    for name in ("settings.ini", "conftest.py", "pyproject.toml"): shutil.copy2(ROOT / name, tmp_path)
    for name in ("nbs", "tests", "itnet", "tools"): (tmp_path / name).mkdir()
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    monkeypatch.setattr(checks, "WORKERS", 1)
    return tmp_path


# --- tools/test.py

@pytest.mark.parametrize("body, passed, failed", [
    ("import pytest\n@pytest.mark.skip\ndef test_a(): pass\ndef test_b(): pass\ndef test_c(): assert 0", 1, 1),
    ("import nothing_of_that_name", 0, 1), ("", 0, 1)], ids=["mixed", "broken", "none"])
def test_tests_are_counted(project, body, passed, failed, capfd):
    (project / "tests" / "test_x.py").write_text(body)
    result = checks.tests(argparse.Namespace(k=None))
    assert (result.passed, result.failed) == (passed, failed)


def test_notebooks_are_counted_and_flags_skip_cells(project, capfd):
    sources = {"good": "assert 1", "bad": "assert 0, 'wrong sum'", "slow": "#| slow\\n\", \"assert 0", "_draft": "assert 0"}
    for name, source in sources.items(): (project / "nbs" / f"{name}.ipynb").write_text(NOTEBOOK % source)
    result = checks.notebooks(argparse.Namespace(k=None))
    assert (result.passed, result.failed) == (2, 1)
    assert "wrong sum" in capfd.readouterr().out


def test_notebooks_run_as_under_nbdev_test(project, monkeypatch, capfd):
    "The same cells in the same environment: nothing is switched on for them that plain `nbdev_test` would lack."
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    seen = "import os, json, pathlib; pathlib.Path('seen.json').write_text(json.dumps(dict(os.environ)))"
    (project / "nbs" / "a.ipynb").write_text(NOTEBOOK % seen.replace('"', "'"))
    environments = []
    for run in (lambda: checks.notebooks(argparse.Namespace(k=None)), lambda: checks.command(str(checks.BIN / "nbdev_test"), "--n_workers", "1")):
        run()
        environments.append(json.loads((project / "nbs" / "seen.json").read_text()))
    ours, theirs = environments
    resources = {"OMP_NUM_THREADS", "MPLBACKEND"}
    assert not {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)} - resources - {k for k in ours if k.startswith("PYTEST_")}


def test_last_line_and_exit_status(monkeypatch, capsys):
    def crash(_): raise RuntimeError("no such tool")
    stages = {"drift": lambda _: checks.Result(), "notebooks": lambda _: checks.Result(3), "tests": lambda _: checks.Result(2, 1), "site": crash}
    monkeypatch.setattr(checks, "STAGES", stages)
    for only, status, line in ((["notebooks"], 0, "total: 3 passed, 0 failed"), (list(stages), 1, "total: 5 passed, 2 failed")):
        monkeypatch.setattr(sys, "argv", ["test.py", "--only", *only])
        assert checks.main() == status
        assert capsys.readouterr().out.splitlines()[-1] == line


def test_the_site_is_built_beside_the_other_stages(project, monkeypatch, capsys):
    "It is begun before they are, what it says is printed in its turn, and its failure is counted."
    (project / "tools" / "build_site.py").write_text("from pathlib import Path\nPath('begun').touch(); print('2 pages'); raise SystemExit(3)")
    def tests(_):
        until = time.time() + 30
        while not (project / "begun").exists() and time.time() < until: time.sleep(.01)
        return checks.Result(int((project / "begun").exists()))
    monkeypatch.setattr(checks, "STAGES", {"tests": tests, "site": checks.Behind("tools/build_site.py", good="", bad="")})
    monkeypatch.setattr(sys, "argv", ["test.py", "--only", "tests", "site"])
    assert checks.main() == 1
    said = capsys.readouterr().out.splitlines()
    assert said.index("== site") + 1 == said.index("2 pages") and said[-1] == "total: 1 passed, 1 failed"


def test_pages_are_looked_at_beside_the_tests_when_they_are_there(project, monkeypatch, capsys):
    (project / "tools" / "build_site.py").write_text("from pathlib import Path\nPath('built').touch()")
    (project / "tools" / "look.py").write_text("from pathlib import Path\nprint('built', Path('built').exists()); Path('looked').touch()")
    def tests(_):
        until = time.time() + 30
        while not (project / "looked").exists() and time.time() < until: time.sleep(.01)
        return checks.Result(int((project / "looked").exists()))
    behind = {name: checks.Behind(f"tools/{file}.py", good="", bad="") for name, file in (("site", "build_site"), ("browser", "look"))}
    monkeypatch.setattr(checks, "STAGES", {"tests": tests, **behind})
    monkeypatch.setattr(sys, "argv", ["test.py", "--only", "tests", "site", "browser"])
    assert checks.main() == 0
    said = capsys.readouterr().out.splitlines()
    assert said.index("== browser") + 1 == said.index("built True") and said[-1] == "total: 1 passed, 0 failed"


def test_differences_name_what_drifted():
    have, want = {"a.py": "x = 1\n", "b.py": "", "old.py": ""}, {"a.py": "x = 2\n", "b.py": "", "new.py": ""}
    changed, new, old = checks.differences(have, want, "itnet")
    assert "-x = 1" in changed and "+x = 2" in changed
    assert (new, old) == ("itnet/new.py is missing", "itnet/old.py comes from no notebook")


def test_drift_is_found_and_the_tree_is_left_alone(project, capfd):
    shutil.copy2(ROOT / "nbs" / "docs.ipynb", project / "nbs")
    shutil.copy2(ROOT / "itnet" / "__init__.py", project / "itnet")
    assert checks.drift(None).failed and "itnet/docs.py is missing" in capfd.readouterr().out
    assert [p.name for p in (project / "itnet").iterdir()] == ["__init__.py"]
    checks.command(str(checks.BIN / "nbdev_export"), cwd=project)
    assert not checks.drift(None).failed, capfd.readouterr().out
    with (project / "itnet" / "docs.py").open("a") as f: f.write("# by hand\n")
    assert checks.drift(None).failed


MODULE = "#| default_exp %s\\n\", \"#| export\\n\", \"%s"


@pytest.mark.parametrize("notebooks, names", [
    ({"a": "#| default_exp a", "b": "#| default_exp b", "c": "1 +", "_draft": "#| default_exp a"}, []),                            # a demo is not exported
    ({"a": MODULE % ("one", "x = 1"), "sub/b": MODULE % ("one", "y = 1")}, [("nbs/a.ipynb", "nbs/sub/b.ipynb", "one module, one:")]),
    ({"a": MODULE % ("one", "def f(:")}, [("nbs/a.ipynb", "cell a", "line 3")]),
    ({"a": "#|exporti\\n\", \"x = 1"}, [("nbs/a.ipynb", "no `#| default_exp`")]),
    ({"a": "#| default_exp a\\n\", \"#| default_exp b"}, [("nbs/a.ipynb", "2 times: a, b")]),
    ({"a": "\"<<<<<<<"}, [("nbs/a.ipynb", "not a notebook")])], ids=["good", "twice", "syntax", "nowhere", "two", "conflict"])
def test_what_an_export_would_lose_is_named(project, capfd, notebooks, names):
    "nbdev says nothing about the first two, and names no notebook for the third."
    for name, source in notebooks.items():
        path = project / "nbs" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.write_text(NOTEBOOK % source)
    found = checks.unexportable(checks.texts(project / "nbs", "*.ipynb"))
    assert len(found) == len(names) and all(part in line for line, parts in zip(found, names) for part in parts)
    if names:
        assert checks.drift(None).failed and found[0] in capfd.readouterr().out


# --- tools/run.py

def run_notebook(project: Path, source: str) -> subprocess.CompletedProcess:
    (project / "nbs" / "a.ipynb").write_text(NOTEBOOK % source)
    return subprocess.run([sys.executable, str(ROOT / "tools" / "run.py"), "nbs/a.ipynb"], cwd=project, capture_output=True, text=True)


def test_run_saves_outputs_without_this_machine(project):
    assert run_notebook(project, "import os; print(6 * 7, os.getcwd())").returncode == 0
    saved = (project / "nbs" / "a.ipynb").read_text()
    assert "42" in saved and str(project) not in saved and "execution_count\": null" in saved


def test_run_leaves_a_failing_notebook_alone(project):
    done = run_notebook(project, "print(1); 1 / 0")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    assert '"outputs": []' in (project / "nbs" / "a.ipynb").read_text()


# --- Makefile and hooks

@pytest.fixture
def checkout(tmp_path):
    "The Makefile with stand-ins for Python and pip that write down what they are asked."
    if not shutil.which("make"): pytest.skip("no make")
    for name in ("Makefile", "settings.ini", "setup.py", "pyproject.toml", "constraints.txt"): shutil.copy2(ROOT / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@" >> calls\ncase "$*" in *"pip install"*) exit $(cat status 2>/dev/null || echo 0);; esac\n')
    python.chmod(0o755)
    return tmp_path


def make(folder: Path, *args: str) -> subprocess.CompletedProcess:
    (folder / "calls").unlink(missing_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(["make", *args], cwd=folder, capture_output=True, text=True, env=env)


def installs(folder: Path) -> int:
    calls = folder / "calls"
    return sum("pip install" in line and " -e " in line for line in calls.read_text().splitlines()) if calls.exists() else 0


def test_install_runs_once_and_again_after_a_change(checkout):
    assert make(checkout, "install").returncode == 0 and installs(checkout) == 1
    assert make(checkout, "install").returncode == 0 and installs(checkout) == 0
    later = (checkout / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(checkout / "constraints.txt", (later, later))
    assert make(checkout, "install").returncode == 0 and installs(checkout) == 1


def test_without_a_newer_pip_the_one_that_is_there_installs(checkout):
    (checkout / ".venv" / "bin" / "python").write_text('#!/bin/sh\necho "$@" >> calls\ncase "$*" in *"--upgrade pip") exit 1;; esac\n')
    done = make(checkout, "install")
    assert done.returncode == 0 and "slower" in done.stdout and installs(checkout) == 1


def test_a_failed_install_leaves_no_stamp(checkout):
    (checkout / "status").write_text("1")
    assert make(checkout, "test").returncode and installs(checkout) == 1
    assert not (checkout / ".venv" / ".installed").exists()
    (checkout / "status").write_text("0")
    assert make(checkout, "install").returncode == 0 and installs(checkout) == 1


def test_a_demonstration_needs_less(checkout):
    "`make demo` installs what training needs, once, and nothing where everything is there."
    itnet = checkout / ".venv" / "bin" / "itnet"
    itnet.write_text("#!/bin/sh\n")
    itnet.chmod(0o755)
    done = make(checkout, "demo")
    assert done.returncode == 0 and "GB" in done.stdout and installs(checkout) == 1 and ".[train]" in (checkout / "calls").read_text()
    assert make(checkout, "demo").returncode == 0 and installs(checkout) == 0
    (checkout / ".venv" / ".installed-train").unlink()
    assert make(checkout, "install").returncode == 0 and installs(checkout) == 1 and ".[dev]" in (checkout / "calls").read_text()
    assert make(checkout, "demo").returncode == 0 and installs(checkout) == 0


def test_an_old_python_is_named(checkout):
    old = checkout / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1"\nexit $([ "$1" = --version ] && echo 0 || echo 1)\n')
    old.chmod(0o755)
    done = make(checkout, "install", f"PYTHON={old}")
    assert done.returncode and "3.8.1" in done.stderr and "make PYTHON=" in done.stderr and installs(checkout) == 0


def test_hooks_stay_inside_the_checkout(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copy2(ROOT / "tools" / "hooks.py", tmp_path / "tools")
    home = tmp_path / "home"
    home.mkdir()
    program = "import sys; sys.path.insert(0, 'tools'); import hooks; from pathlib import Path; hooks.jupyter_hook(Path('env')); print(hooks.merge_driver(Path('/b in')))"
    env = {**os.environ, "HOME": str(home), "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    call = lambda: subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout.strip()
    assert call() == "False"
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, env=env)
    assert call() == "True" and call() == "True"
    assert '/b in/nbdev_merge' in (tmp_path / ".git" / "config").read_text() and not list(home.iterdir())


def jupyter_config(folder: Path) -> SimpleNamespace:
    "What the written configuration sets."
    hooks.jupyter_hook(folder / "env")
    config = SimpleNamespace(ContentsManager=SimpleNamespace(), ServerApp=SimpleNamespace())
    exec((folder / "env" / "etc" / "jupyter" / "jupyter_server_config.py").read_text(), {"c": config, "__name__": "config"})
    return config


def test_saved_notebooks_are_cleaned(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    config = jupyter_config(tmp_path)
    for folder, kept in ((tmp_path / "nbs", set()), (tmp_path.parent, {"junk"})):       # in the project, and outside it
        content = {**json.loads(NOTEBOOK % "1"), "metadata": {"junk": 1}}
        config.ContentsManager.pre_save_hook(model={"type": "notebook", "content": content}, path="/a.ipynb",
                                             contents_manager=SimpleNamespace(root_dir=str(folder)))
        assert set(content["metadata"]) == kept


def test_opened_notebooks_are_not_modified(tmp_path, monkeypatch):
    "JupyterLab sets the kernel and its language in a notebook, and calls it modified unless these are there already."
    from jupyter_client.manager import start_new_kernel

    monkeypatch.setattr(hooks, "ROOT", tmp_path / "project")
    for folder in ("project", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.ipynb").write_text(NOTEBOOK % "1")
    manager = jupyter_config(tmp_path).ServerApp.contents_manager_class(root_dir=str(tmp_path))
    def opened(path): return asyncio.run(manager.get(path))["content"]["metadata"]
    kernel, client = start_new_kernel(kernel_name="python3")
    try: language = client.kernel_info(reply=True, timeout=60)["content"]["language_info"]
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    spec = kernel.kernel_spec
    want = {"kernelspec": {"name": "python3", "display_name": spec.display_name, "language": spec.language}, "language_info": language}
    assert opened("project/a.ipynb") == want and "language_info" not in opened("other/a.ipynb")
    assert asyncio.run(manager.get("project"))["type"] == "directory"
    assert asyncio.run(manager.get("project/a.ipynb", content=False))["content"] is None
    assert (tmp_path / "project" / "a.ipynb").read_text() == NOTEBOOK % "1"
