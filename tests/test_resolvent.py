"""Compositions and resolvents against loops that know nothing of them: every rule, measure and gradient; and what is refused."""
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from itnet.kernel import base
from itnet.kernel.base import Kernel
from itnet.kernel.check import check_structure
from itnet.kernel.content import ExpDot, Separable, Softmax
from itnet.kernel.given import Gates, Terms
from itnet.kernel.selective import Selective
from itnet.kernel.stationary import Exponentials, Implicit, Taps
from itnet.kernel.structure import CAUSAL, Structure
from itnet.measure.measure import Measure
from itnet.rule import series
from itnet.rule.base import RULES, possible
from itnet.rule.explain import explain
from itnet.rule.mixing import mix
from itnet.stream import step
from itnet.testing import message, relative_error
from itnet.transform import apply

D, H, C = 4, 2, 3                                        # channels of u, heads, channels of v
FULL = {
    "taps": lambda: Taps(H, 4, origin=1),
    "dilated": lambda: Taps(H, 2, origin=0, dilation=3),
    "implicit": lambda: Implicit(H, 5),
    "decay": lambda: Exponentials(H, 2, 5),
    "two functions of the lag": lambda: Taps(H, 2, origin=0) + Exponentials(H, 2, 5),
    "separable": lambda: Separable(D, H, 2, positive=False),
    "one head": lambda: Separable(D, 1, 2, positive=False),
    "far": lambda: Separable(D, H, 2, positive=False) * Implicit(H, 5),
    "window": lambda: (Separable(D, H, 2) * Implicit(H, 5)).restrict(3),
    "gates": lambda: Selective(D, H, 2),
    "a gate per feature": lambda: Selective(D, H, 2, "feature", short=2),
    "gates and decay": lambda: Selective(D, H, 2) * Exponentials(H, 1, 5),
    "attention": lambda: Softmax(D, H),
    "one after another": lambda: Separable(D, H, 2).restrict(causal=True) @ Taps(H, 2, origin=0),
}
BY_FFT = {"taps", "dilated", "implicit", "decay", "two functions of the lag", "separable", "one head", "far", "window"}
BY_SCAN = {"decay", "separable", "one head", "gates", "a gate per feature", "gates and decay"}
LENGTHS = {name: 12 if i % 2 else 13 for i, name in enumerate(FULL)}             # others on a plain line

pytestmark = pytest.mark.usefixtures("short_chunks", "short_blocks")


@pytest.fixture(scope="module")
def short_blocks():
    "Strips of a few rows and blocks of four points, so that short lines have many."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "SOLVED", 4)
        patch.setattr(base, "TILE", 400)
        yield


@functools.cache
def kernel(name: str) -> Kernel:
    "The strict past of a kernel."
    torch.manual_seed(sorted(FULL).index(name))
    return FULL[name]().double().past()


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measures(n: int, seed: int) -> dict[str, Measure]:
    "Lines of n points of every kind that has an order."
    w, runs = draw(seed, 2, n).exp() * .5, (draw(seed + 1, 2, n) > .8).cumsum(-1)
    holes, times = draw(seed + 2, 2, n) > -.5, draw(seed + 3, n).exp().cumsum(0)
    return {"plain": Measure.sequence(n), "spaced": Measure.sequence(n, spacing=.5, quadrature="trapezoid"), "masked": Measure.sequence(n, holes),
            "weighted": Measure.sequence(n, weight=w * holes), "packed": Measure.sequence(n, segments=runs),
            "packed and masked": Measure.sequence(n, holes[0], segments=runs), "times": Measure.scattered(times, weight=w[:1].repeat(2, 1)),
            "packed times": Measure.scattered(times, holes[0], quadrature="voronoi", segments=runs[0])}


def loop(K: torch.Tensor, measure: Measure, v: torch.Tensor) -> torch.Tensor:
    "y_i = v_i + Σ_(j < i) K_ij w_j y_j, point by point."
    w = torch.ones(1, measure.n, dtype=v.dtype) if measure.weight is None else measure.weight.to(v.dtype)
    ys = []
    for i in range(measure.n):
        y = v[:, :, i] * (w[:, i] != 0)[:, None, None]
        for j in range(i): y = y + K[:, :, i, j, None] * w[:, j, None, None] * ys[j]
        ys.append(y)
    return torch.stack(ys, 2)


