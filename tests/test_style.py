"""The house style of exported code, as `python tools/style.py` prints it; faults of each kind are planted and found."""
from pathlib import Path

import pytest

import style

SOURCES = style.package()


@pytest.mark.parametrize("kind", style.CHECKS)
def test_house_style(kind):
    found = [style.located(path, SOURCES[path], f) for path, faults in style.findings(SOURCES, kind).items() for f in faults]
    assert not found, "\n".join(["", *found])


# --- each check finds what is planted, and nothing else

LONG = "x" * (style.WIDTH - 4)


@pytest.mark.parametrize("source, lines", [
    (f"'é{LONG}'\n", []),                                                      # 120 characters are more bytes
    (f"'éé{LONG}'\n'éé {LONG}'\n", [2]),
    (f"# %% ../../nbs/folder/00_{LONG}.ipynb #cell\n# {LONG}xxx\n", [2]),
    (f"__all__ = ['a', '{LONG}',\n           '{LONG}']\n    'it ends here'\nx = '{LONG}'\n", [4]),
])
def test_long_lines(source, lines):
    assert numbers(style.check_lines(source)) == lines


@pytest.mark.parametrize("source, lines", [
    ("a = 1; b = 2\n", [1]), ("for x in y: f(x); g(x)\n", [1]), ("f(x);\n", [1]), ("'a; b'  # no; a comment\nif x: y = 1\n", [])])
def test_semicolons(source, lines):
    assert numbers(style.check_semicolons(source)) == lines


@pytest.mark.parametrize("source, lines", [
    ('a = "text"\n', [1]),
    ('a = "it\'s"\nb = \'said "so"\'\n', []),
    ('a = f"{x} of it"\n', [1]),
    ("a = f'{\", \".join(x)} of it'\n", []),                                    # Python 3.11 has no other way
    ("a = f\"{x['key']}\"\n", []),
    ("a = '''long'''\nb = \"\"\"long\"\"\"\n", [2]),
    ('a = rb"bytes"\n', [1]),
    ('"A module."\ndef f():\n    "A function."\n    return "é", """it\'s"""\n', [4]),
    ("def f():\n    'A function.'\n", [2]),
    ("class A:\n    '''A class.\n\n    More.\n    '''\n", [2]),
    ('def f(): "One line."\n', []),
    ('é = "é"; "not a docstring"\n', [1, 1]),
    ('__version__ = "0.1.0"\n', []),
])
def test_quotes(source, lines):
    assert numbers(style.check_quotes(source)) == lines


@pytest.mark.parametrize("source, lines", [
    ("a = 1 if x else 2\nb = 1 if y else 2\n", []),
    ("a = 1 if x else 2 if y else 3\n", [1]),
    ("a = 1 if x else (2,\n  3 if y else 4)\n", [2]),
    ("a = 1 if (x if y else z) else 2\n", [1]),
    ("a = 1 if x else f(2 if y else (3 if z else 4))\n", [1, 1]),
    ("a = (1 if x else 2) + (3 if y else 4)\n", []),
    ("if x:\n    a = 1 if y else 2\nelse:\n    a = 3\n", []),
])
def test_conditionals(source, lines):
    assert numbers(style.check_conditionals(source)) == lines


@pytest.mark.parametrize("docstring, said", [
    ("What a kernel integrates.", None),
    ("κ at each lag, (H, L)", None),
    ("log K, for kernels that are positive.", None),
    ("Weights `<u, v>` of each pair.", None),
    ("One line.\n\n    Then what more there is.\n    ", None),
    ("a fragment", "fragment"),
    ("One line\n    and another.\n    ", "more than one line"),
    ("\n    Begins late.\n    ", "empty line"),
    ("Of `dense`.", "nothing alone"), ("The same for the inputs.", "nothing alone"), ("And back.", "nothing alone"),
    ("As above.", "nothing alone"), ("Likewise, for rows.", "nothing alone"), ("See `scan`.", "nothing alone"),
    ("Offers what is wanted.", None),
    ("The folder <name> of a run.", "<name> is HTML"), ("Bold </b>.", "</b> is HTML"), ("Where 0 < n and m > 1.", None),
])
def test_docstrings(docstring, said):
    found = style.check_docstrings(f'def f():\n    """{docstring}"""\n')
    assert [2] * bool(said) == numbers(found) and (not said or said in found[0])


