"""What the compiler makes of every Triton kernel in kernels/, for three GPUs, without having one: does anything spill?

    python bench/kernels.py [--arch 80 90 100]

Each kernel is compiled for the launch that its launcher makes of the shipped problem (10,000 queries, 2^18 float32
samples of 784 coordinates; near: K = 128; 10 bandwidths; 262,144 pairs that may matter), with the arguments specialised
as at run time. Columns: registers per thread; bytes of stack and local memory, and instructions that load or store them
(spills: all must be 0); shared memory; tensor-core instructions and all SASS instructions; programs that fit one
multiprocessor. The last columns are arithmetic, nothing is measured: the bytes and FLOPs of cost(), and the longer of
their times at peak dense fp16 rate (int8: twice that) and peak bandwidth. Exit status 1 if a kernel fails to compile,
spills, does not fit or uses no tensor cores though it is there for them. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from unittest.mock import patch

PEAK = {80: {"A100": (312e12, 2.0e12)}, 90: {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}}
PEAK[100] = {"B200": (2250e12, 8.0e12)}  # dense fp16 FLOP/s, bytes/s
SHARED = {80: 164, 90: 228, 100: 228}  # KB per multiprocessor, 1 of them the system's per program
REGISTERS, THREADS, PROGRAMS, TMEM = 65536, 2048, 32, 512  # per multiprocessor; the last: columns, on sm_100
M, N, D, S, PAIRS = 10000, 2**18, 784, 10, 2**18
KERNELS = ("near", "wide", "sums", "project", "quantize", "distances", "count")
PLAIN = ("quantize", "distances", "count")  # without products
TYPES = {"float16": "fp16", "float32": "fp32", "float64": "fp64", "int8": "i8", "uint8": "u8", "int32": "i32"}
TYPES["int64"] = "i64"


class Launched(Exception):
    """Carries a kernel's name, arguments and options out of its launcher."""


