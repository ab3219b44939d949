"What can happen to a run, with real processes: killed, stopped, two at once, a full disk, other data, numbers that are none."
import csv
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import toy_itnet
from suite import SLOW_TESTS, cases
from itnet.training.checkpoint import read_checkpoint, write_checkpoint
from itnet.training.ledger import read_records
from itnet.training.recipe import Interrupted, Recipe, evaluate, fit, load_model
from itnet.training.runs import run_all

FORK = multiprocessing.get_context("fork")
RECIPE = Recipe("sums/mlp", toy_itnet.Sums(), toy_itnet.MLP(), toy_itnet.Optim(lr=0.05, warmup=2),
                toy_itnet.Train(steps=24, eval_every=8, threads=1, device="cpu"))


@pytest.fixture(autouse=True)
def one_thread():
    "Children of `fork` must not wait for threads that they do not have."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def child(work, *args):
    "A process that runs `work`; started."
    process = FORK.Process(target=work, args=args)
    process.start()
    return process


def ended(process, seconds=60):
    "The exit code of a process: minus the signal that killed it."
    process.join(seconds)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def only(folder):
    "The one run in a folder."
    found, = Path(folder).glob("sums-*-s0-*/")
    return found


def run(folder, recipe=RECIPE, **more):
    return fit(recipe, out=folder / "runs", results=folder / "results", quiet=True, **more)


def outcome(folder, record):
    "What must be equal, however often a run was killed."
    plain = lambda curve: [{k: v for k, v in e.items() if k != "seconds"} for e in curve]
    weights = {k: v.tolist() for k, v in read_checkpoint(only(folder / "runs") / "last.ckpt")["state_dict"].items()}
    rows = list(csv.DictReader((only(folder / "runs") / "metrics.csv").open()))
    return plain(record.curve), record.train_loss, record.test, record.selection, record.samples, weights, rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The run that nothing happens to."
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    return outcome(folder, run(folder))


@dataclass(frozen=True)
class Slow(toy_itnet.Sums):
    "A batch takes a while"
    pause: float = 0.03


SLOW = replace(RECIPE, data=Slow())



# --- killed

def doomed(folder, at, after):
    "Train until the `at`-th call of one of the functions that change files, and be killed before it, or after it."
    calls = 0
    def deadly(real):
        def call(*args, **kw):
            nonlocal calls
            calls += 1
            here = calls == at
            if here and not after: os.kill(os.getpid(), signal.SIGKILL)
            done = real(*args, **kw)
            if here: os.kill(os.getpid(), signal.SIGKILL)
            return done
        return call
    for owner, name in WATCHED: setattr(owner, name, deadly(getattr(owner, name)))
    run(folder)


STEPS_OF_WRITING = 40                                                  # calls that change files in a run, at least
POINTS = range(1, STEPS_OF_WRITING) if SLOW_TESTS else (9, 12, 13, 15, 24, 25, 36)
WATCHED = ((os, "fsync"), (os, "link"), (Path, "replace"), (torch, "save"))


@pytest.mark.parametrize("at", POINTS)
@pytest.mark.parametrize("after", [False, True])
def test_killed_anywhere_it_goes_on_as_if_nothing_had_been(tmp_path, whole, at, after):
    "Weights, losses, selection, the result on the test split and the rows of the log, all bit for bit."
    assert ended(child(doomed, tmp_path, at, after)) == -signal.SIGKILL, "the run ended before: fewer calls than that"
    there = (only(tmp_path / "runs") / "last.ckpt").exists()
    record = run(tmp_path, resume=only(tmp_path / "runs") if there else None)
    assert outcome(tmp_path, record) == whole and record.status == "finished"
    assert [r.status for r in read_records(tmp_path / "results")] == ["finished"]
    assert not list(tmp_path.rglob("*.part"))


def there(folder):
    "What a run can go on from."
    return only(folder / "runs") if list(folder.rglob("last.ckpt")) else None


KILLS = 20 if SLOW_TESTS else 3


