"""Causal means causal for NaN and infinity, too: every causal kernel by every rule, streams, matrices, converted layers."""
import pytest
import torch
import torch.nn as nn

from itnet.kernel.content import ExpDot, Separable, Softmax
from itnet.kernel.given import Gates, Table, Terms
from itnet.kernel.pairwise import Pairwise
from itnet.kernel.selective import Selective
from itnet.kernel.stationary import Exponentials, Implicit, Taps
from itnet.measure.measure import Measure
from itnet.rule.base import RULES, possible
from itnet.rule.mixing import mix
from itnet.rule.reach import contained, reach
from itnet.rule.scan import scan
from itnet.special_cases.case import from_torch
from itnet.special_cases.depth import TABLEAUX, NeuralODE
from itnet.special_cases.recurrence import LinearRNN
from itnet.stream import step
from itnet.transform import apply

N, D, H, BAD = 37, 6, 2, 17
NAN, INF = float('nan'), float('inf')
KERNELS = dict(
    taps=lambda: Taps(H, 5, origin=0),
    implicit=lambda: Implicit(H, extent=9.).restrict(causal=True),
    exponentials=lambda: Exponentials(H, modes=3),
    decays=lambda: Exponentials(H, modes=2, positive=True).normalise(),
    spectral=lambda: Exponentials(H, modes=2).spectral_normalise(),
    selective=lambda: Selective(D, H, rank=3),
    selective_by_feature=lambda: Selective(D, H, rank=3, gates='feature', positive=True, short=3).normalise(),
    selective_window=lambda: Selective(D, H).restrict(window=4, causal=True),
    separable=lambda: Separable(D, H, rank=3).restrict(causal=True),
    far=lambda: (Separable(D, H, rank=3, short=3, causal=True)
                 * Implicit(H, extent=9, positive=True)).restrict(causal=True).normalise(),
    softmax=lambda: Softmax(D, H, short=3, causal=True).restrict(causal=True),
    near=lambda: (ExpDot(D, H) * Taps(H, 4, origin=0, positive=True)).normalise(),
    softmax_window=lambda: Softmax(D, H).restrict(causal=True) * Taps(H, 4, origin=0, positive=True),
    product=lambda: Selective(D, H, rank=2) * Exponentials(H, modes=2),
    sum=lambda: Exponentials(H, modes=2) + Separable(D, H, rank=2).restrict(causal=True),
    pairwise=lambda: Pairwise(D, H, positive=True).restrict(causal=True, window=5).normalise(),
    past=lambda: Separable(D, H, rank=2).restrict(causal=True).past(),
    resolvent=lambda: (Separable(D, H, rank=2).restrict(causal=True).past() * Exponentials(H, modes=1)).resolvent(),
    composition=lambda: Taps(H, 4, origin=0) @ Exponentials(H, modes=1))
PAIRS = [(name, rule) for name, make in KERNELS.items() for rule in possible(make(), Measure.sequence(N))]


def drawn(name):
    torch.manual_seed(len(name))
    return KERNELS[name]().double(), torch.randn(2, N, D).double(), torch.randn(2, H, N, 3).double()


def test_every_rule_is_tried():
    assert {rule for _, rule in PAIRS} == {'dense', 'attend', 'direct', 'fft', 'scan', 'monte_carlo'} & set(RULES)


@pytest.mark.parametrize('name,rule', [pair for pair in PAIRS if pair[1] != 'monte_carlo'])
@pytest.mark.parametrize('packed', [False, True])
def test_nothing_before(name, rule, packed):
    kernel, u, v = drawn(name)
    assert kernel.structure.causal
    ends = torch.tensor([0] * 9 + [1] * 15 + [2] * 13)
    line = Measure.sequence(N, segments=ends if packed else None)
    want = apply(kernel, line, u, v, rule)
    for what in ('u', 'v', 'a channel', 'infinity'):
        x, y = u.clone(), v.clone()
        if what == 'u': x[0, BAD] = NAN
        elif what == 'a channel': y[0, 0, BAD, 1] = NAN
        else: y[0, :, BAD] = NAN if what == 'v' else INF
        got = apply(kernel, line, x, y, rule)
        off = (got - want).abs()
        assert off[0, :, :BAD].max() < 1e-12 and off[1].max() < 1e-12, what
        if packed: assert off[0, :, 24:].max() < 1e-12, what                     # nor in another segment
        if what == 'a channel': assert off[0, 1].max() < 1e-12 and off[0, 0, :, [0, 2]].max() < 1e-12
        reads = any(isinstance(k, (Separable, Selective, ExpDot, Pairwise)) for k in kernel.modules())
        if what != 'u' or reads: assert not got[0, 0, BAD:, 1].isfinite().all(), what
        support = kernel.structure.support[0][1]
        if what != 'u' and support < N: assert off[0, :, BAD + support + 1:].max() < 1e-12, what


