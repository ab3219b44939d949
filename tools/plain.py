"""Words where a page cannot show maths or a picture: the table of contents, the search, and what a figure is called."""
import re
import unicodedata

SIGNS = {
    "int": "∫", "sum": "Σ", "prod": "∏", "infty": "∞", "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "ll": "≪",
    "gg": "≫", "cdot": "·", "times": "×", "in": "∈", "notin": "∉", "to": "→", "rightarrow": "→", "leftarrow": "←",
    "mapsto": "↦", "Rightarrow": "⇒", "Longrightarrow": "⟹", "odot": "⊙", "otimes": "⊗", "oplus": "⊕", "circ": "∘", "ast": "∗",
    "star": "⋆", "partial": "∂", "nabla": "∇", "approx": "≈", "sim": "∼", "propto": "∝", "equiv": "≡", "pm": "±", "top": "ᵀ",
    "sqrt": "√", "ell": "ℓ", "dots": "…", "ldots": "…", "cdots": "…", "langle": "⟨", "rangle": "⟩", "lVert": "‖", "rVert": "‖",
    "lvert": "|", "rvert": "|", "lceil": "⌈", "rceil": "⌉", "lfloor": "⌊", "rfloor": "⌋", "varphi": "φ", "varepsilon": "ε",
    "blacksquare": "∎", "quad": " ", "qquad": " "}
SILENT = re.compile(r"(left|right|bigl?|bigr?|Bigl?|Bigr?|bigg|Bigg|text\w*|math\w+|operatorname|overline|bar|hat|tilde|widehat"
                    r"|widetilde|underbrace|displaystyle|boldsymbol|limits)$")
SIGNS |= {name: name for name in "arg cos det dim exp inf lim ln log max min sin sup tan tanh".split()}
FRACTION = re.compile(r"\\[td]?frac(?:\{([^{}]*)\}|(\w))\s*(?:\{([^{}]*)\}|(\w))")
SENTENCE = re.compile(r"(?<=[.!?:])\s+(?=[A-Z`])")


def joined(lines: list[str] | str) -> str:
    "Notebook text, which is stored as one string or as a list of lines."
    return lines if isinstance(lines, str) else "".join(lines)


def sign(name: str) -> str | None:
    "What a TeX command looks like, in one character or none; None for one that is not known."
    if name in SIGNS or SILENT.match(name): return SIGNS.get(name, "")
    kind, letter = "CAPITAL" if name[0].isupper() else "SMALL", "LAMDA" if name.lower() == "lambda" else name.upper()
    try: return unicodedata.lookup(f"GREEK {kind} LETTER {letter}")
    except KeyError: return None


def signs(text: str) -> str:
    "Text with the TeX commands that are known as characters; all else, code with backslashes too, stays as it is."
    return re.sub(r"\\([A-Za-z]+)", lambda m: m[0] if sign(m[1]) is None else sign(m[1]), text)


def without_tex(text: str) -> str:
    r"Maths as a line of text: `\kappa \le \frac{1}{2}` -> `κ ≤ 1/2`; text without commands stays as it is."
    if not re.search(r"\\[A-Za-z,;!|]", text): return text
    text = signs(FRACTION.sub(lambda m: f"{m[1] or m[2]}/{m[3] or m[4]}", text))
    text = re.sub(r"[{}]|\\!", "", re.sub(r"\\[,; ]", " ", text.replace("\\|", "‖")))
    return re.sub(r"[ \t]+", " ", text.replace("\\", "")).strip()


def without_marks(markdown: str) -> str:
    "A paragraph as text: no emphasis, code marks, links or maths."
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    text = re.sub(r"\$([^$]+)\$", lambda m: without_tex(m[1]), text)
    return " ".join(re.sub(r"[*`]|^[#>] *|^- ", "", text, flags=re.M).split())


def described(before: list[dict], limit: int = 240) -> str:
    "What a figure shows, by the prose that introduces it: the last paragraph of text in the cells before it."
    for cell in reversed(before):
        if cell["cell_type"] != "markdown": continue
        blocks = [b.strip() for b in re.split(r"\n\s*\n", re.sub(r"```.*?```|\$\$.*?\$\$", "", joined(cell["source"]), flags=re.S))]
        if not (words := [w for b in blocks if b and b[0] not in "#|:<" and (w := without_marks(b))]): continue
        text, *more = SENTENCE.split(words[-1])
        if text[0].islower() and more: text, *more = more                                # the end of a sentence around an equation
        for sentence in more:
            if len(text) + len(sentence) < limit: text += f" {sentence}"
            else: break
        return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0] + " …"
    return "figure"