@pytest.mark.parametrize("source, names", [
    ("def f(): pass\n", ["f"]),
    ("def _f(): pass\nclass _A:\n    def f(self): pass\n", []),
    ("class A:\n    def f(self): pass\n    def _g(self): pass\n    def __len__(self): pass\n", ["A", "A.f"]),
    ("class A:\n    'A.'\n    def forward(self): pass\n", []),
    ("@patch\ndef f(self: A): pass\n@patch\ndef g(self: _A): pass\n", ["A.f"]),
    ("@patch(as_prop=True)\ndef f(self: A | B): pass\n", ["A.f"]),
    ("@patch_to((A, B))\ndef f(self): pass\n", ["A.f"]),
    ("try: import x\nexcept ImportError:\n    def f(): pass\n", ["f"]),
    ("class A:\n    'A.'\n    @property\n    def x(self): 'x.'\n    @x.setter\n    def x(self, x): pass\n", []),
    ("def f():\n    def inner(): pass\n    'A string.'\n", ["f"]),
    ("def f():\n    def inner():\n        'See below.'\n", ["f", "inner"]),          # what is there must be right everywhere
])
def test_missing_docstrings(source, names):
    assert [f.split(": ")[1].split(" ")[0] for f in style.check_docstrings(source)] == names


def test_a_method_may_leave_its_docstring_to_the_class_it_overrides():
    sources = {Path("a.py"): 'class A(nn.Module):\n    "A."\n    def f(self): "What it does."\n    def g(self): pass\n'
                             '@patch\ndef h(self: A): "What it does."\n',
               Path("b.py"): 'class B(A):\n    "B."\n',
               Path("c.py"): 'class C(b.B):\n    "C."\n    def f(self): pass\n    def g(self): pass\n'
                             '    def h(self): pass\n    def i(self): pass\n',
               Path("d.py"): 'class D:\n    "D, of no family."\n    def f(self): pass\n'}
    found = style.findings(sources, "docstrings")
    assert {str(p): [f.split(": ")[1].split(" ")[0] for f in found[p]] for p in sources} == {
        "a.py": ["A.g"], "b.py": [], "c.py": ["C.g", "C.i"], "d.py": ["D.f"]}


def test_names():
    sources = {Path("a.py"): "def f(): pass\nTILE = 1\nCASES = []\n@patch\ndef g(self: A): pass\n",
               Path("b.py"): "class f: pass\nTILE, other = 1, 2\nCASES = []\n@patch\ndef g(self: B): pass\n"
                             "import json\nfrom a import h\n",
               Path("c.py"): "if x:\n    TILE: int = 3\nelse:\n    TILE: int = 4\ndef h():\n    f = TILE = json = 1\n"
                             "__all__ = []\na.f = [g for g in TILE]\n"}
    found = style.findings(sources, "names")
    assert {str(p): numbers(f) for p, f in found.items()} == {"a.py": [1, 2], "b.py": [1, 2], "c.py": [2]}
    assert all("a.py:2" in line and "b.py:2" in line for line in found[Path("c.py")])


def test_the_command_names_file_line_and_cell(tmp_path, monkeypatch, capsys):
    (tmp_path / "itnet" / "conv").mkdir(parents=True)
    (tmp_path / "itnet" / "conv" / "fft.py").write_text("# %% ../../nbs/conv/00_fft.ipynb #imports\nimport math\n"
                                                        "# %% ../../nbs/conv/00_fft.ipynb #sizes\na = 1; b = 2\n")
    (tmp_path / "itnet" / "stream.py").write_text("a = 3\n")
    monkeypatch.setattr(style, "ROOT", tmp_path)
    monkeypatch.setattr(style, "package", lambda: PACKAGE(tmp_path / "itnet"))
    monkeypatch.setattr("sys.argv", ["style.py", str(tmp_path / "itnet" / "conv")])
    assert style.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "itnet/conv/fft.py:4: statements joined by `;`   [00_fft.ipynb #sizes]",
        "itnet/conv/fft.py:4: a is also defined in itnet/stream.py:1   [00_fft.ipynb #sizes]", "2 findings"]
    monkeypatch.setattr("sys.argv", ["style.py", str(tmp_path / "itnet" / "stream.py"), "--only", "quotes"])
    assert style.main() == 0
    monkeypatch.setattr("sys.argv", ["style.py", str(tmp_path / "elsewhere")])
    with pytest.raises(SystemExit): style.main()


PACKAGE = style.package


def numbers(found: list[str]) -> list[int]:
    return [int(f.split(":")[0]) for f in found]
