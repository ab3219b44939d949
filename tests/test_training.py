"Training from outside: a task with a loss and a metric of its own, checkpoints that name what they must not, light imports."
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics import MeanAbsoluteError, R2Score

import itnet.cli
from itnet.data.source import Data
from itnet.data.spec import Metric, Spec
from itnet.training.checkpoint import read_checkpoint, write_checkpoint
from itnet.training.config import CONFIGURATIONS, class_name, from_dict
from itnet.training.ledger import read_records
from itnet.training.optim import Optim
from itnet.training.recipe import Recipe, Train, evaluate, fit, load_model, register

ROOT = Path(__file__).resolve().parent.parent
METRICS = {"error": Metric("error", MeanAbsoluteError, larger_is_better=False),
           "r2": Metric("r2", R2Score, larger_is_better=True)}


@dataclass(frozen=True)
class Heights(Data):
    "The height of a plane over points, a number to predict: everything about the task is declared here."
    batch_size: int = 24        # points per batch
    metric: str = "error"       # error or r2
    noise: float = 0.0          # of the targets

    @property
    def spec(self): return Spec("image", inputs=2, outputs=1, shape=(), metric=METRICS[self.metric], loss=F.mse_loss)

    def splits(self):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(220, 2, generator=g)
        y = x @ torch.tensor([[2.], [-1.]]) + 3 + self.noise * torch.randn(220, 1, generator=g)
        items = [{"x": a, "target": b} for a, b in zip(x, y)]
        return {"train": items[:120], "validation": items[120:170], "test": items[170:]}         # 50 are 24 + 24 + 2

    def checksums(self): return {k: str(len(v)) for k, v in self.splits().items()}


@dataclass(frozen=True)
class Linear:
    "One linear layer"
    bias: bool = True           # an offset
    def build_model(self, spec): return nn.Linear(spec.inputs, spec.outputs, self.bias)


TRAIN = Train(steps=40, eval_every=10, threads=1, device="cpu")
REGRESSION = register(Recipe("heights/linear", Heights(), Linear(), Optim(lr=0.3, warmup=2), TRAIN))


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    "Run a command line in this process and an empty folder: (exit code, stdout, stderr)"
    monkeypatch.chdir(tmp_path)
    def command(line):
        code = itnet.cli.main(line.split())
        return code, *capfd.readouterr()
    return command


def only(folder):
    "The folder of the one run of `heights/linear` with seed 0."
    found, = Path(folder).glob("heights-linear-s0-*")
    return found


# --- a metric and a loss of one's own

@pytest.mark.parametrize("metric, arrow, better", [("error", "↓", min), ("r2", "↑", max)])
def test_regression_is_trained_selected_and_shown(run, metric, arrow, better):
    code, out, err = run(f"train heights/linear --data.metric {metric} --data.noise 0.1")
    assert code == 0, err
    record, = read_records("results")
    assert record.selection["metric"] == metric and record.selection["larger_is_better"] == (better is max)
    assert record.validation[metric] == better(e[metric] for e in record.curve) != record.curve[0][metric]
    assert record.selection["step"] == better(record.curve, key=lambda e: e[metric])["step"]
    assert f"{metric} {record.test[metric]:.4f} on test" in out
    assert f"test {metric} {record.test[metric]:.4f}" in run(f"eval {only('runs')}")[1]
    assert f"| heights | linear | {metric} {arrow} | {record.test[metric]:.4f} |" in run("results results --format markdown")[1]
    json.dumps(torch.load(only("runs") / "best.ckpt", weights_only=True)["recipe"])       # names and numbers alone


def test_loss_and_metric_are_those_of_all_targets(tmp_path):
    "The last batch of the test split has 2 points, the others 24."
    record = fit(REGRESSION, out=tmp_path, results=None, quiet=True)
    model, items = load_model(only(tmp_path)), Heights().splits()["test"]
    with torch.no_grad(): off = model(torch.stack([i["x"] for i in items])) - torch.stack([i["target"] for i in items])
    assert record.test["error"] == pytest.approx(off.abs().mean().item(), rel=1e-5)
    assert record.test["loss"] == pytest.approx(off.square().mean().item(), rel=1e-5)


def test_bad_tasks_are_refused_with_a_reason(tmp_path, monkeypatch):
    def attempt(**changes):
        spec = Spec(**{**dict(head="image", inputs=2, outputs=1, shape=(), metric=METRICS["error"], loss=F.mse_loss), **changes})
        monkeypatch.setattr(Heights, "spec", spec)
        fit(REGRESSION, out=tmp_path / "runs", results=None, quiet=True)
    with pytest.raises(ValueError, match="'lists': make\\(\\) gives a list, not a torchmetrics.Metric"):
        attempt(metric=Metric("lists", list, True))
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match=r"predictions of shape \(24, 3\) do not fit targets of shape \(24, 1\)"): attempt(outputs=3)
    with pytest.raises(ValueError, match="'both' gives .* where one number is expected"):
        attempt(metric=Metric("both", lambda: MeanAbsoluteError(num_outputs=2), False), loss=F.l1_loss)


