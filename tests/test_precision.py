"""Modules stored in half precision: outputs and gradients are off by a rounding or two, whatever the rule, the length and the measure."""
import copy

import pytest
import torch
from torch import nn

from itnet.kernel.base import Kernel
from itnet.kernel.content import ExpDot, Separable, Softmax
from itnet.kernel.given import Gates, Scores, Table, Terms
from itnet.kernel.pairwise import Pairwise
from itnet.kernel.precision import HALF, promoted
from itnet.kernel.selective import Selective
from itnet.kernel.spectral import spectral_norm
from itnet.kernel.stationary import Exponentials, Implicit, Taps
from itnet.measure.measure import Measure
from itnet.nets.presets import ITNetConfig
from itnet.rule.base import RULES, possible
from itnet.rule.mixing import mix
from itnet.rule.monte_carlo import monte_carlo
from itnet.rule.plan import choose
from itnet.rule.scan import resume
from itnet.special_cases.case import from_torch
from itnet.stream import step
from itnet.transform import IntegralTransform, apply

D, H, C = 16, 4, 4                                       # channels of u, heads, channels of v
POSITIVE = dict(positive=True)
README = lambda: (Separable(64, heads=4, rank=8) * Implicit(4, extent=256, positive=True)).normalise()
KERNELS = {
    "taps": lambda: Taps(H, 5),
    "taps, normalised": lambda: Taps(H, 5, **POSITIVE).normalise(),
    "implicit": lambda: Implicit(H, 64),
    "implicit, causal": lambda: Implicit(H, 64, **POSITIVE).restrict(causal=True).normalise(),
    "exponentials": lambda: Exponentials(H, 4),
    "exponentials, normalised": lambda: Exponentials(H, 4, **POSITIVE).normalise(),
    "norm 1": lambda: Implicit(H, 64).spectral_normalise(),
    "norm 1, window": lambda: Taps(H, 5).spectral_normalise(),
    "norm 1, causal": lambda: Exponentials(H, 3).spectral_normalise(),
    "bilinear": lambda: Separable(D, H, 4, positive=False),
    "separable, causal": lambda: Separable(D, H, 4).restrict(causal=True).normalise(),
    "far": lambda: (Separable(D, H, 4, short=4) * Implicit(H, 64, **POSITIVE)).normalise(),
    "far, causal": lambda: (Separable(D, H, 4, short=4, causal=True) * Exponentials(H, 4, **POSITIVE)).normalise(),
    "gates": lambda: Selective(D, H, 4),
    "gates, normalised": lambda: Selective(D, H, 4, "feature", **POSITIVE).normalise(),
    "gates, few": lambda: Selective(D, H, 2, "feature"),
    "sum": lambda: Taps(H, 3) + Separable(D, H, 4) * Exponentials(H, 2),
    "sum, causal": lambda: Selective(D, H, 2) + Separable(D, H, 2).restrict(causal=True) * Exponentials(H, 2),
    "network": lambda: Pairwise(D, H, 8, 4, 64),
    "attention": lambda: Softmax(D, H),
    "attention, causal": lambda: Softmax(D, H, rotary=True).restrict(causal=True),
    "window": lambda: Softmax(D, H).restrict(8),
    "near": lambda: (ExpDot(D, H) * Taps(H, 17, **POSITIVE)).normalise(),
    "bias": lambda: (ExpDot(D, H) * Implicit(H, 64, **POSITIVE)).normalise(),
    "nested": lambda: Softmax(D, H) * Implicit(H, 5) + Separable(D, H, 2).restrict(2),
}
LONG = [name for name in KERNELS if name not in ("network", "bias", "nested")]          # the others are dense at any length
BOUND = 2.                                               # roundings: errors are norms, relative, in units of half an ε


def roundings(got: torch.Tensor, want: torch.Tensor) -> float:
    "‖got - want‖ / ‖want‖ in units of the rounding of the dtype of `got`; infinite if it is no number."
    e = (got.double() - want).norm() / want.norm() / (torch.finfo(got.dtype).eps / 2)
    return float("inf") if e.isnan() else e.item()


def flat(tensors) -> torch.Tensor: return torch.cat([x.flatten() for x in tensors])


def graded(f, kernel, u, v, gy) -> tuple[torch.Tensor, torch.Tensor]:
    "Outputs, and all gradients as one vector."
    u, v = u.detach().clone().requires_grad_(), v.detach().clone().requires_grad_()
    y = f(kernel, u, v)
    grads = torch.autograd.grad(y, [u, v, *kernel.parameters()], gy, materialize_grads=True)
    assert y.dtype == v.dtype and all(g.dtype == v.dtype for g in grads)
    return y.detach(), flat(grads)


