"The `itnet` command from outside: exit codes, messages, signals and files."
import importlib, json, os, re, signal, subprocess, sys, time
from pathlib import Path
import pytest
from suite import cases
from test_runs import child, ended, one_thread, when

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
PATHS = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}


@pytest.fixture
def itnet(tmp_path, monkeypatch, capfd):
    "Run a command line in this process and an empty folder: (exit code, stdout, stderr)"
    import toy_itnet
    monkeypatch.chdir(tmp_path)
    def run(line, *words):
        code = toy_itnet.itnet.cli.main([*line.split(), *words])
        return code, *capfd.readouterr()
    return run


def only(folder, pattern):
    "The one file or folder of that name and some configuration, relative to the folder."
    found, = Path(folder).glob(pattern)
    return found.relative_to(folder)


def commands(lines, folder, encoding="utf-8"):
    "Commands in a process forked from this one, which has imported what they need; into files what they say, their exit codes last."
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), number)
        setattr(sys, f"std{name}", open(number, "w", buffering=1, closefd=False, encoding=encoding))
    import toy_itnet
    codes = [toy_itnet.itnet.cli.main(line.split()) for line in lines]
    print(*codes)
    sys.exit(codes[-1])


def test_help_is_quick_and_light():
    code = ("import sys, itnet.cli; c = itnet.cli.main(['-h']);"
            "sys.exit(c or 9 * bool({'torch', 'lightning', 'datasets', 'jsonargparse'} & sys.modules.keys()))")
    took = []
    for _ in range(3):
        t = time.perf_counter()
        p = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
        took.append(time.perf_counter() - t)
        assert p.returncode == 0 and all(c in p.stdout for c in ("demo", "train", "eval", "results", "doctor", "bench"))
    assert min(took) < 1.5, took


def processor_seconds(code):
    "A Python process and the processor time that it took: a machine that is busy is no reason to fail."
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    after = os.times()
    return done, after.children_user + after.children_system - before.children_user - before.children_system


@pytest.fixture(scope="module")
def torch_seconds():
    "What importing torch alone takes."
    return processor_seconds("import torch")[1]


@pytest.mark.parametrize("line", ["recipes", "train digits/itnet -h", "train digits/itnet --print_config"])
def test_recipes_are_quick_and_light(line, torch_seconds):
    "Listing and printing recipes imports torch and nothing that is larger."
    heavy = {"transformers", "matplotlib", "lightning", "datasets", "scipy", "sklearn", "itnet.experiments"}
    code = (f"import sys, itnet.cli; code = itnet.cli.main({line.split()!r});"
            f"print(sorted({heavy!r} & sys.modules.keys()), file=sys.stderr); sys.exit(code)")
    for _ in range(3):
        done, took = processor_seconds(code)
        assert done.returncode == 0 and done.stdout and done.stderr == "[]\n", done.stderr
        if took < 1.9 * torch_seconds: break                    # a busy machine slows both down
    else: pytest.fail(f"{took:.1f} s, and torch alone {torch_seconds:.1f} s")


def test_train_eval_results(itnet, tmp_path):
    code, out, err = itnet("train sums/itnet --train.steps 20 --results results/toy")
    assert code == 0, err
    assert "step 10 " in out and "step 20 " in out and "20 steps" not in err
    assert not re.search(r"GPU available|Tip|litlogger|Warning|warn", out + err), out + err
    record_file = only(tmp_path, "results/toy/sums-itnet-s0-*.json")
    record = json.loads((tmp_path / record_file).read_text())
    assert record["status"] == "finished" and record["steps"] == 20
    assert record["command"].startswith("itnet train sums/itnet --train.steps 20")
    assert str(tmp_path) not in json.dumps(record)
    run = only(tmp_path, "runs/sums-itnet-s0-*")
    assert run.name == f"sums-itnet-s0-{record['config_hash']}" == record_file.stem and f"weights {run}" in out
    code, out, err = itnet(f"eval {run}")
    assert code == 0 and f"test accuracy {record['test']['accuracy']:.4f}" in out and not err
    code, out, err = itnet(f"eval {run}/best.ckpt --split validation")
    assert f"validation accuracy {record['validation']['accuracy']:.4f}" in out
    code, out, _ = itnet("results results --format markdown")
    assert code == 0 and "| sums | itnet | accuracy ↑ |" in out
    assert (tmp_path / run / "metrics.csv").read_text().count("\n") > 3
    assert list((tmp_path / run).glob("events.out.tfevents.*"))


