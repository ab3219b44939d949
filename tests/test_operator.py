"""Properties of the operator that need no reference: padding, packing and the order of scattered points change nothing."""
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itnet.rule.base import possible
from itnet.rule.plan import options
from itnet.kernel.content import ExpDot, Separable, Softmax
from itnet.kernel.base import Kernel
from itnet.measure.measure import Measure
from itnet.kernel.pairwise import Pairwise
from itnet.kernel.selective import Selective
from itnet.kernel.stationary import Exponentials, Implicit, Taps
from itnet.transform import IntegralTransform, apply

D, H, C = 4, 2, 3                                        # channels of u, heads, channels of v
POSITIVE = dict(positive=True)
KERNELS = {
    "taps": lambda: Taps(H, 4, origin=1),
    "implicit": lambda: Implicit(H, 5),
    "decay": lambda: Exponentials(H, 2, 5),
    "decay, normalised": lambda: Exponentials(H, 2, 5, **POSITIVE).normalise(),
    "separable": lambda: Separable(D, H, 2).normalise(),
    "separable, causal": lambda: Separable(D, H, 2).restrict(causal=True).normalise(),
    "far": lambda: (Separable(D, H, 2) * Implicit(H, 5, **POSITIVE)).normalise(),
    "far, causal": lambda: (Separable(D, H, 2) * Exponentials(H, 2, 5, **POSITIVE)).normalise(),
    "short": lambda: (Separable(D, H, 2, short=3) * Implicit(H, 5, **POSITIVE)).normalise(),
    "gates": lambda: Selective(D, H, 2, **POSITIVE).normalise(),
    "gates, summed": lambda: Selective(D, H, 2, "feature", short=2) + Separable(D, H, 2).restrict(causal=True) * Exponentials(H, 2, 5),
    "network": lambda: Pairwise(D, H, 8, 4, 9, **POSITIVE).normalise(),
    "attention": lambda: Softmax(D, H),
    "attention, causal": lambda: Softmax(D, H, key_heads=1).restrict(causal=True),
    "window": lambda: Softmax(D, H).restrict(2),
    "near": lambda: (ExpDot(D, H) * Taps(H, 5, **POSITIVE)).normalise(),
    "bias": lambda: (ExpDot(D, H) * Implicit(H, 5, **POSITIVE)).normalise(),
    "nested": lambda: Softmax(D, H) * Implicit(H, 5) + Separable(D, H, 2).restrict(2),
}
STEPS = {"taps", "short", "near"}                        # defined at the steps of a grid
ANYWHERE = sorted(set(KERNELS) - STEPS - {"gates", "gates, summed"})        # gates run along a line
ON_A_RING = ["implicit", "separable", "far", "attention", "bias", "short", "window", "near"]

pytestmark = pytest.mark.usefixtures("short_chunks")


bounded = functools.partial(settings, derandomize=True, deadline=None, database=None)
seeds = st.integers(0, 10**6)


@functools.cache
def kernel(name: str) -> Kernel:
    torch.manual_seed(sorted(KERNELS).index(name))
    return KERNELS[name]().double()


