"Mistakes that were planted and that no test caught, each with a reference that knows nothing of the code it checks."
import pytest
import torch
import torch.nn.functional as F

from itnet.conv.op import fft_conv
from itnet.data.spec import Spec, accuracy, bits_per_byte
from itnet.kernel.content import Softmax, rotary
from itnet.measure.measure import Measure
from itnet.nets.backbone import ITNet
from itnet.nets.block import ITBlock, near_kernel
from itnet.nets.presets import ITNetConfig, LSTMConfig, TransformerConfig, build_model
from itnet.transform import apply

DOUBLE = dict(dtype=torch.float64)


def relative(a, b): return ((a - b).norm() / b.norm()).item()


# --- the operator

@pytest.mark.parametrize("rule", ["dense", "auto"])
def test_softmax_is_torchs_attention(rule):
    "With 1/√d, which a comparison with oneself does not see."
    torch.manual_seed(0)
    heads, d, n = 2, 3, 7
    kernel = Softmax(heads * d, heads).double()
    u, v = torch.randn(2, n, heads * d, **DOUBLE), torch.randn(2, heads, n, 4, **DOUBLE)
    inner = kernel.kernel
    q, k = (F.linear(u, p.linear.weight).unflatten(-1, (heads, d)).transpose(1, 2) for p in (inner.query, inner.key))
    wanted = F.scaled_dot_product_attention(q, k, v)
    assert relative(apply(kernel, Measure.grid((n,)), u, v, rule), wanted) < 1e-12
    assert relative(F.scaled_dot_product_attention(q, k, v, scale=1.), wanted) > 1e-2


@pytest.mark.parametrize("big", ["x", "k"])
@pytest.mark.parametrize("method", ["auto", "fft"])
def test_gradients_of_what_overflows_on_the_way(big, method):
    "Sums that are finite, by transforms whose middle is not: values and gradients of three huge rows and a usual one."
    torch.manual_seed(0)
    n, channels = 33, 4
    scale = torch.tensor([1.2e308, 1e308, 1e300, 1.], **DOUBLE)          # a transform of the first two overflows
    x, k, g = (torch.rand(*s, **DOUBLE) + .3 for s in ((2, n, channels), (n, channels), (2, n, channels)))
    for t in (x, k, g): t.clamp_(max=1.)
    (x if big == "x" else k)[..., 1::2, :] *= -.5                        # sums of both signs
    x, k, g = (x * scale, k * 1e-5, g * 1e-5) if big == "x" else (x * 1e-5, k * scale, g * 1e-5)
    x, k = x.requires_grad_(), k.requires_grad_()
    lag = torch.arange(n)[:, None] - torch.arange(n)
    def definition(x, k): return torch.einsum("ijd,bjd->bid", torch.where((lag >= 0)[..., None], k[lag.clamp(min=0)], 0.), x)
    wanted = definition(x, k)
    wanted = [wanted, *torch.autograd.grad(wanted, (x, k), g)]
    found = fft_conv(x, k, method=method)
    found = [found, *torch.autograd.grad(found, (x, k), g)]
    for a, b in zip(found, wanted):
        for c in range(channels):
            unit = b[..., c].abs().amax()                                # a norm of such numbers would overflow
            assert ((a[..., c] - b[..., c]) / unit).abs().amax() < 1e-9, c


def test_a_masked_key_is_not_looked_at():
    "Not even for the largest exponent, beside which all others would vanish."
    torch.manual_seed(0)
    n, heads = 6, 2
    kernel = Softmax(8, heads).double()
    u, v = torch.randn(1, n, 8, **DOUBLE), torch.randn(1, heads, n, 3, **DOUBLE)
    mask = torch.tensor([[True, True, False, True, True, True]])
    u[:, 2] *= 1e4
    rest = [0, 1, 3, 4, 5]
    wanted = apply(kernel, Measure.grid((5,)), u[:, rest], v[:, :, rest], "dense")
    found = apply(kernel, Measure.grid((n,), mask), u, v, "dense")[:, :, rest]
    assert relative(found, wanted) < 1e-12


def test_rotated_features_know_lags_alone():
    "Lengths stay, and products of queries and keys are functions of the lag."
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 6, **DOUBLE).expand(2, 1, 1, 9, 6)
    a, b = (rotary(t, Measure.grid((9,))) for t in (q, k))
    assert relative(a.norm(dim=-1), q.norm(dim=-1)) < 1e-12
    products = (a @ b.mT)[0, 0]
    for lag in range(-8, 9): assert products.diagonal(lag).std(correction=0) < 1e-10
    assert (products[0] - products[0, 0]).abs().max() > 1e-2


# --- networks

