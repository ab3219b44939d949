"The quick suite and the slow one: `NB_FLAGS=slow pytest tests` tries every case, as `NB_FLAGS=slow pytest nbs` runs every cell."
import os

SLOW_TESTS = "slow" in os.environ.get("NB_FLAGS", "").split()


def cases(quick, slow):
    "Parameters of a test: some that every run tries, and those that are left for the slow suite."
    return [*quick, *(slow if SLOW_TESTS else ())]