def test_rules_spoil_the_same():
    for name in KERNELS:
        kernel, u, v = drawn(name)
        u[0, BAD] = NAN
        line = Measure.sequence(N)
        spoilt = [~apply(kernel, line, u, v, rule).isfinite() for n, rule in PAIRS if n == name and rule != 'monte_carlo']
        assert all(torch.equal(spoilt[0], other) for other in spoilt), name


@pytest.mark.parametrize('name,rule', [pair for pair in PAIRS if pair[1] != 'monte_carlo'])
def test_gradients_of_what_came_before(name, rule):
    kernel, u, v = drawn(name)
    g = torch.randn(2, H, N, 3).double()
    g[0, :, BAD:] = 0

    def gradients(u, v):
        u, v = u.clone().requires_grad_(), v.clone().requires_grad_()
        y = apply(kernel, Measure.sequence(N), u, v, rule)
        inputs = [u, v, *kernel.parameters()]
        found = torch.autograd.grad(torch.where(g == 0, 0., y), inputs, g, allow_unused=True)
        return [torch.zeros_like(x) if d is None else d for d, x in zip(found, inputs)]

    want = gradients(u, v)
    u[0, BAD], v[0, :, BAD + 2] = NAN, INF
    assert all((a - b).abs().max() < 1e-11 for a, b in zip(gradients(u, v), want))


@pytest.mark.parametrize('name', [n for n, make in KERNELS.items() if not scan.missing(make(), Measure.sequence(N))])
def test_streams(name):
    kernel, u, v = drawn(name)
    if name == 'spectral': return                         # divided by the norm on the line at hand, which a stream changes
    want, x = apply(kernel, Measure.sequence(N), u, v, 'dense'), v.clone()
    x[0, :, BAD] = NAN
    state, ys = None, []
    for some in (slice(0, 10), slice(10, 25), slice(25, N)):
        y, state = step(kernel, u[:, some], x[:, :, some], state)
        ys.append(y)
    off = (torch.cat(ys, 2) - want).abs()
    assert off[0, :, :BAD].max() < 1e-11 and off[1].max() < 1e-11 and ys[1][0, :, 7:].isnan().all()


@pytest.mark.parametrize('rule', ['auto', 'dense', 'direct', 'fft'])
def test_matrices(rule):
    torch.manual_seed(0)
    kernel, x = Taps(6, 4, origin=0).double(), torch.randn(2, N, 2).double()
    want = mix(kernel, Measure.sequence(N), x, rule=rule)
    x[0, BAD, 1] = NAN
    got = mix(kernel, Measure.sequence(N), x, rule=rule)
    assert torch.equal(got[0].isnan().all(-1), (torch.arange(N) >= BAD) & (torch.arange(N) < BAD + 4))
    assert (got - want).nan_to_num(0.).abs().max() < 1e-12


def test_what_a_kernel_holds():
    torch.manual_seed(0)
    g = -torch.rand(1, 1, N, 1).double()
    g[:, :, BAD] = NAN
    v, one = torch.randn(2, 1, N, 1).double(), torch.ones(1, 1, N, 1).double()
    for kernel in (Gates(one, g, one), Terms(one, g).restrict(causal=True)):
        for rule in possible(kernel, Measure.sequence(N)):
            y = apply(kernel, Measure.sequence(N), None, v, rule)
            assert y[:, :, :BAD].isfinite().all() and (rule == 'monte_carlo' or y[:, :, BAD:].isnan().all()), rule
    K = torch.randn(1, 1, N, N).double().tril(-1)
    v[0, 0, BAD] = INF
    y = apply(Table(K), Measure.sequence(N), None, v)
    assert torch.equal(y[0, 0, :, 0].isfinite(), torch.arange(N) <= BAD) and y[1].isfinite().all()


