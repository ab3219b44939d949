"""README.md from the processed index notebook: what the site's home page says, with links that work in a checkout."""
import base64
import json
import posixpath
import re
from pathlib import Path

import yaml

from plain import described, joined

FIGURES = "index_files"                                        # the folder of README's pictures, beside README.md
LINK = re.compile(r"""(\]\(|\b(?:src|href)=")([^)\s"]+)""")    # target of a Markdown link or picture, or of an HTML one
SUFFIX = {"image/png": "png", "image/svg+xml": "svg", "image/jpeg": "jpg"}


def page_name(notebook: str) -> str:
    "nbdev's page for a notebook: lower case and without its number, `rule/30_fft.ipynb` -> `rule/fft.html`."
    folder, name = posixpath.split(notebook)
    return posixpath.join(folder, re.sub(r"^\d+[a-zA-Z0-9]*_", "", name.lower()).replace(".ipynb", ".html"))


def local_links(text: str, cfg) -> str:
    "Make links of the index notebook relative to the top of the checkout; links to the site go to its notebooks."
    nbs = cfg.nbs_path.relative_to(cfg.config_path).as_posix()
    site = f"{cfg.doc_host.rstrip('/')}/{cfg.doc_baseurl.strip('/')}/"
    notebooks = {page_name(p): p for p in (f.relative_to(cfg.nbs_path).as_posix() for f in cfg.nbs_path.rglob("*.ipynb"))}

    def relink(match: re.Match) -> str:
        before, url = match.groups()
        if url.startswith(site):
            page = url.removeprefix(site).partition("#")[0]
            return f"{before}{nbs}/{notebooks[page]}" if page in notebooks else match[0]
        if re.match(r"[a-z][a-z0-9+.-]*:|[/#]", url, re.I): return match[0]
        return before + posixpath.normpath(f"{nbs}/{url}")

    return LINK.sub(relink, text)


def output_markdown(out: dict, figures: dict[str, bytes], before: list[dict]) -> str:
    "Markdown for one saved output; a picture is added to `figures` under its file name, and described by the cells before."
    data = out.get("data", {})
    for mime, suffix in SUFFIX.items():
        if mime in data:
            name = f"figure-{len(figures) + 1}.{suffix}"
            content = joined(data[mime])
            figures[name] = content.encode() if suffix == "svg" else base64.b64decode(content)
            return f"![{described(before)}]({FIGURES}/{name})"
    if "text/markdown" in data: return joined(data["text/markdown"]).strip()
    if "<table" in joined(data.get("text/html", "")): return joined(data["text/html"]).strip()
    text = joined(out.get("text", data.get("text/plain", ""))).rstrip()
    return f"```\n{text}\n```" if text else ""


def cell_markdown(cell: dict, figures: dict[str, bytes], before: list[dict], cfg) -> list[str]:
    "The README blocks of one processed cell, after others."
    source = joined(cell["source"])
    if cell["cell_type"] == "raw":
        front = yaml.safe_load(source.strip().strip("-"))
        return [f"# {front.get('title', '')}", str(front.get("description", ""))]
    if cell["cell_type"] == "markdown": return [local_links(source.replace("```{mermaid}", "```mermaid"), cfg)]
    options = yaml.safe_load("\n".join(re.findall(r"^#\|(.*)$", source, re.M))) or {}
    if options.get("include") is False: return []
    code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
    shown = [f"```python\n{code}\n```"] if code and options.get("echo") is not False else []
    if options.get("output") is False: return shown
    return shown + [output_markdown(out, figures, before) for out in cell.get("outputs", [])]


def make(notebook: Path, cfg) -> tuple[str, dict[str, bytes]]:
    "README's text and its figures by file name, from the index notebook as nbdev processed it."
    figures: dict[str, bytes] = {}
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    blocks = [block for i, cell in enumerate(cells) for block in cell_markdown(cell, figures, cells[:i], cfg)]
    return "\n\n".join(b.strip() for b in blocks if b.strip()) + "\n", figures


def files(root: Path) -> dict[str, bytes]:
    "README.md and its figures as they are on disk."
    paths = [root / "README.md", *sorted((root / FIGURES).glob("*"))]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in paths if p.is_file()}


def wanted(notebook: Path, cfg) -> dict[str, bytes]:
    "README.md and its figures as they should be."
    text, figures = make(notebook, cfg)
    return {"README.md": text.encode(), **{f"{FIGURES}/{name}": content for name, content in figures.items()}}


def write(notebook: Path, cfg) -> None:
    "Write README.md and its figures, and remove figures that it no longer shows."
    new = wanted(notebook, cfg)
    for name in files(cfg.config_path).keys() - new.keys(): (cfg.config_path / name).unlink()
    for name, content in new.items():
        path = cfg.config_path / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_bytes() != content: path.write_bytes(content)


def problems(notebook: Path, cfg) -> list[str]:
    "How README.md and its figures differ from what the index notebook makes."
    old, new = files(cfg.config_path), wanted(notebook, cfg)
    return [f"{name} is not what the index notebook makes: run `make docs`"
            for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
