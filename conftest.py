"""Notebooks as pytest items, each run as `nbdev_test` runs it, but for the size of figures.

`nbdev_test` runs the notebooks but neither counts nor times them; `pytest nbs` calls the same `nbdev.test.test_nb` with
the same `tst_flags` and reports one item per notebook. `NB_FLAGS="slow data" pytest nbs` runs flagged cells, too. Figures
are drawn, and nobody looks at them: so they are small, where `nbdev_test` draws them at the resolution of a good screen.
"""
import contextlib
import gc
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

gc.set_threshold(5_000, 20, 20)      # a session allocates much and keeps much: with Python's 700, 10, 10 it looks through it all the time


def keep() -> None:
    "What is there now stays, imported modules above all: further collections do not look through it."
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    keep()


@contextlib.contextmanager
def small_figures() -> Iterator[None]:
    "The shells of nbdev's tests draw 40 dots per inch, without looking for the box that is left when margins are cut off."
    import nbdev.test
    from execnb.shell import CaptureShell

    class Small(CaptureShell):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._run("set_matplotlib_formats('png', dpi=40, bbox_inches=None)")       # a name that the shell imports itself

    nbdev.test.CaptureShell = Small
    try: yield
    finally: nbdev.test.CaptureShell = CaptureShell


class NotebookFailed(Exception):
    "A cell of a notebook raised; the message is the notebook's own traceback."


class NotebookItem(pytest.Item):
    "One notebook, as one test."

    def runtest(self) -> None:
        from nbdev.config import get_config
        from nbdev.test import test_nb

        cfg = get_config()
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), small_figures():
            passed, _ = test_nb(self.path, skip_flags=cfg.tst_flags.split(),
                                force_flags=os.environ.get("NB_FLAGS", "").split(), basepath=cfg.config_path)
        keep()                                       # its own names are gone
        if not passed: raise NotebookFailed(errors.getvalue())

    def repr_failure(self, excinfo: pytest.ExceptionInfo) -> str:
        return str(excinfo.value) if isinstance(excinfo.value, NotebookFailed) else super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.nodeid


class NotebookFile(pytest.File):
    def collect(self) -> Iterator[NotebookItem]:
        yield NotebookItem.from_parent(self, name=self.path.stem)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> NotebookFile | None:
    hidden = any(part.startswith((".", "_")) for part in file_path.relative_to(parent.config.rootpath).parts)
    if file_path.suffix == ".ipynb" and not hidden: return NotebookFile.from_parent(parent, path=file_path)
