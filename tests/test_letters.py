"""A letter means what the table of symbols says, or what its page says where it begins, and one thing on a page.

The table stands in `nbs/start/30_symbols.ipynb`. A page that needs a letter for something else has a line such as

    **Letters here:** $C$, channels that share a filter; $S$, $s$, axes of the domain.

below its heading. Lower-case letters that the table calls free are explained where they stand; of these, only that they do
not count two things on one page is looked at.
"""
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parent.parent / "nbs"
TABLE = "start/30_symbols.ipynb"
PAGES = sorted(p for p in NBS.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(NBS).parts))

BLOCK, INLINE = r"\$\$(.+?)\$\$", r"(?<![\\$])\$([^$]+?)\$(?!\$)"
GREEK = ("alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi varphi psi omega ell "
         "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega").split()
SAME = {"varphi": "phi", "varepsilon": "epsilon"}                    # two forms of one letter
# words in roman type, alphabets, orders of growth, transposed, subscripts such as max
NOT_LETTERS = [r"\\(?:text\w*|math(?:rm|sf|tt)|operatorname\*?|begin|end|tag)\s*\{[^}]*\}", r"\\math(?:rm|sf|tt)\s*\w",
               r"\\math(?:bb|cal)\s*\{?\w\}?", r"(?<![A-Za-z\\])O(?=\s*(?:\\[Bb]ig+l?)?\()"]
COUNTED = ("points positions lags taps layers latents columns rows outputs inputs channels heads features terms exponentials modes "
           "samples elements examples tokens filters gates groups pairs parts levels states dimensions bytes chunks tiles blocks "
           "stages images classes batches").split()
LINE = re.compile(r"^\*\*Letters here:\*\* (.+)\.$", re.MULTILINE)


def prose(notebook: dict) -> str:
    "The text of a page, without code."
    text = "\n\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")
    return re.sub(r"```.*?```|`[^`\n]*`", " ", text, flags=re.DOTALL)


def letters(formula: str) -> set[str]:
    "The letters of a formula; Greek ones by their names."
    for pattern in NOT_LETTERS: formula = re.sub(pattern, " ", formula)
    greek = {SAME.get(g, g) for g in re.findall(r"\\([A-Za-z]+)", formula) if g in GREEK}
    return greek | set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", formula)))


def used(text: str) -> set[str]:
    "The letters of all formulas of a text."
    formulas = re.findall(BLOCK, text, re.DOTALL) + re.findall(INLINE, re.sub(BLOCK, " ", text, flags=re.DOTALL))
    return set().union(*map(letters, formulas))


def declared(text: str) -> dict[str, str]:
    "The letters of a page's own line, and what each means there. ValueError for an item without a meaning."
    found = {}
    for line in LINE.findall(text):
        for item in line.split(";"):
            match = re.fullmatch(r"\s*((?:\$[^$]+\$,? ?)+)(?:,|:)? ?(\S.*)", item)
            if not match: raise ValueError(f"{item!r} is no letter with a meaning")
            found |= dict.fromkeys(used(match[1]), match[2])
    return found


def table() -> tuple[dict[str, str], set[str]]:
    "The letters of the table and what they mean, and those that are free."
    text = "\n".join("".join(c["source"]) for c in json.loads((NBS / TABLE).read_text(encoding="utf-8"))["cells"])
    known, free = {}, set()
    for row in re.findall(r"^\|(.+)\|$", text, re.MULTILINE):
        first, meaning, *_ = (cell.strip() for cell in row.split("|"))
        if meaning.startswith("free"): free |= used(first)
        elif "$" in first: known |= dict.fromkeys(used(first), meaning)
    return known, free


def mistakes(text: str, known: dict[str, str], free: set[str]) -> list[str]:
    "What a page says with letters that neither the table nor the page explains, or with one for two things."
    own = declared(text)
    body, found = LINE.sub("", text), []
    here = used(body)
    found += [f"{x}: neither in the table nor in the page's line" for x in sorted(here - set(known) - free - set(own))]
    found += [f"{x}: in the page's line, and in no formula" for x in sorted(set(own) - here)]
    counted = {}
    for x, word in re.findall(r"(?<![\\$\w])\$([A-Za-z])\$ ([a-z]+)", body):
        if word not in COUNTED: continue
        meaning = own.get(x) or known.get(x)
        if meaning and word not in meaning: found.append(f"{x}: counts {word}, and means {meaning!r}")
        if not meaning: counted.setdefault(x, set()).add(word)
    return found + [f"{x}: counts {' and '.join(sorted(words))}" for x, words in counted.items() if len(words) > 1]


KNOWN, FREE = table()


@pytest.mark.parametrize("page", PAGES, ids=[p.relative_to(NBS).as_posix() for p in PAGES])
def test_letters(page):
    "Each letter of a page is that of the table, or the page says what it is."
    assert not mistakes(prose(json.loads(page.read_text(encoding="utf-8"))), KNOWN, FREE)


def page_of(text: str) -> dict: return {"cells": [{"cell_type": "markdown", "source": [text]}]}


@pytest.mark.parametrize("text, says", [
    ("A matrix $Q$ of all.", ["Q: neither"]), ("$$\nA x\n$$ and $\\Theta$", ["A: neither", "Theta: neither"]),
    ("It keeps $R$ latents.", ["R: counts latents"]), ("$n$ points and $n$ layers", ["n: counts layers and points"]),
    ("**Letters here:** $Q$, a matrix.\n\nNothing.", ["Q: in the page's line, and in no formula"])])
def test_wrong_letters_are_found(text, says):
    "What is planted is found."
    found = mistakes(prose(page_of(text)), KNOWN, FREE)
    assert len(found) == len(says) and all(f.startswith(s) for f, s in zip(found, says)), found


@pytest.mark.parametrize("text", [
    "**Letters here:** $Q$, a matrix; $R$, $C$, latents of two kinds.\n\n$R$ latents, $Q$ and $C$", "$O(N \\log N)$, $\\mathrm{CE}$, $\\mathbb R^N$",
    "costs `$Q$` and 5 $", "```\n$Q$\n```", "$n$ points, $n$ of them"])
def test_right_letters_are_left_alone(text): assert not mistakes(prose(page_of(text)), KNOWN, FREE)


def test_a_line_says_what_a_letter_means():
    with pytest.raises(ValueError, match="no letter with a meaning"): declared("**Letters here:** something.")
    assert declared("**Letters here:** $Q$, $P$, matrices; $d$, a dilation.") == {"Q": "matrices", "P": "matrices", "d": "a dilation"}
