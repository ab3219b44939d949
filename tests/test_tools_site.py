"""The site's tools: a problem that is planted is found, and links lead where they should on the site and in README."""
import html
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import build_site
import check_site
import plain
import readme


@pytest.fixture
def cfg(tmp_path):
    "A project of two notebooks, in the shape that the tools read from nbdev's configuration."
    nbs = tmp_path / "nbs"
    (nbs / "operator").mkdir(parents=True)
    for name in ("index.ipynb", "operator/40_fft.ipynb"): (nbs / name).write_text('{"cells": []}')
    return SimpleNamespace(config_path=tmp_path, nbs_path=nbs, doc_host="https://example.org", doc_baseurl="/kit",
                           git_url="https://git.example.org/kit", branch="main")


def site(folder: Path, **pages: str) -> list[str]:
    for name, body in pages.items(): (folder / f"{name}.html").write_text(f'<html><body id="top">{body}</body></html>')
    return check_site.check(folder)


# --- check_site

@pytest.mark.parametrize("body", [
    '<a href="b.html">x</a>', '<a href="b.html#top">x</a>', '<a href="#top">x</a>', '<a href="./?q=1">x</a>',
    '<a href="https://example.org/">outside</a>', '<a href="mailto:x@example.org">x</a>', "costs $5 and $6",
    '<pre>$$ @fig-x \\frac ::: </pre>', '<code>\\int</code>', '<span class="math inline">\\(\\frac12\\)</span>',
    '<p>a<br>b</p><img src="data:image/png;base64,AA" alt="a bump"><div class="math">$$ \\sum $$<b>x</b></div>'])
def test_good_pages_have_no_problems(tmp_path, body):
    assert site(tmp_path, index=body, b="") == []


@pytest.mark.parametrize("body, problem", [
    ('<a href="c.html">x</a>', "no file c.html"),
    ('<a href="b.html#none">x</a>', "no anchor b.html#none"),
    ('<a href="#none">x</a>', "no anchor #none"),
    ('<img src="figure.png" alt="">', "no file figure.png"),
    ('<img src="data:image/png;base64,AA">', "picture without a description"),
    ('<script src="https://cdn.example.org/x.js"></script>', "loads https://cdn.example.org/x.js"),
    ('<script src="//cdn.example.org/x.js"></script>', "loads //cdn.example.org/x.js"),
    ('<link rel="stylesheet" href="https://cdn.example.org/x.css">', "loads https://cdn.example.org/x.css"),
    ("<script>import m from 'https://cdn.example.org/m.mjs'</script>", "loads https://cdn.example.org/m.mjs"),
    ("<style>@import url(https://cdn.example.org/f.css);</style>", "loads https://cdn.example.org/f.css"),
    ("<p>as @fig-kernels shows</p>", "reference left as text: @fig-kernels"),
    ("<p>$$ x $$</p>", "maths left as text: $$ x $$"),
    ("<p><b>\\begin{equation}</b></p>", "maths left as text: \\begin{equation}"),
    ('<div class="math">$$ x $$</div><p>\\frac12</p>', "maths left as text"),
    ("<p>::: {.callout-note}</p>", "callout left as text")])
def test_planted_problems_are_found(tmp_path, body, problem):
    found = site(tmp_path, index=body, b="")
    assert len(found) == 1 and found[0].startswith("index.html: ") and problem in found[0]


def test_style_sheets_and_empty_sites_are_checked(tmp_path):
    assert check_site.check(tmp_path) == [f"no pages in {tmp_path}"]
    (tmp_path / "x.css").write_text("@import url(https://fonts.example.org/a;b);")
    assert site(tmp_path, index="") == ["x.css: loads https://fonts.example.org/a;b"]


# --- build_site

@pytest.mark.parametrize("url, folder, to", [
    ("40_fft.ipynb#cost", "operator", "fft.ipynb#cost"),
    ("../operator/40_fft.ipynb", "nets", "../operator/fft.ipynb"),
    ("../LICENSE", "", "https://git.example.org/kit/blob/main/LICENSE"),
    ("../../results/a.json", "operator", "https://git.example.org/kit/blob/main/results/a.json"),
    ("https://example.org/40_fft.ipynb", "", "https://example.org/40_fft.ipynb"),
    ("figures/a.png", "operator", "figures/a.png")])
