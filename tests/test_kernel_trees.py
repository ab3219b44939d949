"""Walks over trees of kernels drawn at random, that contain every composition and one that only this file knows."""
import random
import re

import pytest
import torch

from itnet.compression.compress import compress, fitted_parts
from itnet.kernel.base import Kernel
from itnet.kernel.compose import Normalised, Product, Restricted, Sum, Wrapped, core
from itnet.kernel.given import Terms
from itnet.kernel.spectral import SpectralNormalised, spectral_norm
from itnet.kernel.stationary import Exponentials, Implicit, Taps
from itnet.kernel.structure import CAUSAL, Structure
from itnet.measure.measure import Measure
from itnet.special_cases.case import Integral
from itnet.special_cases.relaxation import Future
from itnet.transform import IntegralTransform
from suite import SLOW_TESTS

N, H = 11, 2
LINE = Measure.sequence(N, spacing=.5)
LAG = torch.arange(N)[:, None] - torch.arange(N)
SEEDS = range(40 if SLOW_TESTS else 20)
LAG_LEAVES = 'taps', 'implicit', 'exponentials'
LEAVES = (*LAG_LEAVES, 'terms')
COMPOSITIONS = 'product', 'sum', 'restrict', 'square', 'spectral'


class Square(Wrapped):
    "K(i, j)², a composition that no walk has heard of."
    def __init__(self, kernel: Kernel):
        s = kernel.structure
        super().__init__(kernel, Structure(stationary=s.stationary, rank=1 if s.stationary else None, support=s.support,
                                           positive=s.positive, logarithmic=s.logarithmic))

    def rebuild(self, f): return Square(f(self.kernel))
    def values(self, pairs, left, right): return self.kernel.values(pairs, left, right).square()
    def log_values(self, pairs, left, right): return 2 * self.kernel.log_values(pairs, left, right)

    def factors(self, measure, left, right, box):
        f = self.kernel.factors(measure, left, right, box)
        return type(f)(None, f.kappa.sum(1, keepdim=True).square(), None, box)


# --- trees as nested tuples, which are built by the public operators and evaluated as matrices without them

def draw(rng: random.Random, depth: int, stationary: bool) -> tuple:
    "A recipe; all of its leaves are positive, so that everything can be normalised."
    if depth == 0: return rng.choice(LAG_LEAVES if stationary else LAG_LEAVES + ('terms',) * 3), rng.random()
    kind = rng.choice(COMPOSITIONS if stationary else COMPOSITIONS + ('normalise',))
    if kind == 'spectral': return kind, draw(rng, depth - 1, True), rng.choice([.5, 2.])
    if kind == 'restrict': return kind, draw(rng, depth - 1, stationary), rng.choice([CAUSAL, ((-3, 3),), ((-1, 4),)])
    if kind in ('square', 'normalise'): return kind, draw(rng, depth - 1, stationary)
    return kind, draw(rng, depth - 1, stationary), draw(rng, rng.randrange(depth), stationary)


def leaf(kind: str, number: float) -> Kernel:
    torch.manual_seed(int(number * 2**31))
    phi, psi = (torch.rand(1, H, N, 2, dtype=torch.float64) + .1 for _ in range(2))
    if kind == 'terms': return Terms(phi, psi, positive=True)
    make = dict(taps=lambda: Taps(H, 9, positive=True), implicit=lambda: Implicit(H, 4., positive=True),
                exponentials=lambda: Exponentials(H, 2, 4., positive=True))
    k = make[kind]()
    for p in k.parameters(): p.data += .2 * torch.randn_like(p)
    return k.double()


def build(recipe: tuple, leaves: dict[tuple, Kernel]) -> Kernel:
    kind, *rest = recipe
    if kind in LEAVES: return leaves[recipe]
    a = build(rest[0], leaves)
    if kind == 'restrict': return Restricted(a, rest[1])
    if kind == 'spectral': return a.spectral_normalise(rest[1], on=Measure.sequence(2 * N, spacing=.5))
    if kind == 'square': return Square(a)
    if kind == 'normalise': return Normalised(a)
    b = build(rest[1], leaves)
    return a * b if kind == 'product' else a + b