def errors(make, n: int, dtype: torch.dtype, rule: str, measure: Measure | None = None, exact: str = "dense", at: Measure | None = None) -> tuple[float, float]:
    "How many roundings output and gradients are away from the integral in float64 of the same rounded numbers."
    torch.manual_seed(0)
    kernel, line, rows = make().to(dtype), measure or Measure.sequence(n), n if at is None else at.n
    dim = next((k.query.linear.in_features for k in kernel.modules() if hasattr(k, "query")), D)
    u, v, gy, u_at = (torch.randn(*shape).to(dtype) for shape in ((2, *line.shape, dim), (2, H, n, C), (2, H, rows, C), (2, rows, dim)))
    by = lambda rule: lambda k, u, v: apply(k, line, u, v, rule, at, None if at is None else u_at.to(u.dtype))
    got, want = graded(by(rule), kernel, u, v, gy), graded(by(exact), copy.deepcopy(kernel).double(), u.double(), v.double(), gy.double())
    return tuple(map(roundings, got, want))


# --- every kernel, every rule, every length

@pytest.mark.parametrize("n, dtype", [(7, torch.float16), (7, torch.bfloat16), (256, torch.bfloat16)])
@pytest.mark.parametrize("name", KERNELS)
def test_every_rule(name, n, dtype):
    for rule in ("auto", *possible(KERNELS[name](), Measure.sequence(n))):
        if rule != "monte_carlo": assert max(errors(KERNELS[name], n, dtype, rule)) < BOUND, rule


@pytest.mark.parametrize("n, dtype", [(1000, torch.bfloat16), (1024, torch.float16), (4096, torch.bfloat16)])
@pytest.mark.parametrize("name", LONG)
def test_long_lines_by_the_rule_that_is_chosen(name, n, dtype):
    if n > 2000 and name.startswith("attention"): n = 2000                                 # all pairs
    assert max(errors(KERNELS[name], n, dtype, "auto", exact="auto")) < BOUND


def test_all_rules_are_chosen_somewhere():
    chosen = {choose(KERNELS[name](), Measure.sequence(n), C, 2) for name in KERNELS for n in (7, 256, 1000, 1024, 4096)}
    assert {"dense", "attend", "direct", "fft", "scan"} <= chosen


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("n", [7, 256, 1000, 1024])
def test_the_kernel_of_the_readme(n, dtype):
    assert max(errors(README, n, dtype, "auto")) < BOUND
    layer = IntegralTransform(64, README()).to(dtype)
    assert layer(torch.randn(1, n, 64).to(dtype)).dtype == dtype


# --- every kind of measure

def places(n: int) -> dict[str, Measure]:
    g = torch.Generator().manual_seed(0)
    mask, w, x = torch.rand(2, n, generator=g) > .3, torch.rand(2, n, generator=g).double(), torch.rand(n, generator=g) * n
    runs = torch.arange(n) // 9
    return {"masked": Measure.sequence(n, mask), "weighted": Measure.sequence(n, weight=w), "ring": Measure.sequence(n, mask, periodic=True),
            "packed": Measure.sequence(n, mask, segments=runs), "scattered": Measure.scattered(x, weight=w), "trapezoid": Measure.sequence(n, spacing=.3, quadrature="trapezoid"),
            "times": Measure.scattered(x.sort().values, mask, quadrature="voronoi")}


@pytest.mark.parametrize("place", places(3))
def test_every_measure(place):
    measure = places(60)[place]
    for i, (name, make) in enumerate(KERNELS.items()):
        dtype, works = HALF[i % 2], possible(make(), measure)
        for rule in works:
            if rule != "monte_carlo": assert max(errors(make, 60, dtype, rule, measure)) < BOUND, (name, rule)


@pytest.mark.parametrize("dtype", HALF)
def test_outputs_elsewhere(dtype):
    at = Measure.scattered(torch.rand(9, generator=torch.Generator().manual_seed(0)) * 20)
    for name in ("implicit", "exponentials", "bilinear", "attention", "network", "bias"):
        for rule in possible(KERNELS[name](), Measure.sequence(20), at):
            if rule != "monte_carlo": assert max(errors(KERNELS[name], 20, dtype, rule, at=at)) < BOUND, (name, rule)


@pytest.mark.parametrize("dtype", HALF)
def test_points_and_weights_are_kept_in_single_precision(dtype):
    "Differences of positions, and sums of weights, would round otherwise."
    x = (torch.arange(1, 600) / 8).to(dtype)
    measure = Measure.scattered(x[x.diff(prepend=x[:1] * 0) > 0], quadrature="voronoi")
    assert measure.points.dtype == measure.weight.dtype == torch.float32
    assert torch.equal(measure.weight.double(), Measure.scattered(measure.points[0].double(), quadrature="voronoi").weight)
    assert Measure.sequence(3, weight=torch.ones(3, dtype=dtype)).weight.dtype == torch.float32