def test_old_records_are_shown(run):
    "Written when metrics were a table of names."
    code, out, err = run(f"results {ROOT / 'results' / 'three_domains'} --format markdown")
    assert code == 0 and not err
    assert "| digits | itnet | accuracy ↑ |" in out and "| text | transformer | bits_per_byte ↓ |" in out


# --- what a checkpoint may name

@pytest.fixture
def planted(tmp_path):
    "A checkpoint whose recipe names something else"
    fit(REGRESSION, out=tmp_path / "runs", results=None, quiet=True)
    def plant(part, name):
        saved = read_checkpoint(only(tmp_path / "runs") / "best.ckpt")
        saved["recipe"][part]["class"] = name
        write_checkpoint(saved, tmp_path / "planted.ckpt")                      # with a digest that is right
        return tmp_path / "planted.ckpt"
    return plant


@pytest.mark.parametrize("part", ["data", "model"])
@pytest.mark.parametrize("name", ["os:system", "pathlib:Path", "planted_module:Config", "itnet.data.source:Hub"])
def test_planted_classes_are_refused(planted, run, tmp_path, monkeypatch, part, name):
    (tmp_path / "planted_module.py").write_text("open('imported', 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    path = planted(part, name)
    monkeypatch.setattr(Heights, "splits", lambda self: pytest.fail("data was read"))
    for use in (evaluate, load_model):
        with pytest.raises(ValueError, match=f"{name} is not a registered configuration class"): use(path)
    code, _, err = run("eval planted.ckpt")
    assert code == 1 and name in err and "--recipe path/to/file.py" in err and "Traceback" not in err
    assert "planted_module" not in sys.modules and not (tmp_path / "imported").exists()


def test_a_class_that_is_not_registered_needs_its_recipe(planted, monkeypatch):
    "As in another process, until the file that defines it is imported."
    path = planted("model", class_name(Linear))
    assert evaluate(path)
    for name in [n for n in CONFIGURATIONS if n.startswith(__name__)]: monkeypatch.delitem(CONFIGURATIONS, name)
    with pytest.raises(ValueError, match="Heights is not a registered configuration class"): evaluate(path)
    assert evaluate(path, recipe=REGRESSION)                              # given by hand, nothing needs to be looked up
    register(REGRESSION)
    assert from_dict(REGRESSION.to_dict()) == REGRESSION


# --- what a declaration costs

def test_declarations_are_light():
    "Recipes can be declared, listed and described without what trains them."
    code = """
        import sys
        import itnet.training.ledger, itnet.training.overrides
        from itnet.data.images import Cifar10, Digits
        from itnet.data.lra import ListOps
        from itnet.data.text import SourceText, Text
        from itnet.nets.presets import ITNetConfig, LSTMConfig, ResNetConfig, TransformerConfig
        from itnet.training.config import Recipe, from_dict, names, register
        for data in (Digits(), Cifar10(), ListOps(), SourceText(), Text()):
            for model in (ITNetConfig(), LSTMConfig(), ResNetConfig(), TransformerConfig()):
                recipe = register(Recipe(f'{type(data).__name__}/{type(model).__name__}', data, model))
                assert from_dict(recipe.to_dict()) == recipe and data.spec.metric.name
        assert len(names()) == 20
        heavy = {'lightning', 'torchmetrics', 'transformers', 'matplotlib', 'datasets', 'sklearn', 'scipy', 'jsonargparse', 'IPython'}
        print(*heavy & sys.modules.keys())"""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr


def test_strided_convolutions_of_few_channels_keep_to_their_memory():
    "Strided 1 × 1 convolutions, of a network and converted: gradients are right, and the heap is whole after them."
    code = """
import torch
from torch import nn
from itnet.nets.baselines import BasicBlock
from itnet.special_cases.case import from_torch
for channels in (1, 2, 3, 4, 7, 8):
    torch.manual_seed(channels)
    x = torch.randn(64, 8, 8, channels).movedim(-1, 1)
    block, conv = BasicBlock(channels, 8, 2, 2), from_torch(nn.Conv2d(channels, 8, 1, 2))
    for layer in (block, conv):
        for u in (x, x, x, x.contiguous()): layer(u.clone().requires_grad_()).square().sum().backward()
        def gradients(u): return torch.autograd.grad((layer(u) * torch.linspace(-1, 1, 64)[:, None, None, None]).sum(), [u, *layer.parameters()])
        for got, want in zip(gradients(x.clone().requires_grad_()), gradients(x.contiguous().requires_grad_())):
            assert (got - want).norm() <= 1e-4 * want.norm(), channels
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "MALLOC_CHECK_": "3"})
    assert done.returncode == 0, done.stderr[-2000:]
