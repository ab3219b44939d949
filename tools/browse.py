"""Look at pages of the built site, and at notebooks in JupyterLab, in a headless Chromium: `make browse`.

    python tools/browse.py                        # ten pages of _docs/, and three notebooks in JupyterLab
    python tools/browse.py --shots shots          # … and keep a picture of each page at both widths
    python tools/browse.py --only site --pages 0  # every page

A page is wrong where axe-core finds a fault of accessibility that is serious, by day or by night, the browser complains, a
file is missing, the page has to be scrolled sideways on a telephone, or it stays light for who wants pages dark. A notebook is wrong where JupyterLab calls it modified on opening,
a cell fails or warns in red, or it does not end. Without Chromium and its driver nothing can be looked at: that is said,
and is no fault. On Debian: apt-get install chromium chromium-driver.
"""
import argparse
import contextlib
import functools
import http.server
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from selenium import webdriver
from selenium.webdriver.common.by import By

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = 1400, 390                                                    # pixels of a screen and of a telephone
PAGES = ("index.html", "start/hundred_lines.html", "start/own_data.html", "theory/integral_transform.html", "theory/map.html", "nets/block.html",
         "conv/op.html", "experiments/wikitext.html", "special_cases/index.html", "cli.html")
NOTEBOOKS = "index.ipynb", "theory/00_integral_transform.ipynb", "kernel/00_structure.ipynb"
PATIENCE = 240                                                        # seconds for a notebook


def missing() -> str | None:
    "Why there is nothing to look with; None if there is."
    absent = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"no {' and no '.join(absent)} here" if absent else None


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    "A Chromium without a window, as its own user with no history."
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"): options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(60)
    try: yield driver
    finally: driver.quit()


def until(condition, seconds: float, what: str):
    "The first true answer. TimeoutError, with what was waited for."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition(): return found
        time.sleep(.2)
    raise TimeoutError(f"{what}: not within {seconds:g} s")


def resize(driver: webdriver.Chrome, width: int) -> None:
    "Show pages at a width, as a telephone's browser does it: windows have a least one."
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600))


def shown(driver: webdriver.Chrome, what: str) -> list:
    "The elements of a page that a selector finds and a reader sees."
    return [e for e in driver.find_elements(By.CSS_SELECTOR, what) if e.is_displayed()]


def darken(driver: webdriver.Chrome, dark: bool) -> None:
    "Say what a reader's system says who wants pages dark."
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dict(features=[dict(name="prefers-color-scheme", value="dark" if dark else "light")]))


