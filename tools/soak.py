"""Train for a while in one process and see whether memory or open files grow: `make soak`, `make soak ARGS=5` for 5 minutes.

Runs of four small recipes follow one another: each is trained, interrupted by its own evaluations, resumed to more
steps, evaluated from its checkpoint and read back as a model, with worker processes now and then. Once a quarter of the
time is over, everything has been loaded that will be; from there on, the median of the memory of the process has to
stay within 3 % and the number of its open files may not grow.
"""
import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import psutil

from itnet.bench.memory import give_back

MOST = 0.03                                            # growth of memory after the warm-up
WARM = 0.25                                            # share of the time


@dataclass(frozen=True)
class Sample:
    "What a process holds at one moment."
    seconds: float
    memory: int                                        # bytes
    handles: int                                       # open files, sockets, pipes


def measured(begun: float) -> Sample:
    "This process, now."
    give_back()                                        # what is free cannot leak
    me = psutil.Process()
    with me.oneshot(): return Sample(time.monotonic() - begun, me.memory_info().rss, me.num_fds() if hasattr(me, "num_fds") else me.num_handles())


def soaked(work: Callable[[int], None], seconds: float, say: Callable[[str], None] = lambda text: None) -> list[Sample]:
    "Do `work(0)`, `work(1)`, … until the time is over, and look at the process after each."
    begun, samples = time.monotonic(), []
    while not samples or samples[-1].seconds < seconds:
        work(len(samples))
        samples.append(measured(begun))
        s = samples[-1]
        say(f"{len(samples):4} runs  {s.seconds / 60:5.1f} min  {s.memory / 2**20:7.1f} MB  {s.handles:3} open files")
    return samples


def halves(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    "The samples after the warm-up, the earlier and the later half of them. ValueError where there are too few to tell."
    end = samples[-1].seconds
    later = [s for s in samples if s.seconds > WARM * end]
    if len(later) < 8: raise ValueError(f"{len(later)} runs after the warm-up are too few: give more minutes")
    return later[:len(later) // 2], later[len(later) // 2:]


def growth(samples: list[Sample]) -> tuple[float, int]:
    """Memory and open files after the warm-up: by which share, and by how many, the medians have grown.

    Between the medians of two halves lies half the time, so what grows steadily has grown by twice their difference.
    """
    first, last = halves(samples)
    memory, handles = ([median(getattr(s, of) for s in part) for part in (first, last)] for of in ("memory", "handles"))
    return 2 * (memory[1] - memory[0]) / memory[0], round(2 * (handles[1] - handles[0]))


def faults(samples: list[Sample]) -> list[str]:
    "What has grown that may not."
    memory, handles = growth(samples)
    found = [f"memory has grown by {memory:.1%} after the warm-up, more than {MOST:.0%}"] if memory >= MOST else []
    return found + ([f"{handles} more files are open than after the warm-up"] if handles > 0 else [])


def training(folder: Path) -> Callable[[int], None]:
    "A run, and all that is done with one, of a recipe that changes from call to call."
    from itnet.data.images import Digits
    from itnet.data.text import SourceText
    from itnet.nets.presets import ITNetConfig, LSTMConfig, ResNetConfig
    from itnet.training.config import Recipe
    from itnet.training.recipe import evaluate, fit, load_model
    small, text = ITNetConfig(dim=16, depth=1, heads=2, hidden=32), SourceText(context=64, batch_size=8, eval_bytes=2048)
    recipes = [Recipe("digits/itnet", Digits(), small), Recipe("digits/resnet", Digits(), ResNetConfig(8, (1, 1))),
               Recipe("text/itnet", text, small), Recipe("text/lstm", text, LSTMConfig(dim=16, depth=1))]
    def work(number: int) -> None:
        recipe = recipes[number % len(recipes)]
        train = replace(recipe.train, steps=24, eval_every=12, threads=1, device="cpu", seed=number % 2**32, workers=int(number % 5 == 4))
        recipe = replace(recipe, optim=replace(recipe.optim, warmup=4), train=train)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            where = dict(out=Path(place) / "runs", results=Path(place) / "results", quiet=True)
            record = fit(recipe, **where)
            run = where["out"] / record.path.stem
            longer = replace(recipe, train=replace(train, steps=36))
            if fit(longer, resume=run, **where).steps != 36: raise RuntimeError("the run did not go on")
            if evaluate(run, "validation", threads=1) != record.validation: raise RuntimeError("the weights are not those of the record")
            load_model(run)
    return work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float, nargs="?", default=20.0, help="how long")
    args = parser.parse_args()
    if not 0 < args.minutes < 10_000: parser.error(f"{args.minutes} minutes: give more than 0")
    with tempfile.TemporaryDirectory() as folder:
        samples = soaked(training(Path(folder)), 60 * args.minutes, lambda text: print(text, flush=True))
    try: memory, handles = growth(samples)
    except ValueError as error: parser.error(str(error))
    found = faults(samples)
    print(f"after the warm-up: memory {memory:+.2%}, open files {handles:+}: {'; '.join(found) or 'nothing leaks'}")
    return int(bool(found))


if __name__ == "__main__": sys.exit(main())
