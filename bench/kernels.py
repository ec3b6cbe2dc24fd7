"""What the compiler makes of every Triton kernel in kernels/, for three GPUs, without having one: does anything spill?

    python bench/kernels.py [--arch 80 90 100]
    python bench/kernels.py --step mnist-100 [--replicas 16] [--arch 90] [--trace runs/profiled/trace.json]
    python bench/kernels.py --experiments [--arch 90]   the prototypes of bench/experiments; only sm_90 may not spill

Each kernel is compiled for the launch that its launcher makes of the shipped problem (10,000 queries, 2^18 float32
samples of 784 coordinates; near: K = 128; 10 bandwidths; 262,144 pairs that may matter), with the arguments specialised
as at run time. Columns: registers per thread; bytes of stack and local memory, and instructions that load or store them
(spills: all must be 0, but for draw's cosine); shared memory; tensor-core instructions and all SASS instructions;
programs that fit one multiprocessor. The last columns are arithmetic, nothing is measured: the bytes and FLOPs of
cost(), and the longer of their times at peak dense fp16 rate (int8: twice that) and peak bandwidth. Exit status 1 if a
kernel fails to compile, spills, does not fit or uses no tensor cores though it is there for them. Of a step, operations
of plain torch that make or fill a tensor are counted too, a launch each. The last line is JSON.

With the trace that `fastaae train --profile` left on a GPU, of the same preset, replicas and bf16, each launch has the
mean time of those of its kernel and grid beside it, and how many times that is what arithmetic and a launch take.

Of the prototypes a dependent launch has one more number: loads before it waits for the launch before it, which must be
none.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

PEAK = {80: {"A100": (312e12, 2.0e12)}, 90: {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}}
PEAK[100] = {"B200": (2250e12, 8.0e12)}  # dense fp16 FLOP/s, bytes/s
SHARED = {80: 164, 90: 228, 100: 228}  # KB per multiprocessor, 1 of them the system's per program
REGISTERS, THREADS, PROGRAMS, TMEM = 65536, 2048, 32, 512  # per multiprocessor; the last: columns, on sm_100
M, N, D, S, PAIRS = 10000, 2**18, 784, 10, 2**18
GAP = 1.33  # us between dependent nodes of a graph, each of 132 empty programs, measured on an H200
KERNELS = ("near", "wide", "sums", "project", "quantize", "distances", "count")
LOADS = {"LDG", "LDGSTS", "LD", "ATOMG", "ATOM", "UTMALDG"}  # from memory
PLAIN = ("quantize", "distances", "count")  # without products
TYPES = {"float16": "fp16", "float32": "fp32", "float64": "fp64", "int8": "i8", "uint8": "u8", "int32": "i32"}
TYPES |= {"int64": "i64", "bfloat16": "bf16", "int16": "i16"}


class Launched(Exception):
    """Carries a kernel's name, arguments and options out of its launcher."""