@pytest.mark.parametrize("at", range(KILLS))
def test_killed_at_a_random_moment(tmp_path, whole, at):
    "In the first part of the run, while it writes, or at its end; once it has finished, it is done again."
    pause = random.Random(at).uniform(0.1, 0.6)
    process = child(run, tmp_path)
    time.sleep(pause)
    process.kill()
    ended(process)
    assert outcome(tmp_path, run(tmp_path, resume=there(tmp_path))) == whole


def test_killed_again_and_again(tmp_path, whole):
    "The same run, which goes on each time and is killed anew."
    draw, recipe, steps = random.Random(0), replace(RECIPE, data=Slow(pause=0.01)), []
    for _ in range(KILLS):
        process = child(lambda resume: run(tmp_path, recipe, resume=resume), there(tmp_path))
        time.sleep(draw.uniform(0.1, 0.7))
        process.kill()
        ended(process)
        steps.append(read_checkpoint(there(tmp_path) / "last.ckpt")["global_step"] if there(tmp_path) else 0)
    assert steps == sorted(steps), "it went back"
    record = run(tmp_path, recipe, resume=there(tmp_path))
    assert outcome(tmp_path, record) == whole and record.steps == 24


def when(condition, seconds=30):
    "Wait until something is so."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)


@pytest.mark.parametrize("stop", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_leaves_checkpoint_and_record(tmp_path, stop):
    def work():
        with suppress(Interrupted): run(tmp_path, SLOW)
    process = child(work)
    when(lambda: list(tmp_path.rglob("best.ckpt")))
    os.kill(process.pid, stop)
    assert ended(process) == 0
    record, = read_records(tmp_path / "results")
    saved = read_checkpoint(only(tmp_path / "runs") / "last.ckpt")
    assert record.status == "interrupted" and saved["global_step"] == record.steps >= 8
    assert run(tmp_path, SLOW, resume=only(tmp_path / "runs")).status == "finished"


# --- two at once

def test_a_second_run_into_the_same_folder_is_refused(tmp_path):
    process = child(run, tmp_path, SLOW)
    when(lambda: list(tmp_path.rglob("last.ckpt")))
    for resume in (None, only(tmp_path / "runs")):
        with pytest.raises(ValueError, match=rf"in use by process {process.pid} on .*give another --out"): run(tmp_path, SLOW, resume=resume)
    assert fit(SLOW, out=tmp_path / "other", results=None, quiet=True).test
    assert ended(process) == 0
    record, = read_records(tmp_path / "results")
    assert record.status == "finished" and evaluate(only(tmp_path / "runs")) == record.test


def test_weights_of_another_step_are_not_tested(tmp_path):
    "Somebody changes the folder while a run is at work in it."
    def swap(prediction, target):
        if not prediction.requires_grad and (found := list(tmp_path.rglob("best.ckpt"))):
            write_checkpoint({**read_checkpoint(found[0]), "global_step": 3}, found[0])
        return torch.nn.functional.cross_entropy(prediction, target)
    recipe = replace(RECIPE, train=replace(RECIPE.train, steps=20, eval_every=8))
    with pytest.MonkeyPatch.context() as patch:
        spec = replace(toy_itnet.Sums().spec, loss=swap)
        patch.setattr(toy_itnet.Sums, "spec", spec)
        last_is_worse = lambda self, metric: self.evals[0]
        patch.setattr("itnet.training.callbacks.Curve.best", last_is_worse)
        with pytest.raises(ValueError, match="best.ckpt is not of step 8 of this run"): run(tmp_path, recipe)


def test_the_selected_weights_are_tested(tmp_path, monkeypatch):
    "Those of the best evaluation, which is the first here, and not the last ones."
    monkeypatch.setattr("itnet.training.callbacks.Curve.best", lambda self, metric: self.evals[0])
    record = run(tmp_path)
    assert record.selection["step"] == 8 < record.steps
    best, last = (evaluate(only(tmp_path / "runs") / name, threads=1) for name in ("best.ckpt", "last.ckpt"))
    assert record.test == best and best["loss"] != last["loss"]


# --- going on

def test_a_best_of_another_step_ends_a_run_that_goes_on(tmp_path):
    "The best has been another step than the last one, and `best.ckpt` is of neither."
    run(tmp_path)
    last, best = (only(tmp_path / "runs") / name for name in ("last.ckpt", "best.ckpt"))
    saved = read_checkpoint(last)
    evaluations = saved["callbacks"]["Curve"]["evals"]
    for e in evaluations: e["accuracy"] = float(e["step"] == 8)
    write_checkpoint(saved, last)
    for step, says in ((16, "best.ckpt is of step 16"), (None, "best.ckpt is missing")):
        if step: write_checkpoint({**read_checkpoint(best), "global_step": step}, best)
        else: best.unlink()
        with pytest.raises(ValueError, match=f"step 8 has been best, and .*{says}"): run(tmp_path, resume=last)


def test_other_data_end_a_run_that_goes_on(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(toy_itnet.Sums, "checksums", lambda self: {"train": "some", "python": "3"})
    with pytest.raises(ValueError, match="trained on other data: split 'train' has the checksum none there and some here"):
        run(tmp_path, resume=only(tmp_path / "runs"))


def test_other_versions_are_said_and_recorded(tmp_path, monkeypatch, capsys):
    run(tmp_path)
    monkeypatch.setattr("itnet.training.ledger.package_version", lambda name: "9.9" if name == "torch" else "1")
    monkeypatch.setattr("platform.python_version", lambda: "3.99")
    more = replace(RECIPE, train=replace(RECIPE.train, steps=30))
    record = fit(more, out=tmp_path / "runs", results=tmp_path / "results", resume=only(tmp_path / "runs"))
    said = f"step 24: torch {torch.__version__} became 9.9"
    assert said in record.changed and said in capsys.readouterr().out
    assert any(line.startswith("step 24: python ") and line.endswith(" became 3.99") for line in record.changed)
    monkeypatch.undo()
    assert len(run(tmp_path, more, resume=tmp_path / "runs" / record.path.stem).changed) > len(record.changed)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_flipped_bit_is_found(tmp_path, name):
    run(tmp_path)
    file = only(tmp_path / "runs") / name
    content = bytearray(file.read_bytes())
    weights = next(iter(read_checkpoint(file)["state_dict"].values())).numpy().tobytes()
    content[content.find(weights) + 5] ^= 4
    file.unlink()                                                                # it may be both
    file.write_bytes(content)
    for use in (evaluate, load_model, lambda path: run(tmp_path, resume=path)):
        with pytest.raises(ValueError, match=rf"{name} is damaged: its content is not what was written"): use(file)


def test_weights_of_another_network_are_one_line(tmp_path):
    run(tmp_path)
    file = only(tmp_path / "runs") / "best.ckpt"
    saved = read_checkpoint(file)
    for wrong, says in (({"model.0.weight": torch.zeros(3, 2)}, r"\(3, 2\) in the checkpoint, \(8, 2\) in the network"), ({"model.9": torch.zeros(1)}, "model.9: not in the network")):
        write_checkpoint({**saved, "state_dict": saved["state_dict"] | wrong}, file)
        with pytest.raises(ValueError, match=says): load_model(file)
    for damage in ({"recipe": {}}, {"recipe": {**saved["recipe"], "train": 5}}, {"recipe": {**saved["recipe"], "model": None}}, {"callbacks": {}}):
        write_checkpoint({**saved, **damage}, file)
        with pytest.raises(ValueError): load_model(file)


def test_what_a_checkpoint_holds_reaches_no_terminal_and_is_no_traceback(tmp_path, capfd, monkeypatch):
    "Whoever wrote it, with a digest that is right: names and texts, and parts that cannot be restored."
    monkeypatch.chdir(tmp_path)
    made = run(tmp_path)
    saved, evil = read_checkpoint(only(tmp_path / "runs") / "best.ckpt"), "\x1b[2J[red]x|"
    write_checkpoint({**saved, "changed": [evil], "state_dict": saved["state_dict"]}, "changed.ckpt")
    write_checkpoint({**saved, "state_dict": saved["state_dict"] | {evil: torch.zeros(2)}}, "names.ckpt")
    record = json.loads(made.path.read_text())
    Path("record.json").write_text(json.dumps({**record, "versions": {evil: evil}}))
    same = f"{WORDS.removesuffix(' --quiet')} --resume changed.ckpt"
    for words in (f"{same} --out a", "train sums/mlp --init names.ckpt --out b", "reproduce record.json --quiet --out c"):
        assert toy_itnet.itnet.cli.main(words.split()) == 0
        out, err = capfd.readouterr()
        assert "\x1b" not in out + err and "\\x1b[2J" in out and not err
    for part in ("loops", "optimizer_states", "lr_schedulers", "rng"):
        for wrong in cases([5, {}], [[], [{"a": 1}]]):
            write_checkpoint({**saved, part: wrong}, "part.ckpt")
            code = toy_itnet.itnet.cli.main(f"{WORDS} --resume part.ckpt --out d".split())
            err = capfd.readouterr().err
            assert code == 0 or err.startswith("itnet: part.ckpt is no checkpoint of this run (") and err.count("\n") == 1, (part, wrong, err)
            if (part, wrong) == ("loops", 5): assert code == 1
    for wrong in ({"init": {}}, {"config": {**record["config"], "model": {**record["config"]["model"], "dropout": {}}}}):
        Path("record.json").write_text(json.dumps({**record, **wrong}))
        assert toy_itnet.itnet.cli.main("reproduce record.json --quiet --out c".split()) == 1 and capfd.readouterr().err.count("\n") == 1


# --- numbers that are none, disks that are full

@dataclass(frozen=True)
class Wild:
    "A network that answers with NaN once a number of training batches has come"
    after: int = 20
    def build_model(self, spec):
        class Model(torch.nn.Linear):
            seen = 0
            def forward(model, x):
                model.seen += model.training
                return super().forward(x) * (float("nan") if model.seen > self.after else 1.0)
        return Model(2, 2)


@pytest.mark.parametrize("after", [0, 2, 8, 15, 21])
def test_nan_ends_a_run_and_replaces_nothing(tmp_path, after):
    recipe = replace(RECIPE, model=Wild(after))
    with pytest.raises(FloatingPointError, match=f"the training loss is nan at step {after + 1}:"): run(tmp_path, recipe)
    assert not list((tmp_path / "results").iterdir())
    failed, = read_records(only(tmp_path / "runs"))
    assert failed.status == "failed" and failed.error.startswith("FloatingPointError: the training loss is nan")
    saved = list(tmp_path.rglob("*.ckpt"))
    assert len(saved) == (2 if after >= 8 else 0)
    for file in saved:
        found = read_checkpoint(file)
        assert found["global_step"] == after // 8 * 8 and all(v.isfinite().all() for v in found["state_dict"].values())


def test_a_test_that_is_no_number_fails(tmp_path, monkeypatch):
    "Of one batch of the test split, the last one that is looked at."
    batches = []
    def loss(p, t):
        if not p.requires_grad: batches.append(0)
        return torch.nn.functional.cross_entropy(p, t) * (float("nan") if len(batches) == 8 else 1)       # 3 evaluations and the test, of 2
    monkeypatch.setattr(toy_itnet.Sums, "spec", replace(toy_itnet.Sums().spec, loss=loss))
    with pytest.raises(FloatingPointError, match="the test loss is nan"): run(tmp_path)
    assert not list((tmp_path / "results").iterdir()) and read_records(only(tmp_path / "runs"))[0].status == "failed"


def test_a_full_disk_is_said(tmp_path, capfd):
    "No file may grow beyond what a record needs."
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
        toy_itnet.itnet.cli.main(["train", "sums/itnet", "--quiet", "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")])
        os._exit(7)
    assert ended(child(work)) == 7
    err = capfd.readouterr().err
    assert err.startswith("itnet: ") and "last.ckpt cannot be written (File too large): make room" in err and "Traceback" not in err
    assert read_records(only(tmp_path / "runs"))[0].status == "failed" and not list(tmp_path.rglob("*.part"))


def spoil_disk(folder): resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
def spoil_folder(folder): shutil.rmtree(only(folder / "runs"))
def spoil_memory(folder): torch.empty(2**55)
def spoil_worker(folder): os.kill(os.getpid(), signal.SIGKILL)
def spoil_rights(folder):
    os.chmod(only(folder / "runs"), 0o555)
    if os.geteuid() == 0: os.seteuid(65534)                            # whom rights are denied


FAULTS = {  # what happens, and what is said
    "disk": (spoil_disk, "last.ckpt cannot be written (File too large): make room, and go on from the last checkpoint with --resume"),
    "folder": (spoil_folder, "No such file or directory; make room there or bring it back, and start again"),
    "rights": (spoil_rights, "Permission denied; make room there or bring it back, and go on from the last checkpoint with --resume"),
    "nan": (None, "the training loss is nan at step 13: lower optim.lr, lengthen optim.warmup or clip harder"),
    "memory": (spoil_memory, "memory ran out ([enforce fail"),
    "worker": (spoil_worker, "go on with --resume, and with fewer train.workers"),
}
WORDS = "train sums/mlp --train.steps 24 --train.eval_every 8 --quiet"


def spoiled(folder, fault, said):
    "A command line that something happens to in step 13, and what it writes to its standard error."
    spoil, calls, real = FAULTS[fault][0], [], toy_itnet.Sums.collate
    def collate(data, items):
        calls.append(len(items))
        batch, here = real(data, items), len(calls) == 15                  # 13 batches of training, 2 of the evaluation at step 8
        if fault == "worker": here = torch.utils.data.get_worker_info() and there(folder)
        if here and spoil: spoil(folder)
        elif here: batch["x"] = batch["x"] * float("nan")
        return batch
    toy_itnet.Sums.collate = collate
    workers = " --train.workers 1" if fault == "worker" else ""
    with said.open("w", buffering=1) as err:
        os.dup2(err.fileno(), 2)
        sys.stderr = err
        os._exit(toy_itnet.itnet.cli.main([*(WORDS + workers).split(), "--out", str(folder / "runs"), "--results", str(folder / "results")]))


@pytest.fixture
def open_folder():
    "A folder that everybody may enter and write to."
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_happens_in_the_middle_is_one_line_and_loses_nothing(open_folder, whole, fault):
    folder = open_folder
    assert ended(child(spoiled, folder, fault, folder / "err")) == 1, (folder / "err").read_text()
    err = (folder / "err").read_text()
    assert err.startswith("itnet: ") and err.count("\n") == 1 and FAULTS[fault][1] in err, err
    if fault == "rights": os.chmod(only(folder / "runs"), 0o755)
    if fault != "folder": assert read_checkpoint(only(folder / "runs") / "last.ckpt")["global_step"] == 8
    if fault not in ("rights", "disk"): assert read_records(only(folder / "runs"))[0].status == "failed"
    record = run(folder, resume=there(folder))
    assert outcome(folder, record) == whole and not list(folder.rglob("*.part"))


def test_a_folder_that_vanishes_is_said(tmp_path):
    class Vanishing(toy_itnet.Sums):
        def collate(self, items):
            for folder in tmp_path.glob("runs/*"):
                if (folder / "best.ckpt").exists(): shutil.rmtree(folder)
            return super().collate(items)
    with pytest.raises(OSError, match="metrics.csv|last.ckpt"): run(tmp_path, replace(RECIPE, data=Vanishing()))


def test_results_that_vanish_do_not_take_the_record_along(tmp_path, monkeypatch):
    def no_more(record, root):
        if Path(root) == tmp_path / "results": raise OSError(28, "No space left on device")
        return files_write(record, root)
    import itnet.training.recipe as module
    files_write = module.write
    monkeypatch.setattr(module, "write", no_more)
    with pytest.raises(OSError, match="results cannot be written to any more .No space left on device.: the record is .*runs"): run(tmp_path)
    record, = read_records(only(tmp_path / "runs"))
    assert record.status == "finished" and record.test
    with pytest.raises(FloatingPointError): run(tmp_path, replace(RECIPE, model=Wild(3)))           # its own error, not that of the disk


def test_a_damaged_record_hides_nothing(tmp_path):
    name = run(tmp_path).path.name
    (tmp_path / "results" / name).write_text('{"config_hash": "')
    assert run(tmp_path).status == "finished" and read_records(tmp_path / "results")[0].test


def test_memory_that_runs_out_is_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert toy_itnet.itnet.cli.main(["train", "sums/itnet", "--model.width", str(2**50)]) == 1
    err = capfd.readouterr().err
    assert err.startswith("itnet: memory ran out (") and "lower data.batch_size" in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# --- records from elsewhere

def mutated(value, draw):
    "A nested value with one part replaced, removed or doubled."
    wrong = [None, True, -1, 1e300, 10**30, "", "\x1b[2J", "[red]x[/red]", "a|b", [], {}, [None], {"": None}]
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        if draw.random() < 0.2: return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutated(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], mutated(value[at], draw), *value[at + 1:]]
    return draw.choice(wrong)


