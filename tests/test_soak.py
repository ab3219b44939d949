"The soak finds what leaks: planted in this process, measured as `make soak` measures it."
import importlib.util
import sys
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("tools_soak", Path(__file__).resolve().parent.parent / "tools" / "soak.py")
tool = importlib.util.module_from_spec(spec)
sys.modules["tools_soak"] = tool
spec.loader.exec_module(tool)
SECONDS = 0.6


def paused(work):
    "Work that takes a while, so that there are some dozens of samples."
    def slowly(number):
        work(number)
        tool.time.sleep(0.01)
    return slowly


@pytest.fixture
def quick(monkeypatch):
    "Samples in milliseconds: to look through all objects of a process that has run other tests takes a hundred times as long."
    monkeypatch.setattr(tool, "give_back", lambda: None)


def test_what_is_free_is_not_counted():
    before = tool.measured(0).memory
    kept = [bytearray(1000) for _ in range(100_000)]
    assert tool.measured(0).memory - before > 80 * 10**6
    del kept
    assert tool.measured(0).memory - before < 20 * 10**6


def test_nothing_leaks(quick):
    assert tool.faults(tool.soaked(paused(lambda number: bytearray(10**6)), SECONDS)) == []


def test_memory_that_is_kept_is_found(quick):
    kept = []
    share = tool.measured(0).memory // 200                           # half a percent of what there is, in each run
    samples = tool.soaked(paused(lambda number: kept.append(b"x" * share)), SECONDS)
    assert any("memory has grown by " in fault and "more than 3%" in fault for fault in tool.faults(samples))
    assert tool.growth(samples)[0] > 0.05


def test_a_file_that_stays_open_is_found(tmp_path, quick):
    kept = []
    try: samples = tool.soaked(paused(lambda number: kept.append((tmp_path / str(number)).open("w"))), SECONDS)
    finally:
        for f in kept: f.close()
    assert any("more files are open" in fault for fault in tool.faults(samples)) and tool.growth(samples)[1] > 10


@pytest.mark.parametrize("grown, found", [(0.0, False), (0.02, False), (0.04, True)])
def test_the_bound_is_three_percent_of_all_the_time_after_the_warm_up(grown, found):
    samples = [tool.Sample(t, round(10**9 * (1 + (0.5 if t < 25 else 0) + grown * (t - 25) / 75)), 9) for t in range(1, 101)]       # the warm-up takes more
    assert tool.growth(samples)[0] == pytest.approx(grown, abs=1e-3) and bool(tool.faults(samples)) == found


def test_too_few_runs_say_nothing():
    with pytest.raises(ValueError, match="are too few: give more minutes"): tool.growth([tool.Sample(t, 1, 1) for t in range(1, 9)])
