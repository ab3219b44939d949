"""Run notebooks in place and save their outputs. Cells that `nbdev_test` skips keep the outputs they have.

    python tools/run.py                                     # every notebook
    python tools/run.py nbs/rule/30_fft.ipynb           # one
    python tools/run.py --flags "slow data" nbs/data/*.ipynb
"""
import argparse
import os
import sys
import time
from pathlib import Path

from execnb.nbio import write_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import NBProcessor


def directives(cell) -> dict:
    "The `#|` directives of a cell."
    return getattr(cell, "directives_", None) or {}


def skipped(cell, flags: set[str]) -> bool:
    "Whether `nbdev_test` passes over `cell` when the cells marked with `flags` are off."
    marks = directives(cell)
    return (cell.cell_type != "code" or "nbdev_export(" in cell.source
            or marks.get("eval:", [""])[0].lower() == "false" or bool(flags & marks.keys()))


def hide_paths(nb, root: Path) -> None:
    "Drop this machine's folders from text outputs, so that saved warnings read the same everywhere."
    def clean(value):
        if isinstance(value, list): return [clean(v) for v in value]
        if not isinstance(value, str): return value
        return value.replace(f"{root}/", "").replace(str(root), ".").replace(str(Path.home()), "~")

    for cell in nb.cells:
        for out in cell.get("outputs", []):
            if "text" in out: out["text"] = clean(out["text"])
            data = out.get("data", {})
            for mime in data:
                if mime.startswith("text/"): data[mime] = clean(data[mime])


def run(path: Path, flags: set[str]) -> bool:
    "Run one notebook in its folder; save it when every cell ran, else print the traceback."
    nb = NBProcessor(path, rm_directives=False).nb

    def skip(cell) -> bool:
        if skipped(cell, flags): return True
        cell.outputs = []
        return False

    shell = CaptureShell(path, mpl_format="png")
    try:
        with working_directory(path.parent): shell.run_all(nb, exc_stop=True, preproc=skip)
    except Exception:
        print(shell.prettytb(fname=path), file=sys.stderr)
        return False
    clean_nb(nb)
    for cell in nb.cells:
        for key in ("directives_", "idx_"): cell.pop(key, None)
    hide_paths(nb, get_config().config_path)
    write_nb(nb, path)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--flags", default=os.environ.get("NB_FLAGS", ""), help="run cells marked with these, too")
    args = parser.parse_args()
    cfg = get_config()
    flags = set(cfg.tst_flags.split()) - set(args.flags.split())
    os.environ["IN_TEST"] = "1"                       # as under nbdev_test
    sys.path.insert(0, str(cfg.config_path))
    failed = 0
    for path in [p.absolute() for p in args.notebooks or sorted(nbglob(as_path=True))]:
        start = time.perf_counter()
        ok = run(path, flags)
        failed += not ok
        print(f"{'saved ' if ok else 'FAILED'} {time.perf_counter() - start:6.1f} s  {path.name}", flush=True)
    return int(failed > 0)


if __name__ == "__main__": sys.exit(main())