def complaints(driver: webdriver.Chrome) -> list[str]:
    "What the browser has complained of since it was last asked: scripts that fail, files that are not there."
    return [entry["message"][:200] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


# --- the site

@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    "The address at which a folder is served."
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try: yield f"http://127.0.0.1:{server.server_address[1]}"
        finally: server.shutdown()


AXE = "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(r => done(r.violations), e => done(String(e)))"
DARK = """const paper = e => getComputedStyle(e).backgroundColor.match(/[0-9.]+/g).map(Number);
const [r, g, b] = [document.body, document.documentElement].map(paper).find(c => c[3] !== 0) || [255, 255, 255];
return r + g + b < 384"""
CUT = "return [...document.querySelectorAll('pre code')].filter(e => e.parentElement.scrollWidth > e.parentElement.clientWidth + 1 && !e.closest('[class*=output]')).length"
TOO_WIDE = "const d = document.documentElement; return d.scrollWidth - d.clientWidth"


def accessibility(driver: webdriver.Chrome) -> list[str]:
    "The faults of a page that axe-core calls serious or critical, each with the first place."
    driver.execute_script((ROOT / "vendor" / "axe" / "axe.min.js").read_text(encoding="utf-8"))
    found = driver.execute_async_script(AXE)
    if isinstance(found, str): return [f"axe-core failed: {found}"]
    return [f"{v['id']} ({v['impact']}): {v['help']}; {len(v['nodes'])} times, first {v['nodes'][0]['html'][:120]}"
            for v in found if v["impact"] in ("serious", "critical")]


def keep(driver: webdriver.Chrome, shots: Path, url: str, what: str) -> None:
    "A picture of what is shown."
    name = re.sub(r"[^a-z0-9]+", "-", url.partition("//")[2].partition("/")[2].lower())
    (shots / f"{name}-{what}.png").write_bytes(driver.get_screenshot_as_png())


def page_faults(driver: webdriver.Chrome, url: str, shots: Path | None = None) -> list[str]:
    "What is wrong with a page."
    found = []
    for width in WIDTHS:
        resize(driver, width)
        driver.get(url)
        until(lambda: driver.execute_script("return document.readyState") == "complete", 30, url)
        if shots: keep(driver, shots, url, str(width))
        if (wide := driver.execute_script(TOO_WIDE)) > 0: found.append(f"at {width} pixels it is {wide} too wide")
        if width == WIDTHS[0] and (cut := driver.execute_script(CUT)): found.append(f"{cut} pieces of code have to be scrolled sideways")
        found += complaints(driver)
    found += accessibility(driver)
    darken(driver, True)
    resize(driver, WIDTHS[0])
    driver.get(url)
    until(lambda: driver.execute_script("return document.readyState") == "complete", 30, url)
    if shots: keep(driver, shots, url, "dark")
    if not driver.execute_script(DARK): found.append("it stays light for who wants it dark")
    found += [f"in the dark: {fault}" for fault in accessibility(driver)]
    darken(driver, False)
    return list(dict.fromkeys(found + complaints(driver)))


def search_faults(driver: webdriver.Chrome, base: str) -> list[str]:
    "What is wrong with the search: a word of one page has to lead there, and a word of none to nothing."
    resize(driver, WIDTHS[0])
    def results(word: str) -> list[str]:
        driver.get(f"{base}/index.html")
        box = driver.find_element(By.CSS_SELECTOR, "input[type=search], #search, input[placeholder*=earch]")
        box.send_keys(word)
        time.sleep(1.)
        return [a.get_attribute("href") or "" for a in shown(driver, "[class*=search] a, [id*=search] a")]
    found = []
    if not any("resolvent" in url for url in results("resolvent")): found.append("search: no page for 'resolvent'")
    if nonsense := results("qzxjkwv"): found.append(f"search: 'qzxjkwv' leads to {nonsense[0]}")
    return found


def site_faults(driver: webdriver.Chrome, site: Path, count: int, shots: Path | None) -> list[str]:
    "What is wrong with pages of a built site."
    if not (site / "index.html").is_file(): return [f"{site} holds no site: build it (make docs)"]
    pages = PAGES if count == len(PAGES) else sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html"))[:count or None]
    if absent := [p for p in pages if not (site / p).is_file()]: return [f"{site} has no {absent[0]}: choose another page in {__file__}"]
    with served(site) as base:
        found = [f"{page}: {fault}" for page in pages for fault in page_faults(driver, f"{base}/{page}", shots)]
        return found + search_faults(driver, base)


# --- JupyterLab

@contextlib.contextmanager
def laboratory(folder: Path) -> Iterator[str]:
    "The address of a JupyterLab on a folder, with its token; as a new user, without the settings of this one."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    token, home = secrets.token_hex(8), folder.parent / "home"
    places = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
    words = ["-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}", f"--IdentityProvider.token={token}", f"--notebook-dir={folder}",
             "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    base = f"http://127.0.0.1:{port}"
    def up() -> bool:
        if server.poll() is not None: raise RuntimeError(f"JupyterLab ended with status {server.returncode}")
        with contextlib.suppress(OSError): return urllib.request.urlopen(f"{base}/api?token={token}", timeout=5).status == 200
        return False
    with open(folder.parent / "jupyter.log", "w+") as said, subprocess.Popen([sys.executable, *words], env={**os.environ, **places}, stdout=said, stderr=said) as server:
        try:
            until(up, 60, "JupyterLab")
            yield f"{base}/lab/tree/%s?token={token}&reset"
        except Exception:
            said.seek(0)
            print("JupyterLab said, in the end:", *said.read().splitlines()[-40:], sep="\n  ")
            raise
        finally: server.terminate()


MARKS = """return [...document.querySelectorAll('.jp-Notebook .jp-InputPrompt')].map(e => e.textContent.trim())"""
RED = """return [...document.querySelectorAll('.jp-Notebook [data-mime-type="application/vnd.jupyter.error"], .jp-Notebook [data-mime-type="application/vnd.jupyter.stderr"]')]
         .map(e => e.textContent.trim().slice(-200))"""


def ran(driver: webdriver.Chrome) -> bool:
    "Has every cell that is to run been run? A cell that waits or runs is marked by a star."
    marks = driver.execute_script(MARKS)
    return any(re.search(r"\d", mark) for mark in marks) and not any("*" in mark for mark in marks) and not driver.find_elements(By.CSS_SELECTOR, ".jp-Notebook-ExecutionIndicator[data-status=busy]")


def notebook_faults(driver: webdriver.Chrome, url: str, file: Path, shots: Path | None = None) -> list[str]:
    "What is wrong with a notebook that is opened and run in JupyterLab."
    found = []
    driver.get(url)
    until(lambda: driver.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-Cell"), 60, f"{file.name} is opened")
    until(lambda: driver.find_elements(By.CSS_SELECTOR, ".jp-Notebook-ExecutionIndicator[data-status=idle]"), 60, f"{file.name} has a kernel")
    time.sleep(3)                                                     # the kernel's own words come into the notebook, or not
    if driver.find_elements(By.CSS_SELECTOR, ".lm-DockPanel-tabBar .jp-mod-dirty"): found.append("it is called modified when it is opened")
    if shots: (shots / f"lab-{file.stem}-opened.png").write_bytes(driver.get_screenshot_as_png())
    # Not "restart and run all": a kernel that has just been opened is as new, and while JupyterLab connects anew to a restarted
    # one on a busy machine, it can send in the format of the old connection, which ends the new one; then all cells wait for ever.
    until(lambda: [e for e in shown(driver, ".lm-MenuBar-itemLabel") if e.text == "Run"], 30, "the menu Run")[0].click()
    until(lambda: shown(driver, ".lm-Menu-item[data-command='runmenu:run-all']"), 30, "Run All Cells")[0].click()
    until(lambda: ran(driver), PATIENCE, f"{file.name} runs to its end")
    if shots: (shots / f"lab-{file.stem}-run.png").write_bytes(driver.get_screenshot_as_png())
    return found + [f"in red: {text!r}" for text in driver.execute_script(RED)]


def lab_faults(driver: webdriver.Chrome, shots: Path | None) -> list[str]:
    "What is wrong with three notebooks, opened in a JupyterLab on a copy of all; within the checkout, whose notebooks its hooks know."
    (ROOT / "_proc").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "_proc") as scratch:
        copy = Path(scratch) / "nbs"
        shutil.copytree(ROOT / "nbs", copy, ignore=shutil.ignore_patterns(".*"))
        (Path(scratch) / "results").symlink_to(ROOT / "results")
        resize(driver, WIDTHS[0])
        with laboratory(copy) as url:
            return [f"{name}: {fault}" for name in NOTEBOOKS for fault in notebook_faults(driver, url % quote(name), copy / name, shots)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("site", "lab"), help="only this part")
    parser.add_argument("--pages", type=int, default=len(PAGES), help="how many pages of the site; 0: all")
    parser.add_argument("--site", type=Path, default=ROOT / "_docs", help="the folder of the built site")
    parser.add_argument("--shots", type=Path, help="a folder for pictures")
    o = parser.parse_args(argv)
    if why := missing():
        print(f"skipped: {why}")
        return 0
    if o.shots: o.shots.mkdir(parents=True, exist_ok=True)
    found = []
    with browser() as driver:
        if o.only != "lab": found += site_faults(driver, o.site, o.pages, o.shots)
        if o.only != "site": found += lab_faults(driver, o.shots)
    print("\n".join(found) or "no faults")
    return bool(found)


if __name__ == "__main__": sys.exit(main())