def test_site_links(url, folder, to):
    text = build_site.relink(f"[see]({url}) and ![f]({url})", folder, "https://git.example.org/kit/blob/main")
    assert text == f"[see]({to}) and ![f]({to})"


def cell(source: str, kind: str = "code") -> dict:
    return {"cell_type": kind, "source": source}


@pytest.mark.parametrize("source, becomes", [
    ("#| export\ndef f(): pass", "#| exports\ndef f(): pass"),
    ("#| export\nimport re", "#| export\nimport re"),
    ("#| export\n#| hide\ndef f(): pass", "#| export\n#| hide\ndef f(): pass"),
    ("import re\nre.I", "#| eval: false\nimport re\nre.I"),
    ("def f():\n    import re", "#| eval: false\ndef f():\n    import re"),
    ("f(1)", "f(1)"), ("%time f(1)", "%time f(1)")])
def test_cells_are_marked_for_the_site(source, becomes):
    assert build_site.prepared(cell(source)) == becomes


def test_source_follows_its_documentation():
    source, constants = (cell(f'#| code-summary: "Exported source"\n{s}') for s in ("def f(): ...\ndef g(): ...", "A = 1"))
    f, g, demo = cell("show_doc(f)"), cell("show_doc(g)"), cell("f()")
    assert build_site.source_after_docs([constants, source, g, f, demo]) == [constants, f, g, source, demo]
    assert build_site.source_after_docs([demo, source, f]) == [demo, f, source]
    assert build_site.source_after_docs([]) == []


def planted(x: str = "<img src=x>"    # as <u>Dict</u>
           ) -> str:
    "`Dict<str>` or Dict<str>, (B, *S) -> (B, *F), a < b, $x$, ^2^ ~s~ @fig-x, \\frac, &copy; <script>alert(1)</script>."


def test_docstrings_are_text():
    "By the renderer that settings.ini names: tags, comments and defaults are shown, and nothing is taken for a mark."
    from nbdev.config import get_config
    from nbdev.showdoc import show_doc
    from smalldocs.markdown import render

    assert get_config().get("renderer") == "itnet.docs.TextRenderer"
    page = render(show_doc(planted)._repr_markdown_(), {})
    assert not re.search(r"<(str|script|u|img)\b", page)
    text = html.unescape(re.sub("<[^>]+>", "", page))
    assert "Dict<str> or Dict<str>, (B, *S) -> (B, *F), a < b, $x$, ^2^ ~s~ @fig-x, \\frac, &copy; <script>alert(1)</script>." in text
    assert "='<img src=x>'" in text and "# as <u>Dict</u>" in text


def test_pages_that_would_collide_are_refused(cfg, tmp_path):
    (cfg.nbs_path / "operator" / "10_fft.ipynb").write_text('{"cells": []}')
    with pytest.raises(SystemExit, match="10_fft.ipynb"): build_site.stage(cfg, cfg.nbs_path, tmp_path / "stage")


def test_vendored_libraries_replace_the_network(tmp_path):
    for name in ("katex", "mermaid"): (tmp_path / "libs" / name).mkdir(parents=True)
    page = tmp_path / "site" / "a" / "b.html"
    page.parent.mkdir(parents=True)
    page.write_text('<script src="https://cdn.jsdelivr.net/npm/katex@0.16.11/dist/katex.min.js"></script><script type="module">'
                    "import mermaid from 'https://cdn.jsdelivr.net/npm/mermaid@11/m.mjs';mermaid.initialize({});</script>")
    (tmp_path / "site" / "t.css").write_text("@import url(https://fonts.example.org/css?w=1;2);body{}")
    build_site.vendor(tmp_path / "site", tmp_path / "libs")
    text = page.read_text()
    assert "https:" not in text and 'src="../site_libs/katex/katex.min.js"' in text and "mermaid.initialize({})" in text
    assert (tmp_path / "site" / "t.css").read_text() == "body{}"


def test_contents_and_keyboard(tmp_path):
    "The table of contents shows characters, not TeX; what scrolls sideways can be reached without a mouse."
    for name in ("katex", "mermaid"): (tmp_path / "libs" / name).mkdir(parents=True)
    page = tmp_path / "site" / "a.html"
    page.parent.mkdir()
    page.write_text('<body><a href="#x" id="toc-x" class="nav-link">Why R \\to \\infty</a><pre>\\infty</pre></body>')
    build_site.vendor(tmp_path / "site", tmp_path / "libs")
    text = page.read_text()
    assert ">Why R → ∞</a><pre>\\infty</pre>" in text and "e.tabIndex = 0" in text.partition("<script>")[2]


