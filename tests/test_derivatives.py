"""Derivatives in every direction, order and surrounding: tangents are right or refused, never zero in silence."""
import pytest
import torch
import torch.nn as nn
from torch.autograd import forward_ad as fw

from itnet.conv.op import gated_fft_conv
from itnet.special_cases import from_torch as convert
from itnet.gpu.backend import usable
from itnet.kernel.content import Separable
from itnet.kernel.selective import Selective
from itnet.kernel.stationary import Exponentials, Implicit
from itnet.measure.measure import Measure
from itnet.testing import message, relative_error
from itnet.transform import apply

N = 9


def by_sum(u, k, pre, post):
    z = u * pre
    return sum(k[lag] * nn.functional.pad(z, (0, 0, lag, 0))[:, :N] for lag in range(len(k))) * post


@pytest.fixture(scope="module")
def example():
    torch.manual_seed(0)
    shapes = (2, N, 3), (4, 3), (2, N, 3), (2, N, 3)
    return tuple(tuple(torch.randn(s, dtype=torch.float64) for s in shapes) for _ in range(2))


def tangent(f, args, dots):
    with fw.dual_level(): return fw.unpack_dual(f(*map(fw.make_dual, args, dots))).tangent


def by_func(f, args, dots): return torch.func.jvp(f, tuple(args), tuple(dots))[1]


def mapped(u, k, pre, post):
    return torch.vmap(lambda u, pre, post: gated_fft_conv(u[None], k, pre[None], post[None])[0])(u, pre, post)


def cast(*args):
    with torch.autocast("cpu", torch.bfloat16): return gated_fft_conv(*args)


def dispatched(u, k, pre, post):
    grid = lambda t: t.movedim(-1, 1).unsqueeze(2)
    y = torch.ops.itnet.gated_conv(grid(u), k.movedim(-1, 0).unsqueeze(1), grid(pre), grid(post), [0], [False], "auto")
    return y.squeeze(2).movedim(1, -1)


@pytest.mark.parametrize("no_grad", [False, True])
@pytest.mark.parametrize("way", [tangent, by_func])
@pytest.mark.parametrize("f", [gated_fft_conv, mapped, cast, dispatched])
def test_tangents(example, f, way, no_grad):
    want = way(by_sum, *example)
    args = [[t.float() for t in some] for some in example] if f is cast else example
    with torch.set_grad_enabled(not no_grad): got = way(f, *args)
    assert relative_error(got, want) < (2e-2 if f is cast else 1e-13)


def test_a_map_over_tangents(example):
    "jvp inside vmap, and each argument's part alone."
    args, dots = example
    many = tuple(torch.stack([t, 2 * t]) for t in dots)
    got = torch.vmap(lambda *dots: by_func(gated_fft_conv, args, dots))(*many)
    want = by_func(by_sum, args, dots)
    assert relative_error(got, torch.stack([want, 2 * want])) < 1e-13
    for i in range(4):
        one = [d if i == j else torch.zeros_like(d) for j, d in enumerate(dots)]
        got = fw_one(args, i, dots[i])
        assert relative_error(got, by_func(by_sum, args, one)) < 1e-13


def fw_one(args, i, dot):
    with fw.dual_level():
        return fw.unpack_dual(gated_fft_conv(*(fw.make_dual(t, dot) if i == j else t for j, t in enumerate(args)))).tangent


@pytest.mark.parametrize("way", [tangent, by_func])
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_compiled(example, way, where):
    torch._dynamo.reset()
    args, dots = example
    want = way(by_sum, args, dots)
    if where == "inside": got = torch.compile(lambda *x: way(gated_fft_conv, x[:4], x[4:]), backend="aot_eager")(*args, *dots)
    else: got = way(torch.compile(gated_fft_conv, backend="aot_eager"), args, dots)
    assert relative_error(got, want) < 1e-13


def cubed(f, args): return lambda u, k: f(u, k, *args[2:]).pow(3).sum()