def launch(name: str, arch: int) -> tuple[tuple, dict]:
    """Arguments and options with which the launcher starts a kernel; its tensors have shapes and no memory."""
    import torch

    from fastaae.kernels import parzen

    class Recorder:
        def __getitem__(self, grid: tuple):
            def record(*args, **options):
                raise Launched(args, options)

            return record

    half, byte, exact, index = torch.float16, torch.int8, torch.float64, torch.int64
    with (
        torch.device("meta"),
        patch.object(parzen, f"_{name}_kernel", Recorder()),
        patch.object(parzen, "_pinned", lambda table, _: table[max(key for key in table if key <= arch // 10)]),
    ):
        of, pairs = torch.empty, (torch.empty(PAIRS, dtype=index), torch.empty(PAIRS, dtype=index))
        calls = {
            "near": lambda: parzen.near_pairs(of(M, 128, dtype=half), of(N, 128, dtype=half), of(N), of(M)),
            "wide": lambda: parzen.near_pairs_of_bytes(
                of(M, D, dtype=byte), of(N, D, dtype=byte), of(N, dtype=torch.int32), of(M, dtype=exact)
            ),
            "sums": lambda: parzen.pair_sums(
                of(M, D, dtype=half), of(N, D, dtype=half), of(N), of(M), of(S, dtype=exact), 1.0
            ),
            "project": lambda: parzen.project(
                of(N, D), of(D, dtype=exact), (of(D, 128, dtype=half), of(D, 128, dtype=half)), 127, 0.0, (1.0, 1.0)
            ),
            "quantize": lambda: parzen.quantize(of(N, D), 0.5, 0.25),
            "distances": lambda: parzen.distances(of(M, D, dtype=torch.uint8), of(N, D), *pairs),
            "count": lambda: parzen.count(
                pairs[0], *(of(*n, dtype=exact) for n in ((PAIRS,), (M,), (S, M), (S,))), [True] * S
            ),
        }
        try:
            calls[name]()
        except Launched as launched:
            return launched.args
    raise AssertionError("nothing was launched")


def report(name: str, arch: int) -> dict:
    """Compiles one kernel for one architecture and reads the machine code."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastaae.kernels import parzen

    args, config = launch(name, arch)
    fn = getattr(parzen, f"_{name}_kernel")
    options = {"num_warps": 4, "num_stages": 3} | {k: config[k] for k in ("num_warps", "num_stages") if k in config}
    constants = {key: value for key, value in config.items() if key not in options}
    signature, attributes = {}, {}
    for i, (key, value) in enumerate(zip(fn.arg_names, args, strict=False)):
        if fn.params[i].is_constexpr or (isinstance(value, int) and value == 1 and key not in parzen.COUNTS):
            signature[key], constants[key] = "constexpr", value
        elif isinstance(value, float):
            signature[key] = "fp32"
        elif isinstance(value, int):
            signature[key] = "i32"
        elif isinstance(value, torch.Tensor):
            signature[key] = "*" + TYPES[str(value.dtype).removeprefix("torch.")]
        else:
            kind = TYPES[str(value.base.dtype).removeprefix("torch.")]
            signature[key] = f"tensordesc<{kind}{list(value.block_shape)}>"
        if signature[key][0] == "*" or (signature[key] == "i32" and value % 16 == 0 and key not in parzen.COUNTS):
            attributes[(i,)] = [["tt.divisibility", 16]]
    signature |= {key: "constexpr" for key in constants}
    signature = {key: signature[key] for key in fn.arg_names}
    source = ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack, _, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text).groups())
    code = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)", text, re.M))
    tensor = sum(count for op, count in code.items() if re.fullmatch(r"[HI]G?MMA|UTC\w*MMA", op))
    threads, shared = 32 * options["num_warps"], compiled.metadata.shared
    columns = getattr(compiled.metadata, "tmem_size", 0)
    fits = [REGISTERS // (-(-registers // 8) * 8 * threads), SHARED[arch] * 1024 // (shared + 1024), THREADS // threads]
    volume, flops = parzen.cost(name, M, N, D, S, PAIRS)
    faster = 2 if name == "wide" else 1  # int8
    return {
        "config": config,
        "registers": registers,
        "spill": [stack, local, code["STL"] + code["LDL"]],
        "shared": shared,
        "tensor": tensor,
        "sass": sum(code.values()),
        "programs": min([*fits, PROGRAMS, *([TMEM // columns] if columns else [])]),
        "bytes": volume,
        "flops": flops,
        "roofline_ms": {
            gpu: 1e3 * max(flops / rate / faster, volume / band) for gpu, (rate, band) in PEAK[arch].items()
        },
        "triton": triton.__version__,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", type=int, default=[80, 90, 100], choices=[80, 90, 100])
    parser.add_argument(
        "--one", choices=KERNELS, help="this kernel alone, in this process; a line of JSON for each GPU"
    )
    options = parser.parse_args()
    if options.one:
        for arch in options.arch:
            print(json.dumps(report(options.one, arch)), flush=True)
        return 0

    print(f"{'':16}{'reg':>4}{'spill':>10}{'KB':>5}{'tensor':>8}{'SASS':>6}{'fit':>4}{'MB':>8}{'GFLOP':>8}  at peak")
    rows, red = [], False
    for name in KERNELS:
        command = [sys.executable, __file__, "--one", name, "--arch", *map(str, options.arch)]
        done = subprocess.run(command, capture_output=True, text=True)  # a compiler's crash ends only this
        for arch, line in zip_longest(options.arch, done.stdout.splitlines()):
            row = {"kernel": name, "arch": arch}
            if line is None:
                error = re.search(r".*[Ee]rror.*", done.stderr)
                row["error"] = error[0][:200] if error else f"exit status {done.returncode}"
                print(f"{name:9} sm_{arch:<3} {row['error']}")
            else:
                row |= json.loads(line)
                times = ", ".join(f"{gpu} {ms:.2f} ms" for gpu, ms in row["roofline_ms"].items())
                spill = "/".join(map(str, row["spill"]))
                print(
                    f"{name:9} sm_{arch:<3}{row['registers']:4}{spill:>10}{row['shared'] / 1024:5.0f}{row['tensor']:8}"
                    f"{row['sass']:6}{row['programs']:4}{row['bytes'] / 1e6:8.0f}{row['flops'] / 1e9:8.0f}  {times}"
                )
                print(" " * 16, " ".join(f"{key}={value}" for key, value in row["config"].items()))
            row["red"] = "error" in row or any(row["spill"]) or not row["programs"]
            row["red"] |= not row.get("tensor") and name not in PLAIN
            red |= row["red"]
            rows.append(row)
    print(json.dumps({"rows": rows}))
    return int(red)


if __name__ == "__main__":
    sys.exit(main())