def test_search_is_readable(tmp_path):
    index = tmp_path / "search.json"
    index.write_text(json.dumps([{"href": "a.html", "title": "a", "section": "\\kappa", "text": r"\kappa \le 1, re.sub(r'\s', '\n')"}]))
    build_site.readable_search(index)
    assert json.loads(index.read_text()) == [{"href": "a.html", "title": "a", "section": "κ", "text": r"κ ≤ 1, re.sub(r'\s', '\n')"}]


def test_outputs_are_described_and_repeat_nothing():
    before = [cell("# Page\n\n## Taps\n\nThe *filter* $\\kappa \\le \\frac{1}{2}$ of a [line](a.ipynb). Drawn.\n\n$$ x $$", "markdown"), cell("f()")]
    picture = build_site.shown({"data": {"image/png": "AA\n", "text/plain": "<Figure>"}}, before)
    assert picture["data"] == {"text/html": '<img src="data:image/png;base64,AA" class="img-fluid" alt="The filter κ ≤ 1/2 of a line. Drawn.">'}
    rest = [cell("$$ x $$\n\nand so on. " + "Here is a line. " * 30, "markdown")]
    assert plain.described(rest) == " ".join(["Here is a line."] * 15) and plain.described([]) == "figure"
    doc = "---\n\n[source](https://x.org/a.py#L1){target=\"_blank\"}\n\n### %s\n\ntext"
    for name, heading in (("Taps", ""), ("Taps.filter", "### Taps.filter\n\n")):
        out = build_site.shown({"data": {"text/markdown": doc % name}}, before)
        assert out["data"]["text/markdown"] == f"---\n\n{heading}text"
    stream = {"output_type": "stream", "text": "a"}
    assert build_site.shown(stream, before) == stream


@pytest.mark.parametrize("tex, text", [
    (r"R \to \infty", "R → ∞"), (r"\int_0^x e^{-(x-y)}\,dy", "∫_0^x e^-(x-y) dy"), (r"\tfrac12 \mathrm{Var}", "1/2 Var"),
    (r"\Lambda^\tau \log x", "Λ^τ log x"), (r"\cos\omega", "cosω"), ("a {b}", "a {b}")])
def test_maths_as_text(tex, text): assert plain.without_tex(tex) == text


# --- readme

def processed(cfg, *cells: dict) -> Path:
    path = cfg.config_path / "processed.ipynb"
    path.write_text(json.dumps({"cells": list(cells)}))
    return path


def test_readme_text_and_figures(cfg):
    png = {"output_type": "display_data", "data": {"image/png": "iVBORw0K", "text/plain": "<Figure>"}}
    out = {"output_type": "stream", "name": "stdout", "text": ["a\n", "b\n"]}
    notebook = processed(
        cfg, cell("---\ntitle: Kit\ndescription: One line\n---\n", "raw"),
        cell("[fft](operator/40_fft.ipynb) [page](https://example.org/kit/operator/fft.html#f) [lic](../LICENSE) [a](#a) [o](https://o.org)", "markdown"),
        cell("```{mermaid}\nflowchart LR\n```", "markdown"),
        {**cell("#| echo: false\nplot()"), "outputs": [png]}, {**cell("print()"), "outputs": [out]}, cell("#| include: false\nx"))
    text, figures = readme.make(notebook, cfg)
    assert text == ("# Kit\n\nOne line\n\n[fft](nbs/operator/40_fft.ipynb) [page](nbs/operator/40_fft.ipynb) [lic](LICENSE) [a](#a) [o](https://o.org)\n\n"
                    "```mermaid\nflowchart LR\n```\n\n![fft page lic a o](index_files/figure-1.png)\n\n```python\nprint()\n```\n\n```\na\nb\n```\n")
    assert figures == {"figure-1.png": b"\x89PNG\r\n"}


def test_readme_drift_is_found_and_mended(cfg):
    notebook = processed(cfg, cell("# Kit", "markdown"))
    (cfg.config_path / "index_files").mkdir()
    (cfg.config_path / "index_files" / "old.png").write_bytes(b"")
    assert len(readme.problems(notebook, cfg)) == 2
    readme.write(notebook, cfg)
    assert readme.problems(notebook, cfg) == [] and (cfg.config_path / "README.md").read_text() == "# Kit\n"