def test_hessians(example):
    args, _ = example
    want = torch.func.hessian(cubed(by_sum, args), (0, 1))(*args[:2])
    for hessian in (torch.func.hessian, lambda f, n: torch.func.jacrev(torch.func.jacrev(f, n), n)):
        got = hessian(cubed(gated_fft_conv, args), (0, 1))(*args[:2])
        assert all(relative_error(got[i][j], want[i][j]) < 1e-12 for i in (0, 1) for j in (0, 1))


def test_every_pair_of_directions(example):
    "Numerically: forwards, backwards, forwards over backwards, backwards over backwards."
    args = [t[:1, :5].clone().requires_grad_() if t.ndim == 3 else t.clone().requires_grad_() for t in example[0]]
    assert torch.autograd.gradcheck(gated_fft_conv, args, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(gated_fft_conv, args, check_fwd_over_rev=True)
    assert torch.autograd.gradgradcheck(lambda u, k: gated_fft_conv(u, k), args[:2], check_fwd_over_rev=True)


def test_backwards_over_forwards(example):
    args, dots = example
    def slope(f):
        u = args[0].clone().requires_grad_()
        with fw.dual_level():
            dot = fw.unpack_dual(f(fw.make_dual(u, dots[0]), *args[1:]).pow(3).sum()).tangent
            return torch.autograd.grad(dot, u)[0]
    assert relative_error(slope(gated_fft_conv), slope(by_sum)) < 1e-12


def test_many_gradients_at_once(example):
    args = [t.clone().requires_grad_() for t in example[0]]
    gs = torch.stack([example[1][0], example[1][2]])
    one = lambda f: [torch.autograd.grad(f(*args), args, g) for g in gs]
    got = torch.autograd.grad(gated_fft_conv(*args), args, gs, is_grads_batched=True)
    for a, b in zip(got, zip(*one(by_sum))): assert relative_error(a, torch.stack(b)) < 1e-12


KERNELS = {
    "fft": lambda: Separable(3, 1, rank=2) * Implicit(1, 4., positive=True), "scan": lambda: Selective(3, 1, 2),
    "dense": lambda: (Separable(3, 1, rank=2) * Implicit(1, 4., positive=True)).normalise(),
    "direct": lambda: Exponentials(1, 2).restrict(3)}


@pytest.mark.parametrize("rule", KERNELS)
def test_of_a_transform(rule):
    "Every rule against differences."
    torch.manual_seed(0)
    kernel = KERNELS[rule]().double()
    u, v = torch.randn(1, N, 3, dtype=torch.float64), torch.randn(1, 1, N, 2, dtype=torch.float64)
    du, dv, line = torch.randn_like(u), torch.randn_like(v), Measure.sequence(N)
    f = lambda u, v: apply(kernel, line, u, v, rule)
    h = 1e-6
    with torch.no_grad(): want = (f(u + h * du, v + h * dv) - f(u - h * du, v - h * dv)) / (2 * h)
    assert relative_error(tangent(f, (u, v), (du, dv)), want) < 1e-7


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
@pytest.mark.parametrize("way", [tangent, by_func])
def test_converted_recurrences(kind, way):
    torch.manual_seed(0)
    layer = kind(3, 4, batch_first=True).double()
    x, dx = torch.randn(2, 2, 7, 3, dtype=torch.float64)
    case, h = convert(layer), 1e-6
    with torch.no_grad(): want = (layer(x + h * dx)[0] - layer(x - h * dx)[0]) / (2 * h)
    f = lambda x: case(x)[0]
    assert relative_error(way(f, (x,), (dx,)), want) < 1e-7
    with fw.dual_level():
        y = f(fw.make_dual(x, dx))
        assert "second derivatives" in message(lambda: torch.autograd.grad(fw.unpack_dual(y).tangent.sum(), case.weight_hh_l0), NotImplementedError)


def test_fused_kernels_leave_tangents_to_torch(monkeypatch):
    from itnet.gpu import backend
    monkeypatch.setattr(backend, "why_not", lambda device: None)
    class Elsewhere:
        device, dtype = torch.device("cuda"), torch.float32
    assert usable(Elsewhere())
    with fw.dual_level(): assert not usable(Elsewhere())
