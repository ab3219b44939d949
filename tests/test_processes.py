"Several processes that share each batch, by gloo: the numbers of one, whatever their number and what each keeps; workers; parts of a batch."
import csv
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
import torch

from itnet.data.images import Digits
from itnet.data.lra import ListOps
from itnet.data.source import Indexed, Data
from itnet.data.spec import Spec, perplexity
from itnet.nets.presets import ITNetConfig, LSTMConfig
from itnet.training.checkpoint import read_checkpoint
from itnet.training.ledger import read_records
from itnet.training.logs import read_rows
from itnet.training.optim import Optim
from itnet.training.recipe import Recipe, Train, fit
import toy_itnet
from suite import SLOW_TESTS, cases
from test_runs import FORK, RECIPE, SLOW, ended, one_thread, only, when


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def torchrun(rank, world, port):
    "What torchrun tells a process."
    return dict(RANK=rank, LOCAL_RANK=rank, GROUP_RANK=0, WORLD_SIZE=world, LOCAL_WORLD_SIZE=world, MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port, TORCHELASTIC_RUN_ID=1)


def srun(rank, world, port):
    "What srun tells a process, on one machine."
    return dict(SLURM_JOB_ID=1, SLURM_JOB_NAME="train", SLURM_NTASKS=world, SLURM_NTASKS_PER_NODE=world, SLURM_NNODES=1, SLURM_NODELIST="127.0.0.1",
                SLURM_NODEID=0, SLURM_PROCID=rank, SLURM_LOCALID=rank, MASTER_PORT=port)


def enter(rank, told):
    "Become one of several processes."
    os.environ.update({k: str(v) for k, v in told.items()})
    from lightning.pytorch.utilities import rank_zero_only
    rank_zero_only.rank = rank                                    # read from the environment at import, before the fork


def member(rank, told, jobs):
    "One of several processes; each job is a recipe, its folder and perhaps a checkpoint."
    enter(rank, told)
    for job in jobs: run(*job)


def start(world, *jobs, by=torchrun):
    port = free_port()
    processes = [FORK.Process(target=member, args=(rank, by(rank, world, port), jobs)) for rank in range(world)]
    for p in processes: p.start()
    return processes


def run(recipe, folder, resume=None): return fit(recipe, out=folder / "runs", results=folder / "results", quiet=True, resume=resume)


def on(recipe, world, **terms): return replace(recipe, train=replace(recipe.train, devices=world, **terms))


def outcome(recipe, folder, world=1, resume=None, **terms):
    "Record, weights and the log of the gradient of a run on that many processes, each on one thread."
    job = on(recipe, world, **terms), folder, resume
    if world == 1: run(*job)
    else: assert [ended(p, 120) for p in start(world, job)] == [0] * world
    return reached(folder)


def reached(folder):
    "Record, weights, and what the log says of the gradient: its norm, that of each group, and its noise."
    record, = read_records(folder / "results")
    saved, = (folder / "runs").glob("*/last.ckpt")
    checkpoint = read_checkpoint(saved)
    rows = [r for r in read_rows(saved.with_name("metrics.csv"), checkpoint["rows"]) if r.get("train/grad_norm")]
    said = {name: [float(r[name]) for r in rows if r[name]] for name in rows[0] if name.startswith(("train/grad_norm", "train/noise"))}
    return record, checkpoint["state_dict"], said


def assert_same(a, b, bound=1e-5):
    "Losses, evaluations and results of two runs, up to the order of additions."
    (a, v, m), (b, w, n) = a, b
    assert [s for s, _ in a.train_loss] == [s for s, _ in b.train_loss]
    for (_, x), (_, y) in zip(a.train_loss, b.train_loss): assert abs(x - y) <= bound * abs(y), (x, y)
    assert m.keys() == n.keys() and len(m["train/grad_norm"]) == 4 and len(m) >= 3   # before clipping, at steps 1, 10, 20, 30
    for k in m: assert m[k] == pytest.approx(n[k], rel=100 * bound), k
    assert (a.samples, a.tokens, a.steps, a.selection) == (b.samples, b.tokens, b.steps, b.selection)
    for x, y in zip([*a.curve, a.test, a.validation], [*b.curve, b.test, b.validation]):
        for k in x.keys() - {"seconds"}: assert x[k] == pytest.approx(y[k], rel=10 * bound), k
    for k in w: assert (v[k] - w[k]).norm() <= 1000 * bound * w[k].norm() + 1e-6, k    # Adam divides small gradients by themselves


TRAIN = Train(steps=30, eval_every=15, threads=1, device="cpu")
FAST = Optim(lr=0.01, kappa_lr=0.01, warmup=3, clip=0.1)


@dataclass(frozen=True)
class Holes(Data):
    "Text of which some tokens do not count, not equally many in each line; the last batches are incomplete."
    batch_size: int = 12
    @property
    def spec(self): return Spec("language", 7, 7, (9,), perplexity())
    def splits(self):
        g = torch.Generator().manual_seed(0)
        def split(n):
            x = torch.randint(0, 7, (n, 10), generator=g).cumsum(1) % 7
            target = x[:, 1:].clone()
            target[torch.rand(n, 9, generator=g) < torch.rand(n, 1, generator=g)] = -100
            return [{"x": a, "target": b} for a, b in zip(x[:, :-1], target)]
        return {"train": split(50), "validation": split(25), "test": split(17)}    # of two processes, one has nothing left of validation
    def checksums(self): return {k: "holes" for k in ("train", "validation", "test")}


