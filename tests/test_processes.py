"Several processes that share each batch, by gloo: the numbers of one, whatever their number; workers; parts of a batch."
import csv
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
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
from itnet.training.optim import Optim
from itnet.training.recipe import Recipe, Train, fit
import toy_itnet
from test_runs import FORK, RECIPE, SLOW, SLOW_TESTS, ended, one_thread, only, when


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


def member(rank, told, recipe, folder, resume=None):
    "One of several processes."
    enter(rank, told)
    run(recipe, folder, resume)


def start(recipe, folder, world, resume=None, by=torchrun):
    port = free_port()
    processes = [FORK.Process(target=member, args=(rank, by(rank, world, port), recipe, folder, resume)) for rank in range(world)]
    for p in processes: p.start()
    return processes


def run(recipe, folder, resume=None): return fit(recipe, out=folder / "runs", results=folder / "results", quiet=True, resume=resume)


def outcome(recipe, folder, world=1, resume=None, by=torchrun, **terms):
    "Record and weights of a run on that many processes, each on one thread."
    recipe = replace(recipe, train=replace(recipe.train, devices=world, **terms))
    if world == 1: run(recipe, folder, resume)
    else: assert [ended(p, 120) for p in start(recipe, folder, world, resume, by)] == [0] * world
    record, = read_records(folder / "results")
    saved, = (folder / "runs").glob("*/last.ckpt")
    return record, read_checkpoint(saved)["state_dict"]


def assert_same(a, b, bound=1e-5):
    "Losses, evaluations and results of two runs, up to the order of additions."
    (a, v), (b, w) = a, b
    assert [s for s, _ in a.train_loss] == [s for s, _ in b.train_loss]
    for (_, x), (_, y) in zip(a.train_loss, b.train_loss): assert abs(x - y) <= bound * abs(y), (x, y)
    assert (a.samples, a.tokens, a.steps, a.selection) == (b.samples, b.tokens, b.steps, b.selection)
    for x, y in zip([*a.curve, a.test, a.validation], [*b.curve, b.test, b.validation]):
        for k in x.keys() - {"seconds"}: assert x[k] == pytest.approx(y[k], rel=10 * bound), k
    for k in w: assert (v[k] - w[k]).norm() <= 1000 * bound * w[k].norm() + 1e-6, k    # Adam divides small gradients by themselves


TRAIN = Train(steps=30, eval_every=15, threads=1, device="cpu")
FAST = Optim(lr=0.01, kappa_lr=0.01, warmup=3)


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
        return {"train": split(50), "validation": split(29), "test": split(13)}
    def checksums(self): return {k: "holes" for k in ("train", "validation", "test")}


RECIPES = {
    "image": Recipe("image/itnet", Digits(batch_size=24), ITNetConfig(dim=8, depth=1, heads=2, extent=4, window=0, short=3, hidden=8), FAST, TRAIN),
    "text": Recipe("text/lstm", Holes(), LSTMConfig(dim=8, depth=1), FAST, TRAIN),
    "sequence": Recipe("lists/itnet", ListOps(batch_size=24, min_length=6, max_length=40, train=240, validation=29, test=13),
                       ITNetConfig(dim=8, depth=1, heads=2, extent=8, window=0, hidden=8), FAST, TRAIN)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "Each recipe on one process, when it is first asked for."
    known = {}
    def of(name):
        if name not in known: known[name] = outcome(RECIPES[name], tmp_path_factory.mktemp(name))
        return known[name]
    return of


@pytest.mark.parametrize("name, world, accumulate", [
    ("image", 2, 1), ("image", 1, 3), ("text", 2, 1), ("text", 1, 4), ("text", 2, 3), ("text", 4, 1), ("sequence", 2, 1), ("sequence", 2, 2)])
def test_the_numbers_are_those_of_one_process(tmp_path, alone, name, world, accumulate):
    found = outcome(RECIPES[name], tmp_path, world, by=srun if name == "image" else torchrun, accumulate=accumulate)
    assert_same(found, alone(name))
    assert found[0].processes == world and found[0].config_hash == alone(name)[0].config_hash


def test_the_comparison_can_fail(tmp_path, alone):
    with pytest.raises(AssertionError): assert_same(outcome(replace(RECIPES["text"], optim=Optim(lr=0.0101, kappa_lr=0.01, warmup=3)), tmp_path), alone("text"))


def test_begun_by_two_it_goes_on_by_one_and_by_four(tmp_path, alone):
    "Killed in the middle, all of them."
    recipe = replace(RECIPES["text"], train=replace(TRAIN, devices=2))
    processes = start(recipe, tmp_path, 2)
    when(lambda: list(tmp_path.rglob("last.ckpt")), 60)
    for p in processes: p.kill()
    for p in processes: ended(p)
    step = read_checkpoint(next((tmp_path / "runs").glob("*/last.ckpt")))["global_step"]
    assert step in (15, 30)
    (tmp_path / "runs").rename(tmp_path / "begun")
    for world in (1, 4):
        source, = (tmp_path / "begun").glob("*")
        assert_same(outcome(RECIPES["text"], tmp_path / str(world), world, resume=source), alone("text"))


def commanded(rank, world, port, folder, said):
    "`itnet train` as one of several processes."
    enter(rank, torchrun(rank, world, port))
    out = said.open("a", buffering=1)
    for number in (1, 2): os.dup2(out.fileno(), number)
    sys.stdout = sys.stderr = out
    words = f"train sums/mlp --train.steps 24 --train.eval_every 8 --train.devices {world} --data.pause 0.05 --quiet"
    os._exit(toy_itnet.itnet.cli.main([*words.split(), "--out", str(folder / "runs"), "--results", str(folder / "results")]))


LOST = [(2, 0), (2, 1), (4, 2)] if SLOW_TESTS else [(2, 1)]


@pytest.mark.parametrize("world, lost", LOST)
def test_a_process_that_is_killed_is_named_once(tmp_path, world, lost):
    "The others end, and the run goes on from its checkpoint, with one process less if need be."
    port, said = free_port(), tmp_path / "said"
    processes = [FORK.Process(target=commanded, args=(rank, world, port, tmp_path, said)) for rank in range(world)]
    for p in processes: p.start()
    when(lambda: list(tmp_path.rglob("best.ckpt")), 90)
    processes[lost].kill()
    assert [ended(p, 60) for p in processes] == [-9 if rank == lost else 1 for rank in range(world)]
    lines = [line for line in said.read_text().splitlines() if line.startswith("itnet: ")]
    assert len(lines) == 1 and f"process {lost} of {world} (number {processes[lost].pid} on " in lines[0], said.read_text()
    assert f"has ended: go on from the last checkpoint with --resume {only(tmp_path / 'runs')}" in lines[0] and "Traceback" not in said.read_text()
    recipe = replace(RECIPE, data=toy_itnet.Sums(pause=0.05))
    record = run(recipe, tmp_path, only(tmp_path / "runs"))
    assert record.status == "finished" and record.steps == 24 and record.resumed[-1] >= 8
    assert [int(r["step"]) for r in csv.DictReader((only(tmp_path / "runs") / "metrics.csv").open()) if r["train/loss"]] == [1, 10, 20]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(tmp_path, alone, workers):
    (a, v), (b, w) = outcome(RECIPES["image"], tmp_path, workers=workers), alone("image")
    assert a.train_loss == b.train_loss and a.test == b.test and all(torch.equal(v[k], w[k]) for k in w)


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
