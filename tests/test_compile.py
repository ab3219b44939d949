"""Compiled and exported: one graph for all sizes that one rule serves, and the same numbers at each of them"""
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.export import Dim
from itnet.data.spec import Spec, perplexity
from itnet.kernel.content import Separable, Softmax
from itnet.kernel.pairwise import Pairwise
from itnet.kernel.selective import Selective
from itnet.kernel.stationary import Exponentials, Implicit, Taps
from itnet.measure.measure import Measure
from itnet.special_cases.case import from_torch
from itnet.special_cases.pretrained import from_pretrained_model
from itnet.nets.presets import ITNetConfig, build_model
from itnet.rule.plan import choose
from itnet.rule.rates import built_in
from itnet.transform import IntegralTransform
from suite import SLOW_TESTS, cases

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


def graphs(module, inputs, reference=None, bound=1e-5, vary=()):
    """How many graphs serve all inputs, without a break in any of them; the numbers are those of the module, or of a reference.

    The sizes of the axes `vary` of the first tensor are left open from the start: a graph that needs one of them is an error.
    """
    counter = CompileCounter()
    fast, reference = torch.compile(module, backend=counter, fullgraph=True), reference or module
    for axis in vary: torch._dynamo.mark_dynamic(inputs[0][0], axis)
    first = lambda y: y[0] if isinstance(y, tuple) else y
    for x in inputs:
        y, want = first(fast(*x)), first(reference(*x))
        assert y.shape == want.shape and error(y, want) < bound, [t.shape for t in x if isinstance(t, torch.Tensor)]
    return counter.frame_count


def functions(*sizes): return [(torch.randn(*size, D),) for size in sizes]


SIZES = (2, 50), (3, 61), (4, 97), (3, 97)


@pytest.mark.parametrize("kernel, rule", cases([("attention", "attend"), ("taps", "auto")], [("window", "direct")]))
def test_two_graphs_serve_all_sizes(kernel, rule):
    layer = IntegralTransform(D, KERNELS[kernel](), rule=rule)
    assert graphs(layer, functions(*SIZES)) == 2                                        # the first size, and all others


@pytest.mark.parametrize("kernel, rule", cases([("readme", "dense"), ("exponentials", "fft")], [("selective", "scan")]))
def test_one_graph_serves_all_sizes_that_are_left_open(kernel, rule):
    layer = IntegralTransform(D, KERNELS[kernel](), rule=rule)
    assert graphs(layer, functions(*SIZES), vary=(0, 1)) == 1


def test_the_plan_changes_where_another_rule_is_cheaper():
    layer = IntegralTransform(D, KERNELS["readme"]())
    assert graphs(layer, functions(*((2, n) for n in (20, 31, 64, 1025, 5000)))) == 3        # the first, dense, fft


@pytest.mark.parametrize("kernel, rule", cases([("taps", "auto")], [("readme", "fft"), ("implicit", "dense")]))
def test_gradients_at_three_lengths(kernel, rule):
    layer, counter = IntegralTransform(D, KERNELS[kernel](), rule=rule).double(), CompileCounterWithBackend("aot_eager_decomp_partition")
    fast = torch.compile(layer, backend=counter, fullgraph=True)
    for n in (40, 53, 97):
        u = torch.randn(2, n, D, dtype=torch.float64, requires_grad=True)
        if n == 40: torch._dynamo.mark_dynamic(u, 1)
        wanted = [u, *layer.parameters()]
        got, want = (torch.autograd.grad(f(u).square().sum(), wanted, allow_unused=True) for f in (fast, layer))
        for g, w in zip(got, want): assert w is None and g is None or error(g, w) < 1e-9, n
    assert counter.frame_count == 1


def lines(**options): return [(torch.randn(b, n, D), Measure.sequence(n, **options)) for b, n in ((2, 20), (3, 27), (4, 41))]


def masked():
    return [(u, Measure.sequence(m.n, mask=torch.arange(m.n) < m.n - torch.arange(len(u))[:, None])) for u, m in lines()]


@pytest.mark.parametrize("kernel, inputs", cases(
    [(KERNELS["readme"], masked), (lambda: Separable(D, H) * Implicit(H, 4.).spectral_normalise(), lines)],
    [(lambda: Taps(H, 5), lambda: lines(periodic=True)), (lambda: Selective(D, H, 2, gates="feature"), lines)]))
def test_rings_masks_norms_and_gates_are_compiled(kernel, inputs):
    assert graphs(IntegralTransform(D, kernel()), inputs()) == 2


def test_the_backbone_is_compiled():
    net = ITNetConfig(dim=16, depth=1, heads=2, hidden=16).build(causal=True).eval()
    assert graphs(net, [(torch.randn(b, n, 16), Measure.sequence(n)) for b, n in ((2, 30), (3, 41), (4, 57))]) <= 3


@pytest.mark.skipif(not SLOW_TESTS, reason="a C++ compiler needs a minute: NB_FLAGS=slow runs it")
def test_generated_code_trains_as_the_network_does():
    network = build_model(ITNetConfig(16, 1, share=2, hidden=16), Spec("language", 40, 40, (64,), perplexity()))
    x, gradients = torch.randint(40, (2, 64)), []
    for run in (network, torch.compile(network)):
        run(x).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
        network.zero_grad()
    least = 1e-6 * sum(g.square().sum() for g in gradients[0].values()) ** .5         # what cancels is rounding
    for name, want in gradients[0].items():
        assert (gradients[1][name] - want).norm() < 1e-4 * want.norm() + least, name


