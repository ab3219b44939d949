"""What combines points is named, and what acts on single points is not: by `outside`, which knows no names."""
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from itnet.special_cases.case import from_torch
from itnet.special_cases.points import layouts, outside

X = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))


def weights(*shape): return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


class Fn(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x): return self.f(x)


def past(x, k=1): return F.pad(x, (0, 0, k, 0))[:, :-k]


def recurrence(x):
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = 0.9 * h + 0.1 * x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def recurrence_in_place(x):
    y = x.clone()
    for t in range(1, x.shape[1]): y[:, t] += 0.5 * y[:, t - 1]
    return y


def written(x):
    y = torch.empty_like(x)
    for t in range(x.shape[1]): y[:, t] = x[:, : t + 1].sum(1)
    return y


def sums_by_hand(x):
    out = [x[:, 0]]
    for t in range(1, x.shape[1]): out.append(out[-1] + x[:, t])
    return torch.stack(out, 1)


def doubling(x):
    k = 1
    while k < x.shape[1]: x, k = x + past(x, k), 2 * k
    return x


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x):
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out.append(h)
        return torch.stack(out, 1)


def response_norm(x):                                      # the GRN of ConvNeXt V2
    g = x.norm(p=2, dim=1, keepdim=True)
    return x * g / (g.mean(-1, keepdim=True) + 1e-6) + x


def merged(x):                                             # two points become one vector, are mapped, and split again
    return (x[:, :6].reshape(len(x), 3, -1) @ weights(8, 8)).reshape(len(x), 6, -1)


class TokenMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(7, 12), nn.Linear(12, 7)

    def forward(self, x): return x + self.b(F.gelu(self.a(x.mT))).mT


class SpatialGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(weights(7, 7))

    def forward(self, x):
        u, v = x.chunk(2, -1)
        return u * (self.w @ v)


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x): return x * self.a(x.mean(1)).sigmoid()[:, None]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x): return torch.einsum("bnm,bmd->bnd", torch.einsum("bnd,bmd->bnm", self.q(x), self.k(x)).softmax(-1), x)


TARGETS = torch.tensor([0, 0, 1, 1, 2, 2, 3])
COMBINE = dict(
    normalise=lambda x: F.normalize(x, dim=1), norm=lambda x: x / x.norm(dim=1, keepdim=True), response_norm=response_norm,
    standardise=lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), centre=lambda x: x - x.mean((1, 2), keepdim=True),
    group_norm=lambda x: F.group_norm(x.mT, 2).mT, instance_norm=lambda x: F.instance_norm(x.mT).mT, layer_norm=lambda x: F.layer_norm(x, (7, 4)),
    softmax=lambda x: x.softmax(1), logsumexp=lambda x: x - x.logsumexp(1, keepdim=True), product=lambda x: x * x.prod(1, keepdim=True),
    maximum=lambda x: x - x.amax(1, keepdim=True), minimum=lambda x: x - x.amin(1, keepdim=True), median=lambda x: x - x.median(1, keepdim=True).values,
    kth=lambda x: x - x.kthvalue(2, 1, keepdim=True).values, sort=lambda x: x.sort(1).values, argsort=lambda x: x.gather(1, x.argsort(1)),
    topk=lambda x: x * (x >= x.topk(3, 1).values[:, -1:]), topk_points=lambda x: x.gather(1, x.topk(7, 1).indices), nearest=lambda x: x[:, (x[0, :, 0] - x[0, 0, 0]).argsort()],
    cumsum=lambda x: x.cumsum(1), cumprod=lambda x: x.cumprod(1), cummax=lambda x: x.cummax(1).values, logcumsumexp=lambda x: x.logcumsumexp(1),
    sums_by_hand=sums_by_hand, sums_from_the_end=lambda x: sums_by_hand(x.flip(1)).flip(1), doubling=doubling, triangle=lambda x: torch.ones(7, 7).tril() @ x, written=written,
    recurrence=recurrence, recurrence_in_place=recurrence_in_place, cell=Cell(),
    shift=past, shift_residual=lambda x: x + past(x), difference=lambda x: x - past(x), token_shift=lambda x: 0.3 * x + 0.7 * past(x),
    shift_of_channels=lambda x: torch.cat([past(x[..., :2]), x[..., 2:]], -1), roll=lambda x: x.roll(1, 1), roll_residual=lambda x: x + x.roll(2, 1),
    flip=lambda x: x.flip(1), permuted=lambda x: x[:, [2, 0, 1, 6, 5, 4, 3]], first_added=lambda x: x + x[:, :1], between=lambda x: (x[:, 1:] + x[:, :-1]) / 2,
    fft=lambda x: torch.fft.fft2(x).real, filtered=lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1) * weights(4, 1), n=7, dim=1),
    average=lambda x: F.avg_pool1d(x.mT, 3, 1, 1).mT, maximum_nearby=lambda x: F.max_pool1d(x.mT, 3, 1, 1).mT, convolution=lambda x: F.conv1d(x.mT, torch.ones(4, 1, 3), padding=1, groups=4).mT,
    windows=lambda x: F.pad(x, (0, 0, 2, 0)).unfold(1, 3, 1).sum(-1), interpolated=lambda x: F.interpolate(x.mT, 14, mode="linear").mT, merged=merged,
    attention=Attention(), fused=lambda x: F.scaled_dot_product_attention(x, x, x), linear_attention=lambda x: x.softmax(-1) @ (x.mT @ x), distances=lambda x: torch.cdist(x, x).softmax(-1) @ x,
    token_mlp=TokenMLP(), spatial_gate=SpatialGate(), squeeze_excite=SqueezeExcite(),
    scatter=lambda x: torch.zeros_like(x).scatter_add(1, TARGETS[None, :, None].expand_as(x), x), index_add=lambda x: torch.zeros_like(x).index_add(1, TARGETS, x))


