"""A new method of convolution is one class: defined, it is chosen, explained, run and named in errors; taken out, forgotten."""
import runpy
from pathlib import Path

import pytest
import torch

from itnet.conv import workspace
from itnet.conv.choice import candidates, choose_method, crop, explain_conv
from itnet.conv.fft import direct_conv
from itnet.conv.methods import METHODS, Method
from itnet.conv.op import fft_conv, gated_fft_conv

BUILT_IN = ["fft", "direct", "toeplitz", "blocks", "whole"]


@pytest.fixture
def dense():
    "The toy method, defined for one test."
    found = runpy.run_path(str(Path(__file__).with_name("toy_conv_method.py")))["Dense"]
    yield found
    del METHODS["dense"]


def line(n=12, taps=5, origin=2): return crop((n,), (taps,), (origin,), (False,))[0]


def message(**how):
    with pytest.raises(ValueError) as e: fft_conv(torch.zeros(1, 4, 4, 2), torch.zeros(3, 3, 2), **how)
    return str(e.value)


def test_it_is_chosen_where_it_fits_and_forgotten_afterwards():
    before = choose_method(line(), 3)
    fft_conv(torch.zeros(3, 12, 2), torch.zeros(5, 2))                               # a plan for these lengths exists
    Dense = runpy.run_path(str(Path(__file__).with_name("toy_conv_method.py")))["Dense"]
    try:
        assert list(METHODS) == [*BUILT_IN, "dense"]
        assert isinstance(choose_method(line(), 3), Dense)
        assert "dense" not in candidates(crop((4, 4), (3, 3), (1, 1), (False, False))[0])
        assert candidates(crop((4,), (3,), (1,), (True,))[0]).keys() == {"fft", "whole"}
    finally: del METHODS["dense"]
    assert list(METHODS) == BUILT_IN and choose_method(line(), 3) == before
    assert "dense" not in message(method="dense").split(":")[1]


def test_plans_follow_it(dense, monkeypatch):
    "`auto` runs it as soon as it is there, for lengths that were planned before, and no longer when it is gone."
    runs, conv = [], dense.conv
    monkeypatch.setattr(dense, "conv", lambda self, z, K: runs.append(self) or conv(self, z, K))
    u, k = torch.randn(3, 12, 2), torch.randn(5, 2)
    del METHODS["dense"]
    fft_conv(u, k)
    assert not runs
    METHODS["dense"] = dense
    fft_conv(u, k)
    assert runs == [dense.of(crop((12,), (5,), (0,), (False,))[0])]


def test_explained(dense):
    marked = [row for row in explain_conv((3, 12, 2), (5, 2)).splitlines() if row.startswith("→")]
    assert len(marked) == 1 and "dense" in marked[0] and "a matrix of 12 rows" in marked[0]


@pytest.mark.parametrize("origin", [0, 2, 4])
@pytest.mark.parametrize("size", [1, 50, 2**18])
@pytest.mark.parametrize("gates", [False, True])
def test_result_and_gradients(dense, monkeypatch, origin, size, gates):
    "By name and by itself; in parts of a row, of some rows, and in one."
    monkeypatch.setattr(workspace, "CACHE", size * 144)
    torch.manual_seed(0)
    u, k, pre, post, g = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 12, 20), (5, 20), *[(3, 12, 20)] * 3))
    inputs = (u, k, pre, post) if gates else (u, k)
    want = direct_conv(u * pre, k, origin) * post if gates else direct_conv(u, k, origin)
    exact = torch.autograd.grad(want, inputs, g)
    for method in ("auto", "dense"):
        for kind, bound in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
            lower = [t.detach().to(kind).requires_grad_() for t in inputs]
            got = gated_fft_conv(*lower, origin=origin, method=method)
            grads = torch.autograd.grad(got, lower, g.to(kind))
            for a, b in zip((got, *grads), (want, *exact)):
                assert a.dtype == kind and (a - b).norm() <= bound * b.norm()


def test_named_in_errors(dense):
    assert "'dense'" in message(method="winograd").split("choose one of")[1]
    assert message(method="dense").startswith("method 'dense' does not fit a grid of shape (4, 4)")


def test_a_name_is_taken_once(dense):
    for taken in ("dense", "fft", "auto"):
        with pytest.raises(ValueError, match=f"'{taken}'"): type("Other", (Method,), {}, name=taken)
    class Variant(dense): pass
    assert list(METHODS) == [*BUILT_IN, "dense"] and METHODS["dense"] is dense and Variant.name == "dense"