def launch(name: str, arch: int) -> tuple[tuple, dict]:
    """Arguments and options with which the launcher starts a kernel; its tensors have shapes and no memory."""
    import torch

    from fastaae.kernels.parzen import cuda

    class Recorder:
        def __getitem__(self, grid: tuple):
            def record(*args, **options):
                raise Launched(args, options)

            return record

    half, byte, exact, index = torch.float16, torch.int8, torch.float64, torch.int64
    with (
        torch.device("meta"),
        patch.object(cuda, f"_{name}_kernel", Recorder()),
        patch.object(cuda, "_pinned", lambda table, _: table[max(key for key in table if key <= arch // 10)]),
    ):
        of, pairs = torch.empty, (torch.empty(PAIRS, dtype=index), torch.empty(PAIRS, dtype=index))
        calls = {
            "near": lambda: cuda.near_pairs(of(M, 128, dtype=half), of(N, 128, dtype=half), of(N), of(M)),
            "wide": lambda: cuda.near_pairs(
                of(M, D, dtype=byte), of(N, D, dtype=byte), of(N, dtype=torch.int32), of(M, dtype=exact)
            ),
            "sums": lambda: cuda.pair_sums(
                of(M, D, dtype=half), of(N, D, dtype=half), of(N), of(M), of(S, dtype=exact), 1.0
            ),
            "project": lambda: cuda.project(
                of(N, D), of(D, dtype=exact), (of(D, 128, dtype=half), of(D, 128, dtype=half)), 127, 0.0, (1.0, 1.0)
            ),
            "quantize": lambda: cuda.quantize(of(N, D), 0.5, 0.25),
            "distances": lambda: cuda.distances(of(M, D, dtype=torch.uint8), of(N, D), *pairs),
            "count": lambda: cuda.count(
                pairs[0], *(of(*n, dtype=exact) for n in ((PAIRS,), (M,), (S, M), (S,))), [True] * S
            ),
        }
        try:
            calls[name]()
        except Launched as launched:
            return launched.args
    raise AssertionError("nothing was launched")


def report(name: str, arch: int) -> dict:
    """What the compiler makes of one of the estimator's kernels."""
    from fastaae.kernels.parzen import cuda

    args, options = launch(name, arch)
    volume, flops = cost(name, cuda.SPLIT)
    faster = 2 if name == "wide" else 1  # int8
    return machine_code(getattr(cuda, f"_{name}_kernel"), args, options, arch, cuda.COUNTS) | {
        "config": options,
        "bytes": volume,
        "flops": flops,
        "roofline_ms": {
            gpu: 1e3 * max(flops / rate / faster, volume / band) for gpu, (rate, band) in PEAK[arch].items()
        },
    }


def cost(kernel: str, split: int, k: int = 128) -> tuple[int, int]:
    """Bytes that must move and FLOPs of one of the estimator's kernels, of float32 samples and queries in bytes.

    Args:
        split: samples per program of "sums".
        k: coordinates of a projection.
    """
    return {
        "near": (2 * (M + N) * k + 4 * (M + N) + M * N // 8, (2 * k + 3) * M * N),
        "wide": ((M + N) * D + 4 * (M + N) + M * N // 8, (2 * D + 3) * M * N),
        "sums": (2 * (M + N) * D + 4 * (M + N) + 4 * M * (1 + S) * -(-N // split), (2 * D + 3) * M * N),
        "project": (N * (4 * D + 2 * k + 8) + 4 * D * k, N * D * (6 * k + 8)),
        "quantize": (N * (5 * D + 8), 8 * N * D),
        "distances": (PAIRS * (5 * D + 24), 4 * PAIRS * D),
        "count": (8 * PAIRS * (1 + S) + 16 * M * (1 + S), 4 * PAIRS * S),
    }[kernel]


def machine_code(fn, args: tuple, config: dict, arch: int, counts: tuple = ()) -> dict:
    """Compiles a kernel for one architecture, as for a launch with these arguments, and reads the machine code.

    Args:
        counts: names of integers that are not specialised.
    """
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {"num_warps": 4, "num_stages": 3} | {
        k: config[k] for k in ("num_warps", "num_stages", "maxnreg") if k in config
    }
    given = dict(zip(fn.arg_names, args, strict=False)) | {k: v for k, v in config.items() if k not in options}
    signature, constants, attributes = {}, {}, {}

    def described(value, path: tuple, specialised: bool):
        if isinstance(value, tuple):
            return tuple(described(v, (*path, k), specialised) for k, v in enumerate(value))
        if value is None or (type(value) is int and value == 1 and specialised):
            constants[path] = value
            return "constexpr"
        if isinstance(value, float):
            return "fp32"
        if isinstance(value, int):
            if value % 16 == 0 and specialised:
                attributes[path] = [["tt.divisibility", 16]]
            return "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, torch.Tensor):
            if value.device.type == "meta" or value.data_ptr() % 16 == 0:
                attributes[path] = [["tt.divisibility", 16]]
            return "*" + TYPES[str(value.dtype).removeprefix("torch.")]
        return f"tensordesc<{TYPES[str(value.base.dtype).removeprefix('torch.')]}{list(value.block_shape)}>"

    for i, name in enumerate(fn.arg_names):
        if fn.params[i].is_constexpr:
            signature[name], constants[(i,)] = "constexpr", given[name]
        else:
            signature[name] = described(given[name], (i,), name not in counts)
    source = ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)

    text = disassembled(compiled.asm["cubin"])
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    if usage is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {text[:200]!r}")
    registers, stack, _, local = map(int, usage.groups())
    every = re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)", text, re.M)
    code = Counter(every)
    waits = {"early": len(LOADS & set(every[: every.index("ACQBULK")]))} if "ACQBULK" in code else {}
    tensor = sum(count for op, count in code.items() if re.fullmatch(r"[HI]G?MMA|UTC\w*MMA", op))
    threads, shared = 32 * options["num_warps"], compiled.metadata.shared
    columns = getattr(compiled.metadata, "tmem_size", 0)
    fits = [REGISTERS // (-(-registers // 8) * 8 * threads), SHARED[arch] * 1024 // (shared + 1024), THREADS // threads]
    return {
        "registers": registers,
        "spill": [stack, local, code["STL"] + code["LDL"]],
        "shared": shared,
        "tensor": tensor,
        "sass": sum(code.values()),
        "programs": min([*fits, PROGRAMS, *([TMEM // columns] if columns else [])]),
        "triton": triton.__version__,
        **waits,
    }


@functools.cache
def disassembled(cubin: bytes) -> str:
    """What Triton's cuobjdump says of a kernel: resources, then instructions."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def moved(name: str, args: tuple) -> tuple[int, int]:
    """Bytes that a launch of the step must move, each tensor once and what is updated twice, and FLOPs of its products.
    Of the data set only the rows count that are drawn."""
    import torch

    def size(*some) -> int:
        parts = (size(*t) if isinstance(t, tuple) else isinstance(t, torch.Tensor) and t.nbytes for t in some)
        return sum(parts)

    if name == "update":
        volume = flops = 0
        for x, grad, weight, bias, shadow, state, bias_state in args[0]:
            volume += size(x, grad, shadow) + 2 * size(weight, bias, *state, *bias_state)
            flops += 2 * x.shape[1] * weight.numel()
        return volume, flops
    if name == "draw":
        return 2 * size(*args[5:7], *args[8:11]), 0
    of = zip(*args[:2], strict=True) if name in ("forward", "backward", "judge") else ()  # each network
    return size(*args), sum(2 * x.shape[1] * w.numel() for x, w in of)


def step(preset: str, replicas: int, precision: str, arch: int) -> tuple[list[dict], list[int]]:
    """What the compiler makes of every launch of one training step, in order of their first; equal ones count. And for
    each operation of plain torch, which makes or fills a tensor, the bytes of all that it reads or writes."""
    import numpy as np
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    import fastaae
    from fastaae import kernels
    from fastaae.data import from_arrays
    from fastaae.engine.step import Step
    from fastaae.kernels.step import draws, layers, losses, norms

    launches: dict[str, tuple] = {}
    counts: Counter = Counter()

    def described(a):
        """Of a tensor what the compiler knows: shape, and whether it starts at a multiple of 16 bytes."""
        if isinstance(a, tuple):
            return [described(part) for part in a]
        return (tuple(a.shape), a.data_ptr() % 16 == 0) if isinstance(a, torch.Tensor) else a

    class Recorder:
        def __init__(self, fn):
            self.fn = fn

        def __getitem__(self, grid: tuple):
            def record(*args, **options):
                key = f"{self.fn.__name__} {grid} {described(args)} {options}"
                launches.setdefault(key, (self.fn, grid, args, options))
                counts[key] += 1

            return record

    plain: list[int] = []

    class Plain(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            view = any(a.alias_info and not a.alias_info.is_write for a in func._schema.arguments)
            if not view and "empty" not in func._schema.name:
                plain.append(sum(t.nbytes for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)))
            return out

    x, cfg = np.zeros((2000, 784), np.uint8), fastaae.preset(preset, replicas=replicas, precision=precision)
    with ExitStack() as patched:
        patched.enter_context(patch.object(kernels, "triton_takes", lambda t: True))
        patched.enter_context(patch.object(layers, "capability", lambda t: arch // 10))
        one = Step(cfg, from_arrays((x, np.arange(2000) % 10)), torch.device("cpu"))
        for module in (draws, layers, losses, norms):
            for name, fn in list(vars(module).items()):
                if name.endswith("_kernel"):
                    patched.enter_context(patch.object(module, name, Recorder(fn)))
        one.start_epoch(0)
        with Plain():
            one()
    rows = []
    for key, (fn, grid, args, options) in launches.items():
        name = fn.__name__.strip("_").removesuffix("_kernel")
        volume, flops = moved(name, args)
        roof = {gpu: 1e6 * max(flops / rate, volume / band) for gpu, (rate, band) in PEAK[arch].items()}
        row = {"kernel": name, "arch": arch, "grid": grid, "times": counts[key], "config": options}
        row |= {"bytes": volume, "flops": flops, "roofline_us": roof}
        rows.append(row | machine_code(fn, args, options, arch))
    return rows, plain


def prototypes(options: argparse.Namespace) -> list[dict]:
    """Print and return a row for each prototype and GPU."""
    from experiments import counted

    print(f"{'':60}{'grid':>8}{'reg':>5}{'spill':>10}{'KB':>5}{'tensor':>8}{'SASS':>6}{'fit':>4}")
    rows = []
    for arch in options.arch:
        for what, (fn, grid, args, config) in counted.prototypes(arch).items():
            row = {"kernel": what, "arch": arch, "grid": grid} | machine_code(fn, args, config, arch)
            row["red"] = arch == 90 and (any(row["spill"]) or not row["programs"] or bool(row.get("early")))
            spill, waits = "/".join(map(str, row["spill"])), f"  {row['early']} early" if "early" in row else ""
            print(
                f"sm_{arch:<4}{what:53}{grid[0]:8}{row['registers']:5}{spill:>10}{row['shared'] / 1024:5.0f}"
                f"{row['tensor']:8}{row['sass']:6}{row['programs']:4}{waits}",
                flush=True,
            )
            rows.append(row)
    return rows


def beside(row: dict, measured: dict[tuple, float]) -> str:
    """The measured time of a launch, which the row keeps, and its ratio to a launch and the fastest roofline."""
    us = measured.get((row["kernel"], (*row["grid"], 1, 1)[:3]))
    if us is None:
        return ""
    row["measured_us"] = us
    return f"; measured {us:.2f}, {us / (GAP + min(row['roofline_us'].values())):.1f} x"


def durations(trace: str) -> dict[tuple, float]:
    """Microseconds of the launches in a trace of torch.profiler, the mean of each kernel and grid."""
    found: dict[tuple, list[float]] = {}
    for event in json.loads(Path(trace).read_text(encoding="utf-8"))["traceEvents"]:
        if event.get("cat") == "kernel":
            grid = tuple(event["args"]["grid"])
            found.setdefault((event["name"].strip("_").removesuffix("_kernel"), grid), []).append(event["dur"])
    return {key: sum(times) / len(times) for key, times in found.items()}


def launches_of_a_step(options: argparse.Namespace) -> list[dict]:
    """Print and return a row for each launch."""
    found = {arch: step(options.step, options.replicas, "bf16", arch) for arch in options.arch}
    rows = [row for some, _ in found.values() for row in some]
    print(
        f"{'':24}{'times':>6}{'grid':>12}{'reg':>5}{'spill':>10}{'KB':>5}{'tensor':>8}{'SASS':>6}{'fit':>4}"
        f"{'MB':>9}{'MFLOP':>8}  us at peak"
    )
    measured = durations(options.trace) if options.trace else {}
    for row in rows:  # the cosine's way for large arguments, never taken, keeps a stack
        row["red"] = not row["programs"] or (any(row["spill"]) and row["kernel"] != "draw")
        print(
            f"{row['kernel']:16} sm_{row['arch']:<4}{row['times']:6}{'x'.join(map(str, row['grid'])):>12}"
            f"{row['registers']:5}{'/'.join(map(str, row['spill'])):>10}{row['shared'] / 1024:5.0f}"
            f"{row['tensor']:8}{row['sass']:6}{row['programs']:4}"
            f"{row['bytes'] / 1e6:9.2f}{row['flops'] / 1e6:8.0f}  "
            + ", ".join(f"{gpu} {us:.2f}" for gpu, us in row["roofline_us"].items())
            + beside(row, measured)
        )
    for arch, (mine, plain) in found.items():
        n, megabytes = (sum(r["times"] * r.get(k, 1) for r in mine) for k in ("", "bytes"))
        print(f"sm_{arch}: {n} launches a step, {megabytes / 1e6:.0f} MB", end="")
        for gpu in PEAK[arch]:
            us = sum(row["times"] * row["roofline_us"][gpu] for row in mine)
            print(f"; {gpu}: {us:.0f} us at peak, {us + n * GAP:.0f} with {GAP} us a launch", end="")
        print(f"\nand {len(plain)} operations of plain torch, {sum(plain) / 1e6:.0f} MB", end="")
        for gpu, (_, band) in PEAK[arch].items():
            us = 1e6 * sum(plain) / band
            print(f"; {gpu}: {us:.0f} us at peak, {us + len(plain) * GAP:.0f} with {GAP} us each", end="")
        print()
    return rows


def reports(name: str, archs: list[int], out) -> None:
    """Send what there is to say of a kernel for each GPU."""
    for arch in archs:
        try:
            out.send(report(name, arch))
        except Exception as error:
            out.send({"error": f"{type(error).__name__}: {error}"[:200]})


def kernels_of_the_estimator(options: argparse.Namespace) -> list[dict]:
    """Print and return a row for each kernel and GPU, of a process of its own."""
    print(f"{'':16}{'reg':>4}{'spill':>10}{'KB':>5}{'tensor':>8}{'SASS':>6}{'fit':>4}{'MB':>8}{'GFLOP':>8}  at peak")
    rows, processes = [], multiprocessing.get_context("fork")  # a compiler's crash ends only one
    import fastaae.kernels.parzen.cuda  # noqa: F401  # here, once for all of them

    for name in KERNELS:
        ours, theirs = processes.Pipe(duplex=False)
        child = processes.Process(target=reports, args=(name, options.arch, theirs))
        child.start()
        theirs.close()
        for arch in options.arch:
            row = {"kernel": name, "arch": arch}
            try:
                row |= ours.recv()
            except EOFError:
                child.join()
                row["error"] = f"exit status {child.exitcode}"
            if "error" in row:
                print(f"{name:9} sm_{arch:<3} {row['error']}")
            else:
                times = ", ".join(f"{gpu} {ms:.2f} ms" for gpu, ms in row["roofline_ms"].items())
                spill = "/".join(map(str, row["spill"]))
                print(
                    f"{name:9} sm_{arch:<3}{row['registers']:4}{spill:>10}{row['shared'] / 1024:5.0f}{row['tensor']:8}"
                    f"{row['sass']:6}{row['programs']:4}{row['bytes'] / 1e6:8.0f}{row['flops'] / 1e9:8.0f}  {times}"
                )
                print(" " * 16, " ".join(f"{key}={value}" for key, value in row["config"].items()))
            row["red"] = "error" in row or any(row["spill"]) or not row["programs"]
            row["red"] |= not row.get("tensor") and name not in PLAIN
            rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", type=int, default=[80, 90, 100], choices=[80, 90, 100])
    parser.add_argument("--step", metavar="PRESET", help="every launch of a training step instead, in bf16")
    parser.add_argument("--experiments", action="store_true", help="the prototypes of bench/experiments instead")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--trace", metavar="FILE", help="of such a step, to be set beside it")
    options = parser.parse_args()
    listed = launches_of_a_step if options.step else prototypes if options.experiments else kernels_of_the_estimator
    rows = listed(options)
    print(json.dumps({"rows": rows}))
    return int(any(row["red"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
