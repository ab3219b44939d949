"""Everything that a visit to a GPU should measure, in under nine minutes, as one small JSON file.

    python tools/bench_gpu.py                         # all sections, in order of importance
    python tools/bench_gpu.py --sections conv tile    # some of them
    python tools/bench_gpu.py --tiny --out x.json     # tiny sizes on the CPU, by Triton's interpreter: tries the script

Each section runs in a process of its own, so that a kernel that breaks the CUDA context, or a compilation that never
ends, costs that section and nothing else. What fails is written down with its message. The file is written again after
every group of rows. Without a GPU the script says so and writes nothing.
"""
import argparse
import gc
import importlib
import json
import math
import os
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from itnet.bench.error import worst_error  # noqa: E402
from itnet.bench.memory import added_mb  # noqa: E402
from itnet.bench.record import begin_record  # noqa: E402
from itnet.bench.timing import clock, quartiles, race, ratio, stepper  # noqa: E402
from itnet.experiments.conv_case import ConvCase, causal_attention, compulsory_bytes, unfused  # noqa: E402
from itnet.testing import relative_error  # noqa: E402

# times faster than PyTorch, by length
PUBLISHED = {256: 5.6, 1024: 7.9, 4096: 6.6, 8192: 5.4, 16384: 2.5, 32768: 3.2, 2**20: 1.7}
SOURCE = "FlashFFTConv, Fu et al. 2023, arXiv:2311.05908: H100, gated, B 64, H 768, half precision, beside PyTorch"
BOUND = {"float32": 1e-6, "bfloat16": 5e-3, "float16": 1e-3}      # relative errors aimed at
LONGEST = {"direct": 256, "toeplitz": 2048}      # taps up to which methods that are quadratic in N are timed
KINDS = ("both", "forward")                      # steps, the more important one first
FULL = SimpleNamespace(
    device="cuda", rounds=9, least=2e-3, memory=True, copy=2**28, heads=12, width=64, rank=8,
    conv=(*((64, 768, n) for n in (1024, 4096, 256, 16384, 32768, 8192)), (4, 64, 2**20),
          *((64, 768, n) for n in (2048, 512))),
    conv32=((64, 768, 1024), (16, 768, 4096), (4, 768, 16384), (4, 768, 32768)),
    more=((64, 768, 1024), (16, 768, 4096), (4, 768, 16384)), taps=(4, 16, 64),
    check=(97, 1021, 4096, 32768, 8191, 1, 2, 17, 128, 255, 20011, 65537), check_short=(97, 1, 17, 128, 301, 2),
    check_rows=(3, 5), check_heads=(2, 3),
    tile=((8, 1024), (8, 256), (8, 4096), (8, 512), (8, 2048), (4, 8192)),
    chunks=((8, 1024), (8, 4096), (4, 16384), (8, 256)))
TINY = SimpleNamespace(
    device="cpu", rounds=1, least=0., memory=False, copy=2**16, heads=1, width=16, rank=2,
    conv=((1, 2, 16), (1, 2, 33)), conv32=((1, 2, 19),), more=((1, 2, 40),), taps=(3,), check=(17,), check_short=(17,),
    check_rows=(1, 2), check_heads=(1, 1),
    tile=((1, 17),), chunks=((1, 17),))


def line(e: BaseException) -> str:
    "An error in one line: its kind and the end of its message."
    text = " | ".join(s.strip() for s in str(e).strip().splitlines()[-4:])
    return f"{type(e).__name__}: {text[-500:]}"