def rules(kernel: Kernel, measure: Measure) -> list[str]:
    "Exact rules that are valid, as the plan says."
    return [o.rule for o in options(kernel, measure, C) if o.missing is None and o.exact]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def function(seed: int, measure: Measure, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    "u (B, N, D) and v (B, N, H, C): points along axis 1 of both."
    return draw(seed, batch, measure.n, D), draw(seed + 1, batch, measure.n, H, C)


def integrate(kernel: Kernel, measure: Measure, rule: str, u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    "The output (B, N, H, C), and gradients of the sum of its sines at points that count, with respect to u and v."
    u, v = u.clone().requires_grad_(), v.clone().requires_grad_()
    y = apply(kernel, measure, u.unflatten(1, measure.shape), v.transpose(1, 2), rule).transpose(1, 2)
    counts = torch.ones(1, measure.n, dtype=torch.bool) if measure.mask is None else measure.mask.flatten(1)
    kept = y.sin().masked_fill(~counts[..., None, None], 0.)
    grads = torch.autograd.grad(kept.sum(), (u, v), allow_unused=True)
    return (y.detach(), *[torch.zeros_like(x) if g is None else g for g, x in zip(grads, (u, v))])


def same(got, want, bound: float = 1e-10) -> None:
    "Within `bound`, relative to all of it; NaN is an error."
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape and torch.isfinite(a).all()
        assert (a - b).norm() <= bound * b.norm().clamp_min(1e-3)


def at(parts, index) -> tuple[torch.Tensor, ...]: return tuple(x[:, index] for x in parts)


# --- padding

@pytest.mark.parametrize("name", KERNELS)
@bounded(max_examples=8)
@given(n=st.integers(1, 9), more=st.integers(1, 8), filling=st.sampled_from([0., -1., 1e4, 1e30]), seed=seeds)
def test_padding_of_a_line(name, n, more, filling, seed):
    k, alone, padded = kernel(name), Measure.sequence(n), Measure.sequence(n + more, torch.arange(n + more) < n)
    u, v = function(seed, padded)
    u[:, n:], v[:, n:] = filling, filling
    for rule in rules(k, padded):
        got = integrate(k, padded, rule, u, v)
        same(at(got, slice(n)), integrate(k, alone, rule, u[:, :n], v[:, :n]))
        assert not got[1][:, n:].any() and not got[2][:, n:].any()                       # no gradient reaches the padding


@pytest.mark.parametrize("name", ["far", "bias", "window"])
@bounded(max_examples=8)
@given(shape=st.tuples(st.integers(1, 5), st.integers(1, 4)), more=st.tuples(st.integers(0, 3), st.integers(0, 4)), filling=st.sampled_from([0., 1e30]), seed=seeds)
def test_padding_of_a_plane(name, shape, more, filling, seed):
    torch.manual_seed(0)
    flat = dict(far=lambda: (Separable(D, H, 2, short=2, dims=2) * Implicit(H, 5, dims=2, **POSITIVE)).normalise(),
                bias=lambda: (ExpDot(D, H) * Implicit(H, 5, dims=2, **POSITIVE)).normalise(), window=lambda: Softmax(D, H).restrict((1, 2)))
    k, whole = flat[name]().double(), tuple(a + b for a, b in zip(shape, more))
    mask = torch.zeros(whole, dtype=torch.bool)
    mask[:shape[0], :shape[1]] = True
    alone, padded, index = Measure.grid(shape), Measure.grid(whole, mask), mask.flatten()
    u, v = function(seed, padded)
    u[:, ~index], v[:, ~index] = filling, filling
    for rule in rules(k, padded): same(at(integrate(k, padded, rule, u, v), index), integrate(k, alone, rule, u[:, index], v[:, index]))


@pytest.mark.parametrize("name", ANYWHERE)
@bounded(max_examples=6)
@given(n=st.integers(1, 8), more=st.integers(1, 6), ordered=st.booleans(), filling=st.sampled_from([0., 1e30]), seed=seeds)
def test_padding_among_scattered_points(name, n, more, ordered, filling, seed):
    k, index = kernel(name), torch.randperm(n + more, generator=torch.Generator().manual_seed(seed)) < n
    x, w = 9 * draw(seed + 2, n + more).sigmoid(), draw(seed + 3, n + more).exp()
    if ordered: x = x.sort().values                                                        # then a recurrence can run along them
    alone, padded = Measure.scattered(x[index], weight=w[index]), Measure.scattered(x, index, w)
    u, v = function(seed, padded)
    u[:, ~index], v[:, ~index] = filling, filling
    for rule in set(rules(k, padded)) & set(rules(k, alone)): same(at(integrate(k, padded, rule, u, v), index), integrate(k, alone, rule, u[:, index], v[:, index]))


# --- packing

lengths = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def pieces(sizes: list[int]) -> list[slice]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends)]


@pytest.mark.parametrize("name", KERNELS)
@bounded(max_examples=5)
@given(sizes=lengths, holes=st.booleans(), seed=seeds)
def test_packing_a_line(name, sizes, holes, seed):
    k, n = kernel(name), sum(sizes)
    w = draw(seed + 2, n).exp() * (draw(seed + 3, n) > -1 if holes else 1)
    packed = Measure.sequence(n, weight=w, segments=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)))
    u, v = function(seed, packed)
    for rule in rules(k, packed):
        parts = [integrate(k, Measure.sequence(s.stop - s.start, weight=w[s]), rule, u[:, s], v[:, s]) for s in pieces(sizes)]
        same(integrate(k, packed, rule, u, v), [torch.cat(x, 1) for x in zip(*parts)])