def in_order(recipe: tuple) -> list[tuple]:
    kind, *rest = recipe
    if kind in LEAVES: return [recipe]
    return [x for part in rest if isinstance(part, tuple) and isinstance(part[0], str) for x in in_order(part)]


def is_stationary(recipe: tuple) -> bool:
    return 'terms' not in str(recipe) and 'normalise' not in str(recipe)


def stationary_matrix(recipe: tuple, leaves: dict[tuple, Kernel]) -> torch.Tensor | None:
    "(H, N, N): the product of the factors that depend on the lag alone, from the recipe."
    kind, *rest = recipe
    if kind == 'terms': return None
    if kind in LAG_LEAVES: return leaves[recipe].matrix(LINE)[0]
    if kind == 'sum': return build(recipe, leaves).matrix(LINE)[0] if is_stationary(recipe) else None
    a = stationary_matrix(rest[0], leaves)
    if kind == 'product':
        b = stationary_matrix(rest[1], leaves)
        if a is None or b is None: return b if a is None else a
        return a * b
    if a is None or kind == 'normalise': return a
    if kind == 'square': return a.square()
    if kind == 'restrict': return a * ((LAG >= rest[1][0][0]) & (LAG <= rest[1][0][1]))
    wide = spectral_norm(build(rest[0], leaves), Measure.sequence(2 * N, spacing=.5))
    return a * (rest[1] / wide)[:, None, None]


def tree(seed: int) -> tuple[tuple, dict[tuple, Kernel], Kernel]:
    "A recipe, its leaves, and the kernel; drawn again where supports have no lag in common."
    rng = random.Random(seed)
    while True:
        recipe = draw(rng, 4, False)
        leaves = {x: leaf(*x) for x in in_order(recipe)}
        try: kernel = build(recipe, leaves)
        except ValueError as e: assert re.search('no lag in common|only a positive kernel', str(e)), e          # a sum with a gap
        else: return recipe, leaves, kernel


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-10, atol=1e-13 * b.abs().max().item())


# --- walks

def test_every_composition_is_drawn():
    kinds = {type(k) for seed in SEEDS for k in tree(seed)[2].modules()}
    assert {Product, Sum, Restricted, Normalised, SpectralNormalised, Square} <= kinds
    assert {Terms, Taps, Implicit, Exponentials} <= kinds


@pytest.mark.parametrize('seed', SEEDS)
def test_rebuild_and_leaves(seed):
    recipe, leaves, kernel = tree(seed)
    again = kernel.rebuild(lambda part: part)
    assert again.structure == kernel.structure and torch.equal(again.matrix(LINE), kernel.matrix(LINE))
    assert kernel.leaves() == [leaves[x] for x in in_order(recipe)]
    assert kernel.innermost.parts == () or len(kernel.innermost.parts) == 2


@pytest.mark.parametrize('seed', SEEDS)
def test_exchange(seed):
    recipe, leaves, kernel = tree(seed)
    for name, old in leaves.items():
        new = leaf(name[0], 1 - name[1])
        got, want = kernel.exchange(old, new), build(recipe, {**leaves, name: new})
        assert str(got) == str(want) and got.structure == want.structure and near(got.matrix(LINE), want.matrix(LINE))
        assert old in kernel.leaves() and old not in got.leaves()
    with pytest.raises(ValueError, match='not composed'): kernel.exchange(leaf('taps', .5), old)


@pytest.mark.parametrize('seed', SEEDS)
def test_stationary_part(seed):
    recipe, leaves, kernel = tree(seed)
    part, want = kernel.stationary_part(), stationary_matrix(recipe, leaves)
    assert (part is None) == (want is None)
    if part is not None: assert part.structure.stationary and near(part.matrix(LINE)[0], want)


