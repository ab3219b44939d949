"""Build the site offline: nbdev prepares the notebooks, smalldocs renders them, `vendor/` brings KaTeX and Mermaid.

    python tools/build_site.py            # write _docs/ and README.md
    python tools/build_site.py --check    # write _docs/, compare README.md, fail on problems

Notebooks are not run: their saved outputs are shown. Where Quarto is installed, `nbdev_docs` renders the same project.
"""
import argparse
import ast
import html
import json
import os
import posixpath
import re
import shutil
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import check_site
import plain
import readme
from readme import joined, page_name

KATEX_CDN = re.compile(r"https://cdn\.jsdelivr\.net/npm/katex@[\d.]+/dist")
MERMAID_CDN = re.compile(
    r"<script type=\"module\">\s*import mermaid from '[^']+';(mermaid\.initialize\(.*?\);)\s*</script>", re.S)
WEB_FONT = re.compile(r"@import\s*url\([\"']?https?:[^)]*\)[^;]*;")
EXPORT = re.compile(r"^#\|\s*export[ \t]*$", re.M)
EXPORTED = re.compile(r"^#\|\s*export(s|i)?\b", re.M)
HIDE = re.compile(r"^#\|\s*hide\b", re.M)
SHOW_DOC = re.compile(r"^show_doc\(", re.M)
IMPORTS = (ast.Import, ast.ImportFrom)
NOTEBOOK_LINK = re.compile(r"(\]\()([^)\s#]+)")
SOURCE_LINK = re.compile(r"^\[source\]\([^)]*\)(\{[^}]*\})?\n+", re.M)
HEADING = re.compile(r"^#+ +(.+?) *$", re.M)
IN_CONTENTS = re.compile(r'(<a [^>]*\bid="toc-[^>]*>)([^<]+)(?=</a>)')
SCROLL = "pre, table, .sd-table, .math.display"                                  # what may be wider than the page
KEYBOARD = f"""<script>addEventListener("load", () => document.querySelectorAll("{SCROLL}").forEach(
  e => {{ if (e.scrollWidth > e.clientWidth) e.tabIndex = 0; }}));</script>"""


def statements(cell: dict) -> list[ast.stmt]:
    "The parsed statements of a code cell; none for prose, and for cells with magics."
    if cell["cell_type"] != "code": return []
    try: return ast.parse(joined(cell["source"])).body
    except SyntaxError: return []


def prepared(cell: dict) -> str:
    """A cell's source, marked for the site.

    Exported code is shown, not only its documentation (`exports`). A demonstration that also imports is not executed
    (`eval: false`): nbdev executes every cell with an import, without the cells before it.
    """
    source, body = joined(cell["source"]), statements(cell)
    if all(isinstance(s, IMPORTS) for s in body): return source
    if EXPORTED.search(source): return source if HIDE.search(source) else EXPORT.sub("#| exports", source)
    imports = any(isinstance(node, IMPORTS) for s in body for node in ast.walk(s))
    return f"#| eval: false\n{source}" if imports else source


def open_source(nbs: Path, target: Path) -> Path:
    "Copy the notebooks with every cell marked for the site."
    shutil.copytree(nbs, target, ignore=shutil.ignore_patterns(".*", "_proc", "_docs"))
    for path in target.rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]: cell["source"] = prepared(cell)
        path.write_text(json.dumps(notebook), encoding="utf-8")
    return target


