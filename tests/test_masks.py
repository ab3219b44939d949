"""What stands at a point of weight zero is not read, be it NaN or infinite; and shared segments with weights for each element of a batch."""
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itnet.kernel.base import Kernel
from itnet.kernel.content import ExpDot, Projection, Separable, Softmax
from itnet.kernel.correlation import Correlation
from itnet.kernel.given import Gates, Scores, Table, Terms
from itnet.kernel.pairwise import Pairwise
from itnet.kernel.selective import Selective
from itnet.kernel.stationary import Exponentials, Implicit, Taps
from itnet.measure.measure import Measure, integrate, mean
from itnet.measure.missing import drop_uncounted, fill_missing
from itnet.measure.segments import unpack
from itnet.nets.heads import SequenceClassifier
from itnet.nets.presets import ITNetConfig
from itnet.rule.base import RULES, possible
from itnet.rule.fft import packed_rows
from itnet.rule.mixing import mix
from itnet.rule.scan import resume
from itnet.stream import step
from itnet.testing import relative_error
from itnet.transform import IntegralTransform, apply

D, H, C = 4, 2, 3                                        # channels of u, heads, channels of v
POSITIVE = dict(positive=True)


class OnlyMatrix(Kernel):
    "A user's kernel, which is its matrix."
    def __init__(self):
        super().__init__(H)
        self.a = torch.nn.Parameter(torch.tensor([.3, .7]))

    def matrix(self, measure, u=None):
        x = u.flatten(1, -2)[..., 0]
        return torch.exp(-self.a[:, None, None] * (x[:, None, :, None] - x[:, None, None, :]).square())


KERNELS = {
    "taps": lambda: Taps(H, 4, origin=1),
    "implicit": lambda: Implicit(H, 5),
    "decay": lambda: Exponentials(H, 2, 5, **POSITIVE).normalise(),
    "separable": lambda: Separable(D, H, 2).normalise(),
    "bilinear": lambda: Separable(D, H, 2, positive=False),
    "far": lambda: (Separable(D, H, 2, short=3) * Implicit(H, 5, **POSITIVE)).normalise(),
    "far, causal": lambda: (Separable(D, H, 2) * Exponentials(H, 2, 5, **POSITIVE)).normalise(),
    "gates": lambda: Selective(D, H, 2, **POSITIVE).normalise(),
    "gates, summed": lambda: Selective(D, H, 2, "feature", short=2) + Separable(D, H, 2).restrict(causal=True) * Exponentials(H, 2, 5),
    "network": lambda: Pairwise(D, H, 8, 4, 9, **POSITIVE).normalise(),
    "attention": lambda: Softmax(D, H),
    "attention, causal": lambda: Softmax(D, H, rotary=True).restrict(causal=True),
    "window": lambda: Softmax(D, H).restrict(2),
    "near": lambda: (ExpDot(D, H) * Taps(H, 5, **POSITIVE)).normalise(),
    "nested": lambda: Softmax(D, H) * Implicit(H, 5) + Separable(D, H, 2).restrict(2),
    "norm 1": lambda: Separable(D, H, 2) * Implicit(H, 5).spectral_normalise(),
    "a matrix": OnlyMatrix,
}


def kernel(name: str) -> Kernel:
    torch.manual_seed(0)
    return KERNELS[name]().double()


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def graded(f, inputs, gy) -> list[torch.Tensor]:
    "The output of f, and its gradients."
    y = f()
    return [y.detach(), *torch.autograd.grad(y, inputs, gy, materialize_grads=True)]


def applied(k: Kernel, measure: Measure, rule: str, u, v, gy, at=None, u_at=None) -> list[torch.Tensor]:
    u, v = u.clone().requires_grad_(), v.clone().requires_grad_()
    def f():
        if rule == "monte_carlo": return RULES[rule](k, measure, u, v, at, u_at, generator=0)
        return apply(k, measure, u, v, rule, at, u_at)
    return graded(f, [u, v, *k.parameters()], gy)


def same(got, want, bound: float = 1e-10) -> bool:
    return all(a.shape == b.shape and a.isfinite().all() and (a - b).norm() <= bound * max(b.norm(), 1e-3) for a, b in zip(got, want, strict=True))


# --- NaN where nothing counts

MISSING = [float("nan"), float("inf"), -float("inf")]