def rotated(x):
    turn = torch.polar(torch.ones(7, 2), weights(7, 2))
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (2, 2)).contiguous()) * turn).flatten(2)


def one_by_one(x):
    y = torch.empty_like(x)
    for t in range(x.shape[1]): y[:, t] = 2 * x[:, t]
    return y


def experts(x):
    flat, out = x.flatten(0, 1), torch.zeros(14, 4)
    first = flat[:, 0] > 0
    for chosen, w in ((first, weights(4, 4)), (~first, -weights(4, 4))):
        (index,) = chosen.nonzero(as_tuple=True)
        out.index_add_(0, index, flat[index] @ w)
    return out.unflatten(0, (2, 7))


ALONE = dict(
    linear=nn.Linear(4, 3), narrow=nn.Linear(4, 1), mlp=nn.Sequential(nn.Linear(4, 9), nn.GELU(), nn.Linear(9, 4)), glu=nn.GLU(-1), swiglu=lambda x: F.silu(x[..., :2]) * x[..., 2:],
    gelu=nn.GELU(), relu=nn.ReLU(), dropout=nn.Dropout(0.5), clamp=lambda x: x.clamp(-1, 1), where=lambda x: torch.where(x > 0, x, 0.1 * x), in_place=lambda x: x.clone().mul_(2).relu_(),
    layer_norm=nn.LayerNorm(4), rms_norm=nn.RMSNorm(4), rms_by_hand=lambda x: x * x.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt(), normalise=lambda x: F.normalize(x, dim=-1),
    batch_norm=lambda x: F.batch_norm(x.mT, torch.zeros(4), torch.ones(4)).mT, conv=lambda x: F.conv1d(x.mT, weights(5, 4, 1)).mT, bmm=lambda x: torch.bmm(x, weights(2, 4, 4)),
    softmax=nn.Softmax(-1), sort=lambda x: x.sort(-1).values, cumsum=lambda x: x.cumsum(-1), maxout=lambda x: x.unflatten(-1, (2, 2)).amax(-1),
    one_hot=lambda x: F.one_hot(x.argmax(-1), 4).float(), attention_of_channels=lambda x: (x[..., None] * x[..., None, :]).softmax(-1).sum(-1), experts=experts,
    shuffle=lambda x: x.view(2, 7, 2, 2).transpose(2, 3).reshape(2, 7, 4), permute=lambda x: x.permute(0, 2, 1), flatten=lambda x: x.reshape(14, 4), heads=lambda x: x.unflatten(-1, (2, 2)).transpose(1, 2),
    position=lambda x: x + torch.arange(7.0)[:, None], rotated=rotated, masked=lambda x: x.masked_fill(torch.arange(7)[:, None] > 4, 0.0), class_token=lambda x: torch.cat([torch.zeros(2, 1, 4), x], 1),
    crop=lambda x: x[:, 1:5], last=lambda x: x[:, -1], padded=lambda x: F.pad(x, (0, 0, 1, 1)), finer=lambda x: F.interpolate(x.mT, scale_factor=2).mT, one_by_one=one_by_one,
    in_turn=lambda x: torch.stack([x[:, t].tanh() for t in range(7)], 1), copied=lambda x: torch.zeros(2, 9, 4).index_copy(1, torch.arange(7), x))