def process(cfg) -> Path:
    "nbdev's preparation of the notebooks, without its attempt to install Quarto; returns the folder of results."
    from nbdev import serve
    from nbdev.quarto import refresh_quarto_yml

    refresh_quarto_yml()
    os.environ.setdefault("OMP_NUM_THREADS", "1")     # the cells that are executed only define and import
    shutil.rmtree(cfg.config_path / "_proc", ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = open_source(cfg.nbs_path, Path(scratch).resolve() / "nbs")
        # Workers are forked, as nbdev does it within a notebook, after what all of them import: elsewhere it spawns them.
        import lightning, matplotlib.pyplot, torch, transformers  # noqa: E401, F401
        with patch.object(serve, "IN_NOTEBOOK", True): return serve.proc_nbs(source, force=True)


def renamed(notebook: str) -> str:
    "The notebook name that gives the page the name that nbdev links to."
    return page_name(notebook).removesuffix(".html") + ".ipynb"


def relink(text: str, folder: str, repository: str) -> str:
    "Point a page's links at the staged names, and links out of `nbs/` at the repository."
    def target(match: re.Match) -> str:
        before, url = match.groups()
        if re.match(r"[a-z][a-z0-9+.-]*:|/", url, re.I): return match[0]
        path = posixpath.normpath(posixpath.join(folder, url))
        if path.startswith("../"): return f"{before}{repository}/{path.removeprefix('../')}"
        return before + (renamed(url) if url.endswith(".ipynb") else url)

    return NOTEBOOK_LINK.sub(target, text)


def source_after_docs(cells: list[dict]) -> list[dict]:
    "Put each cell of exported code behind the documentation of what it defines, which nbdev leaves in reverse."
    out: list[dict] = []
    docs: list[dict] = []
    source: dict | None = None
    for cell in [*cells, {"cell_type": "raw", "source": ""}]:
        text = joined(cell["source"])
        if source and cell["cell_type"] == "code" and SHOW_DOC.search(text):
            docs.insert(0, cell)
            continue
        out += [*docs, source] if source else []
        source, docs = (cell, []) if 'code-summary: "Exported source"' in text else (None, [])
        if source is None: out.append(cell)
    return out[:-1]


def shown(out: dict, before: list[dict]) -> dict:
    """A saved output for the site: a picture says what it shows, and documentation repeats nothing.

    The code stands below it, so there is no link to it; and where the page has a heading of the same name, no second one.
    """
    data = out.get("data", {})
    if "image/png" in data:
        source = f"data:image/png;base64,{joined(data['image/png']).strip()}"
        return out | {"data": {"text/html": f'<img src="{source}" class="img-fluid" alt="{html.escape(plain.described(before))}">'}}
    if "text/markdown" in data:
        headings = {h.strip("`") for c in before if c["cell_type"] == "markdown" for h in HEADING.findall(joined(c["source"]))}
        text = SOURCE_LINK.sub("", joined(data["text/markdown"]))
        text = re.sub(r"\A(---\n\n)#+ (\S+)\n\n", lambda m: m[1] if m[2] in headings else m[0], text)
        return out | {"data": data | {"text/markdown": text}}
    return out


def stage_notebook(source: Path, folder: str, cfg) -> str:
    "A processed notebook as smalldocs should read it."
    site = f"{cfg.doc_host.rstrip('/')}/{cfg.doc_baseurl.strip('/')}/"
    notebook = json.loads(source.read_text(encoding="utf-8").replace(site, "/"))
    for cell in notebook["cells"]:
        text = joined(cell["source"])
        if cell["cell_type"] == "markdown": text = relink(text, folder, f"{cfg.git_url}/blob/{cfg.branch}")
        if cell["cell_type"] == "raw": text = re.sub(r"^output-file:.*\n", "", text, flags=re.M)
        cell["source"] = text
    for i, cell in enumerate(cells := notebook["cells"]):
        if "outputs" in cell: cell["outputs"] = [shown(out, cells[:i]) for out in cell["outputs"]]
    notebook["cells"] = source_after_docs(notebook["cells"])
    return json.dumps(notebook)


def stage(cfg, processed: Path, target: Path) -> Path:
    "Copy nbdev's processed notebooks to `target` under the page names that nbdev links to."
    sources: dict[Path, Path] = {}
    for file in sorted(p for p in processed.rglob("*") if p.is_file()):
        name = file.relative_to(processed).as_posix()
        dest = target / (renamed(name) if file.suffix == ".ipynb" else name)
        if dest in sources: raise SystemExit(f"{name} and {sources[dest]} would both become {dest.name}: rename one of them")
        sources[dest] = Path(name)
        dest.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".ipynb": dest.write_text(stage_notebook(file, posixpath.dirname(name), cfg), encoding="utf-8")
        elif file.name in ("_quarto.yml", "sidebar.yml"):
            text = re.sub(r"[\w./-]+\.ipynb", lambda m: renamed(m[0]), file.read_text(encoding="utf-8"))
            dest.write_text(text, encoding="utf-8")
        else: shutil.copy2(file, dest)
    return target


def vendor(site: Path, libs: Path) -> None:
    "Serve KaTeX and Mermaid from the site itself; drop the theme's web font, for which styles.css names system fonts."
    for name in ("katex", "mermaid"): shutil.copytree(libs / name, site / "site_libs" / name, dirs_exist_ok=True)
    for page in site.rglob("*.html"):
        up = "../" * (len(page.relative_to(site).parts) - 1) + "site_libs"
        text = KATEX_CDN.sub(f"{up}/katex", page.read_text(encoding="utf-8"))
        text = MERMAID_CDN.sub(lambda m: f'<script src="{up}/mermaid/mermaid.min.js"></script><script>{m[1]}</script>', text)
        text = IN_CONTENTS.sub(lambda m: m[1] + plain.without_tex(m[2]), text)
        page.write_text(text.replace("</body>", f"{KEYBOARD}</body>"), encoding="utf-8")
    for css in site.rglob("*.css"): css.write_text(WEB_FONT.sub("", css.read_text(encoding="utf-8")), encoding="utf-8")


def readable_search(index: Path) -> None:
    "Maths in the search's texts and titles as characters."
    entries = json.loads(index.read_text(encoding="utf-8"))
    for entry in entries:
        for key in ("title", "section", "text"): entry[key] = plain.signs(entry[key])
    index.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def render(cfg, staged: Path) -> list[str]:
    "Render the staged project into the site's folder; returns smalldocs's warnings."
    from smalldocs.site import build

    warnings = build(staged, quiet=True).warnings
    vendor(staged / cfg.doc_path.name, cfg.config_path / "vendor")
    readable_search(staged / cfg.doc_path.name / "search.json")
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(staged / cfg.doc_path.name, cfg.doc_path)
    return warnings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare README.md instead of writing it; fail on problems")
    args = parser.parse_args()
    from nbdev.config import get_config

    cfg = get_config()
    try: processed = process(cfg)
    except Exception as error:
        print(f"{error}\nThe site executes the cells that import or export, and only those.", file=sys.stderr)
        return 1
    index = processed / cfg.readme_nb
    problems = readme.problems(index, cfg) if args.check else readme.write(index, cfg) or []
    warnings = render(cfg, stage(cfg, processed, cfg.config_path / "_proc" / "_stage"))
    problems += [f"smalldocs: {w}" for w in warnings] + check_site.check(cfg.doc_path)
    for problem in problems: print(problem, file=sys.stderr)
    pages = len(list(cfg.doc_path.rglob("*.html")))
    print(f"{pages} pages, {len(problems)} problems: {os.path.relpath(cfg.doc_path)}/index.html")
    return int(args.check and bool(problems))


if __name__ == "__main__": sys.exit(main())
