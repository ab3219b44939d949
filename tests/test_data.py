"What the data notebooks cannot show in one process: other interpreters, races, dead networks, the command line."
import json, os, subprocess, sys, textwrap, time
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from itnet.data.columns import Columns
from itnet.data.images import Cifar10, Digits
from itnet.data.lra import ListOps, decode, value_of_text
from itnet.data.cache import cached
from itnet.data.text import SourceText, Text


def python(code, *args, **env):
    "Run a script in a fresh interpreter and return its output."
    env = {k: v for k, v in {**os.environ, **env}.items() if v is not None}
    r = subprocess.run([sys.executable, "-c", textwrap.dedent(code), *map(str, args)], env=env, capture_output=True, text=True, timeout=120)
    assert r.returncode == 0, r.stderr
    return r.stdout.strip()


def test_content_does_not_depend_on_the_process():
    small = dict(min_length=10, max_length=60, train=40, validation=20, test=20)
    there = json.loads(python("""
        import json, sys
        from itnet.data.images import Digits
        from itnet.data.lra import ListOps
        from itnet.data.text import SourceText
        print(json.dumps([d.checksums() for d in (ListOps(**json.loads(sys.argv[1])), Digits(), SourceText(context=64))]))""",
        json.dumps(small), PYTHONHASHSEED="12345"))
    assert there == [d.checksums() for d in (ListOps(**small), Digits(), SourceText(context=64))]


def test_importing_the_room_is_cheap():
    heavy = python("""
        import sys
        from itnet.data.lra import ListOps
        from itnet.data.text import SourceText
        from itnet.data.images import Digits
        print(*(d.spec.metric.name for d in (ListOps(), SourceText(), Digits())), file=sys.stderr)
        heavy = {"datasets", "sklearn", "huggingface_hub", "pyarrow", "lightning", "torchmetrics", "transformers", "matplotlib"}
        print(*heavy & set(sys.modules))""")
    assert heavy == ""


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 12), st.integers(0, 60), st.integers(3, 10), st.integers(3, 10), st.integers(0, 5))
def test_every_tree_obeys_its_bounds(low, width, depth, args, seed):
    data = ListOps(min_length=low, max_length=low + width + 14, max_depth=depth, max_args=args, train=6, validation=2, test=2, seed=seed)
    splits = data.splits()
    texts = [decode(s[i]["x"]) for s in splits.values() for i in range(len(s))]
    assert len(set(texts)) == 10
    assert [value_of_text(t) for t in texts] == [int(s[i]["target"]) for s in splits.values() for i in range(len(s))]
    for t in texts:
        tokens = t.split()
        level = np.cumsum([t[0] == "[" for t in tokens]) - np.cumsum([t == "]" for t in tokens])
        assert low <= len(tokens) <= low + width + 14 and level.max() <= depth - 1


def test_a_dead_network_is_reported_soon(tmp_path):
    "The hub's address answers nothing at all: the error comes within the limit."
    out = python("""
        import time
        from itnet.data.source import DataNotFound, resolve
        t = time.perf_counter()
        try: resolve("imdb", "train", timeout=1.5)
        except DataNotFound as e: print(f"{time.perf_counter() - t:.2f}", str(e).replace(chr(10), " "))""",
        HF_ENDPOINT="http://10.255.255.1", HF_HUB_CACHE=tmp_path, HF_HUB_OFFLINE=None, ITNET_DATA=None)
    seconds, message = out.split(" ", 1)
    assert float(seconds) < 10
    assert "stanfordnlp/imdb" in message and "$ITNET_DATA: not set" in message and "path=" in message


