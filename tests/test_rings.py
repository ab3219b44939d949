"""Rings: factors whose own support has no end, and rings smaller than a support: one answer, or one refusal, everywhere."""
import pytest
import torch

from itnet.kernel.content import Separable
from itnet.kernel.correlation import Correlation
from itnet.kernel.spectral import spectral_norm
from itnet.kernel.stationary import Exponentials, Implicit, Taps
from itnet.measure.measure import Measure
from itnet.rule.base import RULES, possible
from itnet.rule.mixing import mix
from itnet.testing import relative_error
from itnet.transform import apply

D, H, C = 4, 2, 3


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_lag(k, l: int) -> torch.Tensor:
    "κ of a stationary kernel at one lag, (H,), as a line has it."
    line = Measure.sequence(2 * abs(l) + 1)
    return k.matrix(line)[0, :, abs(l) + l, abs(l)]


def around(n: int, v: torch.Tensor, kappa) -> torch.Tensor:
    "Σ_l κ(l) v_(i-l) for lags on the nearest way round a ring, one after the other."
    return sum(kappa(l)[:, None, None] * v.roll(l, 2) for l in range(-((n - 1) // 2), n // 2 + 1))


ENDLESS = {                                              # κ written down by its factors
    "a window": lambda e, t, i: (e.restrict(2), lambda l: by_lag(e, l) * (abs(l) <= 2)),
    "times taps": lambda e, t, i: (e * t, lambda l: by_lag(e, l) * by_lag(t, l)),
    "times a window": lambda e, t, i: (e.restrict(3) * i, lambda l: by_lag(e, l) * by_lag(i, l) * (abs(l) <= 3)),
    "of norm 1": lambda e, t, i: ((e * t).spectral_normalise(), None),
    "plus taps": lambda e, t, i: (e.restrict(2) + t, lambda l: by_lag(e, l) * (abs(l) <= 2) + by_lag(t, l)),
}


@pytest.mark.parametrize("n", [13, 12])
@pytest.mark.parametrize("name", ENDLESS)
def test_a_factor_without_end(name, n):
    "By every rule what a loop over lags gives; nothing is made of lags that no two points have."
    torch.manual_seed(0)
    factors = [k.double() for k in (Exponentials(H, 2), Taps(H, 5), Implicit(H, 4.))]
    k, kappa = ENDLESS[name](*factors)
    ring, v = Measure.sequence(n, periodic=True), draw(0, 2, H, n, C)
    if kappa is None: kappa = lambda l: by_lag(factors[0], l) * by_lag(factors[1], l) / spectral_norm(factors[0] * factors[1], ring)
    want = around(n, v, kappa)
    assert relative_error(k.matrix(ring) @ v, want) < 1e-12
    works = possible(k, ring)
    assert {"dense", "direct", "fft"} <= set(works)
    for rule in ("auto", "dense", "direct", "fft"): assert relative_error(apply(k, ring, None, v, rule), want) < 1e-12, rule


@pytest.mark.parametrize("n", [13, 12])
def test_a_sum_of_a_past_and_of_everything(n):
    torch.manual_seed(0)
    e, s = Exponentials(H, 2).double(), Separable(D, H, 2).double()
    ring, u, v = Measure.sequence(n, periodic=True), draw(0, 2, n, D), draw(1, 2, H, n, C)
    want = around(n, v, lambda l: by_lag(e, l)) + s.matrix(ring, u) @ v
    for rule in ("auto", "dense", "fft"): assert relative_error(apply(e + s, ring, u, v, rule), want) < 1e-12, rule


# --- rings that are too small

def small(name: str):
    return {"taps": lambda: (Taps(1, 5, origin=0), 3), "taps in a sum": lambda: (Taps(1, 5, origin=0) + Implicit(1, 4.), 3),
            "a product": lambda: (Taps(1, 9) * Taps(1, 3), 5), "in a window": lambda: (Taps(1, 9).restrict(1), 5),
            "a product in a sum": lambda: (Implicit(1, 4.) + Taps(1, 9) * Taps(1, 3), 5),
            "normalised": lambda: ((Taps(1, 9, positive=True) * Taps(1, 3, positive=True)).normalise(), 5),
            "of norm 1": lambda: ((Taps(1, 9) * Taps(1, 3)).spectral_normalise(), 5), "of content": lambda: (Separable(D, 1, 2) * Taps(1, 7), 5),
            "a short convolution's layout": lambda: (Correlation(1, 5), 4), "dilated": lambda: (Taps(1, 3, dilation=2), 4)}[name]()


@pytest.mark.parametrize("name", ["taps", "taps in a sum", "a product", "in a window", "a product in a sum", "normalised", "of norm 1", "of content",
                                  "a short convolution's layout", "dilated"])
def test_a_ring_smaller_than_a_support_is_refused_everywhere(name):
    "With one reason, whatever is asked; on a ring that is large enough, all is right."
    k, n = small(name)
    k = k.double()
    ring, u, v = Measure.sequence(n, periodic=True), draw(0, 1, n, D), draw(1, 1, 1, n, C)
    asked = [lambda: k.matrix(ring, u), *(lambda rule=rule: apply(k, ring, u, v, rule) for rule in ("auto", *RULES))]
    if k.structure.stationary: asked += [lambda: mix(k, ring, v[:, 0, :, :1]), *(lambda rule=rule: mix(k, ring, v[:, 0, :, :1], rule=rule) for rule in ("dense", "fft", "direct"))]
    for ask in asked:
        with pytest.raises(ValueError, match=f"points on the periodic axis of {n}, where it would meet itself"): ask()
    large = Measure.sequence(11, periodic=True)
    u, v = draw(0, 1, 11, D), draw(1, 1, 1, 11, C)
    for rule in ("auto", *possible(k, large)):
        if rule != "monte_carlo": assert relative_error(apply(k, large, u, v, rule), k.matrix(large, u) @ v) < 1e-12, rule


def test_taps_on_the_smallest_ring_that_holds_them():
    k, v = Taps(1, 5, origin=0).double(), draw(0, 1, 1, 5, 1)
    want = sum(k.weight[0, l] * v.roll(l, 2) for l in range(5))
    for rule in ("auto", "dense", "direct", "fft"): assert relative_error(apply(k, Measure.sequence(5, periodic=True), None, v, rule), want) < 1e-12, rule
