"""Rules by fused kernels are the rules: on a GPU if there is one, else by Triton's interpreter on the CPU."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from itnet.gpu import backend
from itnet.conv import op as fft_conv
from itnet.rule import dense, scan
from itnet.kernel.content import Separable
from itnet.measure.measure import Measure
from itnet.transform import apply
from itnet.kernel.selective import Selective
from itnet.kernel.stationary import Exponentials, Implicit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WHY_NOT = backend.why_not(torch.device(DEVICE)) if DEVICE == "cuda" else None if backend._triton() else "triton is not installed"
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
KERNELS = {
    "far": ("dense", lambda: (Separable(6, 2, rank=3) * Implicit(2, extent=9, positive=True)).normalise()),
    "causal": ("dense", lambda: (Separable(6, 2, rank=3) * Implicit(2, extent=9, positive=True)).restrict(causal=True).normalise()),
    "plain": ("dense", lambda: Separable(6, 2, rank=3) * Implicit(2, extent=9)),
    "decays": ("scan", lambda: (Separable(6, 2, rank=3) * Exponentials(2, 2, positive=True)).normalise()),
    "gates": ("scan", lambda: Selective(6, 2, 3)),
}


@pytest.fixture
def kernels(monkeypatch):
    "Fused kernels wherever they fit; what they do not write is NaN."
    if DEVICE == "cpu": monkeypatch.setenv("TRITON_INTERPRET", "1")
    def use(yes: bool):
        for module in (dense, scan): monkeypatch.setattr(module, "usable", lambda x: yes)
    monkeypatch.setattr(backend, "POISON", True)
    monkeypatch.setattr(backend, "FAILED", {})
    return use


def run(kernel, measure, u, v, rule):
    "Output and gradients of everything."
    inputs = [u.clone().requires_grad_(), v.clone().requires_grad_()]
    y = apply(kernel, measure, *inputs, rule)
    g = torch.sin(torch.arange(y.numel(), device=y.device, dtype=y.dtype)).view_as(y)
    leaves = inputs + list(kernel.parameters())
    grads = torch.autograd.grad(y, leaves, g, allow_unused=True)
    return [y, *(torch.zeros_like(p) if d is None else d for p, d in zip(leaves, grads))]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_rules_by_fused_kernels(kernels, name, masked):
    rule, make = KERNELS[name]
    torch.manual_seed(0)
    kernel, n = make().to(DEVICE), 37
    measure = Measure.sequence(n, torch.rand(2, n, device=DEVICE) > .3) if masked else Measure.sequence(n)
    u, v = torch.randn(2, n, 6, device=DEVICE), torch.randn(2, 2, n, 5, device=DEVICE)
    kernels(False)
    want = run(kernel.double(), measure, u.double(), v.double(), rule)
    kernels(True)
    got = run(kernel.float(), measure, u, v, rule)
    assert not backend.FAILED
    whole = sum(t.square().sum() for t in want[1:]).sqrt()
    assert (got[0] - want[0]).norm() <= 2e-6 * want[0].norm()
    for a, b in zip(got[1:], want[1:]): assert (a - b).norm() <= 2e-6 * whole
    kernels(False)
    assert not torch.equal(run(kernel, measure, u, v, rule)[0], got[0])            # it was another way


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fft_conv_by_triton(kernels, dtype):
    kernels(True)
    torch.manual_seed(0)
    u, pre, post = (torch.randn(3, 97, 4, device=DEVICE).to(dtype) for _ in range(3))
    k = torch.randn(97, 4, device=DEVICE)
    results = []
    for method, kind in (("triton", dtype), ("fft", torch.float64)):
        args = [t.to(kind).requires_grad_() for t in (u, k, pre, post)] if kind == torch.float64 else [t.clone().requires_grad_() for t in (u, k, pre, post)]
        y = fft_conv.gated_fft_conv(*args, method=method)
        results.append([y, *torch.autograd.grad(y.double().square().sum(), args)])
    assert not backend.FAILED
    for a, b in zip(*results): assert (a - b).norm() <= (2e-6 if dtype == torch.float32 else 2e-2) * b.norm()


def test_a_kernel_that_fails_is_replaced_and_reported(kernels, monkeypatch):
    from itnet.gpu import long_conv
    from triton.compiler.errors import CompilationError

    def broken(*args): raise CompilationError(None, None, "no such instruction")
    monkeypatch.setattr(long_conv, "conv", broken)
    kernels(True)
    u, k = torch.randn(2, 20, 3, device=DEVICE), torch.randn(20, 3, device=DEVICE)
    with pytest.warns(RuntimeWarning, match="itnet doctor"): y = fft_conv.fft_conv(u, k, method="triton")
    assert torch.allclose(y, fft_conv.fft_conv(u, k, method="fft"), atol=1e-5) and "no such instruction" in backend.FAILED["long_conv float32 20"]


ORDERS = """
import os
def switch(on): os.environ.update(TRITON_INTERPRET="1") if on else os.environ.pop("TRITON_INTERPRET", None)
def imports():
    import triton.language
    import itnet.gpu.long_conv
for step in {steps}:
    imports() if step == "import" else switch(step == "on")
import torch
from itnet.conv.op import fft_conv
u, k = torch.randn(2, 20, 3), torch.randn(20, 3)
want = fft_conv(u.double(), k.double(), method="fft")
assert (fft_conv(u, k, method="triton") - want).norm() <= 2e-6 * want.norm()
print("right")
"""


@pytest.mark.parametrize("steps", [("import", "on"), ("on", "import", "off", "on")], ids=" ".join)
def test_the_interpreter_may_be_switched_on_at_any_time(steps):
    "Before Triton is imported, as by `TRITON_INTERPRET=1 python`, or after another library imported it."
    done = subprocess.run([sys.executable, "-c", ORDERS.format(steps=steps)], capture_output=True, text=True, env=environment())
    assert done.stdout == "right\n", done.stderr


COMPILED = """
import os, torch, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from itnet.gpu.jit import jit

@jit
def norms(x, y, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y + tl.program_id(0), tl.sqrt(tl.sum(tl.cumsum(tl.load(x + at), 0) * tl.max(tl.load(x + at), 0), 0)))

def code():
    source = ASTSource(norms, dict(x="*fp32", y="*fp32", SIZE="constexpr"), dict(SIZE=64))
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

triton.knobs.compilation.always_compile = True
before, y = code(), torch.empty(1)
os.environ["TRITON_INTERPRET"] = "1"
norms[(1,)](torch.ones(64), y, SIZE=64)
del os.environ["TRITON_INTERPRET"]
assert abs(y.item() ** 2 - 64 * 65 / 2) < 1e-3
assert code() == before
print("same")
"""


def test_a_kernel_compiles_after_it_was_interpreted(tmp_path):
    (tmp_path / "program.py").write_text(COMPILED)                  # Triton reads the source of a kernel from its file
    done = subprocess.run([sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True,
                          env=environment(TRITON_CACHE_DIR=str(tmp_path)))
    assert done.stdout == "same\n", done.stderr


def environment(**more: str) -> dict[str, str]:
    "The environment without the interpreter, this checkout's package first."
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return env | dict(PYTHONPATH=str(Path(__file__).resolve().parent.parent)) | more