def test_a_rule_without_this_fails():
    kernel, u, v = drawn('far')
    v[0, :, BAD] = NAN
    integrate = lambda kernel, u, v: RULES['fft'].integrate(kernel, Measure.sequence(N), u, v)
    assert integrate(kernel, u, v)[0].isnan().all()
    y = contained(integrate, kernel, Measure.sequence(N), u, v)
    assert y[0, :, :BAD].isfinite().all() and y[0, :, BAD:].isnan().all() and y[1].isfinite().all()
    assert reach(kernel) == (((0, 2**31 - 1),),) * 2


# --- converted layers, against torch's own

LAYERS = [(nn.RNN, {}), (nn.RNN, dict(nonlinearity='relu', num_layers=2)), (nn.LSTM, dict(batch_first=True)),
          (nn.LSTM, dict(bidirectional=True, num_layers=2)), (nn.LSTM, dict(proj_size=2, bidirectional=True)),
          (nn.GRU, dict(num_layers=2)), (nn.GRU, dict(bidirectional=True, bias=False))]


def alike(ours, theirs):
    "Whether the same numbers are NaN, and the others equal."
    if isinstance(theirs, tuple): return all(alike(a, b) for a, b in zip(ours, theirs))
    same = ours.shape == theirs.shape and torch.equal(ours.isnan(), theirs.isnan())
    return same and torch.allclose(ours.nan_to_num(0.), theirs.nan_to_num(0.), atol=1e-11)


@pytest.mark.parametrize('kind,options', LAYERS)
def test_recurrences(kind, options):
    torch.manual_seed(0)
    layer = kind(3, 4, **options).double()
    same, first = from_torch(layer), layer.batch_first
    turn = (lambda x: x.transpose(0, 1)) if first else (lambda x: x)
    x = torch.randn(13, 3, 3).double()
    x[10, 1, 2] = NAN
    for same.rule in ('auto', 'dense'):
        assert alike(same(turn(x)), layer(turn(x)))
        assert alike(same(x[:, 1]), layer(x[:, 1]))                                  # without a batch
        assert alike(same(turn(x[:, :0])), layer(turn(x[:, :0])))                    # an empty one
        states = [torch.randn_like(s) for s in (layer(turn(x))[1] if kind is nn.LSTM else [layer(turn(x))[1]])]
        states[0][0, 2, 0] = NAN
        given = tuple(states) if kind is nn.LSTM else states[0]
        assert alike(same(turn(x), given), layer(turn(x), given))
    if kind is not nn.RNN:
        x[10, 1, 2] = INF                                                            # closes gates, and opens others
        assert alike(same(turn(x)), layer(turn(x))) and same(turn(x))[0].isfinite().all()


@pytest.mark.parametrize('kind', [nn.RNN, nn.LSTM, nn.GRU])
def test_gradients_of_recurrences(kind):
    torch.manual_seed(0)
    layer = kind(3, 4).double()

    def gradients(f, x):
        x = x.clone().requires_grad_()
        y = f(x)[0]
        return torch.autograd.grad(y[:10].square().sum() + y[:, 0].square().sum(), [x, *f.parameters()])

    x = torch.randn(13, 2, 3).double()
    want = gradients(layer, x)
    x[10, 1, 2] = NAN
    assert all((a - b).abs().max() < 1e-11 for a, b in zip(gradients(from_torch(layer), x), want))


@pytest.mark.parametrize('method', TABLEAUX)
def test_depth(method):
    class Ends(nn.Module):
        def forward(self, z): return torch.where(z > 1.3, torch.nan, 1.) + 0 * z
    layer, z = NeuralODE(Ends(), 7, method, path=True), torch.tensor([[.7], [.1], [NAN], [1.]]).double()
    same = from_torch(layer)
    for same.rule in ('auto', 'dense'): assert alike(same(z), layer(z))
    assert layer(z)[0, 4].isfinite() and layer(z)[0, -1].isnan()


def test_linear_recurrence():
    layer, x = LinearRNN(2, 3).double(), torch.randn(2, 20, 2).double()
    same = from_torch(layer)
    x[0, 9, 1] = NAN
    for same.rule in ('dense', 'fft'): assert alike(same(x), layer(x))
    assert same(x[:0]).shape == (0, 20, 3)
