"""Check a built site without a browser: `python tools/check_site.py _docs`.

Reported are files loaded from another host, links and anchors that lead nowhere, maths or references left as text, and
pictures that do not say what they show.
"""
import html
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
VERBATIM = {"pre", "code", "script", "style", "svg", "textarea"}      # what they hold is not prose
LOADING_RELS = {"stylesheet", "icon", "preload", "modulepreload"}
OUTSIDE = re.compile(r"(?:https?:)?//", re.I)
IMPORTED = re.compile(r"""\b(?:import|from)\s*\(?\s*["']((?:https?:)?//[^"']+)""")
CSS_URL = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)""")
LEFTOVER = {
    "reference left as text": re.compile(r"(?<![\w.])@(?:fig|tbl|eq|sec)-[\w-]+"),
    "maths left as text": re.compile(
        r"\$\$.{0,40}|\\(?:begin|end|frac|int|sum|prod|partial|math[a-z]+|left|right)(?![a-z]).{0,40}"),
    "callout left as text": re.compile(r":::.{0,40}"),
}


class Page(HTMLParser):
    "What the checks need of one page: its anchors, its links, what it loads, and its prose."

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.prose: list[str] = []
        self.mute: list[str] = []          # pictures without a description
        self._open: list[bool] = []        # for each open element: does it start or lie in verbatim text?
        self._tags: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        a = {k: v or "" for k, v in attrs}
        if "id" in a: self.ids.add(a["id"])
        if tag == "a" and "name" in a: self.ids.add(a["name"])
        self.links += [a[k] for k in ("href", "src") if k in a]
        if "src" in a: self.loads.append(a["src"])
        if tag == "img" and "alt" not in a: self.mute.append(a.get("src", "")[:60])
        if tag == "link" and LOADING_RELS & set(a.get("rel", "").split()): self.loads.append(a.get("href", ""))
        if tag in VOID: return
        inside = bool(self._open and self._open[-1])
        self._tags.append(tag)
        self._open.append(inside or tag in VERBATIM or "math" in a.get("class", "").split())

    def handle_endtag(self, tag: str) -> None:
        if tag not in self._tags: return
        while self._tags.pop() != tag: self._open.pop()
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._tags and self._tags[-1] in ("script", "style"):
            self.loads += IMPORTED.findall(data) + CSS_URL.findall(data)
        elif not (self._open and self._open[-1]): self.prose.append(data)


def link_problem(url: str, file: Path, pages: dict[Path, Page]) -> str | None:
    "Why `url` on the page `file` leads nowhere, or None."
    if not url or re.match(r"[a-z][a-z0-9+.-]*:|//", url, re.I): return None
    path, _, anchor = html.unescape(url).partition("#")
    path = unquote(path.partition("?")[0])
    target = (file.parent / path).resolve() if path else file.resolve()
    if target.is_dir(): target /= "index.html"
    if not target.exists(): return f"no file {url}"
    if anchor and target in pages and unquote(anchor) not in pages[target].ids: return f"no anchor {url}"
    return None


def page_problems(file: Path, page: Page, pages: dict[Path, Page]) -> list[str]:
    "What is wrong with one page."
    found = [f"loads {u}" for u in page.loads if OUTSIDE.match(u)]
    found += filter(None, (link_problem(u, file, pages) for u in page.links))
    found += [f"picture without a description: {src}" for src in page.mute]
    prose = "".join(page.prose)
    for kind, pattern in LEFTOVER.items(): found += [f"{kind}: {m}" for m in pattern.findall(prose)]
    return list(dict.fromkeys(found))


def check(site: Path) -> list[str]:
    "Problems of a built site, one line each; an empty list for a good one."
    pages = {f.resolve(): Page(f.read_text(encoding="utf-8")) for f in sorted(site.rglob("*.html"))}
    if not pages: return [f"no pages in {site}"]
    found = [f"{f.relative_to(site.resolve())}: {p}" for f, page in pages.items() for p in page_problems(f, page, pages)]
    for css in sorted(site.rglob("*.css")):
        found += [f"{css.relative_to(site)}: loads {u}" for u in CSS_URL.findall(css.read_text(encoding="utf-8"))]
    return found


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]))
    print("\n".join(problems) or "no problems")
    sys.exit(bool(problems))