def test_mutated_records_never_end_the_table(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    good = run(tmp_path).path
    record, draw, refused = json.loads(good.read_text()), random.Random(0), 0
    for i in range(tries := 400 if SLOW_TESTS else 100):
        changed = mutated(record, draw)
        if draw.random() < 0.3: changed = mutated(changed, draw)
        text = json.dumps(changed)
        if i % 7 == 0: text = text[:draw.randrange(len(text))]
        (tmp_path / "results" / "changed.json").write_text(text)
        for words in (["results"], ["results", "results/changed.json"], ["results", "--format", "rich"]):
            code = toy_itnet.itnet.cli.main(words)
            out, err = capfd.readouterr()
            assert code == 0 or len(words) == 2 and words[1] != "results", (words, text[:300], err)
            assert "Traceback" not in err and "\x1b" not in out + err and "[red]" not in out and err.count("\n") <= 1, (text, err)
            if code == 0 and words == ["results"]: assert "| sums | mlp" in out and "a|b" not in out
        refused += bool(err)
    assert refused > tries / 4


@dataclass(frozen=True)
class Told(toy_itnet.Sums):
    "Data that are there if an environment variable says so"
    word: str = "now"
    def splits(self):
        if os.environ.get("ITNET_TOLD") != self.word: raise RuntimeError(f"told {os.environ.get('ITNET_TOLD')}")
        return super().splits()


def told(folder):
    "A short run and then two long ones at a time, each with the variables of its moment."
    long = replace(RECIPE, data=Told(word="later"), train=replace(RECIPE.train, steps=10**6))
    for word, runs in ("now", [replace(RECIPE, name="sums/short", data=Told())]), ("later", [long.seeded(0), long.seeded(1)]):
        os.environ["ITNET_TOLD"] = word
        run_all(runs, folder / "runs", folder / "results", quiet=True, jobs=2)


@pytest.mark.parametrize("number", cases([signal.SIGTERM], [signal.SIGINT]))
def test_what_ends_several_runs_lets_each_save(tmp_path, number):
    parent = child(told, tmp_path)
    until = time.time() + 150
    while len(list(tmp_path.glob("runs/*mlp*/last.ckpt"))) < 2 and parent.is_alive() and time.time() < until: time.sleep(.1)
    os.kill(parent.pid, number)
    assert ended(parent) != 0
    assert sorted(r.status for r in read_records(tmp_path / "results")) == ["finished", "interrupted", "interrupted"]