def masked(place: str, n: int = 9) -> Measure:
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 0][:n]).bool()
    each = torch.stack([mask, mask.flip(0)])
    x = 9 * draw(7, n).sigmoid()
    return {"line": lambda: Measure.sequence(n, mask), "each": lambda: Measure.sequence(n, each), "ring": lambda: Measure.sequence(n, each, periodic=True),
            "weighted": lambda: Measure.sequence(n, each, draw(8, n).exp()), "packed": lambda: Measure.sequence(n, each, segments=torch.arange(n) // 4),
            "scattered": lambda: Measure.scattered(x, each), "times": lambda: Measure.scattered(x.sort().values, each, quadrature="voronoi"),
            "nothing": lambda: Measure.sequence(n, torch.zeros(2, n, dtype=torch.bool))}[place]()


def without_gradient(measure: Measure, found: list[torch.Tensor]) -> list[torch.Tensor]:
    "Output and gradients, that of u, which comes first, zero at points of weight zero: what is missing has none."
    return [found[0], torch.where(measure.mask[..., None], found[1], 0.), *found[2:]]


def holes(measure: Measure, x: torch.Tensor, filling: float) -> torch.Tensor:
    "x (B, N, ...) with this filling at points of weight zero."
    return torch.where(measure.mask.view(len(measure.mask), -1, *[1] * (x.ndim - 2)), x, filling)


@pytest.mark.parametrize("place", ["line", "each", "ring", "weighted", "packed", "scattered", "times", "nothing"])
@pytest.mark.parametrize("name", KERNELS)
def test_what_is_missing_reaches_no_output_and_no_gradient(name, place):
    "All rules, with all outputs asked for; a gradient that flows to a masked output is of no effect on the others."
    k, measure, filling = kernel(name), masked(place), MISSING[len(name + place) % 3]
    u, v, gy = draw(0, 2, 9, D), draw(1, 2, H, 9, C), draw(2, 2, H, 9, C)
    bad_u, bad_v = holes(measure, u, filling), holes(measure, v.transpose(1, 2), filling).transpose(1, 2)
    for rule in possible(k, measure):
        want = without_gradient(measure, applied(k, measure, rule, holes(measure, u, 0.), v, gy))
        assert same(applied(k, measure, rule, bad_u, bad_v, gy), want), rule
        assert want[1].numel() and not want[2].transpose(1, 2)[~measure.mask.expand(2, -1)].any()


def test_of_several_axes():
    k = (Separable(D, H, 2, short=2, dims=2) * Implicit(H, 5, dims=2, **POSITIVE)).normalise().double()
    measure = Measure.grid((3, 4), draw(3, 2, 3, 4) > -.3)
    u, v, gy = draw(0, 2, 3, 4, D), draw(1, 2, H, 12, C), draw(2, 2, H, 12, C)
    mask = measure.mask
    for rule in possible(k, measure):
        want = without_gradient(measure, applied(k, measure, rule, torch.where(mask[..., None], u, 0.), v, gy))
        bad = torch.where(mask[..., None], u, torch.nan), torch.where(mask.flatten(1)[:, None, :, None], v, torch.inf)
        assert same(applied(k, measure, rule, *bad, gy), want), rule


def test_outputs_elsewhere():
    "Of another measure, which has its own points that do not count."
    measure, at = masked("each"), Measure.scattered(draw(3, 5), torch.tensor([1, 1, 0, 1, 0]).bool())
    u, v, u_at, gy = draw(0, 2, 9, D), draw(1, 2, H, 9, C), draw(4, 2, 5, D), draw(2, 2, H, 5, C)
    for name in ("implicit", "bilinear", "attention", "network"):
        k = kernel(name)
        for rule in possible(k, measure, at):
            want = without_gradient(measure, applied(k, measure, rule, holes(measure, u, 0.), v, gy, at, holes(at, u_at, 0.)))
            bad = holes(measure, u, torch.nan), holes(measure, v.transpose(1, 2), torch.nan).transpose(1, 2)
            assert same(applied(k, measure, rule, *bad, gy, at, holes(at, u_at, torch.nan)), want), (name, rule)


def test_what_a_masked_point_asks_for_is_its_own_affair():
    "A finite u at a point of weight zero is read for the output there, as always."
    measure, u, v = masked("line"), draw(0, 2, 9, D), draw(1, 2, H, 9, C)
    for name in ("attention", "separable", "network"):
        k = kernel(name)
        for rule in possible(k, measure):
            if rule != "monte_carlo": assert relative_error(apply(k, measure, u, v, rule), k.matrix(measure, u) @ (v * measure.mask[:, None, :, None])) < 1e-12, (name, rule)


def test_what_counts_is_not_hidden():
    "A NaN at a point that counts is a fault of the data, and stays one."
    measure, u, v = masked("line"), draw(0, 2, 9, D), draw(1, 2, H, 9, C)
    v[:, :, 3] = torch.nan
    for rule in ("dense", "fft"): assert apply(kernel("separable"), measure, u, v, rule).isnan().any()
    assert fill_missing(v[:, 0], measure).isnan().any() and drop_uncounted(v, measure).isnan().any()


def test_matrices_between_channels():
    for measure in (masked("each"), masked("ring"), Measure.sequence(9)):
        for k in (Correlation(6, 3), Implicit(6, 4.), Implicit(6, 4.).restrict(2)):
            k = k.double()
            v, gy = draw(0, 2, 9, 2), draw(1, 2, 9, 3)
            for rule in possible(k, measure):
                if not RULES[rule].mixes or measure.weight is None: continue
                def of(filling):
                    x = holes(measure, v, filling).requires_grad_()
                    return graded(lambda: mix(k, measure, x, rule=rule), [x, *k.parameters()], gy)
                for filling in MISSING: assert same(of(filling), of(0.)), rule


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sums_and_means(dtype):
    measure, u = masked("weighted"), draw(0, 2, 9, D).to(dtype)
    for f in (integrate, mean):
        want = f(holes(measure, u, 0.), measure)
        for filling in MISSING:
            x = holes(measure, u, filling).requires_grad_()
            y = f(x, measure)
            grad, = torch.autograd.grad(y.sum(), x)
            assert y.dtype == dtype and torch.equal(y, want) and grad.isfinite().all() and not grad[~measure.mask].any()


def test_kernels_of_given_tensors():
    measure, bad = masked("line"), lambda x: holes(masked("line"), x.transpose(1, 2), torch.nan).transpose(1, 2)
    x, v = lambda seed, d: draw(seed, 2, H, 9, d), draw(9, 2, H, 9, C)
    q, k, g = x(0, 3), x(1, 3), -x(2, 3).abs()
    kinds = [lambda t: Terms(t(q.abs()), t(k.abs()), positive=True).normalise(), lambda t: Gates(t(q), t(g), t(k)), lambda t: Scores(t(q), t(k)).normalise()]
    for make in kinds:
        for rule in possible(make(lambda t: t), measure):
            if rule == "monte_carlo": continue
            got, want = apply(make(bad), measure, None, bad(v), rule), apply(make(lambda t: t), measure, None, v, rule)
            counted = measure.mask[0]
            assert got.isfinite().all() and relative_error(got[:, :, counted], want[:, :, counted]) < 1e-12, rule


# --- layers, networks, streams

@pytest.mark.parametrize("name", ["far", "gates", "attention", "network", "taps"])
def test_a_layer(name):
    torch.manual_seed(0)
    T, measure, u = IntegralTransform(D, KERNELS[name](), heads=H, local=True).double(), masked("each"), draw(0, 2, 9, D)
    def of(filling):
        x = holes(measure, u, filling).requires_grad_()
        return graded(lambda: T(x, measure), [x, *T.parameters()], draw(1, 2, 9, D))
    for filling in MISSING: assert same(of(filling), without_gradient(measure, of(0.)))


def test_a_layer_that_reads_another_function():
    torch.manual_seed(0)
    T, measure = IntegralTransform(D, Softmax(D, H, context=3), context=3).double(), masked("each")
    def of(filling): return T(draw(0, 2, 4, D), None, holes(measure, draw(1, 2, 9, 3), filling), measure)
    y = of(torch.nan)
    assert y.isfinite().all() and relative_error(y, of(0.)) < 1e-14
    T(draw(0, 2, 4, D), None, holes(measure, draw(1, 2, 9, 3), torch.nan), measure).sum().backward()
    assert all(p.grad.isfinite().all() for p in T.parameters())


@pytest.mark.parametrize("causal", [False, True])
def test_a_network(causal):
    torch.manual_seed(0)
    net, measure, u = ITNetConfig(dim=16, depth=2).build(causal=causal).double(), masked("each"), draw(0, 2, 9, 16)
    def of(filling):
        x = holes(measure, u, filling).requires_grad_()
        return graded(lambda: net(x, measure)[0], [x, *net.parameters()], draw(1, 2, 9, 16))
    for filling in MISSING: assert same(of(filling), without_gradient(measure, of(0.)))


def test_a_classifier():
    "Word vectors that are NaN where the text is padded."
    torch.manual_seed(0)
    model, tokens, mask = SequenceClassifier(ITNetConfig(dim=16, depth=1).build(), 7, 3, 16), torch.arange(10).view(2, 5) % 6, torch.arange(5) < torch.tensor([[3], [5]])
    tokens = tokens.masked_fill(~mask, 6)
    model.embed.weight.data[6] = torch.nan
    y = model(tokens, mask)
    y.sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["decay", "far, causal", "gates", "gates, summed"])