# --- everything that integrates besides

@pytest.mark.parametrize("dtype", HALF)
def test_matrices_between_channels(dtype):
    torch.manual_seed(0)
    kernels = {"taps": Taps(12, 3), "window": Implicit(12, 64).restrict(30), "implicit": Implicit(12, 64), "norm 1": Taps(12, 5).spectral_normalise()}
    for name, k in kernels.items():
        k, n = k.to(dtype), 300
        measure, exact = Measure.sequence(n, torch.rand(2, n) > .2), copy.deepcopy(k).double()
        v, gy = torch.randn(2, n, 4).to(dtype), torch.randn(2, n, 3).to(dtype)
        want = graded(lambda k, u, v: mix(k, measure, v, rule="dense"), exact, v.double(), v.double(), gy.double())
        for rule in ("auto", *(r for r in possible(k, measure) if RULES[r].mixes)):
            got = graded(lambda k, u, v: mix(k, measure, v, rule=rule), k, v, v, gy)
            assert max(map(roundings, got, want)) < BOUND, (name, rule)


@pytest.mark.parametrize("dtype", HALF)
def test_kernels_of_given_tensors(dtype):
    torch.manual_seed(0)
    n, x = 200, lambda *shape: torch.randn(2, H, *shape).to(dtype)
    phi, psi, q, k, v = x(n, 3).abs(), x(n, 3).abs(), x(n, 4), x(n, 4), x(n, C)
    gate, table = -x(n, 3).abs() / 8, x(n, n)
    kinds = {"terms": lambda t: Terms(*map(t, (phi, psi)), positive=True).normalise(), "gates": lambda t: Gates(*map(t, (phi, gate, psi))),
             "scores": lambda t: Scores(*map(t, (q, k))).normalise(), "table": lambda t: Table(t(table), log=True).normalise()}
    for name, make in kinds.items():
        want = apply(make(lambda t: t.double()), Measure.sequence(n), None, v.double(), "dense")
        for rule in possible(make(lambda t: t), Measure.sequence(n)):
            if rule != "monte_carlo": assert roundings(apply(make(lambda t: t), Measure.sequence(n), None, v, rule), want) < BOUND, (name, rule)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", KERNELS)
def test_matrices_and_norms(name, dtype):
    torch.manual_seed(0)
    k, line, u = KERNELS[name]().to(dtype), Measure.sequence(300), torch.randn(1, 300, D).to(dtype)
    exact = copy.deepcopy(k).double()
    K = k.matrix(line, u)
    assert K.dtype == dtype and roundings(K, exact.matrix(line, u.double())) < BOUND
    if k.structure.stationary: assert roundings(spectral_norm(k, line).to(dtype), spectral_norm(exact, line)) < BOUND


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["exponentials", "gates", "gates, normalised", "far, causal", "sum, causal"])
def test_streams(name, dtype):
    "A state sums in float32, or a long stream would stop to listen."
    torch.manual_seed(0)
    k, n = KERNELS[name]().to(dtype), 600
    u, v, line = torch.randn(1, n, D).to(dtype), torch.randn(1, H, n, C).to(dtype), Measure.sequence(n)
    want, ys, state = apply(copy.deepcopy(k).double(), line, u.double(), v.double(), "scan"), [], None
    for a, b in ((0, 1), (1, 2), (2, 500), (500, n)):
        y, state = step(k, u[:, a:b], v[:, :, a:b], state)
        ys.append(y)
    assert state.sums.dtype == torch.float32 and state.u.dtype == dtype and roundings(torch.cat(ys, 2), want) < BOUND
    if not name.startswith("gates"): return                                # features of others look back, or at the position
    y, sums = resume(k, Measure.sequence(300), u[:, :300], v[:, :, :300])
    assert sums.dtype == torch.float32 and roundings(y, want[:, :, :300]) < BOUND
    assert roundings(resume(k, Measure.sequence(300), u[:, 300:], v[:, :, 300:], sums)[0], want[:, :, 300:]) < BOUND


@pytest.mark.parametrize("dtype", HALF)
def test_a_sample_in_half_precision(dtype):
    k, line = Implicit(H, 64, **POSITIVE).normalise().to(dtype), Measure.sequence(200)
    v = torch.randn(1, H, 200, C).to(dtype)
    y, variance = monte_carlo(k, line, None, v, samples=32, generator=0, return_variance=True)
    want = monte_carlo(copy.deepcopy(k).double(), line, None, v.double(), samples=32, generator=0)
    assert y.dtype == variance.dtype == dtype and roundings(y, want) < BOUND


