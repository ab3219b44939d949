"What tools/browse.py calls a fault of a page or of a notebook is one, and what is good has none."
import json
import shutil

import pytest

import browse
from test_runs import SLOW_TESTS

pytestmark = pytest.mark.skipif(browse.missing() is not None, reason=f"needs a browser: {browse.missing()}")

GOOD = "<h1>A page</h1><p>Words.</p><img src='dot.png' alt='a dot'><table tabindex=0 style='display: block; overflow-x: auto'><tr><td>{}</table>".format("wide" * 200)
DOT = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010806000000"
                    "1f15c4890000000a49444154789c6300010000050001"
                    "0d0a2db40000000049454e44ae426082")
FAULTS = {
    "a picture without words": ("<img src='dot.png'>", "image-alt (critical)"),
    "a link without words": ("<a href='index.html'></a>", "link-name (serious)"),
    "grey on white": ("<p style='color: #ccc'>Words.</p>", "color-contrast (serious)"),
    "a script that fails": ("<script>nothing.there()</script>", "nothing is not defined"),
    "a file that is not there": ("<img src='none.png' alt='none'>", "404"),
    "a line of code that does not fit": (f"<pre tabindex=0 style='overflow-x: auto'><code>{'x = 1; ' * 300}</code></pre>", "1 pieces of code"),
    "a page that stays light": ("<style>html { background: #fff !important; color: #000 !important }</style>", "it stays light"),
    "grey on black": ("<style>@media (prefers-color-scheme: dark) { p { color: #444 } }</style>", "in the dark: color-contrast (serious)"),
    "words that do not fit a telephone": (f"<p>{'long' * 300}</p>", "at 390 pixels it is"),
}


@pytest.fixture(scope="module")
def driver():
    with browse.browser() as driver: yield driver


def page(folder, body):
    "The address of a page is that of a folder's index; its files lie beside it."
    folder.mkdir(exist_ok=True)
    (folder / "index.html").write_text(f"<!doctype html><html lang=en><head><title>Page</title><link rel=icon href='data:,'>"
                                       f"<meta name=viewport content='width=device-width'><style>html {{ background: #fff; color: #000 }} @media (prefers-color-scheme: dark) {{ html {{ background: #111; color: #eee }} }}</style></head><body><main>{body}</main></body></html>")
    (folder / "dot.png").write_bytes(DOT)


def test_faults_of_pages(driver, tmp_path):
    for name, (body, _) in {"good": (GOOD, ""), **FAULTS}.items(): page(tmp_path / name.replace(" ", "-"), GOOD + body if name != "good" else body)
    with browse.served(tmp_path) as base:
        assert browse.page_faults(driver, f"{base}/good/index.html") == []
        for name, (_, says) in FAULTS.items():
            found = browse.page_faults(driver, f"{base}/{name.replace(' ', '-')}/index.html")
            assert any(says in fault for fault in found), (name, found)


def test_pages_that_are_not_there(driver, tmp_path):
    assert browse.site_faults(driver, tmp_path, 10, None) == [f"{tmp_path} holds no site: build it (make docs)"]
    page(tmp_path, GOOD)
    assert "has no start/" in browse.site_faults(driver, tmp_path, len(browse.PAGES), None)[0]


@pytest.mark.skipif(not SLOW_TESTS, reason="needs half a minute: NB_FLAGS=slow runs it")
def test_faults_of_notebooks(driver, tmp_path):
    def cell(id, source): return dict(cell_type="code", id=id, metadata={}, execution_count=None, outputs=[], source=source)
    for name, last in dict(good="1 + 1", fails="1 / 0", warns="import sys; print('a warning', file=sys.stderr)").items():
        kernel = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
        folder = tmp_path / "nbs"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.ipynb").write_text(json.dumps(dict(cells=[cell("first", "x = 1"), cell("last", last)], metadata=kernel, nbformat=4, nbformat_minor=5)))
    browse.resize(driver, 1400)
    with browse.laboratory(folder) as url:
        found = {name: browse.notebook_faults(driver, url % f"{name}.ipynb", folder / f"{name}.ipynb") for name in ("good", "fails", "warns")}
    opened = "it is called modified when it is opened"                  # outside of the checkout, whose hooks mend that
    assert found["good"] in ([], [opened])
    assert any("ZeroDivisionError" in f for f in found["fails"]) and any("a warning" in f for f in found["warns"])


def test_without_a_browser_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert browse.main([]) == 0 and capsys.readouterr().out == "skipped: no chromium and no chromedriver here\n"