def module(f): return f if isinstance(f, nn.Module) else Fn(f)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_combines_points_is_named(dtype):
    x, known = X.to(dtype), lambda f: module(f).to(dtype)
    few = ("recurrence", "sort", "shift", "token_mlp", "cumsum", "norm")
    missed = [name for name, f in COMBINE.items() if (dtype == torch.float32 or name in few) and not outside(known(f), x)]
    assert not missed
    for f in (COMBINE["token_mlp"], COMBINE["spatial_gate"], COMBINE["squeeze_excite"], COMBINE["attention"], COMBINE["cell"]): f.float()


def test_what_acts_on_single_points_is_not_named():
    assert not {name: found for name, f in ALONE.items() if (found := outside(module(f), X))}
    ids = torch.randint(1, 20, (2, 7), generator=torch.Generator().manual_seed(1))
    words = nn.Sequential(nn.Embedding(20, 4), nn.LayerNorm(4), nn.Linear(4, 20))
    assert not outside(words, ids) and not outside(nn.Sequential(words, Fn(lambda x: x.argmax(-1)), nn.Embedding(20, 4)), ids)


@pytest.mark.parametrize("name", ["attention", "difference", "token_mlp", "recurrence"])
def test_it_is_named_once_and_where_it_happens(name):
    "Maps of single points around it change nothing, before or behind."
    alone = outside(module(COMBINE[name]), X)
    net = nn.Sequential(nn.Linear(4, 4), nn.GELU(), module(COMBINE[name]), nn.LayerNorm(4), nn.Linear(4, 3))
    assert outside(net, X) == {(f"2.{path}".rstrip("."), op): n for (path, op), n in alone.items()}


def test_layouts_follow_the_first_integral():
    "Channels first, last, in the middle of a sequence, without a batch: what is behind the integral is seen in its layout."
    conv = lambda: from_torch(nn.Conv1d(4, 4, 3, padding=1))
    of_points = {("1", "addmm"): 1}
    assert outside(nn.Sequential(conv(), nn.Linear(7, 7)), X.mT) == of_points
    assert outside(nn.Sequential(conv(), Fn(lambda x: x.mT), nn.Linear(4, 4)), X.mT) == {}
    attention = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)                                    # (N, B, C)
    attention.self_attn = from_torch(attention.self_attn)
    assert outside(attention, X.transpose(0, 1)) == {} and outside(nn.Sequential(attention, Fn(lambda x: x.cumsum(0))), X.transpose(0, 1)) == {("1", "cumsum"): 1}
    image = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(2))
    net = nn.Sequential(from_torch(nn.Conv2d(3, 4, 3, stride=2, padding=1)), nn.BatchNorm2d(4), nn.ReLU(), from_torch(nn.Conv2d(4, 4, 3, padding=1)))
    assert outside(net, image) == {}
    assert outside(nn.Sequential(net, Fn(lambda x: x - x.mean((2, 3), keepdim=True))), image) == {("1", "mean"): 1}
    assert outside(nn.Sequential(net, Fn(lambda x: x.mean(3, keepdim=True))), image) == {("1", "mean"): 1}
    assert outside(nn.Sequential(net, Fn(lambda x: x - x.mean(1, keepdim=True))), image) == {}
    assert layouts(X)[0] == (1,) and layouts(image)[0] == (2, 3) and layouts(torch.ones(2, 7, dtype=torch.long))[0] == (1,)


def test_a_look_changes_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), Fn(lambda x: x.mT), nn.BatchNorm1d(4)).train()
    net[1].eval()
    before, state, x = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state(), X.clone()
    outside(net, x)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, X) and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net] == [True, False, True, True] and not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not torch.are_deterministic_algorithms_enabled()
    case = from_torch(nn.Conv1d(4, 4, 3))
    outside(case, x.mT)
    assert "mix" not in vars(case) and "integrate" not in vars(case)


def test_a_blind_example_is_refused():
    with pytest.raises(ValueError, match="nothing moves with the example"): outside(nn.Embedding(9, 4), torch.ones(2, 7, dtype=torch.long))
    with pytest.raises(ValueError, match="nothing moves with the example"): outside(nn.Linear(1, 4), torch.ones(1))
