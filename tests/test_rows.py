"""Rows and channels of a convolution know nothing of each other, however large or small, or not finite, others are."""
import pytest
import torch

from itnet.conv.op import gated_conv
from itnet.testing import relative_error

CASES = {  # method, points, taps, ring
    "fft": ("fft", (37,), (9,), (False,)), "ring": ("fft", (37,), (9,), (True,)), "blocks": ("blocks", (300,), (9,), (False,)),
    "toeplitz": ("toeplitz", (37,), (9,), (False,)), "direct": ("direct", (37,), (9,), (False,)),
    "2-D": ("fft", (7, 9), (3, 4), (False, True)), "3-D": ("auto", (3, 4, 5), (2, 2, 2), (False,) * 3)}
KINDS = torch.float32, torch.bfloat16, torch.float64
B, G, C, R = 3, 2, 2, 2


def example(case, kind, gates, shared=False):
    method, shape, taps, ring = CASES[case]
    torch.manual_seed(0)
    draw = lambda *s: (torch.rand(*s, dtype=torch.float64) + .5).to(kind)
    x, k, g = draw(B, G, C, *shape), draw(G, R if gates else 1, *taps) / 8, draw(B, G, C, *shape)
    pre, post = (draw(1 if shared else B, G, R, *shape) if gates else None for _ in range(2))
    return [x, k, pre, post], g, ([0] * len(shape), list(ring), method)


def both(factors, g, rest):
    "The result, and the gradients of x, k, pre and post."
    leaves = [None if t is None else t.clone().requires_grad_() for t in factors]
    y = gated_conv(*leaves, *rest)
    grads = iter(torch.autograd.grad(y, [t for t in leaves if t is not None], g))
    return [y.detach(), *(None if t is None else next(grads) for t in leaves)]


def largest(kind): return torch.finfo(kind).max / 4


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("other", ["large", "nan", "inf"])
def test_others_change_no_bit(case, gates, kind, other):
    "One row, of values or of the gradient, is huge or not finite: no bit changes in the other rows and channels."
    factors, g, rest = example(case, kind, gates)
    small = factors[0].clone()
    small[1] *= 1e-10 if kind == torch.float64 else 1e-6
    factors[0] = small
    want = both(factors, g, rest)
    bad = dict(large=largest(kind), nan=torch.nan, inf=torch.inf)[other]
    for x_row, g_row in ((True, False), (False, True)):
        x, h = factors[0].clone(), g.clone()
        if x_row: x[0, 0, 0] = bad
        if g_row: h[0, 0, 0] = bad
        got = both([x, *factors[1:]], h, rest)
        rows = torch.ones(B, G, C, dtype=torch.bool)
        rows[0, 0, 0] = False
        for a, b in zip(got[:2], want[:2]): assert torch.equal(a[rows], b[rows]) and b[rows].abs().min() > 0
        assert torch.equal(got[2][1], want[2][1])                                          # the filters of the other group
        for a, b in zip(got[3:], want[3:]):
            assert a is None or torch.equal(a[1:], b[1:]) and torch.equal(a[0, 1], b[0, 1])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_each_row_is_right(case, gates, shared, kind):
    "Rows of every size side by side, one not finite: each is right to its own rounding."
    factors, g, rest = example(case, kind, gates, shared)
    size = torch.tensor([[1e37, 1e-10], [1e-30, torch.nan], [1., 1e36]], dtype=torch.float64)
    x = (factors[0].double() * size.view(B, 1, C, *[1] * (g.ndim - 3))).to(kind)
    k = factors[1].double()
    k[0] *= 1e-3
    factors = [x, k.to(kind), *factors[2:]]
    got = both(factors, g * 1e-4, rest)
    want = both([None if t is None else t.double() for t in factors], (g * 1e-4).double(), rest)
    bound = 1e-5 if kind == torch.float32 else 2e-2
    for a, b in zip(got[:2], want[:2]):
        for i in range(B):
            for j in range(G):
                for c in range(C):
                    if b[i, j, c].isnan().any(): assert a[i, j, c].isnan().all()
                    else: assert relative_error(a[i, j, c], b[i, j, c]) < bound
    without = [x.nan_to_num(0.), *factors[1:]]
    got, want = both(without, g * 1e-4, rest), both([None if t is None else t.double() for t in without], (g * 1e-4).double(), rest)
    for a, b in zip(got[2:], want[2:]): assert a is None or relative_error(a, b) < bound


@pytest.mark.parametrize("gates", [False, True])
def test_double_precision_has_a_range_as_well(gates):
    factors, g, rest = example("fft", torch.float64, gates)
    want = both(factors, g, rest)
    scale = lambda big: torch.tensor([big, 1., 1e-200], dtype=torch.float64).view(3, 1, 1, 1)
    x = factors[0] * scale(1e307)
    got = both([x, factors[1] * 2.**-20, *factors[2:]], g * 2.**-20, rest)
    assert relative_error(got[0] / scale(1e307), want[0] * 2.**-20) < 1e-13
    assert relative_error(got[1], want[1] * 2.**-40) < 1e-13
    assert relative_error(got[2] / 1e307, both([factors[0] * scale(1e307) / 1e307, *factors[1:]], g, rest)[2] * 2.**-20) < 1e-13
    for i in (3, 4):
        if got[i] is not None: assert relative_error(got[i] / scale(1e307), want[i] * 2.**-40) < 1e-13
