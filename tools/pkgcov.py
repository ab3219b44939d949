"""Run the notebooks' tests against the exported package, for coverage: `coverage run --source itnet tools/pkgcov.py`.

Under `nbdev_test` the exported cells run inside the notebook and the modules in `itnet/` are never imported. Here those
cells are skipped and the notebook gets the names of its module instead.
"""
import os
import sys

from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor

from run import directives, skipped

EXPORTS = {"export", "exports", "exporti"}
USE_MODULE = """import importlib
globals().update({{k: v for k, v in vars(importlib.import_module({!r})).items() if not k.startswith("__")}})"""


def run(path, flags: set[str], package: str) -> bool:
    "Run one notebook on its exported module; False when a cell raises."
    nb = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    module = next((directives(c)["default_exp"][0] for c in nb.cells if "default_exp" in directives(c)), None)

    def skip(cell) -> bool:
        return skipped(cell, flags) or bool(module and EXPORTS & directives(cell).keys())

    shell = CaptureShell(path)
    if module: shell.run(USE_MODULE.format(f"{package}.{module}"))
    try:
        with working_directory(path.parent): shell.run_all(nb, exc_stop=True, preproc=skip)
    except Exception:
        print(shell.prettytb(fname=path), file=sys.stderr)
        return False
    return True


def main() -> int:
    cfg = get_config()
    os.environ["IN_TEST"] = "1"
    sys.path.insert(0, str(cfg.config_path))
    results = [run(p.absolute(), set(cfg.tst_flags.split()), cfg.lib_name) for p in sorted(nbglob(as_path=True))]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return int(not all(results))


if __name__ == "__main__": sys.exit(main())
