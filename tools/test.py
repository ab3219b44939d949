"""Every check of the project, each run once: `make test`.

    python tools/test.py                                # drift, notebooks, tests, site, browser
    python tools/test.py --only notebooks -k operator   # some of them

All stages run even when one fails. The last line counts notebooks and tests; a stage that fails without a count of its
own (drift, site, a crash) counts as one failure, and any failure makes the exit status 1.
"""
import argparse
import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
WORKERS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@dataclass
class Result:
    "What one stage found."
    passed: int = 0
    failed: int = 0
    note: str = ""


def environment(**more: str) -> dict[str, str]:
    "That of a command: this environment's programs come first."
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", **more}


def command(*args: str, cwd: Path | None = None, **env: str) -> int:
    "Exit status of a command, run in the project and printing for itself."
    return subprocess.run(args, cwd=cwd or ROOT, env=environment(**env)).returncode


# --- drift: itnet/ is what the notebooks export, and the notebooks are clean

def texts(folder: Path, pattern: str) -> dict[str, str]:
    "Files of `folder` by name, without hidden ones."
    return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in sorted(folder.rglob(pattern))
            if not any(part.startswith(".") or part == "__pycache__" for part in p.relative_to(folder).parts)}


def differences(have: dict[str, str], want: dict[str, str], folder: str) -> list[str]:
    "A short unified diff for each file that is not as it should be."
    found = []
    for name in sorted(have.keys() | want.keys()):
        old, new = have.get(name), want.get(name)
        if old == new: continue
        if old is None: found.append(f"{folder}/{name} is missing")
        elif new is None: found.append(f"{folder}/{name} comes from no notebook")
        else:
            lines = old.splitlines(), new.splitlines()
            diff = list(difflib.unified_diff(*lines, f"{folder}/{name}", "from notebooks", n=0, lineterm=""))
            found.append("\n".join(diff[:14] + ["..."] * (len(diff) > 14)))
    return found


def unexportable(notebooks: dict[str, str]) -> list[str]:
    """What `nbdev_export` would lose without a word or without a place, in notebooks by name.

    It writes a module anew for each notebook that claims it, so the last one wins; exports of a notebook without a module
    go nowhere; and it takes the index of symbols away before it stops at a cell that does not parse, which it does not name.
    """
    found, modules = [], {}
    for name, text in notebooks.items():
        if any(part.startswith("_") for part in Path(name).parts): continue                     # as nbdev does
        try: code = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        except (ValueError, KeyError, TypeError) as error:
            found.append(f"nbs/{name} is not a notebook: {error}")
            continue
        sources = [(c.get("id"), "".join(c["source"])) for c in code]
        exported = [(cell, source) for cell, source in sources if re.search(r"^#\|\s*export[is]?\b", source, re.M)]
        named = [m[1] for _, source in sources for m in re.finditer(r"^#\|\s*default_exp\s+(\S+)", source, re.M)]
        if len(named) > 1: found.append(f"nbs/{name} names its module {len(named)} times: {', '.join(named)}")
        if exported and not named: found.append(f"nbs/{name} exports cells and has no `#| default_exp`")
        for module in named: modules.setdefault(module, []).append(f"nbs/{name}")
        for cell, source in exported:
            try: ast.parse(source)
            except SyntaxError as error: found.append(f"nbs/{name}, cell {cell}, line {error.lineno}: {error.msg}")
    return found + [f"{' and '.join(names)} export to one module, {module}: the last would overwrite it"
                    for module, names in modules.items() if len(set(names)) > 1]


def fresh(target: Path) -> None:
    "Export and clean a copy of the notebooks in `target`; only `__init__.py` files, which may be written by hand, go along."
    shutil.copytree(ROOT / "nbs", target / "nbs", symlinks=True, ignore=shutil.ignore_patterns(".*", "_*"))
    shutil.copy2(ROOT / "settings.ini", target)
    for init in (ROOT / "itnet").rglob("__init__.py"):
        copy = target / init.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(init, copy)
    for tool in ("nbdev_export", "nbdev_clean"):
        if command(str(BIN / tool), cwd=target): raise RuntimeError(f"{tool} failed")


def drift(_: argparse.Namespace) -> Result:
    "Compare with a fresh export in a scratch copy, so that uncommitted work is neither needed nor touched."
    if wrong := unexportable(texts(ROOT / "nbs", "*.ipynb")):
        for problem in wrong: print(problem)
        print("Mend this before nbdev_export; what it has already lost comes back with the next export.")
        return Result(failed=1, note=f"{len(wrong)} faults in notebooks")
    with tempfile.TemporaryDirectory() as scratch:
        fresh(Path(scratch))
        found = [d for folder, pattern in (("itnet", "*.py"), ("nbs", "*.ipynb"))
                 for d in differences(texts(ROOT / folder, pattern), texts(Path(scratch) / folder, pattern), folder)]
    for diff in found: print(diff)
    if found: print("Drift: run nbdev_export and nbdev_clean, or move what was edited in itnet/ into the notebooks.")
    return Result(failed=bool(found), note=f"{len(found)} files drifted" if found else "itnet/ and nbs/ agree")


