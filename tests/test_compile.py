"""Compiled and exported: one graph for all sizes that one rule serves, and the same numbers at each of them"""
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from itnet.kernel.content import Separable, Softmax
from itnet.kernel.pairwise import Pairwise
from itnet.kernel.selective import Selective
from itnet.kernel.stationary import Exponentials, Implicit, Taps
from itnet.measure.measure import Measure
from itnet.rule.base import RULES, possible
from itnet.special_cases.case import from_torch
from itnet.special_cases.pretrained import from_pretrained_model
from itnet.transform import IntegralTransform

D, H = 8, 2
KERNELS = {
    "readme": lambda: (Separable(D, H) * Implicit(H, 64., positive=True)).normalise(),
    "implicit": lambda: Implicit(H, 64.),
    "window": lambda: Implicit(H, 64., positive=True).restrict(5).normalise(),
    "taps": lambda: Taps(H, 7),
    "linear attention": lambda: Separable(D, H, short=3).normalise(),
    "exponentials": lambda: Exponentials(H, 2) * Separable(D, H, rank=2),
    "attention": lambda: Softmax(D, H).restrict(causal=True),
    "attention in a window": lambda: Softmax(D, H, rotary=True).restrict(6),
    "selective": lambda: Selective(D, H, 2),
    "pairwise": lambda: Pairwise(D, H, 8, positive=True).normalise(),
}


@pytest.fixture(autouse=True)
def fresh():
    "No graphs of other tests, and none left."
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def error(y, want):
    return ((y - want).norm() / want.norm()).item()


def exact_rules(kernel):
    return [name for name in possible(kernel, Measure.sequence(50)) if RULES[name].exact]


@pytest.mark.parametrize("kernel", ["window", "taps", "linear attention", "attention in a window", "selective", "pairwise"])
def test_auto_is_compiled_at_every_length(kernel):
    layer, counter = IntegralTransform(D, KERNELS[kernel]()), CompileCounter()
    fast = torch.compile(layer, backend=counter, fullgraph=True)
    for n in (9, 50, 97):
        u = torch.randn(2, n, D)
        assert error(fast(u), layer(u)) < 1e-5, n
    assert counter.frame_count <= 1 + len(exact_rules(layer.kernel))


@pytest.mark.parametrize("kernel, rule", [("readme", "dense"), ("window", "direct"), ("exponentials", "fft"), ("attention", "attend")])
def test_a_named_rule_is_compiled_once_for_all_lengths(kernel, rule):
    layer, counter = IntegralTransform(D, KERNELS[kernel](), rule=rule), CompileCounter()
    fast = torch.compile(layer, backend=counter, fullgraph=True)
    for n in (50, 61, 97):
        u = torch.randn(2, n, D)
        assert error(fast(u), layer(u)) < 1e-5, n
    assert counter.frame_count == 2                                   # the first length, and all others


def test_the_plan_changes_where_another_rule_is_cheaper():
    layer, counter = IntegralTransform(D, KERNELS["readme"]()), CompileCounter()
    fast = torch.compile(layer, backend=counter, fullgraph=True)
    for n in (20, 31, 47, 64, 700, 1000, 1025, 2000, 2001, 3000, 4096, 5000):
        u = torch.randn(2, n, D)
        assert error(fast(u), layer(u)) < 1e-5, n
    assert counter.frame_count == 3                                   # the first, dense, fft


def test_gradients_at_three_lengths():
    layer, counter = IntegralTransform(D, KERNELS["readme"](), rule="fft"), CompileCounterWithBackend("aot_eager_decomp_partition")
    fast = torch.compile(layer, backend=counter, fullgraph=True)
    for n in (40, 53, 97):
        u = torch.randn(2, n, D, requires_grad=True)
        wanted = [u, *layer.parameters()]
        got, want = (torch.autograd.grad(f(u).square().sum(), wanted, allow_unused=True) for f in (fast, layer))
        for g, w in zip(got, want): assert w is None and g is None or error(g, w) < 1e-4, n
    assert counter.frame_count == 2


@pytest.mark.parametrize("kernel, rule, strict", [
    ("readme", "auto", True), ("readme", "auto", False), ("readme", "fft", False), ("implicit", "auto", False), ("window", "dense", False), ("taps", "direct", False),
    ("exponentials", "auto", False), ("linear attention", "auto", False), ("attention", "attend", False), ("attention in a window", "attend", False)])
def test_exported_for_every_batch_and_length(kernel, rule, strict):
    layer = IntegralTransform(D, KERNELS[kernel](), rule=rule)
    sizes = {0: torch.export.Dim("B"), 1: torch.export.Dim("N")}
    program = torch.export.export(layer, (torch.randn(3, 60, D),), dynamic_shapes={"u": sizes}, strict=strict).module()
    for shape in ((2, 13), (3, 60), (5, 97), (2, 1500)):              # the last one beyond what the example's rule is cheapest for
        u = torch.randn(*shape, D)
        assert error(program(u), layer(u)) < 1e-5, shape


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 5, padding=2), lambda n: (2, 3, n)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1), lambda n: (2, 3, n, n + 3)),
    "circular": (lambda: nn.Conv1d(3, 4, 3, padding="same", padding_mode="circular"), lambda n: (2, 3, n)),
    "transposed": (lambda: nn.ConvTranspose1d(3, 4, 4, stride=2, padding=1), lambda n: (2, 3, n)),
    "pool": (lambda: nn.AvgPool1d(3, 2, 1), lambda n: (2, 3, n)),
    "pair": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1)), lambda n: (2, 3, n, n + 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_converted_layers_are_compiled_at_three_sizes(name):
    make, shape = LAYERS[name]
    layer = make().eval()
    same = from_pretrained_model(layer) if name == "pair" else from_torch(layer)
    fast = torch.compile(same.eval(), backend="eager")
    for n in (12, 17, 30, 41):
        x = torch.randn(*shape(n))
        assert error(fast(x), layer(x)) < 1e-5, n