RECIPES = {
    "image": Recipe("image/itnet", Digits(batch_size=24), ITNetConfig(dim=8, depth=1, heads=2, extent=4, window=0, short=3, hidden=8), FAST, TRAIN),
    "text": Recipe("text/lstm", Holes(), LSTMConfig(dim=8, depth=1), FAST, TRAIN),
    "sequence": Recipe("lists/itnet", ListOps(batch_size=24, min_length=6, max_length=40, train=240, validation=25, test=13),
                       ITNetConfig(dim=8, depth=1, heads=2, extent=8, window=0, hidden=8), FAST, TRAIN)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "Each recipe on one process, when it is first asked for."
    known = {}
    def of(name):
        if name not in known: known[name] = outcome(RECIPES[name], tmp_path_factory.mktemp(name))
        return known[name]
    return of


SHARED = [("image", 2, "ddp", 1), ("text", 2, "ddp", 3), ("image", 2, "fsdp", 3), ("sequence", 2, "fsdp", 1)]       # and text with fsdp below
if SLOW_TESTS: SHARED = [*product(RECIPES, (2, 4), ("ddp", "fsdp"), (1, 3))]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    "Every case of a number of processes, one after the other in the same processes; what came of one of them."
    folders = {}
    def of(*case):
        world = case[1]
        if case not in folders:
            new = {c: tmp_path_factory.mktemp("-".join(map(str, c))) for c in SHARED if c[1] == world}
            processes = start(world, *((on(RECIPES[name], world, strategy=strategy, accumulate=parts), folder, None)
                                       for (name, _, strategy, parts), folder in new.items()), by=srun)
            assert [ended(p, 150 * world) for p in processes] == [0] * world
            folders.update(new)
        return reached(folders[case])
    return of


@pytest.mark.parametrize("case", SHARED)
def test_the_numbers_are_those_of_one_process(shared, alone, case):
    found, (name, world, strategy, parts) = shared(*case), case
    assert_same(found, alone(name))
    assert found[0].processes == world and found[0].config_hash == alone(name)[0].config_hash


@pytest.mark.parametrize("name, parts", [("image", 3), ("text", 4)])
def test_parts_of_a_batch_are_the_batch(tmp_path, alone, name, parts):
    assert_same(outcome(RECIPES[name], tmp_path, accumulate=parts), alone(name))


def test_the_comparison_can_fail(tmp_path, alone):
    with pytest.raises(AssertionError): assert_same(outcome(replace(RECIPES["text"], optim=replace(FAST, lr=0.0101)), tmp_path), alone("text"))


@pytest.mark.parametrize("begun, goes_on", cases([("fsdp", "fsdp")], [("ddp", "fsdp"), ("fsdp", "ddp"), ("ddp", "ddp")]))
def test_begun_by_two_it_goes_on_by_one_and_by_four(tmp_path, alone, begun, goes_on):
    "Killed in the middle, all of them."
    processes = start(2, (on(RECIPES["text"], 2, strategy=begun), tmp_path, None))
    when(lambda: list(tmp_path.rglob("last.ckpt")), 60)
    for p in processes: p.kill()
    for p in processes: ended(p)
    step = read_checkpoint(next((tmp_path / "runs").glob("*/last.ckpt")))["global_step"]
    assert step in (15, 30)
    (tmp_path / "runs").rename(tmp_path / "begun")
    for world, strategy in ((1, "auto"), (4, goes_on)):
        source, = (tmp_path / "begun").glob("*")
        assert_same(outcome(RECIPES["text"], tmp_path / str(world), world, resume=source, strategy=strategy), alone("text"))


@pytest.mark.parametrize("terms", [dict(workers=1), dict(workers=2), dict(recompute=True)])
def test_what_prepares_batches_and_what_is_computed_twice_changes_nothing(tmp_path, alone, terms):
    (a, v, m), (b, w, n) = outcome(RECIPES["image"], tmp_path, **terms), alone("image")
    assert a.train_loss == b.train_loss and m == n and a.test == b.test and all(torch.equal(v[k], w[k]) for k in w)
    assert a.config_hash == b.config_hash


@pytest.mark.skipif(not SLOW_TESTS, reason="needs a minute: NB_FLAGS=slow runs it")
@pytest.mark.parametrize("terms", [dict(compile=True), dict(compile=True, recompute=True)])
def test_compiled_the_numbers_are_the_same_up_to_rounding(tmp_path, alone, terms):
    assert_same(outcome(RECIPES["image"], tmp_path, **terms), alone("image"))


def test_what_is_no_graph_ends_the_run_with_the_reason(tmp_path):
    recipe = replace(RECIPES["sequence"], model=LSTMConfig(dim=8, depth=1), train=replace(TRAIN, compile=True))
    with pytest.raises(ValueError, match="train.compile: this network cannot be compiled .*: train it without"): run(recipe, tmp_path)


@dataclass(frozen=True)
class Deadly(Digits):
    "A worker is killed, as by a machine that is out of memory"
    batch_size: int = 24
    def collate(self, items):
        if torch.utils.data.get_worker_info(): os.kill(os.getpid(), 9)
        return super().collate(items)


def test_a_worker_that_dies_is_one_line(tmp_path):
    recipe = replace(RECIPES["image"], data=Deadly(), train=replace(TRAIN, workers=1))
    with pytest.raises(ChildProcessError, match="DataLoader worker.*go on with --resume"): run(recipe, tmp_path)


def test_other_numbers_of_processes_than_the_recipe_says(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2 -m itnet train"): run(replace(RECIPE, train=replace(RECIPE.train, devices=2)), tmp_path)
    for name, value in dict(RANK=0, LOCAL_RANK=0, GROUP_RANK=0, WORLD_SIZE=2, TORCHELASTIC_RUN_ID=1).items(): monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match="are 1 processes, and 2 were started"): run(RECIPE, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="data.batch_size=32 cannot be taken in 3 pieces"): replace(RECIPE, train=replace(RECIPE.train, accumulate=3))