def test_a_stream(name):
    k, measure, u, v = kernel(name), masked("each"), draw(0, 2, 9, D), draw(1, 2, H, 9, C)
    bad_u, bad_v = holes(measure, u, torch.nan), holes(measure, v.transpose(1, 2), torch.nan).transpose(1, 2)
    want, ys, state = apply(k, measure, holes(measure, u, 0.), v, "scan"), [], None
    for a, b in ((0, 1), (1, 3), (3, 9)):
        part = Measure.sequence(b - a, measure.mask[:, a:b])
        y, state = step(k, bad_u[:, a:b], bad_v[:, :, a:b], state, part)
        ys.append(y)
    assert relative_error(torch.cat(ys, 2), want) < 1e-12 and state.sums.isfinite().all()
    assert relative_error(resume(k, measure, bad_u, bad_v)[0], want) < 1e-12


def test_a_masked_point_does_not_make_gates_forget():
    "Gates are integrated with the weights: a point that does not count lets everything through."
    k, v, u = Selective(D, H, 2).double(), draw(0, 1, H, 6, C), draw(1, 1, 6, D)
    mask = torch.tensor([1, 1, 0, 0, 1, 1]).bool()
    for rule in ("dense", "scan"):
        got = apply(k, Measure.sequence(6, mask), u, v, rule)[:, :, mask]
        assert relative_error(got, apply(k, Measure.sequence(4), u[:, mask], v[:, :, mask], rule)) < 1e-13