# --- networks

@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("n", [7, 256, 1000, 1024])
@pytest.mark.parametrize("causal", [False, True])
def test_a_network(n, causal, dtype):
    "Four blocks, each with norms and networks that round for themselves."
    torch.manual_seed(0)
    net = ITNetConfig(dim=32).build(causal=causal).to(dtype)
    u, line = torch.randn(1, n, 32).to(dtype), Measure.sequence(n)
    (y, _), (want, _) = net(u, line), copy.deepcopy(net).double()(u.double(), line)
    y.float().square().sum().backward()
    assert y.dtype == dtype and roundings(y.detach(), want.detach()) < 3
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_converted_recurrences(kind, dtype):
    torch.manual_seed(0)
    layer, x = kind(5, 6, 2, bidirectional=True).to(dtype), torch.randn(70, 2, 5).to(dtype)
    same, exact = from_torch(layer), copy.deepcopy(layer).double()
    (y, ends), (want, want_ends) = same(x), exact(x.double())
    y.float().square().sum().backward()
    want.square().sum().backward()
    pairs = [(y, want), *(zip(ends, want_ends) if kind is nn.LSTM else [(ends, want_ends)])]
    assert all(a.dtype == dtype and roundings(a.detach(), b.detach()) < BOUND for a, b in pairs)
    assert roundings(flat(p.grad for p in same.parameters()), flat(p.grad for p in exact.parameters())) < BOUND


# --- what must not happen

def test_what_is_stored_is_what_is_trained():
    "The leaves are the stored parameters; nothing else is changed, and a kernel in single precision is itself."
    k = KERNELS["far"]().bfloat16()
    single = promoted(k)
    assert {p.dtype for p in k.parameters()} == {torch.bfloat16} and type(single) is type(k)
    kinds = {name: p.dtype for name, p in single.named_parameters()}
    assert {kind for name, kind in kinds.items() if "linear" not in name and "taps" not in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "linear" in name} == {torch.bfloat16}            # products stay as they are
    seen = []
    class Seen(Taps):
        def right(self, *args): seen.append(self); return super().right(*args)
    k = Seen(H, 3)
    apply(k, Measure.sequence(5), None, torch.randn(1, H, 5, C))
    assert seen and all(x is k for x in seen)


def test_two_dtypes_are_refused():
    for kernel, value in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16)):
        with pytest.raises(ValueError, match=f"{value}.*{kernel}"): apply(Implicit(H, 64).to(kernel), Measure.sequence(9), None, torch.randn(1, H, 9, C).to(value))


@pytest.mark.parametrize("name", ["far", "implicit", "gates", "window", "attention"])
def test_autocast_is_as_it_was(name):
    "A layer in single precision under autocast, and one that is stored in half precision."
    torch.manual_seed(0)
    layer, u = IntegralTransform(D, KERNELS[name]()), torch.randn(2, 300, D)
    stored = copy.deepcopy(layer).bfloat16()
    wants = [copy.deepcopy(x).double()(y.double()).detach() for x, y in ((layer, u), (stored, u.bfloat16()))]
    with torch.autocast("cpu", torch.bfloat16): got = layer(u), stored(u.bfloat16())
    assert all(y.dtype == torch.bfloat16 and roundings(y.detach(), want) < BOUND for y, want in zip(got, wants))


@pytest.mark.parametrize("name", ["far", "gates"])
def test_compiled(name):
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer, u = IntegralTransform(D, KERNELS[name]()).bfloat16(), torch.randn(2, 13, D).bfloat16()
    y = torch.compile(layer, fullgraph=True, backend="aot_eager_decomp_partition")(u)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and roundings(y.detach(), layer(u).double().detach()) < BOUND
    assert all(p.grad.dtype == torch.bfloat16 for p in layer.parameters() if p.grad is not None)


def test_a_wrong_answer_fails():
    "κ computed in half precision is no rounding away."
    torch.manual_seed(0)
    k, v = Implicit(H, 64).bfloat16(), torch.randn(1, H, 300, C).bfloat16()
    line, exact = Measure.sequence(300), copy.deepcopy(k).double()
    K = k.values(*_pairs(k, line)).squeeze(2)
    assert roundings(K @ v, apply(exact, line, None, v.double(), "dense")) > 3 * BOUND


def _pairs(k: Kernel, line: Measure):
    from itnet.kernel.base import read
    from itnet.measure.pairs import Pairs
    return Pairs.all(line), *read(k, line, None)