# --- notebooks and tests

def pytest_stage(folder: str, args: argparse.Namespace) -> Result:
    """One pytest run, counted from its report.

    Notebooks run here rather than under `nbdev_test` because that command gives neither a count nor per-notebook times;
    conftest.py calls nbdev's own `test_nb` with the flags of settings.ini. Each worker has one core and one torch thread.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        workers = ["-n", str(WORKERS), "--dist", "worksteal"] if WORKERS > 1 else []
        options = [*workers, "--durations=0", "--durations-min=0.5", f"--junitxml={report}", *(["-k", args.k] if args.k else [])]
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        status = command(sys.executable, "-m", "pytest", folder, "-q", *options, OMP_NUM_THREADS=threads, MPLBACKEND="agg")
        if not report.exists(): return Result(failed=1, note=f"pytest ended with status {status}")
        suites = ET.parse(report).getroot().iter("testsuite")
        total, bad, skipped = (sum(column) for column in zip(*(counts(suite) for suite in suites)))
    nothing = status == 5 and bool(args.k)                       # no test of this folder matches the pattern
    return Result(total - bad - skipped, max(bad, int(status != 0 and not nothing)), f"{skipped} skipped" if skipped else "")


def counts(suite: ET.Element) -> tuple[int, int, int]:
    "Tests, failures and skips of one suite in a JUnit report."
    number = lambda key: int(suite.get(key, 0))
    return number("tests"), number("failures") + number("errors"), number("skipped")


def notebooks(args: argparse.Namespace) -> Result:
    return pytest_stage("nbs", args)


def tests(args: argparse.Namespace) -> Result:
    return pytest_stage("tests", args)


# --- site and browser

class Behind:
    "A command that runs beside other stages and is counted last, so that no core is idle. What it says comes then."
    build = waits = None

    def __init__(self, *words: str, good: str, bad: str): self.words, self.good, self.bad = words, good, bad

    def begin(self) -> None:
        "Start the command, into a file what it says."
        self.said = tempfile.TemporaryFile("w+")
        self.build = subprocess.Popen([sys.executable, *self.words], cwd=ROOT, env=environment(), stdout=self.said, stderr=subprocess.STDOUT)

    def begin_after(self, other: "Behind") -> None:
        "Start as soon as another one has ended well, since this one needs what it makes."
        self.waits = threading.Thread(target=lambda: other.build.wait() or self.begin(), daemon=True)
        self.waits.start()

    def __call__(self, _: argparse.Namespace) -> Result:
        if self.waits: self.waits.join()
        if not self.build: self.begin()
        status = self.build.wait()
        self.said.seek(0)
        print(self.said.read(), end="")
        return Result(failed=int(status != 0), note=self.bad if status else self.good)


class Browser(Behind):
    "Pages of the site that has been built, and notebooks in JupyterLab, in a headless Chromium where there is one."
    def __call__(self, args: argparse.Namespace) -> Result:
        import browse
        why = browse.missing()
        return Result(note=f"not looked at: {why}") if why else super().__call__(args)


site = Behind("tools/build_site.py", "--check", good="builds offline, README.md agrees", bad="problems")
browser = Browser("tools/browse.py", good="pages and notebooks are as they should be", bad="faults")
STAGES = {"drift": drift, "notebooks": notebooks, "tests": tests, "site": site, "browser": browser}


def run(name: str, args: argparse.Namespace) -> tuple[str, Result, float]:
    "One stage with its time; an error in the stage itself is a failure, not the end."
    print(f"== {name}", flush=True)
    start = time.perf_counter()
    try: result = STAGES[name](args)
    except Exception as error: result = Result(failed=1, note=f"{type(error).__name__}: {error}")
    return name, result, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=STAGES, nargs="+", default=list(STAGES), metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("-k", metavar="PATTERN", help="only notebooks and tests that match, as in pytest")
    args = parser.parse_args()
    results, behind = [], {n: stage for n, stage in STAGES.items() if n in args.only and isinstance(stage, Behind)}
    if "site" in behind: behind["site"].begin()
    if len(behind) == 2: behind["browser"].begin_after(behind["site"])
    for name in (n for n in STAGES if n in args.only): results.append(run(name, args))
    print("== summary")
    for name, result, seconds in results:
        count = f"{result.passed} passed" if name in ("notebooks", "tests") else ""
        print(f"{name:10} {'FAILED' if result.failed else 'ok':7}{seconds:6.1f} s  {count} {result.note}".rstrip())
    passed, failed = sum(r.passed for _, r, _ in results), sum(r.failed for _, r, _ in results)
    print(f"total: {passed} passed, {failed} failed", flush=True)
    return int(failed > 0)


if __name__ == "__main__": sys.exit(main())