def test_a_short_convolution_alone():
    measure, P = masked("packed"), Projection(D, 6, short=3).double()
    with torch.no_grad(): got, want = (P(holes(measure, draw(0, 2, 9, D), x), measure) for x in (torch.nan, 0.))
    assert torch.equal(got, want)


# --- shared segments, weights for each

@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
@pytest.mark.parametrize("name", KERNELS)
def test_shared_segments_with_weights_for_each(name, sizes, seed):
    "What a batch of three gives is what each of its elements gives alone."
    k, n, segments = kernel(name), sum(sizes), torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    mask, w = draw(seed, 3, n) > -.5, draw(seed + 1, 3, n).exp()
    u, v, gy = draw(seed + 2, 3, n, D), draw(seed + 3, 3, H, n, C), draw(seed + 4, 3, H, n, C)
    for measure, each in ((Measure.sequence(n, mask, segments=segments), lambda i: Measure.sequence(n, mask[i], segments=segments)),
                          (Measure.sequence(n, weight=w, segments=segments), lambda i: Measure.sequence(n, weight=w[i], segments=segments)),
                          (Measure.sequence(n, mask[0], segments=segments.expand(3, -1)), lambda i: Measure.sequence(n, mask[0], segments=segments))):
        for rule in ("auto", *possible(k, measure)):
            if rule == "monte_carlo" or name == "norm 1": continue
            y, *grads = applied(k, measure, rule, u, v, gy)
            alone = [applied(k, each(i), rule, u[i:i+1], v[i:i+1], gy[i:i+1]) for i in range(3)]
            parts = [sum(x) for x in zip(*(a[3:] for a in alone))]
            assert same([y, *grads], [torch.cat(x) for x in list(zip(*alone))[:3]] + parts), rule


def test_the_input_of_the_issue():
    torch.manual_seed(0)
    T, u = IntegralTransform(8, Exponentials(4)), torch.randn(3, 6, 8)
    segments, mask = torch.tensor([0, 0, 0, 1, 1, 1]), torch.rand(3, 6) > .3
    measure = Measure.sequence(6, segments=segments, mask=mask)
    want = T.out((T.kernel.matrix(measure) @ (T.value(u, measure).unflatten(-1, (4, 2)).transpose(1, 2) * mask[:, None, :, None])).transpose(1, 2).flatten(2))
    for rule in ("auto", *possible(T.kernel, measure)):
        if rule == "monte_carlo": continue
        T.rule = rule
        assert relative_error(T(u, measure), want) < 1e-6, rule


def test_rows_of_a_packed_batch_are_counted_once():
    segments, mask = torch.tensor([0, 0, 0, 1, 1, 2]), torch.ones(3, 6, dtype=torch.bool)
    one, three = Measure.sequence(6, segments=segments), Measure.sequence(6, mask, segments=segments)
    assert one.batch == 1 and three.batch == 3 and Measure.sequence(6).batch == 1
    assert packed_rows(one) == packed_rows(three) == (3, 3) and len(unpack(three, 3).index) == 9