@pytest.mark.parametrize("config", [ITNetConfig(dim=8, depth=2, heads=2, extent=8, window=3, hidden=8), LSTMConfig(dim=8, depth=1),
                                    TransformerConfig(dim=8, depth=1, heads=2, hidden=8)])
def test_a_language_model_does_not_read_ahead(config):
    torch.manual_seed(0)
    text = torch.randint(0, 11, (1, 12))
    def logits(head, text):
        torch.manual_seed(1)
        model = build_model(config, Spec(head, 11, 11, (12,), bits_per_byte() if head == "language" else accuracy(11))).double().eval()
        with torch.no_grad(): return model(text)
    for at in (1, 6, 11):
        later = text.clone()
        later[0, at:] = (later[0, at:] + 1) % 11
        moved = (logits("language", text) - logits("language", later)).abs().amax((0, 2))
        assert moved[:at].max() < 1e-12 and moved[at] > 1e-6, at
    assert (logits("sequence", text) - logits("sequence", later)).abs().max() > 1e-6


def block(**more): return ITBlock(8, 2, **{"rank": 2, "extent": 8., "window": 3, "hidden": 8, **more}).double()


def test_the_gate_opens_to_the_far_field():
    "sigmoid(gate) = 1 is the far field alone, 0 the near one."
    torch.manual_seed(0)
    b, measure, n = block(), Measure.grid((9,)), torch.randn(1, 9, 8, **DOUBLE)
    b.gate.weight.data.zero_()
    gate = b.gate.bias.data
    gate.fill_(50.)
    def mixed(n): return b.mix(n, *b.projected(n, measure)[:2], measure)              # (B, D, N)
    far = mixed(n)
    gate.fill_(-50.)
    near = mixed(n)
    later = n.clone()
    later[:, 8] += 1                                                     # beyond the window of position 0, short taps aside
    def moved(): return (mixed(later) - mixed(n))[0, :, 0].norm()
    assert moved() < 1e-12
    gate.fill_(50.)
    assert moved() > 1e-8 and relative(far, near) > 1e-2


def test_branches_that_give_nothing_leave_the_input():
    torch.manual_seed(0)
    b, u = block(), torch.randn(1, 9, 8, **DOUBLE)
    for name, p in b.named_parameters():
        if name.endswith(("out.weight", "down.weight")): p.data.zero_()
    assert torch.equal(b(u, Measure.grid((9,))), u)
    net = ITNet(8, 3, 2, window=3, hidden=8).double()
    for name, p in net.blocks.named_parameters():
        if name.endswith(("out.weight", "down.weight")): p.data.zero_()
    assert relative(net(u, Measure.grid((9,)))[0], F.layer_norm(u, (8,))) < 1e-12


@pytest.mark.parametrize("depth", [1, 3])
def test_residual_branches_begin_smaller_by_the_root_of_twice_the_depth(depth):
    torch.manual_seed(0)
    one = ITBlock(8, 2, window=3, hidden=8)
    torch.manual_seed(0)
    net = ITNet(8, depth, 2, window=3, hidden=8)
    first, scaled = dict(one.named_parameters()), 0
    for name, p in net.blocks[0].named_parameters():
        last = name.endswith(("out.weight", "down.weight"))
        scaled += last
        assert torch.allclose(p * (2 * depth) ** (.5 * last), first[name], rtol=1e-6), name
    assert scaled == 2


@pytest.mark.parametrize("causal", [False, True])
def test_the_window_reaches_as_far_as_it_says(causal):
    torch.manual_seed(0)
    n, window = 11, 3
    kernel = near_kernel(8, 2, window, causal=causal).double()
    there = kernel.matrix(Measure.grid((n,)), torch.randn(1, n, 8, **DOUBLE)) != 0
    lag = torch.arange(n)[:, None] - torch.arange(n)
    wanted = (lag <= window) & (lag >= (0 if causal else -window))
    assert (there == wanted).all()


def test_what_is_masked_in_a_picture_is_not_seen():
    "Not by the convolution that reads it, either, whose taps reach over the edge of the mask."
    torch.manual_seed(0)
    model = build_model(ITNetConfig(dim=8, depth=1, heads=2, extent=8, window=1, hidden=8), Spec("image", 1, 3, (6, 6), accuracy(3))).double().eval()
    x, mask = torch.randn(1, 6, 6, 1, **DOUBLE), torch.ones(1, 6, 6, dtype=torch.bool)
    mask[:, :, 4:] = False
    other = torch.where(mask[..., None], x, x + 5)
    with torch.no_grad(): assert torch.equal(model(x, mask), model(other, mask)) and not torch.equal(model(x), model(other))