@pytest.mark.parametrize('seed', SEEDS)
def test_mirrored(seed):
    recipe, leaves, kernel = tree(seed)
    reverse = lambda k: Terms(k.phi.flip(2), k.psi.flip(2), positive=True) if isinstance(k, Terms) else k
    turned = {x: reverse(k) for x, k in leaves.items()}
    mirror = kernel.mirrored()
    assert mirror.structure == kernel.structure and near(mirror.matrix(LINE), build(recipe, turned).matrix(LINE))
    assert near(mirror.mirrored().matrix(LINE), kernel.matrix(LINE))


@pytest.mark.parametrize('seed', SEEDS)
def test_future_and_kind(seed):
    kernel = tree(seed)[2]
    v = torch.randn(1, H, N, 3, dtype=torch.float64)
    integral = Integral(kernel, LINE, v, v, by_heads=True)
    assert integral.kind in ('Terms', 'Taps', 'Implicit', 'Exponentials', 'Product', 'Sum')
    ahead, future = kernel.mirrored().matrix(LINE), Future(integral, 2)
    got = future.kernel(kernel)
    if not isinstance(kernel, Normalised):
        assert future.decay is None and near(got.matrix(LINE), ahead)
        return
    K = core(kernel.mirrored()).matrix(LINE) * future.decay.matrix(LINE)
    z = K.sum(-1, keepdim=True)
    assert isinstance(got, Normalised) and near(got.matrix(LINE), K / torch.where(z > 0, z, 1.))


# --- what is spectrally normalised stays so

def test_exchange_keeps_the_bound():
    on, old, new = Measure.sequence(40), leaf('taps', .1), leaf('exponentials', .2)
    kernel = Product(leaf('terms', .3), SpectralNormalised(old, .7, on)).restrict(causal=True)
    got = kernel.exchange(old, new)
    inner = got.kernel.b
    assert type(got) is Restricted and type(inner) is SpectralNormalised
    assert inner.bound == .7 and inner.on is on and inner.kernel is new
    assert got.structure.support == CAUSAL and kernel.structure.support == ((0, 4),)      # the support of the taps went with them
    assert spectral_norm(inner, on).allclose(torch.full((H,), .7, dtype=torch.float64))


def test_stationary_part_of_restricted_spectral_normalised():
    kernel = Restricted(SpectralNormalised(leaf('implicit', .4), .5), ((0, 3),))
    assert kernel.stationary_part() is kernel
    assert near((leaf('terms', .1) * kernel).normalise().stationary_part().matrix(LINE), kernel.matrix(LINE))


def test_compress_a_spectrally_normalised_part():
    torch.manual_seed(0)
    from itnet.kernel.content import Separable
    part = Exponentials(2, 3, extent=8., positive=True).spectral_normalise(.5, on=Measure.sequence(64))
    transform = IntegralTransform(4, Separable(4, 2, 2) * part).double()
    assert fitted_parts(transform.kernel) == [transform.kernel.a, part]
    fit, u = compress(transform, rank=3, measure=48), torch.randn(2, 48, 4, dtype=torch.float64)
    assert fit.transform.kernel.structure.state == 2 * 3 and isinstance(fit.transform.kernel.b, Exponentials)
    assert fit.error.max() < 1e-6 and torch.allclose(fit.transform(u), transform(u), atol=1e-6)      # the bound is in the amplitudes


def test_a_composition_without_rebuild_says_so():
    class Forgetful(Wrapped):
        def __init__(self, kernel): super().__init__(kernel, kernel.structure)
        def values(self, pairs, left, right): return self.kernel.values(pairs, left, right)
    old = leaf('taps', .1)
    with pytest.raises(NotImplementedError, match='Forgetful .* rebuild'): Forgetful(old).exchange(old, old)
    unknown = Normalised(Kernel(2, Structure(positive=True)))
    with pytest.raises(NotImplementedError, match='Kernel cannot be mirrored'): unknown.mirrored()