@pytest.mark.parametrize("name", ANYWHERE)
@bounded(max_examples=5)
@given(sizes=lengths, ordered=st.booleans(), seed=seeds)
def test_packing_scattered_points(name, sizes, ordered, seed):
    k, n = kernel(name), sum(sizes)
    x, segments = 9 * draw(seed + 2, n).sigmoid(), torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    if ordered: x = torch.cat([x[s].sort().values for s in pieces(sizes)])
    order = torch.arange(n) if ordered else torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    packed = Measure.scattered(x[order], segments=segments[order], quadrature="voronoi", domain=(0, 9))
    u, v = function(seed, packed)
    for rule in rules(k, packed):
        got = integrate(k, packed, rule, u, v)
        for i in range(len(sizes)):
            index = segments[order] == i
            alone = Measure.scattered(x[order][index], quadrature="voronoi", domain=(0, 9))
            if rule in rules(k, alone): same(at(got, index), integrate(k, alone, rule, u[:, index], v[:, index]))


# --- order, weights, rings

@pytest.mark.parametrize("name", ANYWHERE)
@bounded(max_examples=6)
@given(n=st.integers(1, 9), seed=seeds)
def test_order_of_scattered_points(name, n, seed):
    k, order = kernel(name), torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    x = 9 * draw(seed + 2, n).sigmoid()
    sampled, shuffled = (Measure.scattered(x[i], quadrature="voronoi") for i in (torch.arange(n), order))
    u, v = function(seed, sampled)
    for rule in set(rules(k, sampled)) & set(rules(k, shuffled)):
        same(integrate(k, shuffled, rule, u[:, order], v[:, order]), at(integrate(k, sampled, rule, u, v), order))


@pytest.mark.parametrize("name", ["separable", "attention"])
@bounded(max_examples=6)
@given(n=st.integers(1, 6), m=st.integers(1, 6), balance=st.booleans(), seed=seeds)
def test_order_of_a_union(name, n, m, balance, seed):
    k, a, b = kernel(name), Measure.sequence(n, weight=draw(seed + 2, n).exp()), Measure.grid((m, 2))
    order = torch.cat([torch.arange(2 * m) + n, torch.arange(n)])
    one, other = Measure.union(a, b, balance=balance), Measure.union(b, a, balance=balance)
    one, other = (Measure(x.shape, (), x.weight.double(), x.points.double()) for x in (one, other))
    u, v = function(seed, one)
    for rule in rules(k, one): same(integrate(k, other, rule, u[:, order], v[:, order]), at(integrate(k, one, rule, u, v), order))


@pytest.mark.parametrize("name", ANYWHERE)
@bounded(max_examples=6)
@given(times=st.lists(st.integers(1, 3), min_size=1, max_size=6), seed=seeds)
def test_a_point_of_weight_two_is_two_points(name, times, seed):
    k, n, index = kernel(name), len(times), torch.arange(len(times)).repeat_interleave(torch.tensor(times))
    x = 9 * draw(seed + 2, n).sigmoid()
    heavy, many = Measure.scattered(x, weight=torch.tensor(times).double()), Measure.scattered(x[index])
    u, v = function(seed, heavy)
    for rule in set(rules(k, heavy)) & set(rules(k, many)):
        same([integrate(k, many, rule, u[:, index], v[:, index])[0]], [integrate(k, heavy, rule, u, v)[0][:, index]])


@pytest.mark.parametrize("name", ON_A_RING)
@bounded(max_examples=6)
@given(n=st.integers(5, 9), by=st.integers(1, 8), seed=seeds)
def test_a_ring_has_no_beginning(name, n, by, seed):
    k, mask = kernel(name), draw(seed + 2, n) > -1
    ring, turned = (Measure.sequence(n, m, periodic=True) for m in (mask, mask.roll(by)))
    u, v = function(seed, ring)
    for rule in rules(k, ring):
        want = integrate(k, ring, rule, u, v)
        same(integrate(k, turned, rule, u.roll(by, 1), v.roll(by, 1)), [x.roll(by, 1) for x in want])


