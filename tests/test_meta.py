"""Shapes without numbers: every kernel by every rule on the device 'meta', and under a counter of operations."""
import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from itnet.kernel.content import ExpDot, Separable, Softmax
from itnet.kernel.pairwise import Pairwise
from itnet.kernel.selective import Selective
from itnet.kernel.stationary import Exponentials, Implicit, Taps
from itnet.measure.measure import Measure
from itnet.nets.presets import ITNetConfig
from itnet.rule.base import possible
from itnet.stream import step
from itnet.transform import IntegralTransform, apply

D, H, C = 8, 2, 4
POSITIVE = dict(positive=True)
KERNELS = {
    "taps": lambda: Taps(H, 5, **POSITIVE).normalise(), "implicit": lambda: Implicit(H, 64, **POSITIVE).normalise(), "norm 1": lambda: Implicit(H, 64).spectral_normalise(),
    "decay": lambda: Exponentials(H, 4, **POSITIVE).normalise(), "separable": lambda: Separable(D, H, 4).normalise(),
    "far": lambda: (Separable(D, H, 4, short=4) * Implicit(H, 64, **POSITIVE)).normalise(), "gates": lambda: Selective(D, H, 4, **POSITIVE).normalise(),
    "gates, few": lambda: Selective(D, H, 2, "feature"), "sum": lambda: Selective(D, H, 2) + Separable(D, H, 2).restrict(causal=True) * Exponentials(H, 2),
    "network": lambda: Pairwise(D, H, 8, 4, 9, **POSITIVE).normalise(), "attention": lambda: Softmax(D, H, rotary=True).restrict(causal=True),
    "near": lambda: (ExpDot(D, H) * Taps(H, 17, **POSITIVE)).normalise(), "nested": lambda: Softmax(D, H) * Implicit(H, 5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [7, 300])
@pytest.mark.parametrize("name", KERNELS)
def test_shapes_without_numbers(name, n, dtype):
    k = KERNELS[name]().to("meta", dtype)
    mask = torch.ones(2, n, dtype=torch.bool, device="meta")
    for measure in (Measure.sequence(n), Measure.sequence(n, mask), Measure.sequence(n, periodic=True)):
        for rule in possible(k, measure):
            if rule == "monte_carlo": continue
            u, v = torch.randn(2, n, D, device="meta", dtype=dtype).requires_grad_(), torch.randn(2, H, n, C, device="meta", dtype=dtype).requires_grad_()
            y = apply(k, measure, u, v, rule)
            y.sum().backward()
            assert y.is_meta and y.shape == v.shape == v.grad.shape and y.dtype == v.grad.dtype == dtype, rule


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [20, 1024])
def test_a_network_without_numbers(n, causal):
    net, u = ITNetConfig(dim=16, depth=1).build(causal=causal).to("meta"), torch.randn(2, n, 16, device="meta")
    y, _ = net(u, Measure.sequence(n))
    y.sum().backward()
    assert y.is_meta and y.shape == u.shape and all(p.grad.shape == p.shape for p in net.parameters())


@pytest.mark.parametrize("name", ["decay", "gates", "gates, few"])
def test_a_stream_without_numbers(name):
    k, state = KERNELS[name]().to("meta"), None
    for n in (1, 70): y, state = step(k, torch.randn(2, n, D, device="meta"), torch.randn(2, H, n, C, device="meta"), state, Measure.sequence(n))
    assert y.shape == (2, H, 70, C) and state.sums.is_meta


@pytest.mark.parametrize("name", KERNELS)
def test_operations_are_counted(name):
    "The counter sees the same with numbers and without; fused attention, which it does not know on a CPU, aside."
    for rule in possible(KERNELS[name](), Measure.sequence(300)):
        if rule == "monte_carlo": continue
        T, counts = IntegralTransform(D, KERNELS[name](), rule=rule), []
        for device in ("cpu", "meta"):
            with FlopCounterMode(display=False) as counter: copy.deepcopy(T).to(device)(torch.randn(2, 300, D, device=device)).sum().backward()
            counts.append(counter.get_total_flops())
        assert counts[0] >= 5 * 2 * 600 * D * D and (rule == "attend" or counts[0] == counts[1]), (rule, counts)