def test_print_config_reads_back(itnet, tmp_path):
    code, out, _ = itnet("train sums/mlp --model.width 3 --optim.betas [0.5,0.6] --train.threads 1 --print_config")
    assert code == 0 and all(t in out for t in ("width: 3", "# hidden units", "# peak learning", "betas: [0.5, 0.6]"))
    (tmp_path / "mine.yaml").write_text(out)
    assert itnet("train sums/mlp --config mine.yaml --print_config")[1] == out
    assert "width: 5" in itnet("train sums/mlp --config mine.yaml --model.width 5 --print_config")[1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("line, code, says", [
    ("train sums/itent", 2, "unknown recipe sums/itent: nearest: sums/itnet"),
    ("train sums/itnet --model.widht 3", 2, "nearest: --model.width"),
    ("train sums/itnet --steps 3", 2, "nearest: --train.steps"),
    ("train sums/itnet --train.steps many", 2, "train.steps"),
    ("train sums/itnet --config nothing.yaml", 2, "cannot read --config nothing.yaml"),
    ("trian sums/itnet", 2, "nearest: train"),
    ("results --fromat markdown", 2, "nearest: --format"),
    ("eval x.ckpt --split exam", 2, "split"),
    ("train sums/itnet --train.steps 0", 1, "train.steps=0"),
    ("train sums/itnet --train.steps 1 --optim.warmup 3", 1, "optim.warmup=3 is longer than train.steps=1"),
    ("train sums/itnet --train.device tpu", 1, "'tpu' is unknown"),
    ("train sums/itnet --train.precision 8", 1, "32-true"),
    ("train sums/itnet --data.there false", 1, "ITNET_DATA"),
    ("train sums/itnet --resume nothing", 1, "no checkpoint at nothing"),
    ("results nothing", 1, "no run records at nothing"),
    ("bench rulse", 2, "nearest: rules"),
    ("bench rules --lenghts [64,128]", 2, "nearest: --lengths"),
    ("bench rules --lengths many", 2, "lengths"),
    ("bench rules --lengths [64]", 1, "two different lengths"),
    ("bench scaling --lengths [64,128]", 1, "fit_from=1024"),
    ("bench fft --lengths [0]", 1, "must be positive"),
    ("bench fft --device tpu", 1, "'tpu' is unknown"),
    ("explain --n 64", 2, "recipe"),
    ("explain --recipe sums/itent --n 64", 2, "nearest: sums/itnet"),
    ("explain --recipe sums/mlp --n many", 2, "n"),
    ("explain --recipe sums/mlp --n 0", 1, "--n 0"),
    ("explain --recipe sums/mlp --n 64", 1, "integrates no kernel"),
    (f"train sums/mlp --optim.lr {10**400}", 2, "too large"),
    (f"train sums/mlp --train.steps {10**400}", 2, "train.steps=10000000000000000000…: less than 2⁶³"),
    (f"train sums/mlp --model.width {10**400}", 2, "model.width=10000000000000000000…: less than 2⁶³"),
    (f"train sums/mlp --model.width {2**62}", 1, "memory ran out ("),
    (f"sweep sums/mlp --seeds {10**400}", 2, "less than 2⁶³"),
    ("sweep sums/mlp --commands --seeds 0", 1, "seeds=0: at least one run"),
    (f"sweep sums/mlp --seeds {10**12}", 1, "at most 10,000"),
    (f"demo --seeds {10**12}", 1, "at most 10,000"),
    (f"bench rules --lengths [64,{10**400}]", 2, "lengths=10000000000000000000…: less than 2⁶³"),
    (f"explain --recipe sums/itnet --n {10**400}", 2, "n=10000000000000000000…: less than 2⁶³"),
    (f"train sums/mlp --train.seed {2**32}", 1, "less than 2³²"),
    ("demo --scale 1e400", 1, "choose a number above 0"),
    ("results \x1b[2J", 1, "no run records at \\x1b[2J"),
    ("eval \u202e.ckpt", 1, "no checkpoint at \\u202e.ckpt"),
])
def test_wrong_input(itnet, tmp_path, line, code, says):
    got, out, err = itnet(line)
    assert got == code and err.startswith("itnet: ") and says in err and "Traceback" not in err + out
    assert not (tmp_path / "results").exists() and not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("text, says", [
    ("train: null", "section train of --config x.yaml holds no fields"), ("train: [1]", "section train of"), ("- 1", "holds no fields"),
    ("train: {steps: null}", "train.steps needs a value"), ("data: {batch_size: null}", "data.batch_size needs"), ("model: {width: {a: 1}}", "width"), ("a: &a [*a, *a]", "unknown section"), ("!!python/object/apply:os.system [ls]", "is not YAML")])
def test_a_wrong_configuration_is_one_line(itnet, tmp_path, text, says):
    (tmp_path / "x.yaml").write_text(text)
    code, out, err = itnet("train sums/mlp --config x.yaml")
    assert code == 2 and err.startswith("itnet: ") and says in err and err.count("\n") == 1 and not (tmp_path / "runs").exists(), err


def test_results_wait_for_nothing(itnet, tmp_path, monkeypatch):
    "A pipe among the records, and a folder of everything."
    import itnet.training.fields as module
    assert itnet("train sums/mlp --quiet")[0] == 0
    os.mkfifo(tmp_path / "results" / "x.json")
    code, out, err = itnet("results")
    assert code == 0 and "| sums | mlp |" in out and not err
    assert itnet("results results/x.json")[0] == 1
    monkeypatch.setattr(module.find_records, "__defaults__", (3,))
    code, out, err = itnet("results .")
    assert code == 1 and "name the folder of records" in err


def test_a_batch_system_changes_nothing_for_one_process(itnet, monkeypatch):
    for name, value in dict(SLURM_NTASKS="2", SLURM_JOB_ID="1", SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0").items(): monkeypatch.setenv(name, value)
    assert itnet("train sums/mlp --quiet")[0] == 0


def test_debug_shows_where(itnet):
    with pytest.raises(ValueError, match="no run records"): itnet("results nothing --debug")


def test_another_configuration(itnet, tmp_path):
    assert itnet("train sums/itnet --quiet")[0] == 0
    run = only(tmp_path, "runs/sums-itnet-s0-*")
    code, out, err = itnet("eval runs/sums-itnet-s0")
    assert code == 1 and f"such as {run}" in err
    code, out, err = itnet(f"train sums/itnet --model.width 4 --optim.lr 0.5 --resume {run}")
    assert code == 1 and "model.width: 8 in the checkpoint, 4 requested" in err
    assert "optim.lr: 0.05 in the checkpoint, 0.5 requested" in err
    assert itnet(f"train sums/itnet --train.device auto --resume {run} --quiet")[0] == 0


def test_a_second_configuration_leaves_the_first_one_alone(itnet, tmp_path):
    files = lambda: {f: f.read_bytes() for f in tmp_path.rglob("*-s0-*/*") if f.is_file()} | {f: f.read_bytes() for f in tmp_path.rglob("results/*.json")}
    assert itnet("train sums/itnet --quiet")[0] == 0
    first = files()
    for width in (4, 5): assert itnet(f"train sums/itnet --model.width {width} --quiet")[0] == 0
    assert first.items() <= files().items()
    runs, records = sorted((tmp_path / "runs").iterdir()), sorted((tmp_path / "results").iterdir())
    assert [f.name for f in runs] == [f.stem for f in records] and len(runs) == 3
    for run, record in zip(runs, records):
        assert f"test accuracy {json.loads(record.read_text())['test']['accuracy']:.4f}" in itnet(f"eval {run}")[1]


def test_more_steps_go_on_from_a_finished_run(itnet, tmp_path):
    "'30 are done, give me 20 more', and the interrupted and the shorter way"
    assert itnet("train sums/itnet --quiet")[0] == 0
    run = only(tmp_path, "runs/sums-itnet-s0-*")
    before = {f: f.read_bytes() for f in (tmp_path / run).iterdir()}
    code, out, err = itnet(f"train sums/itnet --train.steps 50 --resume {run}")
    assert code == 0 and "30 steps become 50" in out and "step 50 " in out and "step 30  loss" not in out, err
    assert before == {f: f.read_bytes() for f in (tmp_path / run).iterdir()}
    longer, = [f for f in (tmp_path / "results").iterdir() if f.stem != run.name]
    record = json.loads(longer.read_text())
    assert (record["steps"], record["resumed"], record["config"]["extended_from"]) == (50, [30], [30])
    assert [e["step"] for e in record["curve"]] == [10, 20, 30, 40, 50]
    assert f"test accuracy {record['test']['accuracy']:.4f}" in itnet(f"eval runs/{longer.stem}")[1]
    assert itnet(f"train sums/itnet --train.steps 50 --resume runs/{longer.stem} --quiet")[0] == 0          # its own steps
    code, out, err = itnet(f"train sums/itnet --resume runs/{longer.stem}")
    assert code == 1 and "train.steps: 50 in the checkpoint, 30 requested" in err


def test_auto_is_made_concrete_before_the_precision_is_checked(itnet, tmp_path, monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("auto", "cpu"):
        code, out, err = itnet(f"train sums/itnet --train.precision 16-mixed --train.device {device}")
        assert code == 1 and "train.precision='16-mixed' does not run on 'cpu': choose bf16-mixed" in err, err
    assert not list(tmp_path.iterdir())
    assert itnet("train sums/itnet --train.precision bf16-mixed --train.device auto --quiet")[0] == 0
    run = only(tmp_path, "runs/*")
    record = json.loads((tmp_path / "results" / f"{run.name}.json").read_text())
    assert record["config"]["train"]["precision"] == "bf16-mixed" and record["device"]["kind"] == "cpu"
    assert itnet(f"eval {run} --precision 32-true")[0] == 0
    code, out, err = itnet(f"eval {run} --precision 16-mixed")
    assert code == 1 and "does not run on 'cpu'" in err


@pytest.mark.parametrize("option", ["out", "results"])
def test_a_folder_that_cannot_be_written_is_found_before_training(itnet, tmp_path, option):
    (tmp_path / "file").touch()
    code, out, err = itnet(f"train sums/itnet --{option} file/below")
    assert code == 1 and "file/below" in err and f"cannot be written to (Not a directory): give another --{option}" in err
    assert "step" not in out and not list(tmp_path.rglob("*.json"))


def test_what_fails_at_once_leaves_no_record_among_the_results(itnet, tmp_path):
    code, out, err = itnet("train sums/itnet --optim.lr 1e30 --optim.clip 0 --optim.warmup 0 --quiet")
    assert code == 1 and "the training loss is" in err
    assert not list((tmp_path / "results").iterdir())
    record = json.loads((tmp_path / only(tmp_path, "runs/sums-itnet-s0-*/*.json")).read_text())
    assert record["status"] == "failed" and "FloatingPointError" in record["error"]


ASCII = {"ascii": dict(PYTHONIOENCODING="ascii"), "C": dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")}

@pytest.mark.parametrize("env", cases([None], ["C", "ascii"]))
def test_a_terminal_without_arrows(tmp_path, monkeypatch, env):
    "All commands in one process, whose output has no letters but ASCII's: of a file, or as the environment says."
    lines = ["-h", "train sums/itnet --train.steps 10", "results", "results --format rich", "train sums/\u2192"]
    if env is None:
        monkeypatch.setenv("COLUMNS", "150")
        assert ended(child(commands, lines, tmp_path, "ascii")) == 2
        out, err = ((tmp_path / name).read_text("ascii") for name in ("out", "err"))
    else:
        code = f"import toy_itnet; print(*[toy_itnet.itnet.cli.main(line.split()) for line in {lines!a}])"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                              env={**ENV, **ASCII[env], "COLUMNS": "150", "PYTHONPATH": os.pathsep.join([str(HERE), PATHS])})
        assert done.returncode == 0, done.stderr
        out, err = done.stdout.decode("ascii"), done.stderr.decode("ascii")
    assert out.splitlines()[-1] == "0 0 0 0 2" and out.count("accuracy ^") == 2 and "+---" in out and " on test" in out
    assert err.startswith("itnet: unknown recipe sums/->: ") and err.count("\n") == 1


@pytest.mark.parametrize("stop", cases([signal.SIGINT], [signal.SIGTERM]))
def test_signal_leaves_a_resumable_run(itnet, tmp_path, stop):
    process = child(commands, ["train sums/itnet --data.pause 0.05 --train.steps 40"], tmp_path)
    said = lambda name: (tmp_path / name).read_text()
    when(lambda: (tmp_path / "out").exists() and "step 10 " in said("out"))
    os.kill(process.pid, stop)
    code, err = ended(process), said("err")
    assert code == 130 and "Traceback" not in err, err
    run = only(tmp_path, "runs/sums-itnet-s0-*")
    assert f"--resume {run}/last.ckpt" in err
    record = json.loads((tmp_path / f"results/{run.name}.json").read_text())
    assert record["status"] == "interrupted" and 10 <= record["steps"] < 40 and not record["test"]
    code, out, err = itnet(f"train sums/itnet --data.pause 0.05 --train.steps 40 --resume {run}/last.ckpt")
    assert code == 0, err
    after = json.loads((tmp_path / f"results/{run.name}.json").read_text())
    assert after["status"] == "finished" and after["steps"] == 40 and after["test"]
    assert after["resumed"] == [record["steps"]]
    csv = (tmp_path / run / "metrics.csv").read_text().splitlines()
    steps = [int(dict(zip(csv[0].split(","), row.split(",")))["step"]) for row in csv[1:]]
    assert {10, 20, 30, 40} <= set(steps), steps


def test_an_interrupted_demo_of_make_goes_on_by_make(tmp_path, monkeypatch, capsys):
    "`make demo` that is interrupted advises a command that make knows, and `itnet demo` one of its own."
    from itnet import cli
    checkpoint, makefile = tmp_path / "last.ckpt", (Path(__file__).parent.parent / "Makefile").read_text()
    checkpoint.touch()
    error = KeyboardInterrupt("interrupted at step 3")
    error.record, error.checkpoint = type("Record", (), dict(status="interrupted")), checkpoint
    monkeypatch.setenv("MAKELEVEL", "1")
    assert cli._interrupted(error, ["demo", "--seeds", "2"]) == 130
    advice = re.search(r"go on with make (\w+) ARGS=\"(.*)\"", capsys.readouterr().err)
    assert advice[2] == "--seeds 2 --resume" and re.search(rf"^{advice[1]}:.*\n(?:\t.*\n)*\t.*\$\(ARGS\)", makefile, re.M)
    monkeypatch.delenv("MAKELEVEL")
    cli._interrupted(error, ["demo", "--seeds", "2"])
    assert "the same command and --resume" in capsys.readouterr().err


def test_doctor(itnet):
    code, out, err = itnet("doctor --format json")
    assert code == 0 and not err
    assert {r["section"] for r in json.loads(out)} >= {"versions", "devices", "backends", "data"}
    assert itnet("doctor")[0] == 0


@pytest.mark.parametrize("line", ["bench -h", "bench rules -h", "bench scaling -h", "bench block -h", "bench fft -h", "bench equality -h", "bench converted -h", "bench relaxed -h", "explain -h"])
def test_help_of_new_commands(itnet, line):
    code, out, err = itnet(line)
    assert code == 0 and f"usage: itnet {line.removesuffix(' -h')}" in out and not err


@pytest.fixture
def recipes():
    "Those of the three domains, beside the toys"
    return importlib.import_module("itnet.recipes.three_domains").RECIPES


def test_explain(itnet, recipes, monkeypatch, tmp_path):
    monkeypatch.setenv("ITNET_CACHE", str(tmp_path))
    code, out, err = itnet("explain --recipe text/itnet --n 4096")
    assert code == 0 and not err and "line of 4,096 points" in out and "blocks.0.far" in out and "blocks.1.far" in out
    assert out.count("structure:") == 1, "kernels that are alike are explained once"
    assert re.search(r"^→ (fft|dense) .*\d", out, re.M) and re.search(r"^  direct +no: needs a finite support", out, re.M)
    assert "rates:     built-in" in out
    code, out, _ = itnet("explain --recipe digits/itnet --n 64")
    assert code == 0 and "grid of 64 × 64 points" in out
    assert "grid of 8 × 8 points" in itnet("explain --recipe digits/itnet")[1]


def test_every_benchmark_is_there():
    from itnet.cli import _BENCHMARKS
    for name, (module, function, words) in _BENCHMARKS.items():
        assert callable(getattr(importlib.import_module(f"itnet.experiments.{module}"), function)) and words, name


def test_bench_rules_measures_and_keeps(itnet, recipes, monkeypatch, tmp_path):
    monkeypatch.setenv("ITNET_CACHE", str(tmp_path / "cache"))
    code, out, err = itnet("bench rules --lengths [16,32] --repeat 1 --threads 1")
    assert code == 0 and "| chosen | fastest |" in out and "give --save" in out and not list(tmp_path.iterdir()), err
    for wrong, says in ((tmp_path, "is a folder"), ("nothing.json/x.json", "cannot be written")):
        (tmp_path / "nothing.json").touch()
        code, out, err = itnet(f"bench rules --lengths [16,32] --repeat 1 --threads 1 --out {wrong}")
        assert code == 1 and says in err and not out
    code, out, err = itnet("bench rules --lengths [16,32] --repeat 1 --threads 1 --save --out mine.json")
    kept, = (tmp_path / "cache").glob("rates-*.json")
    record = json.loads((tmp_path / "mine.json").read_text())
    assert code == 0 and kept.name in out and record["command"] == "itnet bench rules --lengths '[16,32]' --repeat 1 --threads 1 --save"
    assert {w: r["rate"] for w, r in json.loads(kept.read_text())["rates"].items()} == {w: r["rate"] for w, r in record["rates"].items()}
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try: assert "rates:     measured on" in itnet("explain --recipe text/itnet --n 64")[1]
    finally: torch.set_num_threads(before)


OWN = """
import torch
from dataclasses import dataclass
from torch import nn
from itnet.data.spec import Spec, accuracy
from itnet.training.config import Recipe, Train, register
from itnet.training.optim import Optim
from beside import WIDTH

@dataclass(frozen=True)
class Signs:
    batch_size: int = 16        # points per batch
    @property
    def spec(self): return Spec("image", 1, 2, (), accuracy(2))
    def splits(self):
        x = torch.randn(192, 1, generator=torch.Generator().manual_seed(0))
        items = [(a, int(a > 0)) for a in x]
        return {"train": items[:128], "validation": items[128:160], "test": items[160:]}
    def collate(self, items):
        return {"x": torch.stack([a for a, _ in items]), "target": torch.tensor([b for _, b in items])}
    def checksums(self): return {"train": "none"}

@dataclass(frozen=True)
class Line:
    width: int = WIDTH          # hidden units
    def build_model(self, spec): return nn.Sequential(nn.Linear(1, self.width), nn.GELU(), nn.Linear(self.width, 2))

terms = Train(steps=20, eval_every=10, threads=1, device="cpu")
line = Recipe("signs/line", Signs(), Line(), Optim(lr=0.05, warmup=2), terms)
register(Recipe("signs/wide", Signs(), Line(32), Optim(lr=0.05, warmup=2), terms))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A file with two recipes and classes of their own, in a folder with a space, and a module beside it."
    folder = tmp_path / "my recipes"
    folder.mkdir()
    (folder / "beside.py").write_text("WIDTH = 4")
    (folder / "own_signs.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder / "own_signs.py"
    for name in ("own_signs", "beside"): sys.modules.pop(name, None)


def test_a_recipe_in_a_file(itnet, own, tmp_path):
    word = "my recipes/own_signs.py:line"                                        # relative, with a space
    code, out, err = itnet("train", word, "--model.width", "5", "--print_config")
    assert code == 0 and "  width: 5 " in out and "# hidden units" in out and out.startswith(f"# itnet train '{word}' --config"), err
    (tmp_path / "mine.yaml").write_text(out)
    code, out, err = itnet("train", word, "--config", "mine.yaml", "--train.steps", "10", "--quiet")
    assert code == 0 and "signs/line: accuracy" in out, err
    record = json.loads((tmp_path / only(tmp_path, "results/signs-line-s0-*.json")).read_text())
    assert record["config"]["model"] == {"class": "own_signs:Line", "width": 5}
    run = str(only(tmp_path, "runs/signs-line-s0-*"))
    assert record["command"].startswith("itnet train 'my recipes/own_signs.py:line'") and str(tmp_path) not in json.dumps(record)
    code, out, err = itnet("train", word, "--config", "mine.yaml", "--train.steps", "10", "--quiet", "--resume", run)
    assert code == 0, err
    assert "model.width: 5 in the checkpoint, 4 requested" in itnet("train", word, "--train.steps", "10", "--resume", run)[2]
    assert "| signs | line | accuracy ↑ |" in itnet("results")[1]


def test_a_checkpoint_of_a_recipe_in_a_file(itnet, own, tmp_path):
    "Another process reads it, when it is given the file, from another folder and from Python, too: two processes that share their imports."
    assert itnet("train", f"{own}:signs/wide", "--quiet")[0] == 0
    checkpoint = str(tmp_path / only(tmp_path, "runs/signs-wide-s0-*"))
    words = ["eval", checkpoint], ["eval", checkpoint, "--recipe", "~/own_signs.py:signs/wide"]
    commands = f"print(*[itnet.cli.main(words) for words in {words!r}])"
    loading = (f"os.chdir({str(tmp_path)!r})\nfrom itnet.recipes.find import load_file\nload_file({str(own)!r})\n"
               f"print(itnet.load_model({checkpoint!r})[0].out_features)")
    code = f"import os, itnet.cli, itnet.training.recipe\nif child := os.fork(): os.waitpid(child, 0); exec({loading!r})\nelse: exec({commands!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=own.parent, env={**ENV, "HOME": str(own.parent)}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("test accuracy ") == 1, done.stderr
    assert done.stdout.splitlines()[-2:] == ["1 0", "32"] and "own_signs:" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name, content, word, code, says", [
    ("own_none", None, "{}.py", 2, "cannot read {}.py: No such file or directory"),
    ("own_none", None, "{}.py:line", 2, "cannot read {}.py: No such file or directory"),
    ("own_raises", "x = 1\nraise KeyError('lost')", "{}.py", 1, "{}.py cannot be run: KeyError in line 2: 'lost'"),
    ("own_syntax", "x = (", "{}.py", 1, "{}.py cannot be run: SyntaxError in line 1"),
    ("own_exits", "import sys\nsys.exit(0)", "{}.py", 1, "{}.py cannot be run: SystemExit in line 2"),
    ("own_empty", "x = 1", "{}.py", 2, "{}.py makes no recipe"),
    ("own_thing", "x = 1", "{}.py:x", 2, "x in {}.py is no Recipe but of type int"),
    ("own_two", "from itnet.recipes.three_domains import RECIPES\nwide, deep = RECIPES[:2]", "{}.py", 2, "choose one of {0}.py:wide, {0}.py:deep"),
    ("own_two", "from itnet.recipes.three_domains import RECIPES\nwide, deep = RECIPES[:2]", "{}.py:wied", 2, "{}.py: unknown recipe wied: nearest: wide"),
    ("own_bad", "from itnet.training.config import Train\nTrain(steps=0)", "{}.py", 1, "train.steps=0"),
    ("json", "", "{}.py", 1, "{}.py has the name of another module, json: rename the file"),
])
def test_wrong_files(itnet, tmp_path, monkeypatch, name, content, word, code, says):
    monkeypatch.setattr(sys, "path", list(sys.path))
    if content is not None: (tmp_path / f"{name}.py").write_text(content)
    got, out, err = itnet("train", word.format(name))
    assert got == code and err.startswith("itnet: ") and err.count("\n") == 1 and says.format(name) in err, err
    assert itnet("explain", "--recipe", word.format(name)) == (code, "", err)
    assert code == 2 or name == "json" or name not in sys.modules, "a file that raises leaves no module behind"
    if name != "json": sys.modules.pop(name, None)