def test_two_processes_may_fill_the_cache_at_once(tmp_path):
    code = """
        import sys
        from itnet.data.lra import ListOps
        print(ListOps(min_length=10, max_length=390, train=4900, validation=50, test=50).checksums())"""
    env = {**os.environ, "ITNET_CACHE": str(tmp_path)}
    procs = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = {p.communicate(timeout=120)[0] for p in procs}
    assert len(outs) == 1 and "train" in outs.pop()
    assert [f.suffix for f in tmp_path.iterdir()] == [".npz"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ITNET_CACHE", str(tmp_path))
    def half(file, **arrays): file.write(b"half a file"); raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(np, "savez", half)
        with pytest.raises(KeyboardInterrupt): cached("key", lambda: {"x": np.ones(3)})
    assert list(tmp_path.iterdir()) == []
    assert cached("key", lambda: {"x": np.ones(3)})["x"].tolist() == [1, 1, 1]


def test_descriptions_are_typed_options():
    "The frozen dataclasses can be filled from a command line, and bad values are refused there."
    from jsonargparse import ArgumentParser
    from itnet.data.images import Cifar10, Digits
    from itnet.data.text import SourceText, Text
    for cls, arg, value in [(Digits, "shift", 2), (ListOps, "max_length", 700), (SourceText, "context", 32), (Text, "name", "imdb"), (Cifar10, "flip", False)]:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--data", type=cls, default=cls())
        made = parser.instantiate_classes(parser.parse_args([f"--data.{arg}={value}".replace("False", "false")])).data
        assert getattr(made, arg) == value and type(made) is cls
        with pytest.raises(Exception): parser.parse_args([f"--data.{arg}_=1"])


def test_a_validated_description_does_no_work():
    t = time.perf_counter(); ListOps(); assert time.perf_counter() - t < 0.05


# --- broken tables

def write(folder, **tables):
    "The splits of a data set as Parquet files; a table is a dict of columns."
    import pyarrow as pa
    import pyarrow.parquet as pq
    for split, columns in tables.items(): pq.write_table(pa.table(columns), folder / f"{split}.parquet")


def png():
    import io
    from PIL import Image
    Image.new("RGB", (32, 32), "red").save(f := io.BytesIO(), "PNG")
    return f.getvalue()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("columns, says", [
    ({"text": ["a", None]}, "row 1 of column 'text' is missing"), ({"text": [b"a"]}, "column 'text' holds binary"),
    ({"text": [["a"]]}, "column 'text' holds list"), ({"text": [1.5]}, "column 'text' holds double"),
    ({"txt": ["a"]}, "column 'text' is not there; the table has 'txt': rename 'txt'"), ({}, "the table has no columns"),
    ({"text": []}, "column 'text' has no rows"), ({"text": [None]}, "row 0 of column 'text' is missing"), ({"text": ["a"]}, "context 64 is too long")])
def test_broken_texts_are_named(tmp_path, split, columns, says):
    write(tmp_path, **{s: columns if s == split else {"text": ["to be or not"] * 40} for s in ("train", "validation", "test")})
    with pytest.raises(ValueError) as e: Text("mine", path=str(tmp_path), context=64, eval_bytes=64).splits()
    assert says in str(e.value) and f"split {split!r}" in str(e.value)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("changes, says", [
    ({"label": -1}, "row 7 of column 'label' is -1"), ({"label": 10}, "row 7 of column 'label' is 10"), ({"label": None}, "row 7 of column 'label' is missing"),
    ({"label": 1.5}, "column 'label' holds double"), ({"label": "cat"}, "column 'label' holds string"), ({"img": None}, "row 7 of column 'img' is missing"),
    ({"img": b"no picture"}, "row 7 of column 'img' cannot be decoded"), ({"img": "a.png"}, "column 'img' holds string")])
def test_broken_images_and_labels_end_before_training(tmp_path, split, changes, says):
    "Through `fit`, as a run would meet them: nothing is trained and nothing is written."
    from itnet.nets.presets import ResNetConfig
    from itnet.training.recipe import Recipe, Train, fit
    column, wrong = next(iter(changes.items()))
    right = {"img": [png()] * 40, "label": [i % 10 for i in range(40)]}
    kind = {float: float, str: lambda v: "x"}.get(type(wrong), lambda v: v)
    broken = right | {column: [wrong if i == 7 else kind(v) for i, v in enumerate(right[column])]}
    write(tmp_path, **{s: broken if s == split else right for s in ("train", "test")})
    data = Cifar10(path=str(tmp_path), validation=0.25, batch_size=8)
    recipe = Recipe("broken/resnet", data, ResNetConfig(4, (1,)), train=Train(steps=30, device="cpu", threads=1))
    with pytest.raises(ValueError) as e: fit(recipe, out=tmp_path / "runs", results=tmp_path / "results")
    assert says in str(e.value) and f"split {split!r}" in str(e.value)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results").exists()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]),
       st.booleans(), st.integers(1, 30), st.one_of(st.none(), st.integers(-128, -1), st.integers(10, 127)), st.integers(0, 29))
def test_labels_are_right_or_named(values, kind, dictionary, cut, wrong, at):
    "However they are stored; and of those that are wrong the row is said."
    import pyarrow as pa
    at %= len(values)
    if wrong is not None and not (wrong < 0 and kind[0] == "u"): values[at] = wrong
    chunks = [pa.array(values[i:i + cut], getattr(pa, kind)()) for i in range(0, len(values), cut)]
    table = Columns(pa.table({"label": pa.chunked_array([c.dictionary_encode() if dictionary else c for c in chunks])}), "split 'x'")
    if 0 <= values[at] < 10: assert table.labels("label", 10).tolist() == values
    else:
        with pytest.raises(ValueError, match=f"row {at} of column 'label' is {values[at]}, and 1 of {len(values)} are out of range"): table.labels("label", 10)
