"""Five hundred kernels composed at random, each on a measure at random, by every rule; ten thousand are in results/."""
import pytest
import torch

from itnet.experiments.sweep import RandomCase, judge

SOME = 25                                                 # cases of one test


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Everything is small."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("first", range(10**6, 10**6 + 500, SOME))
def test_what_is_called_valid_is_right_and_what_is_refused_says_why(first):
    wrong = [f"{case}: {rule} {verdict}" for case in map(RandomCase.drawn, range(first, first + SOME))
             for rule, verdict, _ in judge(case) if verdict not in ("right", "refused")]
    assert not wrong, "\n".join(wrong)


def test_the_draw_reaches_everything():
    "All compositions, all leaves, all kinds of measure, half precision, what is missing, and every rule where it is valid."
    kernels, places, right, stored = set(), set(), set(), set()
    for seed in range(10**6, 10**6 + 500):
        case = RandomCase.drawn(seed)
        kernels |= {type(k).__name__ for k in case.kernel.modules()}
        places.add(case.where)
        stored.add((case.dtype, str(case.filling)))
        if seed < 10**6 + 120: right |= {rule for rule, verdict, _ in judge(case) if verdict == "right"}
    assert {"Product", "Sum", "Restricted", "Normalised", "SpectralNormalised", "Taps", "Correlation", "Implicit", "Exponentials",
            "Separable", "ExpDot", "Selective", "Pairwise", "OnlyMatrix"} <= kernels
    assert len(places) == 13 and len(stored) == 8 and right == {"attend", "dense", "direct", "fft", "scan", "monte_carlo", "auto"}