def rounded(x):
    "Numbers with four digits, for a small file."
    if isinstance(x, dict): return {str(k): rounded(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [rounded(v) for v in x]
    if isinstance(x, float): return float(f"{x:.4g}") if math.isfinite(x) else str(x)
    return x


def section_text(name: str, section: dict) -> str:
    "A section as JSON, a line for each row."
    rest = json.dumps({k: v for k, v in section.items() if k != "rows"})
    return f' {json.dumps(name)}: {rest[:-1]}, "rows": [\n  ' + ",\n  ".join(map(json.dumps, section["rows"])) + "]}"


def save(out: Path, **more) -> dict:
    "The record with these entries replaced; those of `sections` are added to the others."
    record = json.loads(out.read_text()) if out.exists() else {"name": "bench/gpu", "sections": {}}
    sections = record["sections"] | more.pop("sections", {})
    record |= rounded(more) | {"sections": rounded(sections)}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}")
    head = {k: v for k, v in record.items() if k != "sections"}
    body = ",\n".join(section_text(*item) for item in record["sections"].items())
    part.write_text(json.dumps(head, indent=1)[:-2] + ',\n "sections": {\n' + body + "\n }\n}\n")
    part.replace(out)
    return record


class Visit:
    "One section: its sizes, its time, its rows and what failed."

    def __init__(self, name: str, size: SimpleNamespace, seconds: float, out: Path):
        self.name, self.size, self.out = name, size, out
        self.start = time.perf_counter()
        self.end = self.start + seconds
        self.rows, self.failed, self.skipped = [], [], []
        self.device = torch.device(size.device)

    def left(self) -> float: return self.end - time.perf_counter()

    def add(self, **row) -> None: self.rows.append(row)

    def attempt(self, what: str, f):
        "f(), or None and its error in the record."
        try: return f()
        except Exception as e:
            self.failed.append({"what": what, "error": line(e)})
            e.__traceback__ = None                            # frames hold tensors
        gc.collect()
        if self.device.type == "cuda": torch.cuda.empty_cache()

    def groups(self, items, need: float):
        "Items, as long as there is time; the file is written after each."
        for item in items:
            if self.left() < need:
                self.skipped.append(str(item))
                continue
            yield item
            self.write("running")

    def write(self, status: str) -> None:
        backend = sys.modules.get("itnet.gpu.backend")
        kernels = dict(getattr(backend, "FAILED", {}))
        section = dict(status=status, seconds=time.perf_counter() - self.start, failed=self.failed,
                       skipped=self.skipped, kernels_failed=kernels)
        save(self.out, sections={self.name: section | dict(rows=self.rows)})

    def race(self, runs: dict, label: str = "") -> dict:
        "Seconds of functions that take turns, a list for each; those that fail when they are called first drop out."
        device, rounds, first = self.size.device, self.size.rounds, {}
        for name, run in runs.items():
            took = self.attempt(f"{name} {label}", partial(clock, run, 1, device))           # and is compiled
            if took is not None: first[name] = took
        if rounds == 1: return {name: [took] for name, took in first.items()}       # interpreted, and slow
        return race({name: runs[name] for name in first}, rounds, device, max(self.left(), 1.), self.size.least)

    def memory_mb(self, run) -> float | None:
        "What a step takes of the GPU beyond what is there, in MB."
        return added_mb(run, self.size.device) if self.size.memory else None


def draw(visit: Visit, dtype: torch.dtype, *shapes, guard: bool = False) -> list[torch.Tensor]:
    "Normal leaves. With `guard` they are views into larger tensors of NaN, so that a read past an edge shows."
    out = []
    for shape in shapes:
        x = torch.randn(shape, device=visit.device).to(dtype)
        if guard:
            around = torch.full((*shape[:-1], shape[-1] + 5), math.nan, device=visit.device, dtype=dtype)
            around[..., 2:-3] = x
            x = around[..., 2:-3]
        out.append(x.requires_grad_())
    return out


def double(inputs, gy, f) -> list[torch.Tensor]:
    "Output and gradients of f in float64."
    return [x.detach() for x in stepper(f, [x.detach().double().requires_grad_() for x in inputs], gy.double())()]


def check(visit: Visit, functions: dict, inputs, gy, want, slack: float = 1., **where) -> None:
    "A row for each function: the worst relative error of its output and gradients, and whether it is in bounds."
    dtype = str(gy.dtype)[6:]
    for name, f in functions.items():
        got = visit.attempt(f"{name} {dtype} {where}", stepper(f, inputs, gy))
        if got is None: continue
        e = worst_error(got, want)
        visit.add(method=name, dtype=dtype, **where, error=e, ok=e <= slack * BOUND[dtype])


def poisoned(on: bool) -> None:
    "Fresh memory of the kernels is NaN, or is not."
    try: importlib.import_module("itnet.gpu.backend").POISON = on
    except ImportError: pass


# --- convolution

def conv_methods() -> tuple[str, ...]:
    from itnet.conv.choice import METHODS
    return (*METHODS, "triton")


def ours(method: str):
    "The public operation for (B, D, N)."
    from itnet.conv.op import fft_conv, gated_fft_conv

    def run(u, k, pre=None, post=None):
        if pre is None: return fft_conv(u.mT, k.mT, method=method).mT
        return gated_fft_conv(u.mT, k.mT, pre.mT, post.mT, method=method).mT
    return run


def check_conv(visit: Visit) -> None:
    "Every method against float64: odd, prime and long lengths, gated or not, fresh memory and surroundings of NaN."
    poisoned(True)
    methods = ("triton", "auto", *(m for m in conv_methods() if m not in ("direct", "triton")))
    batch, dim = visit.size.check_rows
    for n in visit.groups(visit.size.check, 5.):
        for dtype in (torch.bfloat16, torch.float32, torch.float16):
            for gated in (True, False):
                inputs = draw(visit, dtype, (batch, dim, n), (dim, n), *([(batch, dim, n)] * 2 * gated), guard=True)
                gy, = (x.detach() for x in draw(visit, dtype, (batch, dim, n), guard=True))
                want = double(inputs, gy, unfused)
                check(visit, {name: ours(name) for name in methods}, inputs, gy, want, n=n, gated=gated)


def spot_errors(visit: Visit, runs: dict, inputs: list[torch.Tensor], gy: torch.Tensor, turn, label: str) -> dict:
    "Largest relative error of output and gradients of steps, on a few of the channels."
    at = torch.linspace(0, turn(gy).shape[1] - 1, min(4, turn(gy).shape[1]), device=gy.device).long()
    cut = lambda x: turn(x.detach()).index_select(-2, at)
    want = visit.attempt(f"reference {label}", lambda: double([cut(x) for x in inputs], cut(gy), unfused))
    found = {}
    for name, run in runs.items():
        got = visit.attempt(f"{name} {label}", lambda: [cut(x) for x in run()])
        if got is not None and want is not None: found[name] = worst_error(got, want)
    return found


def attention_steps(visit: Visit, dtype, batch: int, dim: int, n: int) -> dict:
    "Steps of causal attention of the same width, heads of 64."
    width = math.gcd(dim, 64)
    q, k, v, gy = draw(visit, dtype, *([(batch, dim // width, n, width)] * 4))
    return {kind: stepper(causal_attention, [q, k, v], gy.detach(), kind) for kind in KINDS}


def conv_inputs(visit: Visit, dtype, case: ConvCase, turn) -> tuple[list[torch.Tensor], torch.Tensor]:
    "u, filter, gates and the gradient of the output, contiguous in the layout that `turn` leads to."
    rows = (case.batch, case.dim, case.n)
    x = draw(visit, dtype, rows, (case.dim, case.taps), *([rows] * 2 * case.gated), rows)
    *inputs, gy = [turn(x.detach()).contiguous() for x in x]
    inputs[1] *= case.taps ** -.5
    return [x.requires_grad_() for x in inputs], gy


def conv_rows(visit: Visit, dtype, batch: int, dim: int, n: int, gated=True, taps=0, sdpa=True, methods=None,
              layout="bdn") -> bool:
    "Rows of one size: ours and the baselines, forward and with the backward pass. False if the baseline does not fit."
    case = ConvCase(n, taps or n, batch, dim, gated, str(dtype)[6:], visit.size.device)
    label = f"N={n} B={batch} D={dim} taps={case.taps} {case.dtype}{' gated' * gated} {layout}"
    turn = (lambda x: x.mT) if layout == "bnd" else lambda x: x
    inputs, gy = conv_inputs(visit, dtype, case, turn)
    methods = [m for m in (conv_methods() if methods is None else methods) if case.taps <= LONGEST.get(m, case.taps)]
    functions = {"unfused": unfused, "auto": ours("auto"), **{m: ours(m) for m in methods}}
    functions = {name: (lambda *x, f=f: turn(f(*map(turn, x)))) for name, f in functions.items()}
    steps = {kind: {name: stepper(f, inputs, gy, kind) for name, f in functions.items()} for kind in KINDS}
    errors = spot_errors(visit, steps["both"], inputs, gy, turn, label)
    if "unfused" not in errors: return False
    attention = attention_steps(visit, dtype, batch, dim, n) if sdpa and n <= 2**16 else {}
    x, y = inputs[0].detach(), torch.empty_like(gy)
    for kind in KINDS:
        runs = {name: steps[kind][name] for name in errors} | {"copy": lambda: y.copy_(x)}
        if attention: runs["sdpa"] = attention[kind]
        times = visit.race(runs, label)
        rate = 2 * x.nbytes / quartiles(times["copy"])[1]
        for name in times:
            row = dict(n=n, batch=batch, dim=dim, taps=case.taps, dtype=case.dtype, gated=gated, layout=layout)
            row |= conv_row(case, name, kind, times, rate)
            if kind == "both" and name != "copy":
                row["added_mb"] = visit.attempt(f"memory of {name} {label}", lambda: visit.memory_mb(runs[name]))
                if name in errors: row["error"] = errors[name]
            visit.add(**row)
    return True


def conv_row(case: ConvCase, name: str, kind: str, times: dict, rate: float) -> dict:
    "Times of a variant and what follows from them; `rate` is that of the copy, bytes per second."
    row = dict(step=kind, variant=name, seconds=quartiles(times[name]))
    if name == "copy": return row | dict(bytes_per_second=rate)
    if name == "sdpa": return row
    row |= dict(ratio=ratio(times, "unfused", name), ratio_sdpa=ratio(times, "sdpa", name))
    row["fraction"] = compulsory_bytes(case, kind) / row["seconds"][1] / rate
    as_published = name == "auto" and kind == "both" and case.gated and case.taps == case.n
    return row | dict(published_ratio=PUBLISHED.get(case.n)) if as_published else row


def shrinking(visit: Visit, dtype, batch: int, dim: int, n: int, **how) -> None:
    "`conv_rows`, with half the batch again and again until the baseline fits into memory."
    while True:
        done = visit.attempt(f"N={n} B={batch} D={dim}", lambda: conv_rows(visit, dtype, batch, dim, n, **how))
        if done is not False or batch == 1: return
        batch //= 2


def conv(visit: Visit) -> None:
    "Gated, bfloat16, forward and backward, at the sizes of FlashFFTConv."
    for size in visit.groups(visit.size.conv, 15.): shrinking(visit, torch.bfloat16, *size)


def conv_more(visit: Visit) -> None:
    "Channels last; short filters; float32 without gates."
    for size in visit.groups(visit.size.more, 12.):
        shrinking(visit, torch.bfloat16, *size, sdpa=False, methods=(), layout="bnd")
    for size, taps in visit.groups([(s, t) for t in visit.size.taps for s in visit.size.more], 8.):
        shrinking(visit, torch.bfloat16, *size, gated=False, taps=taps, sdpa=False, methods=("direct", "fft"))
    for size in visit.groups(visit.size.conv32, 12.): shrinking(visit, torch.float32, *size, gated=False)


# --- the far field of the block: κ(i - j) Σ_r φ_r(i) ψ_r(j), normalised

def fused_tile(phi, psi, kappa, v):
    from itnet.gpu.tile import tile
    return tile(phi, psi, kappa, v)


def far_by_fft(phi, psi, kappa, v):
    "The same by unfused FFTs: φ, ψ (B, H, N, R), κ (H, N), v (B, H, N, d)."
    n, work = v.shape[2], torch.promote_types(v.dtype, torch.float32)
    x = torch.cat([v, torch.ones_like(v[..., :1])], -1).to(work)
    x = (psi.to(work).unsqueeze(-1) * x.unsqueeze(-2)).permute(0, 1, 3, 4, 2)                    # (B, H, R, d + 1, N)
    y = torch.fft.irfft(torch.fft.rfft(x, 2 * n) * torch.fft.rfft(kappa.to(work), 2 * n)[:, None, None], 2 * n)[..., :n]
    y = (phi.to(work).permute(0, 1, 3, 2).unsqueeze(-2) * y).sum(2)                              # (B, H, d + 1, N)
    return (y[:, :, :-1] / y[:, :, -1:]).mT.to(v.dtype)


def far_dense(phi, psi, kappa, v):
    "The definition: the kernel written down."
    n = v.shape[2]
    lag = torch.arange(n, device=v.device)[:, None] - torch.arange(n, device=v.device)
    K = phi @ psi.mT * kappa[:, lag.clamp(min=0)] * (lag >= 0)
    return K @ v / K.sum(-1, keepdim=True)


def far_inputs(visit: Visit, dtype, batch: int, heads: int, n: int, rank: int, width: int, guard: bool = False):
    "Positive features and taps, values, and the gradient of the output."
    features, values = (batch, heads, n, rank), (batch, heads, n, width)
    phi, psi, kappa, v, gy = draw(visit, dtype, features, features, (heads, n), values, values, guard=guard)
    with torch.no_grad():
        for x in (phi, psi, kappa): x.abs_().add_(.1)
    return [phi, psi, kappa, v], gy.detach()


def check_tile(visit: Visit) -> None:
    "The tile kernel against float64."
    poisoned(True)
    for n in visit.groups(visit.size.check_short, 5.):
        for dtype in (torch.bfloat16, torch.float32):
            inputs, gy = far_inputs(visit, dtype, *visit.size.check_heads, n, 5, 20, guard=True)
            want = double(inputs, gy, far_dense)
            check(visit, {"tile": fused_tile, "fft": far_by_fft}, inputs, gy, want, 4., n=n)


def tile(visit: Visit) -> None:
    "The block's far field: the tile kernel, unfused FFTs, and attention of the same width."
    s = visit.size
    compare(visit, s.tile, lambda batch, n: far_inputs(visit, torch.bfloat16, batch, s.heads, n, s.rank, s.width),
            {"tile": fused_tile, "fft": far_by_fft}, "fft")


# --- scan: Σ_r φ_r(i) e^{g_r(j+1) + ... + g_r(i)} ψ_r(j) for j ≤ i

def fused_chunks(phi, gate, psi, v):
    from itnet.gpu.chunks import chunked
    y = chunked(phi, gate, psi, v)
    return y[0] if isinstance(y, tuple) else y


def torch_scan(phi, gate, psi, v):
    from itnet.kernel.given import Gates
    from itnet.measure.measure import Measure
    from itnet.rule.scan import scan
    with torch.autocast(v.device.type, v.dtype, enabled=v.dtype in (torch.bfloat16, torch.float16)):
        return scan(Gates(phi, gate, psi), Measure.sequence(v.shape[2]), None, v).to(v.dtype)


def scan_dense(phi, gate, psi, v):
    "The definition: the kernel written down."
    G = gate.cumsum(2).expand(phi.shape)
    above = torch.ones(v.shape[2], v.shape[2], dtype=torch.bool, device=v.device).triu(1)[..., None]
    decay = (G.unsqueeze(3) - G.unsqueeze(2)).masked_fill(above, -math.inf).exp()                # (B, H, N, N, R)
    return torch.einsum("bhir,bhijr,bhjr->bhij", phi, decay, psi) @ v


def scan_inputs(visit: Visit, dtype, batch: int, heads: int, n: int, rank: int, width: int, gates: int = 1,
                guard: bool = False):
    "Features, gates (logarithms, at most 0), values, and the gradient of the output."
    shapes = [(batch, heads, n, last) for last in (rank, gates, rank, width, width)]
    phi, gate, psi, v, gy = draw(visit, dtype, *shapes, guard=guard)
    with torch.no_grad(): gate.abs_().mul_(-.1)
    return [phi, gate, psi, v], gy.detach()


def check_chunks(visit: Visit) -> None:
    "The chunked kernel against float64, a gate per head and per feature."
    poisoned(True)
    for n in visit.groups(visit.size.check_short, 5.):
        for dtype in (torch.bfloat16, torch.float32):
            for gates in (1, 5):
                inputs, gy = scan_inputs(visit, dtype, *visit.size.check_heads, n, 5, 20, gates, guard=True)
                want = double(inputs, gy, scan_dense)
                check(visit, {"chunks": fused_chunks, "scan": torch_scan}, inputs, gy, want, 4., n=n, gates=gates)


def chunks(visit: Visit) -> None:
    "The chunked kernel, the scan in torch, and attention of the same width; a state of 64 features per channel."
    s = visit.size
    compare(visit, s.chunks, lambda batch, n: scan_inputs(visit, torch.bfloat16, batch, s.heads, n, s.width, s.width),
            {"chunks": fused_chunks, "scan": torch_scan}, "scan")


def compare(visit: Visit, sizes, make, functions: dict, base: str) -> None:
    "Rows of functions of the same inputs, beside attention, at several sizes."
    for batch, n in visit.groups(sizes, 12.):
        visit.attempt(f"N={n}", lambda: compared(visit, *make(batch, n), functions, base))


def compared(visit: Visit, inputs, gy, functions: dict, base: str) -> None:
    "Rows of one size: seconds, ratios to a baseline, memory, difference from it."
    b, h, n, width = gy.shape
    attention, outputs = attention_steps(visit, gy.dtype, b, h * width, n), {}
    for name, f in functions.items(): outputs[name] = visit.attempt(f"{name} N={n}", lambda: f(*inputs).detach())
    running = {name: f for name, f in functions.items() if outputs[name] is not None}
    for kind in KINDS:
        runs = {name: stepper(f, inputs, gy, kind) for name, f in running.items()} | {"sdpa": attention[kind]}
        times = visit.race(runs, f"N={n}")
        for name, took in times.items():
            row = dict(n=n, batch=b, heads=h, width=width, rank=inputs[0].shape[-1], dtype=str(gy.dtype)[6:], step=kind)
            row |= dict(variant=name, seconds=quartiles(took))
            if name != "sdpa":
                row |= dict(ratio=ratio(times, base, name), ratio_sdpa=ratio(times, "sdpa", name))
                if outputs[base] is not None: row["difference"] = relative_error(outputs[name], outputs[base])
            if kind == "both":
                row["added_mb"] = visit.attempt(f"memory of {name} N={n}", lambda: visit.memory_mb(runs[name]))
            visit.add(**row)


# --- the machine

def machine(visit: Visit) -> None:
    "Whether Triton runs here; rate of a copy and of matrix products."
    backend = visit.attempt("backend", lambda: importlib.import_module("itnet.gpu.backend"))
    if backend: visit.add(what="triton", why_not=backend.why_not(visit.device))
    x = torch.ones(visit.size.copy, device=visit.device)
    y = torch.zeros_like(x)
    took = visit.race({"copy": lambda: y.copy_(x)})["copy"]
    visit.add(what="copy", bytes=2 * x.nbytes, bytes_per_second=2 * x.nbytes / quartiles(took)[1])
    n = 8192 if visit.device.type == "cuda" else 64
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
        def product():
            torch.backends.cuda.matmul.allow_tf32 = tf32
            a = torch.randn(n, n, device=visit.device).to(dtype)
            took = visit.race({"product": lambda: a @ a})["product"]
            kind = f"{str(dtype)[6:]}{', tf32' if tf32 else ''}"
            visit.add(what=f"matrix product, {kind}", operations_per_second=2 * n**3 / quartiles(took)[1])
        visit.attempt(f"product {dtype}", product)
    torch.backends.cuda.matmul.allow_tf32 = False


# in order of importance, with the seconds each may take
SECTIONS = {"machine": (machine, 20), "check_conv": (check_conv, 110), "conv": (conv, 190),
            "check_tile": (check_tile, 40), "tile": (tile, 50), "check_chunks": (check_chunks, 40),
            "chunks": (chunks, 40), "conv_more": (conv_more, 50)}


def about(device: str) -> dict:
    "What is measured, and on what."
    words = [Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:]]
    info = begin_record("gpu", device, published=dict(ratios=PUBLISHED, source=SOURCE), cuda=torch.version.cuda)
    info["command"] = shlex.join(["python", "tools/bench_gpu.py", *words])
    if device != "cuda": return info | dict(interpreted=os.environ.get("TRITON_INTERPRET") == "1")
    p = torch.cuda.get_device_properties(0)
    info["device"] |= dict(capability=f"{p.major}.{p.minor}", memory_gb=p.total_memory / 2**30,
                           multiprocessors=p.multi_processor_count)
    return info


def run_section(name: str, tiny: bool, seconds: float, out: Path) -> None:
    "One section, in this process."
    torch.manual_seed(0)
    visit = Visit(name, TINY if tiny else FULL, seconds, out)
    visit.attempt(name, lambda: SECTIONS[name][0](visit))
    poisoned(False)
    visit.write("done" if not visit.skipped else "some skipped for time")


def run_apart(name: str, args, seconds: float) -> None:
    "One section in a process of its own, which is ended when its time is over."
    command = [sys.executable, str(Path(__file__).resolve()), "--section", name, "--budget", str(seconds), "--out",
               str(args.out), *["--tiny"] * args.tiny]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        _, err = child.communicate(timeout=seconds + 15)
        last = " | ".join(err.strip().splitlines()[-4:])[-500:]
        why = "" if child.returncode == 0 else f"exit code {child.returncode}: {last}"
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        why = f"ended after {seconds + 15:.0f} s"
    if why:
        section = json.loads(args.out.read_text())["sections"].get(name) or dict(failed=[], skipped=[], rows=[])
        section |= dict(status="failed", failed=[*section["failed"], {"what": name, "error": why}])
        save(args.out, sections={name: section})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench" / "gpu.json", help="the record")
    parser.add_argument("--budget", type=float, default=540., help="seconds for everything")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="some of them")
    parser.add_argument("--tiny", "--dry-run", action="store_true",
                        help="tiny sizes on the CPU, by Triton's interpreter if it is installed")
    parser.add_argument("--inline", action="store_true", help="all sections in this process")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tiny: os.environ.setdefault("TRITON_INTERPRET", "1")                 # before triton is imported
    elif not torch.cuda.is_available():
        print("no NVIDIA GPU here: nothing measured, nothing written (--tiny tries the script out on the CPU)")
        return 0
    if args.section:
        run_section(args.section, args.tiny, args.budget, args.out)
        return 0
    end = time.perf_counter() + args.budget
    args.out.unlink(missing_ok=True)
    save(args.out, **about((TINY if args.tiny else FULL).device))
    for i, name in enumerate(args.sections):
        left = end - time.perf_counter() - 15                          # a section that has to be ended takes longer
        later = sum(SECTIONS[other][1] for other in args.sections[i + 1:])
        seconds = min(left, max(SECTIONS[name][1], left - later))      # what earlier ones did not need is passed on
        nothing = dict(status="skipped: no time left", failed=[], skipped=[], rows=[])
        if seconds < 10: save(args.out, sections={name: nothing})
        elif args.inline: run_section(name, args.tiny, seconds, args.out)
        else: run_apart(name, args, seconds)
        s = json.loads(args.out.read_text())["sections"][name]
        left = max(0., end - time.perf_counter())
        rows, failed = len(s["rows"]), len(s["failed"])
        print(f"{name:12} {s['status']}, {rows} rows, {failed} failed, {left:.0f} s left", flush=True)
    return 0


if __name__ == "__main__": sys.exit(main())
