"""Inside `cached_spectra` every result is the one without it, whatever was changed in between, and however."""
import contextlib

import pytest
import torch
import torch.nn as nn

from itnet.conv import cache
from itnet.conv.cache import cached_spectra
from itnet.conv.op import fft_conv
from itnet.kernel.content import Separable
from itnet.kernel.stationary import Exponentials, Implicit, Stationary, Taps
from itnet.kernel.structure import Structure
from itnet.measure.measure import Measure
from itnet.rule.fft import packed_rows
from itnet.transform import apply

N, HEADS = 40, 2
LINE = Measure.sequence(N)


@pytest.fixture
def v():
    torch.manual_seed(0)
    return torch.randn(1, HEADS, N, 3)


def implicit(positive=False): return Implicit(HEADS, 8., width=8, frequencies=4, positive=positive).eval()


def with_dropout():
    kernel = implicit()
    kernel.net.insert(2, nn.Dropout(.5))
    return kernel.eval()


def value(kernel, v, measure=LINE, rule="fft"):
    with torch.no_grad(): return apply(kernel, measure, None, v, rule)


def fused_step(kernel):
    for p in kernel.parameters(): p.grad = torch.ones_like(p)
    torch.optim.Adam(kernel.parameters(), .1, fused=True).step()


def inference_write(kernel):
    with torch.inference_mode(): kernel.decay.add_(1.)


def another_net(kernel): kernel.net[0] = nn.Linear(8, 8)


def another_activation(kernel): kernel.net[1] = nn.ReLU()


CHANGES = {
    "fused optimiser": fused_step,
    "a buffer": lambda k: k.omega.mul_(2),
    "a buffer that is replaced": lambda k: setattr(k, "omega", k.omega * 2),
    "through .data": lambda k: k.decay.data.add_(1.),
    "from NumPy": lambda k: k.decay.detach().numpy().__iadd__(1.),
    "under inference_mode": inference_write,
    "a parameter that is replaced": lambda k: setattr(k, "decay", nn.Parameter(k.decay.detach() + 1)),
    "a submodule that is replaced": another_net,
    "a submodule of another class": another_activation,
    "a submodule more": lambda k: k.net.append(nn.Tanh()),
    "an attribute": lambda k: setattr(k.net[1], "approximate", "tanh"),
    "a hook": lambda k: k.net.register_forward_hook(lambda m, args, out: 2 * out),
    "a method": lambda k: setattr(k, "of_lag", lambda lag: Implicit.of_lag(k, 2 * lag)),
}


@pytest.mark.parametrize("rule", ["fft", "dense", "direct"])
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_change_is_noticed(v, change, rule):
    kernel = implicit()
    if rule == "direct": kernel = kernel.restrict(5)
    inner = kernel if rule != "direct" else kernel.kernel
    with cached_spectra():
        before = value(kernel, v, rule=rule)
        assert torch.equal(value(kernel, v, rule=rule), before)
        with torch.no_grad() if "optimiser" not in change else contextlib.nullcontext(): CHANGES[change](inner)
        inside = value(kernel, v, rule=rule)
    after = value(kernel, v, rule=rule)
    assert torch.equal(inside, after) and not torch.allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize("kind", [lambda: Taps(HEADS, 9, positive=True), lambda: Taps(HEADS, 9), lambda: Exponentials(HEADS, 3)])
@pytest.mark.parametrize("periodic", [False, True])
def test_tensors_in_place_of_parameters(v, kind, periodic):
    line, kernel = Measure.sequence(N, periodic=periodic), kind()
    name, p = next(iter(kernel.named_parameters()))
    if periodic and isinstance(kernel, Exponentials): pytest.skip("not on a ring")
    for own in (torch.randn(p.shape), torch.zeros(p.shape)):
        given = kernel.given(**{name: own})
        with cached_spectra():
            before = value(given, v, line)
            own.data.add_(.5)
            inside = value(given, v, line)
        assert torch.equal(inside, value(given, v, line)) and not torch.allclose(inside, before)


def test_parameters_without_a_version(v):
    with torch.inference_mode(): kernel = implicit()
    with torch.inference_mode(), cached_spectra():
        before = value(kernel, v)
        kernel.decay.add_(1.)
        inside = value(kernel, v)
        assert torch.equal(inside, value(kernel, v)) and not torch.allclose(inside, before)
    assert torch.equal(inside, value(kernel, v))


