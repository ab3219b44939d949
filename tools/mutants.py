"""Planted mistakes, each of which a test has to find: `python tools/mutants.py` says which were found.

    python tools/mutants.py                    # all of tests/mutants.toml, one after the other
    python tools/mutants.py softmax checkpoint # those whose name contains one of the words
    python tools/mutants.py --jobs 2           # two at a time
    python tools/mutants.py --check            # only whether each still fits its file, in a second

A mistake is a text of a module, what stands there instead, and the tests that must fail with it. It is planted in a copy
of the checkout, never in the checkout itself, and there in the module's notebook as well. The status is 1 if a mistake was not found, or no longer fits its file:
then the list has to follow the code. `make mutants` runs it; it takes too long for `make test`.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "mutants.toml"
LEFT_OUT = ("results/", "vendor/", "_docs/", "_proc/")
LIMIT = 600                                            # seconds of a mistake's tests: an endless loop is found, too


def mutants(path: Path = LIST) -> list[dict]:
    "The list: name, file, old, new and tests of each."
    return tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]


def unfit(mutant: dict, root: Path = ROOT) -> str | None:
    "Why a mistake cannot be planted; None if it can."
    file = root / mutant["file"]
    if not file.is_file(): return f"{mutant['file']} is not there"
    count = file.read_text(encoding="utf-8").count(mutant["old"])
    if count != 1: return f"{mutant['old']!r} stands {count} times in {mutant['file']}, not once"
    if mutant["old"] == mutant["new"]: return "it changes nothing"
    missing = [t for t in mutant["tests"] if not (root / t.partition("::")[0]).is_file()]
    return f"{missing[0]} is not there" if missing else None


def copy(to: Path) -> Path:
    "The checkout's files, without what no test of a mistake needs."
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if name.startswith(LEFT_OUT) or not (ROOT / name).is_file(): continue
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name, follow_symlinks=False)
    return to


def tested(mutant: dict, root: Path) -> tuple[int, str]:
    "The status of the tests in a copy, and the end of what they printed. 1: a test failed, 0: none, other: they could not run."
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant["tests"]]
    try: done = subprocess.run(words, cwd=root, env=env, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired: return 1, f"no end within {LIMIT} s"
    return done.returncode, (done.stdout + done.stderr)[-1500:]


def with_mistake(mutant: dict, root: Path) -> dict[Path, str]:
    "The module with the mistake and, since a notebook defines what it exports itself, the notebook that it comes from."
    file = root / mutant["file"]
    module = file.read_text(encoding="utf-8")
    found = {file: module.replace(mutant["old"], mutant["new"])}
    if not (line := re.search(r"File to edit: (\S+\.ipynb)\.", module)): return found
    notebook = (file.parent / line[1]).resolve()
    cells = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in cells["cells"]:
        source = "".join(cell["source"])
        if source.startswith("#| export"): cell["source"] = source.replace(mutant["old"], mutant["new"])
    return found | {notebook: json.dumps(cells)}


def planted(mutant: dict, root: Path) -> str:
    "What became of a mistake: `found`, or what is wrong. The copy is as before afterwards."
    if why := unfit(mutant, root): return why
    changed = with_mistake(mutant, root)
    before = {file: file.read_text(encoding="utf-8") for file in changed}
    try:
        for file, text in changed.items(): file.write_text(text, encoding="utf-8")
        status, said = tested(mutant, root)
    finally:
        for file, text in before.items(): file.write_text(text, encoding="utf-8")
    if status == 1: return "found"
    return f"not found by {' '.join(mutant['tests'])}" if status == 0 else f"the tests could not run:\n{said}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="run those whose name contains one of these")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--check", action="store_true", help="only whether each fits its file")
    o = parser.parse_args(argv)
    chosen = [m for m in mutants() if not o.words or any(w in m["name"] for w in o.words)]
    if not chosen: parser.error("no mistake has such a name")
    faults = [f"{m['name']}: {why}" for m in chosen if (why := unfit(m))]
    if faults or o.check:
        print("\n".join([*faults, f"{len(chosen)} mistakes, {len(faults)} do not fit"]))
        return bool(faults)
    with tempfile.TemporaryDirectory() as folder:
        free = Queue()
        for i in range(o.jobs): free.put(copy(Path(folder) / f"copy{i}" / "itnet"))
        def run(m: dict) -> str:
            root = free.get()
            try: came = planted(m, root)
            finally: free.put(root)
            print(f"{'ok' if came == 'found' else 'NOT FOUND'}  {m['name']}" + ("" if came == "found" else f"  {came}"), flush=True)
            return came
        with ThreadPoolExecutor(o.jobs) as pool: results = list(pool.map(run, chosen))
    lost = sum(r != "found" for r in results)
    print(f"{len(chosen) - lost} of {len(chosen)} mistakes are found")
    return bool(lost)


if __name__ == "__main__": sys.exit(main())