def exported(layer, example, sizes, strict=False):
    return torch.export.export(layer, (torch.randn(*example, D),), dynamic_shapes={"u": dict(enumerate(sizes))}, strict=strict).module()


@pytest.mark.parametrize("kernel, rule, strict", cases(
    [("readme", "fft", False), ("implicit", "auto", False), ("taps", "direct", False), ("attention in a window", "attend", False)],
    [("readme", "auto", True), ("window", "dense", False), ("linear attention", "auto", False)]))
def test_exported_for_every_batch_and_length(kernel, rule, strict):
    layer = IntegralTransform(D, KERNELS[kernel](), rule=rule)
    program = exported(layer, (3, 60), (Dim("B"), Dim("N")), strict)
    for shape in ((2, 13), (3, 60), (5, 97), (2, 1500)):              # the last one beyond what the example's rule is cheapest for
        u = torch.randn(*shape, D)
        assert error(program(u), layer(u)) < 1e-5, shape


@pytest.mark.parametrize("kernel, tiled", cases(
    [(KERNELS["selective"], "scan")], [(lambda: Pairwise(D, H, 8, positive=True).restrict(5).normalise(), "direct")]))
def test_what_is_cut_into_tiles_is_exported_for_whole_tiles_and_left_out_of_plans_for_others(kernel, tiled):
    layer, n = IntegralTransform(D, kernel()), 2400
    assert choose(layer.kernel, Measure.sequence(n), D // H, 2, built_in()) == tiled
    program = exported(layer, (2, n), (Dim("B"), Dim("N")))
    for shape in ((2, 13), (3, 100)):
        u = torch.randn(*shape, D)
        assert error(program(u), layer(u)) < 1e-5, shape
    tile, layer.rule = {"scan": 64, "direct": 11}[tiled], tiled
    program = exported(layer, (3, 5 * tile), (Dim("B"), tile * Dim("T", min=3)))
    for shape in ((2, 3 * tile), (4, 20 * tile)):
        u = torch.randn(*shape, D)
        assert error(program(u), layer(u)) < 1e-5, shape


def test_what_is_not_valid_is_refused_by_name_while_it_is_exported():
    with pytest.raises(ValueError, match="rule 'scan' needs a finite state.*line of 60 points"):
        exported(IntegralTransform(D, Softmax(D, H).restrict(causal=True), rule="scan"), (3, 60), (Dim("B"), Dim("N")))


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(3, 4, 5, padding=2), lambda b, n: (b, 3, n)),
    "circular": (lambda: nn.Conv1d(3, 4, 3, padding="same", padding_mode="circular"), lambda b, n: (b, 3, n)),
    "reflected": (lambda: nn.Conv1d(4, 4, 3, padding=2, padding_mode="reflect", groups=2), lambda b, n: (b, 4, n)),
    "transposed": (lambda: nn.ConvTranspose1d(3, 4, 4, stride=2, padding=1), lambda b, n: (b, 3, n)),
    "pool": (lambda: nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), lambda b, n: (b, 3, n)),
    "pair": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv1d(4, 4, 3, 2, 1), nn.AdaptiveAvgPool1d(1)), lambda b, n: (b, 3, n)),
}


@pytest.mark.parametrize("name", cases(["conv1d", "transposed", "pair"], ["circular", "reflected", "pool"]))
def test_converted_layers_are_one_graph_for_all_sizes(name):
    make, shape = LAYERS[name]
    layer = make().eval()
    same = from_pretrained_model(layer) if name == "pair" else from_torch(layer)
    assert graphs(same.eval(), [(torch.randn(*shape(b, n)),) for b, n in ((2, 12), (3, 17), (4, 30), (3, 40))], layer, vary=(0, 2)) == 1


class Output(nn.Module):
    "The last hidden state of a network of the hub."
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x): return self.net(x).last_hidden_state


def gpt2(t): return Output(t.GPT2Model(t.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)))
def resnet(t): return Output(t.ResNetModel(t.ResNetConfig(embedding_size=4, hidden_sizes=[8], depths=[1], layer_type="basic")))


@pytest.mark.parametrize("make, draw, vary", cases([
    (gpt2, lambda b, n: torch.randint(50, (b, n)), (0, 1)),
    (lambda t: nn.TransformerEncoderLayer(D, H, 16, batch_first=True), lambda b, n: torch.randn(b, n, D), (0, 1))], [
    (resnet, lambda b, n: torch.randn(b, 3, n, n + 4), (0, 2, 3))]))
def test_converted_networks_are_one_graph_for_three_sizes(make, draw, vary):
    net = make(pytest.importorskip("transformers")).eval()
    with torch.no_grad():
        assert graphs(from_pretrained_model(net).eval(), [(draw(b, n),) for b, n in ((2, 20), (3, 27), (4, 41))], net, 1e-4, vary) == 1