@pytest.mark.parametrize("name", ["implicit", "separable", "far", "attention"])
def test_a_ring_of_one_point(name):
    k, line, ring = kernel(name), Measure.sequence(1), Measure.sequence(1, periodic=True)
    u, v = function(0, line)
    for rule in rules(k, ring): same(integrate(k, ring, rule, u, v), integrate(k, line, rule, u, v))


@pytest.mark.parametrize("name", ANYWHERE)
@pytest.mark.parametrize("measure", [Measure.sequence(6, spacing=.5, quadrature="trapezoid"), Measure.sequence(7, torch.arange(7) != 2, periodic=True)], ids=["line", "ring"])
def test_outputs_elsewhere_at_the_same_points(name, measure):
    k, there = kernel(name), Measure.scattered(measure.positions())
    if any(measure.periodic) and (k.structure.causal or name == "nested"): return
    if not any(measure.periodic) and name in ("window", "nested"): return                  # a window is one of steps here, of positions there
    u, v = function(0, measure)
    got = apply(k, measure, u, v.transpose(1, 2), at=there, u_at=u)
    same([got.detach()], [apply(k, measure, u, v.transpose(1, 2), "dense").detach()])


# --- normalisers

@pytest.mark.parametrize("name", KERNELS)
def test_a_masked_row_gives_zero(name):
    k = kernel(name)
    for measure in (Measure.sequence(5, torch.zeros(2, 5, dtype=torch.bool)), Measure.sequence(5, torch.zeros(5, dtype=torch.bool), segments=torch.tensor([0, 0, 1, 1, 1]))):
        u, v = function(0, measure, 2)
        for rule in rules(k, measure):
            for x in integrate(k, measure, rule, u, v): assert not x.any()
    half = Measure.sequence(5, torch.stack([torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)]))
    u, v = function(0, half, 2)
    for rule in rules(k, half):
        got = integrate(k, half, rule, u, v)
        same([x[:1] for x in got], integrate(k, Measure.sequence(5), rule, u[:1], v[:1]))
        for x in got: assert not x[1:].any()


@pytest.mark.parametrize("name", ["separable", "separable, causal", "far", "far, causal", "attention", "attention, causal", "window", "near", "bias"])
@bounded(max_examples=6)
@given(size=st.sampled_from([1e-300, 1e-30, 1e2, 1e4, 1e8]), dtype=st.sampled_from([torch.float32, torch.float64]), seed=seeds)
def test_normalisers_do_not_divide_by_zero(name, size, dtype, seed):
    "However large or small the features, a normalised kernel averages: outputs lie between the smallest and the largest value."
    torch.manual_seed(0)
    k, measure = KERNELS[name]().to(dtype), Measure.sequence(7, draw(seed + 2, 7) > -1)
    u, v = (x.to(dtype) for x in function(seed, measure))
    for rule in rules(k, measure):
        got = integrate(k, measure, rule, u * size, v)
        assert all(torch.isfinite(x).all() for x in got), rule
        if rule != "fft": assert (got[0].abs().amax() <= v.abs().amax() * (1 + 1e-4)), rule


def test_kernels_that_vanish_are_no_division_by_zero():
    k = Taps(H, 3, **POSITIVE).normalise().double()
    k.kernel.weight.data.fill_(-2000.)                                                     # exp(-2000) = 0
    u, v = function(0, Measure.sequence(5))
    for rule in rules(k, Measure.sequence(5)):
        for x in integrate(k, Measure.sequence(5), rule, u, v): assert torch.isfinite(x).all()


# --- bad input

def refuses(f, *words: str) -> None:
    "A ValueError whose text has all these words."
    with pytest.raises(ValueError) as e: f()
    assert all(w in str(e.value) for w in words), str(e.value)