def graded(f, k: Kernel, u: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    "f(u, v), and all gradients as one vector."
    u, v = u.clone().requires_grad_(), v.clone().requires_grad_()
    y = f(u, v)
    grads = torch.autograd.grad(y, [u, v, *k.parameters()], draw(99, *y.shape), materialize_grads=True)
    return [y.detach(), torch.cat([g.flatten() for g in grads])]


def same(got, want, bound: float = 1e-10) -> None:
    for a, b in zip(got, want, strict=True): assert relative_error(a, b) < bound


# --- the resolvent is the solution

@pytest.mark.parametrize("where", measures(5, 0))
@pytest.mark.parametrize("name", FULL)
def test_resolvent_by_every_rule(name, where):
    k, tried = kernel(name), set()
    for n in (1, 2, 7, 13, 31) if where == "plain" else (LENGTHS[name],):
        m, u, v = measures(n, n)[where], .5 * draw(n, 2, n, D), draw(n + 1, 2, H, n, C)
        R = k.resolvent()
        works = [r for r in possible(R, m) if RULES[r].exact]
        if not works: continue
        want = graded(lambda u, v: loop(k.matrix(m, u), m, v), k, u, v)
        for rule in (*works, "auto"):
            same(graded(lambda u, v: apply(R, m, u, v, rule), k, u, v), want)
            tried.add(rule)
    regular = "times" not in where
    needs_grid = "taps" in name or name in ("dilated", "two functions of the lag", "a gate per feature", "one after another")
    want = {"dense", "auto"} | ({"fft"} if regular and name in BY_FFT else set()) | ({"scan"} if name in BY_SCAN else set())
    assert tried == (set() if needs_grid and not regular else want)


@pytest.mark.parametrize("where", ["plain", "masked", "weighted", "packed", "packed and masked"])
def test_resolvent_of_matrices(where):
    "Vector autoregressions in two groups, as `mix` integrates them and as the matrix says."
    torch.manual_seed(0)
    k = Taps(2 * C * C, 3, origin=0).double().past()
    for n in (1, 7, 12):
        m, v = measures(n, n)[where], draw(n, 2, n, 2 * C)
        w = torch.ones(1, n, dtype=v.dtype) if m.weight is None else m.weight.to(v.dtype)

        def steps(_, v):
            K, ys = k.matrix(m).unflatten(1, (2, C, C)), []
            x = (v * (w != 0)[..., None]).unflatten(-1, (2, C))
            for i in range(n):
                ys.append(x[:, i] + sum((K[:, :, :, :, i, j] @ (w[:, j, None, None] * ys[j]).unsqueeze(-1)).squeeze(-1) for j in range(i)))
            return torch.stack(ys, 1).flatten(2)

        want, R = graded(steps, k, v, v), k.resolvent(channels=C)
        same(graded(lambda _, v: mix(R, m, v, 2), k, v, v), want)
        by_matrix = lambda _, v: torch.einsum("bgocij,bj,bjgc->bigo", R.matrix(m).unflatten(1, (2, C, C)).expand(2, *[-1] * 5), w.expand(2, -1), v.unflatten(-1, (2, C))).flatten(2)
        same(graded(by_matrix, k, v, v), want)


def test_a_wrong_resolvent_is_seen():
    "One lag too many, a mask that is not heeded, a segment that goes on: each far beyond the bound."
    n, k = 13, kernel("gates")
    places, u, v = measures(n, 0), .5 * draw(0, 2, n, D), draw(1, 2, H, n, C)
    for where, other in (("masked", "plain"), ("packed", "plain"), ("packed and masked", "packed"), ("weighted", "masked")):
        m = places[where]
        wrong = apply(k.resolvent(), places[other], u, v, "scan")
        assert relative_error(wrong, loop(k.matrix(m, u), m, v)) > 1e-3
    m = places["plain"]
    late = apply(k.resolvent(), m, u, v, "scan").roll(1, 2)
    assert relative_error(late, loop(k.matrix(m, u), m, v)) > 1e-3


@settings(derandomize=True, deadline=None, database=None, max_examples=12)
@given(n=st.integers(1, 40), name=st.sampled_from(sorted(FULL)), seed=st.integers(0, 10**6))
def test_the_equation_holds(n, name, seed):
    "(1 - K)(1 - K)⁻¹ = 1 = (1 - K)⁻¹(1 - K), with nothing but sums and compositions, on any line."
    k, where = kernel(name), sorted(measures(2, 0))[seed % 8]
    m, u, v = measures(n, seed)[where], .5 * draw(seed, 2, n, D), draw(seed + 1, 2, H, n, C)
    R = k.resolvent()
    if not possible(R, m): return
    counts = v if m.weight is None else v * (m.weight != 0)[:, None, :, None]
    for one in (lambda: apply(R, m, u, v) - apply(k @ R, m, u, v), lambda: apply(R, m, u, v) - apply(R @ k, m, u, v)):
        got, mask = one(), counts != 0
        assert relative_error(got * mask, counts) < 1e-9
    assert relative_error(R.matrix(m, u), Kernel.matrix(R, m, u)) < 1e-12


# --- compositions

@pytest.mark.parametrize("where", measures(5, 0))
@pytest.mark.parametrize("a,b", [("taps", "implicit"), ("far", "gates"), ("separable", "decay"), ("attention", "window"), ("one head", "gates")])
def test_composition_by_every_rule(a, b, where):
    torch.manual_seed(0)
    k = FULL[a]().double() @ FULL[b]().double()
    for n in (1, 12):
        m, u, v = measures(n, n)[where], draw(n, 2, n, D), draw(n + 1, 2, H, n, C)
        if not possible(k, m): continue
        w = torch.ones(1, n).double() if m.weight is None else m.weight.double()
        x = lambda v: v * w[:, None, :, None]
        want = graded(lambda u, v: k.a.matrix(m, u) @ x(k.b.matrix(m, u) @ x(v)), k, u, v)
        same(graded(lambda u, v: k.matrix(m, u) @ x(v), k, u, v), want)
        for rule in (*[r for r in possible(k, m) if RULES[r].exact], "auto"):
            same(graded(lambda u, v: apply(k, m, u, v, rule), k, u, v), want)


def test_composition_is_an_algebra():
    "Associative, distributive, and each part by its own rule."
    torch.manual_seed(0)
    a, b, c = Implicit(H, 5).double(), Selective(D, H, 2).double(), Taps(H, 3).double()
    m, u, v = Measure.sequence(11), draw(0, 2, 11, D), draw(1, 2, H, 11, C)
    run = lambda k: apply(k, m, u, v)
    same([run((a @ b) @ c)], [run(a @ (b @ c))])
    same([run(a @ (b + c))], [run(a @ b) + run(a @ c)])
    assert ((a @ b) @ c).sequence == (a, b, c) == (a @ (b @ c)).sequence and a.sequence == (a,)
    assert possible(a @ b, m) == ["dense", "monte_carlo"]              # by one rule alone; but auto takes one for each
    text = explain(a @ b, m)
    assert text.index("state 2") < text.index("stationary") and text.count("→") == 2


def test_structure_of_compositions():
    taps = Taps(H, 3, origin=1) @ Taps(H, 4, origin=0)
    assert taps.structure.support == ((-1, 4),) and taps.structure.rank == 2 and not taps.structure.causal
    causal = Exponentials(H, 2).past() @ Selective(D, H, 3)
    assert causal.structure.support == CAUSAL and causal.structure.strictly_causal and causal.structure.state == 7
    assert not (Exponentials(H, 2) @ Selective(D, H, 3)).structure.strictly_causal
    assert (Softmax(D, H) @ Taps(H, 3)).structure.support is None and (Softmax(D, H) @ Taps(H, 3)).structure.rank is None
    for k in (taps, causal, kernel("gates").resolvent()):
        for more in (k * Taps(H, 3), k + Taps(H, 3), k.restrict(2)):
            s = more.structure
            assert s.rank is None and s.state is None and not s.indirect


# --- what is built on top of them

@pytest.mark.parametrize("where", ["plain", "weighted", "packed and masked", "times"])
def test_products_and_windows_of_resolvents(where):
    "Valid by dense, and refused by the others with what they miss."
    n = 9
    R, m, u, v = kernel("gates").resolvent(), measures(n, 3)[where], draw(0, 2, n, D), draw(1, 2, H, n, C)
    w = torch.ones(1, n).double() if m.weight is None else m.weight.double()
    x, S = v * w[:, None, :, None], Separable(D, H, 2).double()
    lag = torch.arange(n)[:, None] - torch.arange(n)
    for k, K in ((R * S, R.matrix(m, u) * S.matrix(m, u)), (R + S, R.matrix(m, u) + S.matrix(m, u))):
        same([apply(k, m, u, v, rule) for rule in ("dense", "auto")], [K @ x] * 2)
        assert "needs" in message(lambda: apply(k, m, u, v, "scan")) and "needs" in message(lambda: apply(k, m, u, v, "fft"))
    if m.regular: same([apply(R.restrict(2), m, u, v)], [R.matrix(m, u) * (lag <= 2) @ x])
    assert "may change sign" in message(lambda: R.normalise())


@pytest.mark.parametrize("name", FULL)
def test_promises(name):
    k, m, u = kernel(name), Measure.sequence(13, spacing=1., mask=draw(0, 13) > -1), .5 * draw(1, 2, 13, D)
    for x in (k, k.resolvent(), k @ k.resolvent(), Separable(D, H, 2).double() @ k):
        assert max(check_structure(x, m, u).values()) < 1e-8
    class Full(Kernel):
        "Promises an empty diagonal."
        def __init__(self): super().__init__(1, Structure(support=CAUSAL, hollow=True))
        def values(self, pairs, left, right): return pairs.inside(CAUSAL).double()
    assert "promises hollow" in message(lambda: check_structure(Full(), m))


def test_walks():
    "rebuild, leaves, exchange and mirrored go through; there is no factor of the lag to take out."
    torch.manual_seed(0)
    x = lambda: draw(int(torch.randint(99, ())), 1, H, 11, 2)
    terms, gates, taps = Terms(x(), x()), Gates(x(), -x().abs()[..., :1], x()), Taps(H, 2, origin=0).double()
    m = Measure.sequence(11)
    k = terms.restrict(causal=True) @ (gates.past() + taps.past()).resolvent()
    again = k.rebuild(lambda part: part)
    assert again.structure == k.structure and torch.equal(again.matrix(m), k.matrix(m))
    assert k.leaves() == [terms, gates, taps] and k.stationary_part() is None and k.b.stationary_part() is None
    assert taps.past().stationary_part().structure.stationary
    other = k.exchange(taps, Exponentials(H, 1).double())
    assert [type(leaf).__name__ for leaf in other.leaves()] == ["Terms", "Gates", "Exponentials"] and other.b.channels is None
    turned = terms.mirrored().restrict(causal=True) @ (gates.mirrored().past() + taps.past()).resolvent()
    same([k.mirrored().matrix(m)], [turned.matrix(m)])
    matrices = Taps(C * C, 2, origin=0).past().resolvent(channels=C)
    assert matrices.rebuild(lambda part: part).channels == C


# --- streams

@pytest.mark.parametrize("where", ["plain", "weighted", "packed", "packed and masked", "times"])
@pytest.mark.parametrize("name", sorted(BY_SCAN))
def test_streams(name, where):
    "Any way of cutting a line gives what the loop gives, of the resolvent, of its kernel, and after another integral."
    n, cuts, k = 13, (0, 1, 2, 6, 13), kernel(name)
    m, u, v = measures(n, 5)[where], .5 * draw(0, 2, n, D), draw(1, 2, H, n, C)
    if where == "times" and name == "a gate per feature": return                             # it has a short convolution
    cut = lambda x, a, b: None if x is None else x[:, a:b]
    for kk in (k, k.resolvent(), Selective(D, H, 2).double() @ k.resolvent()):
        want, state, ys = apply(kk, m, u, v, "dense"), None, []
        for a, b in zip(cuts, cuts[1:]):
            part = Measure((b - a,), m.spacing, cut(m.weight, a, b), cut(m.points, a, b), cut(m.segments, a, b), m.periodic, True)
            y, state = step(kk, u[:, a:b], v[:, :, a:b], state, part)
            ys.append(y)
        same([torch.cat(ys, 2)], [want])
        assert (state.detach().to("cpu")) is not None
    assert "not that of a kernel of 1" in message(lambda: step(k, u, v, state, m))


# --- numbers

@pytest.mark.parametrize("rule", ["dense", "fft", "scan"])
@pytest.mark.parametrize("dtype,bound", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_other_dtypes(rule, dtype, bound):
    n, k = 29, kernel("decay")
    v = draw(0, 2, H, n, C)
    want = apply(k.resolvent(), Measure.sequence(n), None, v, rule)
    torch.manual_seed(sorted(FULL).index("decay"))
    low = FULL["decay"]().to(dtype).past()
    got = apply(low.resolvent(), Measure.sequence(n), None, v.to(dtype), rule)
    assert got.dtype == dtype and relative_error(got, want) < bound


@pytest.mark.parametrize("rule", ["dense", "fft", "scan"])
def test_empty_batches_and_memory_layouts(rule):
    k, m = kernel("separable"), Measure.sequence(7)
    R = k.resolvent()
    assert apply(R, m, torch.zeros(0, 7, D).double(), torch.zeros(0, H, 7, C).double(), rule).shape == (0, H, 7, C)
    u, v = draw(0, 2, 7, D), draw(1, 2, H, 7, C)
    strange = v.permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    same([apply(R, m, u, strange, rule)], [apply(R, m, u, v, rule)])


@pytest.mark.parametrize("rule", ["dense", "scan", "fft"])
def test_causal_by_gradient(rule):
    "No output knows a later value: exactly by dense and scan, to rounding by fft."
    n, k = 31, kernel("far" if rule == "fft" else "separable")
    u, v = .5 * draw(0, 2, n, D), draw(1, 2, H, n, C).requires_grad_()
    y = apply(k.resolvent(), Measure.sequence(n, torch.ones(n, dtype=torch.bool)), u, v, rule)
    gv, = torch.autograd.grad(y[:, :, :17].square().sum(), v)
    assert gv[:, :, 17:].abs().max() <= (1e-13 if rule == "fft" else 0) * gv.abs().max()


# --- refusals

def refused(call, *words: str) -> None:
    text = message(call)
    for word in words: assert word in text, text


def test_what_has_no_resolvent():
    refused(lambda: Taps(H, 2, origin=0).resolvent(), "strictly causal", "Taps", "lags 0 to 1", "past()")
    refused(lambda: Exponentials(H, 2).resolvent(), "strictly causal", "lags 0 to ∞")
    refused(lambda: Softmax(D, H).resolvent(), "ExpDot", "all lags")
    refused(lambda: Taps(H, 3).resolvent(), "lags -1 to 1")
    refused(lambda: kernel("gates").resolvent().resolvent(), "Resolvent", "lags 0 to ∞")
    refused(lambda: Taps(H, (3, 3)).past(), "no past")
    refused(lambda: Taps(H, 1).past(), "lags 0 to 0")
    refused(lambda: Taps(H, 2, origin=0).past().resolvent(channels=2), "2 heads", "2 channels")
    R, v = Taps(H, 2, origin=0).past().resolvent(), torch.randn(1, H, 5, C)
    refused(lambda: apply(R, Measure.sequence(5, periodic=True), None, v), "increasing order")
    refused(lambda: apply(R, Measure.sequence(5), None, v, "direct"), "finite support")
    refused(lambda: apply(R, Measure.sequence(5), None, v, "scan"), "finite state")
    refused(lambda: apply(R, Measure.sequence(5), None, v, at=Measure.sequence(3)), "outputs at the points of the inputs")
    refused(lambda: apply(kernel("implicit").resolvent(), Measure.scattered(torch.tensor([1., 0., 2.])), None, draw(0, 1, H, 3, C)), "increasing order")


def test_measures_that_do_not_meet():
    refused(lambda: Taps(H, 3) @ Taps(H, (3, 3)), "1 and 2 coordinates", "do not meet")
    refused(lambda: Taps(2, 3) @ Taps(3, 3), "2 and 3 heads")
    a, b = (Terms(draw(n, 1, H, n, 2), draw(n, 1, H, n, 2)) for n in (5, 7))
    for rule in ("auto", "dense", "fft"):
        refused(lambda: apply(a @ b, Measure.sequence(5), None, draw(0, 1, H, 5, C), rule), "does not fit a measure of 5 points")
    refused(lambda: apply(a @ a, Measure.sequence(5), None, draw(0, 1, H, 5, C), at=Measure.sequence(3)), "outputs at the points of the inputs")
    refused(lambda: apply(ExpDot(D, H) @ Exponentials(H, 1), Measure.sequence(5, periodic=True), torch.randn(1, 5, D), torch.randn(1, H, 5, C)), "no past")


@pytest.mark.parametrize("rule", ["dense", "fft", "scan", "auto"])
def test_what_overflows_says_how_it_grows(rule):
    "Twice as much at every point: beyond float32 after 128 of them, within float64; a value that was infinite is none of ours."
    n = 200
    k = lambda dtype: Terms(torch.full((1, 1, n, 1), 1., dtype=dtype), torch.ones(1, 1, n, 1, dtype=dtype)).past().resolvent()
    v = torch.ones(1, 1, n, 1)
    refused(lambda: apply(k(v.dtype), Measure.sequence(n), None, v, rule), "overflows torch.float32", "Σ_j |K(i, j)| w_j = 199", "Below 1")
    y = apply(k(torch.float64), Measure.sequence(n), None, v.double(), rule)
    same([y.flatten()], [2. ** torch.arange(n, dtype=torch.float64)])
    if rule == "dense": refused(lambda: k(v.dtype).matrix(Measure.sequence(n)), "overflows")
    packed = Measure.sequence(n, segments=torch.arange(n) // 100)
    same([apply(k(v.dtype), packed, None, v, rule).flatten()], [(2. ** (torch.arange(n) % 100).double()).float()], 1e-5)
    v[0, 0, 3] = torch.inf
    y = apply(k(v.dtype), packed, None, v, rule).flatten()
    assert y[:3].isfinite().all() and not y[3:100].isfinite().any() and y[100:].isfinite().all()


def test_matrices_that_overflow():
    k = Taps(4, 2, origin=0).past()
    with torch.no_grad(): k.kernel.weight.fill_(4.)
    refused(lambda: mix(k.resolvent(channels=2), Measure.sequence(99), torch.ones(1, 99, 2)), "overflows torch.float32", "= 4.")


# --- features that are given point by point, on a packed line

@pytest.mark.parametrize("normalised", [False, True])
def test_given_features_of_a_packed_line_by_fft(normalised):
    "Each row is that of its segment, though features are given for the whole line."
    n = 13
    m, v = measures(n, 1)["packed and masked"], draw(0, 2, H, n, C)
    x = lambda seed, batch: draw(seed, batch, H, n, 2).exp().requires_grad_()
    phi, psi = x(1, 2), x(2, 1)
    k = Terms(phi, psi, positive=True) * Implicit(H, 5, positive=True).double()
    if normalised: k = k.normalise()
    want, got = ([y := apply(k, m, None, v, rule), *torch.autograd.grad(y, [phi, psi], draw(3, *v.shape))] for rule in ("dense", "fft"))
    same(got, want)
    assert relative_error(apply(k, Measure.sequence(n), None, v, "fft"), want[0]) > .01
