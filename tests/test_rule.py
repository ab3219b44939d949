"""A rule of one's own, in a file of its own: it is planned, explained, refused and run like the others."""
import pytest
import torch

from itnet.kernel.content import Separable, Softmax
from itnet.kernel.stationary import Implicit, Taps
from itnet.measure.measure import Measure
from itnet.rule.base import RULES, Cost, Rule, Way, lacking, possible, register_rule
from itnet.rule.explain import explain
from itnet.rule.plan import choose, options
from itnet.rule.rates import built_in, current
from itnet.transform import IntegralTransform, apply


class Spectral(Rule):
    "The eigenvalues of a circulant matrix: a kernel of the lag on a ring, with one division of spectra."
    name, remedy = "circulant", "close the line to a ring"
    ways = {"circulant": Way("one product of spectra", 1e15)}            # promises to be the fastest

    def missing(self, kernel, measure, at=None, mixing=None):
        s = kernel.structure
        return super().missing(kernel, measure, at, mixing) or lacking(
            ("a function of the lag", s.stationary), ("a ring", measure.ndim == 1 and measure.periodic == (True,)))

    def cost(self, kernel, measure, channels):
        return Cost("circulant", kernel.heads * measure.n * channels, 0., 0.)

    def describe(self, cost, kernel, measure, rows):
        return f"{super().describe(cost, kernel, measure, rows)} of {measure.n} points"

    def integrate(self, kernel, measure, u, v, at=None, u_at=None):
        column = kernel.matrix(measure, u)[..., :1]                     # K(i, 0)
        x = v if measure.weight is None else v * measure.weight.flatten(1)[:, None, :, None]
        return torch.fft.irfft(torch.fft.rfft(column, dim=2) * torch.fft.rfft(x, dim=2), measure.n, 2)


@pytest.fixture
def circulant():
    yield register_rule(Spectral())
    del RULES["circulant"]


LINE, RING = Measure.sequence(13), Measure.sequence(13, periodic=True)


def test_a_new_rule_is_planned_explained_and_run(circulant):
    torch.manual_seed(0)
    kernel, v = Implicit(2, 9.).double(), torch.randn(3, 2, 13, 4, dtype=torch.float64)
    assert "circulant" in possible(kernel, RING) and "circulant" not in possible(kernel, LINE)
    assert choose(kernel, RING, 4) == "circulant" == options(kernel, RING, 4)[0].rule
    assert choose(kernel, LINE, 4) != "circulant"
    text = explain(kernel, RING, 4)
    assert "→ circulant" in text and "one product of spectra of 13 points" in text
    assert "circulant   no: needs a ring" in explain(kernel, LINE, 4)
    assert built_in().rates["circulant"].rate == 1e15 == current().rates["circulant"].rate
    for rule in ("circulant", "auto"):
        got, want = apply(kernel, RING, None, v, rule), kernel.matrix(RING) @ v
        assert (got - want).norm() < 1e-13 * want.norm() and (got.roll(1, 2) - want).norm() > .1 * want.norm()
    layer = IntegralTransform(8, Taps(2, 5), rule="circulant")
    assert layer(torch.randn(1, 13, 8), RING).shape == (1, 13, 8)


def test_a_new_rule_is_refused_with_its_reason(circulant):
    u, v = torch.randn(1, 13, 8), torch.randn(1, 2, 13, 4)
    for kernel, measure, why in ((Implicit(2, 9.), LINE, "a ring"), (Softmax(8, 2), RING, "a function of the lag"),
                                 (Implicit(2, 9., dims=2), RING, "positions of 2 coordinates")):
        with pytest.raises(ValueError, match=f"'circulant' needs {why}.*close the line to a ring"):
            apply(kernel, measure, u, v, "circulant")
    with pytest.raises(ValueError, match="unknown rule 'circular'.*'circulant'"): apply(Implicit(2, 9.), RING, u, v, "circular")


def test_nothing_is_left_of_it():
    assert "circulant" not in RULES and "circulant" not in current().rates
    with pytest.raises(ValueError, match="unknown rule 'circulant'"): apply(Implicit(2, 9.), RING, None, torch.randn(1, 2, 13, 4), "circulant")


def test_rules_that_do_not_say_everything():
    class Silent(Rule): name = "silent"
    rule, kernel = Silent(), Separable(8, 2)
    with pytest.raises(NotImplementedError, match="'silent' does not say what it costs"): rule.cost(kernel, LINE, 4)
    with pytest.raises(NotImplementedError, match="'silent' does not integrate"): rule(kernel, LINE, None, torch.randn(1, 2, 13, 4))