def test_weights_that_are_no_weights():
    for bad in (float("nan"), float("inf"), -float("inf")):
        w = torch.ones(5)
        w[3] = bad
        refuses(lambda: Measure.sequence(5, weight=w), "weights", "finite", str(bad))
        refuses(lambda: Measure.scattered(torch.rand(5), weight=w), "weights", "finite", str(bad))
    refuses(lambda: Measure.sequence(5, weight=torch.ones(4)), "weight", "(4,)", "(5,)")
    refuses(lambda: Measure.scattered(torch.tensor([0., float("nan")])), "positions", "finite")


@pytest.mark.parametrize("name", ["attention", "far", "nested"])
def test_negative_weights_for_a_normalised_kernel(name):
    k, signed = kernel(name), Measure.sequence(5, weight=torch.tensor([1., 1., -1., 1., 1.]).double())
    u, v = function(0, signed)
    for rule in ("auto", *rules(k, Measure.sequence(5))):
        refuses(lambda: apply(k, signed, u, v.transpose(1, 2), rule), "weights", "negative")
    apply(kernel("implicit"), signed, u, v.transpose(1, 2))                           # an unnormalised one has no objection


def test_segments_that_do_not_fit():
    refuses(lambda: Measure.sequence(5, segments=torch.zeros(4, dtype=torch.long)), "segments", "(4,)", "(5,)")
    refuses(lambda: Measure.sequence(5, segments=torch.zeros(5)), "segments", "float32")
    refuses(lambda: Measure.sequence(5, segments=torch.tensor([0, 0, 1, 0, 0])), "segments", "ended")
    refuses(lambda: Measure.grid((2, 2), segments=torch.zeros(2, 2, dtype=torch.long)), "segments", "(2, 2)")
    refuses(lambda: Measure.sequence(4, periodic=True, segments=torch.zeros(4, dtype=torch.long)), "segments", "periodic")
    packed, u, v = Measure.sequence(5, segments=torch.zeros(3, 5, dtype=torch.long)), draw(0, 2, 5, D), draw(1, 2, H, 5, C)
    refuses(lambda: apply(kernel("attention"), packed, u, v), "segments", "(3, 5)", "(2, 2, 5, 3)")
    elsewhere = Measure.scattered(draw(2, 6))
    refuses(lambda: apply(kernel("attention"), Measure.sequence(5, segments=torch.zeros(5, dtype=torch.long)), u, v, at=elsewhere, u_at=draw(0, 2, 6, D)), "segments")


def test_positions_of_another_dimension():
    plane = Measure.scattered(draw(0, 5, 2))
    u, v = function(0, plane)
    for name in ("implicit", "far", "bias"): refuses(lambda: apply(kernel(name), plane, u, v.transpose(1, 2)), "2 coordinates")
    for name in ("window", "attention, causal", "decay"): refuses(lambda: apply(kernel(name), plane, u, v.transpose(1, 2)), "2 coordinates")
    refuses(lambda: apply(kernel("taps"), Measure.grid((5, 1)), u[:, :, None], v.transpose(1, 2)), "1 coordinate", "5 × 1")
    refuses(lambda: apply(kernel("implicit"), Measure.sequence(5), u, v.transpose(1, 2), at=plane, u_at=u), "coordinates")
    refuses(lambda: apply(kernel("taps"), Measure.scattered(draw(0, 5)), u, v.transpose(1, 2)), "grid")
    refuses(lambda: apply(kernel("short"), Measure.scattered(draw(0, 5)), u, v.transpose(1, 2)), "neighbours")


@pytest.mark.parametrize("name", KERNELS)
def test_rules_that_are_not_allowed(name):
    "What is missing and what would work are in the message; nothing has been computed by then."
    places = [Measure.sequence(5)] + [Measure.scattered(draw(0, 5))] * (name not in STEPS)
    for measure in places:
        u, v = function(0, measure)
        for option in options(kernel(name), measure, C):
            if option.missing:
                works = possible(kernel(name), measure)
                refuses(lambda: apply(kernel(name), measure, u, v.transpose(1, 2), option.rule), repr(option.rule), option.missing, *works)


def test_rules_that_do_not_exist():
    u, v = function(0, Measure.sequence(5))
    refuses(lambda: apply(kernel("taps"), Measure.sequence(5), u, v.transpose(1, 2), "simpson"), "simpson", "dense")
    refuses(lambda: IntegralTransform(D, Softmax(D, H), rule="simpson"), "simpson", "dense")