def test_autocast_on_and_off(v):
    kernel = implicit()
    def cast():
        with torch.autocast("cpu", torch.bfloat16): return value(kernel, v)
    plain, low = value(kernel, v), cast()
    assert not torch.equal(plain, low)
    with cached_spectra():
        for _ in range(2): assert torch.equal(value(kernel, v), plain) and torch.equal(cast(), low)


def test_dropout_is_drawn_for_every_call(v):
    kernel = with_dropout()
    still = value(kernel, v)
    with cached_spectra():
        assert torch.equal(value(kernel, v), still)
        kernel.train()
        first, second = value(kernel, v), value(kernel, v)
        assert not torch.allclose(first, still) and not torch.allclose(first, second)
        assert torch.equal(value(kernel.eval(), v), still)


def test_statistics_of_a_batch_are_counted(v):
    kernel = implicit()
    kernel.net.insert(1, nn.BatchNorm1d(8))
    kernel.train()
    with cached_spectra():
        for _ in range(3): value(kernel, v)
    assert kernel.net[1].num_batches_tracked >= 3


class Doubled(Stationary):
    "A kernel of a user, which reads what is not in it."
    factor = [1.]
    def __init__(self): super().__init__(HEADS, Structure(stationary=True, rank=1))
    def of_lag(self, lag): return torch.exp(-lag[..., 0].abs().float()).expand(HEADS, *lag.shape[:-1]) * self.factor[0]


def test_classes_of_others_are_asked_each_time(v):
    kernel = Doubled()
    with cached_spectra():
        before = value(kernel, v)
        kernel.factor[0] = 2.
        inside = value(kernel, v)
    assert torch.allclose(inside, 2 * before)
    Doubled.factor[0] = 1.


@pytest.mark.parametrize("positive", [False, True])
def test_derivatives_and_maps_over_parameters(v, positive):
    kernel = implicit(positive)
    params = {name: p.detach() for name, p in kernel.named_parameters()}
    dots = {name: torch.ones_like(p) for name, p in params.items()}
    f = lambda p: with_parameters(kernel, p, v)
    many = {name: torch.stack([p, p + 1]) for name, p in params.items()}
    want = [torch.func.jvp(f, (params,), (dots,))[1], torch.vmap(f)(many)]
    with torch.no_grad(), cached_spectra():
        f(params)
        got = [torch.func.jvp(f, (params,), (dots,))[1], torch.vmap(f)(many)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, want)) and want[0].abs().max() > .01


def with_parameters(kernel, params, v):
    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = kernel
        def forward(self, v): return apply(self.k, LINE, None, v, "fft")
    return torch.func.functional_call(Call(), {f"k.{name}": p for name, p in params.items()}, (v,))


def test_what_was_kept_is_used(monkeypatch, v):
    "The network is asked once, the filter transformed once; the same contents elsewhere will do."
    asked, linear = [], nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: asked.append(1) or linear(self, x))
    kernel = Separable(4, HEADS, rank=2).eval() * implicit()
    u = torch.randn(1, N, 4)
    layers = sum(isinstance(m, nn.Linear) for m in kernel.b.modules())
    with torch.no_grad(), cached_spectra():
        apply(kernel, LINE, u, v, "fft")
        first = len(asked)
        apply(kernel, LINE, u, v, "fft")
        assert len(asked) == first + (first - layers)
        transformed = [entry for entry in cache._kept.get() if isinstance(entry.value, list)]
        assert len(transformed) == 1
    assert cache._kept.get() is None


def test_a_result_that_was_written_to():
    u, k = torch.randn(1, 64, 2), torch.randn(64, 2)
    want = fft_conv(u, k, method="fft")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), cached_spectra():
            fft_conv(u, k, method="fft")
            cache._kept.get()[0].value[0].zero_()
            assert torch.equal(fft_conv(u, k, method="fft"), want)


def test_nan_is_the_same_as_nan():
    u, k = torch.randn(1, 64, 2), torch.full((64, 2), torch.nan)
    with torch.no_grad(), cached_spectra():
        for _ in range(3): fft_conv(u, k, method="fft")
        assert len(cache._kept.get()) == 1


def test_segments_that_are_changed_in_place():
    measure = Measure.sequence(6, segments=torch.tensor([0, 0, 0, 1, 1, 1]))
    assert packed_rows(measure) == (2, 3)
    measure.segments[0, 1] = 7
    measure.segments[0, 0] = 7
    assert packed_rows(measure) == (3, 3)
    measure.segments.data[0, 2] = 7
    assert packed_rows(measure) == (2, 3)
