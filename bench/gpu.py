"""What bench/gpu.sh runs: checks of a part of fastaae on a GPU, then its timings, into one file.

parzen   the tests of the kernels and of the estimator; compute-sanitizer's memcheck and racecheck on a run that
         launches every kernel; a GPU against a CPU on the same samples, within both certificates; two runs, the same
         bits; then bench/parzen.py for 100 thousand, a million and ten million samples, one bandwidth and a grid of
         ten, auto and dense, in 784 and 2,304 dimensions, drawing included, and bytes from memory; what others take
         beside a million; the shapes of Flash-SD-KDE.

agree    the same comparison alone, of 500 queries under ten million samples in bytes, in a minute; prints it.

step     the tests of the step's kernels, among them captured against eager steps; compute-sanitizer's memcheck and
         racecheck on a few small steps; then bench/step.py: replicas 1, 4, 16 and 64, the precisions, and PyTorch
         eager, compiled and captured.

experiments   what GPU kernels could gain, as prototypes beside the real ones: experiments/timings.py says which parts
         there are. Nine minutes at most; what is measured already is not measured again; a file of lines of JSON.

Checks run side by side, those of two parts, too; timings alone. Nothing is written if a test fails or memcheck finds an
error. What racecheck says is kept beside the times: it cannot tell a race from threads that hold one value and all
write it, as Triton's changes of layout do. --dry-run takes every step on a CPU: the kernels in Triton's interpreter,
few and small samples, a file that is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import parzen as bench
import tables
import torch

import fastaae
from fastaae import data
from fastaae.engine.step import Step
from fastaae.kernels.parzen import cuda, sums, tensor_cores
from fastaae.run import provenance

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(fastaae.__file__).parent.parent  # made by gpu.sh; the checkout's own folder fastaae/ lacks kernels/
GRID = [f"{sigma:.4g}" for sigma in np.logspace(-1, 0, 10)]


def run(command: list[str], seconds: float, **env: str) -> tuple[bool | None, str]:
    """Whether a command succeeds, None if not within so many seconds, and the end of what it says."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, cwd=PACKAGE, env=os.environ | env
        )
    except subprocess.TimeoutExpired:
        return None, f"not finished in {seconds} seconds"
    return done.returncode == 0, "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])


def tests(dry: bool, names: list[str], some: str) -> dict[str, str]:
    """Pytest's last line, of the tests that a GPU can fail; in a dry run of some."""
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in (names[:1] if dry else names)]
    many = ["-n", "8"] if importlib.util.find_spec("xdist") and not dry else []
    few = ["-k", some] if dry else []
    right, said = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *many, *few, *files], 240)
    require(right, f"tests: {said}")
    return {"tests": said.splitlines()[-1]}


def sanitized(dry: bool, touch: str) -> dict[str, str]:
    """compute-sanitizer's verdicts on touch() or touch_step()."""
    script = [sys.executable, __file__, *(["--dry-run"] if dry else []), touch]
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    right, said = run(script, 120)  # compiles
    require(right, f"every kernel once: {said}")
    if not tool:
        print("compute-sanitizer is not installed: the kernels ran without it")
        return {"sanitizer": "not installed"}

    def verdict(check: str) -> str:
        command = [tool, "--tool", check, "--error-exitcode", "1", *script]
        right, said = run(command, 150, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        require(right or check == "racecheck", f"{check}: {said}")
        print(f"{check}: {said.splitlines()[-1]}", flush=True)
        return said.splitlines()[-1]

    checks = ("memcheck", "racecheck")
    with ThreadPoolExecutor() as pool:
        return dict(zip(checks, pool.map(verdict, checks), strict=True))


def checked(dry: bool, names: list[str], some: str, touch: str) -> dict[str, str]:
    """Tests and sanitizers, side by side."""
    with ThreadPoolExecutor() as pool:
        parts = pool.submit(tests, dry, names, some), pool.submit(sanitized, dry, touch)
        return parts[0].result() | parts[1].result()


def touch(device: str) -> None:
    """Launch every kernel, in the estimator and, for what it may not need, alone."""
    g = np.random.default_rng(0)
    queries, samples = g.random((40, 200), np.float32), g.random((300, 200), np.float32)
    for method in ("pruned", "dense"):
        fastaae.parzen_log_likelihood((queries * 255).astype(np.uint8), samples, 0.1, method=method, device=device)
    x, s = (torch.from_numpy(v).to(device).half() for v in (queries, samples))
    one = torch.ones(1, dtype=torch.float64, device=device)
    cuda.pair_sums(x, s, s.float().square().sum(1), torch.full((40,), torch.inf, device=device), one, 10.0)
    if device == "cuda":
        torch.cuda.synchronize()


def touch_step(device: str) -> None:
    """A few small steps that launch every kernel."""
    rng = np.random.default_rng(0)
    images = data.from_arrays((rng.integers(0, 256, (120, 70)).astype(np.uint8), np.arange(120) % 3))
    given: dict[str, Any] = {"task": "semi_supervised", "hidden": (72, 76), "style_dim": 3, "batch_size": 20}
    given |= {"input_noise": 0.1, "replicas": 2, "lr_reconstruction": 1e-3, "lr_adversarial": 1e-3}
    given |= {"lr_classification": 1e-3}
    for precision, optimizer in (("bf16", "sgd"), ("fp16", "adam")):
        given |= {"precision": precision, "optimizer": optimizer}
        cfg = fastaae.Config(**given)
        one = Step(cfg, images, torch.device(device))
        one.start_epoch(0)
        one()
        require(bool(one.losses[0].isfinite().all()), f"losses of the first step: {one.losses[0]}")


def compared(device: str, images: data.Data, n: int, m: int, sigma: float) -> dict[str, float]:
    """The largest difference between a GPU and a CPU, and between two runs on the GPU, of both methods."""
    stream = bench.mixtures(images, torch.device("cpu"))(n, 1, (0, 1))
    samples = torch.cat([part if n < 10**6 else (255 * part).round().byte() for part in stream])
    found: dict[str, float] = {}
    if images.x_test is None:
        raise SystemExit(f"{images.name}: no test images, which are the queries")
    queries = images.x_test[:m]
    with on_cpu():
        right = fastaae.parzen_log_likelihood(queries, samples, sigma)
    for method in ("auto", "dense"):
        one, two = (
            fastaae.parzen_log_likelihood(queries, samples, sigma, method=method, device=device) for _ in range(2)
        )
        error = float(np.abs(one.per_query - right.per_query).max())
        require(np.array_equal(one.per_query, two.per_query), f"{method}: two runs differ")
        require(
            error <= one.error_bound + right.error_bound, f"{method}: {error} nats from the CPU, beyond certificates"
        )
        found |= {f"{method}: nats from the CPU": error, f"{method}: certificate": one.error_bound}
    return found | {"certificate of the CPU": right.error_bound, "samples": n, "queries": m}


@contextlib.contextmanager
def on_cpu():
    """Plain torch, also in a dry run."""
    with mock.patch.object(sums, "tensor_cores", lambda device: None):
        yield


def timed(device: str, options: list[str]) -> dict:
    """What bench/parzen.py reports."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = bench.main(["--device", device, *options])
    require(status == 0, f"bench/parzen.py {' '.join(options)}: {said.getvalue()}")
    report = json.loads(said.getvalue().splitlines()[-1])
    ours, whole = report["rows"][0], report["whole_seconds"]
    flops = 2 * ours["pair_dimensions_per_second"] / 1e12
    print(
        f"{' '.join(options):84} {whole:8.3f} s, drawing {report['drawing_seconds']:.3f}, {flops:6.0f} TFLOP/s",
        flush=True,
    )
    return {"options": " ".join(options)} | {k: v for k, v in report.items() if k != "machine"}


def alone() -> None:
    """Wait until no other part is being timed, and keep them waiting until this process ends."""
    lock = os.open(Path(tempfile.gettempdir()) / "fastaae-timing.lock", os.O_CREAT | os.O_RDWR)  # stays open
    fcntl.flock(lock, fcntl.LOCK_EX)


def require(right: bool | None, message: str) -> None:
    if not right:
        raise SystemExit(f"{message}\nnothing is written")


def clocks() -> dict[str, str]:
    fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        return dict(zip(fields.split(","), said.split(", "), strict=False))
    return {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["parzen", "step", "agree", "experiments", "touch", "touch-step"])
    parser.add_argument("--only", nargs="+", metavar="PART", help="of the experiments")
    parser.add_argument(
        "--inside", nargs=2, metavar=("PART", "FILE"), help="one part of the experiments, in this process"
    )
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    dry, device = options.dry_run, "cpu" if options.dry_run else "cuda"
    if dry:
        sums.tensor_cores = lambda device: tensor_cores.TensorCores
    if options.part.startswith("touch"):
        (touch if options.part == "touch" else touch_step)(device)
        return 0
    if options.part == "agree":
        print(compared(device, data.load("mnist"), *((2_000, 20) if dry else (10_000_000, 500)), 0.2))
        return 0
    if options.part == "experiments":
        return experiments(options, device)

    require(
        Path(cuda.__file__).resolve() == ROOT / "kernels" / "parzen" / "cuda.py",
        f"{cuda.__file__}: not this checkout",
    )
    started = time.perf_counter()
    report: dict[str, Any] = {"machine": provenance.describe(device), "clocks_before": clocks()}
    report |= (estimator if options.part == "parzen" else step)(dry, device)
    report |= {"clocks_after": clocks(), "minutes": (time.perf_counter() - started) / 60}
    name = tables.slug(torch.cuda.get_device_name() if not dry else "dry run")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder if dry else ROOT / "bench" / "results") / f"{name}-{options.part}.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        path.write_text(json.dumps([*before, report], indent=1) + "\n", encoding="utf-8")  # the newest is the last
        print(f"{path}, {report['minutes']:.1f} minutes; README's tables: python bench/tables.py")
    return 0


def experiments(options: argparse.Namespace, device: str) -> int:
    """Parts of the experiments, all or some."""
    from experiments import timings

    if options.inside:
        timings.inside(options.inside[0], Path(options.inside[1]), device)
        return 0
    parts = options.only or list(timings.PARTS)
    if unknown := sorted(set(parts) - set(timings.PARTS)):
        raise SystemExit(f"--only {' '.join(unknown)}: expected some of {', '.join(timings.PARTS)}")
    alone()
    name = tables.slug(torch.cuda.get_device_name() if device == "cuda" else "dry run")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder if options.dry_run else ROOT / "bench" / "results") / f"{name}-experiments.jsonl"
        timings.run(Path(__file__), parts, path, options.dry_run)
        print(path)
    return 0


def step(dry: bool, device: str) -> dict:
    """Checks and times of the training step."""
    report: dict[str, Any] = {**checked(dry, ["step_kernels", "phases"], "finish or philox", "touch-step")}
    alone()
    command = [sys.executable, str(ROOT / "bench" / "step.py"), "--device", device, "--rounds"]
    rounds, replicas = (["1", "--rehearse"], ["1"]) if dry else (["5"], ["1", "4", "16", "64"])
    report["rows"] = []
    for some, arguments in ((replicas, []), (["1"], ["--precision", "fp16", "fp32", "--others", "0"])):
        done = subprocess.run([*command, *rounds, "--replicas", *some, *arguments], capture_output=True, text=True)
        require(done.returncode == 0, done.stdout + done.stderr)
        print(done.stdout[: done.stdout.rindex("\n{")])
        report["rows"] += json.loads(done.stdout.splitlines()[-1])["rows"]
    return report


def estimator(dry: bool, device: str) -> dict:
    """Checks and times of the Parzen-window estimator."""
    images = data.load("digits" if dry else "mnist")
    small = ["--dataset", "digits", "--queries", "20", "--samples-others", "300"] if dry else []
    sizes = [300, 400, 500] if dry else [100_000, 1_000_000, 10_000_000]
    others = ["--others", "logsumexp", "block-skip", *([] if dry else ["compiled", "broadcast"])]
    rounds, one, grid = ["--rounds", "1" if dry else "3"], ["--sigma", "0.05" if dry else "0.2"], ["--sigma", *GRID]
    report: dict[str, Any] = {**checked(dry, ["parzen_kernels", "parzen"], "distances or quantize", "touch")}
    report["agreement"] = compared(device, images, *((1500, 20, 0.05) if dry else (200_000, 1000, 0.2)))
    print(report["agreement"], flush=True)
    alone()
    report["rows"] = [
        timed(device, [*small, *rounds, "--samples", str(n), *bandwidths, "--method", method, *rest])
        for n in sizes
        for bandwidths, method, rest in (
            (
                one,
                "auto",
                [*others, *([] if dry else ["--samples-others", "100000"])] if n == sizes[1] else ["--others"],
            ),
            (one, "dense", ["--others"]),
            (grid, "auto", ["--others"]),
        )
    ]
    large = ["--samples", str(sizes[-1]), *one, "--others", "--side", "12" if dry else "48"]
    report["rows"] += [timed(device, [*small, *rounds, *large, "--method", method]) for method in ("auto", "dense")]
    shapes = [["--shape", name, *(["--queries", "20", "--samples", "300"] if dry else [])] for name in bench.SHAPES]
    report["shapes"] = [timed(device, [*shape, *rounds, "--others"]) for shape in shapes]
    with tempfile.TemporaryDirectory() as folder:  # bytes, from memory
        stream = bench.mixtures(images, torch.device(device))(sizes[1], 0, (0, 1))
        np.save(f"{folder}/bytes.npy", torch.cat([(255 * part).round().byte().cpu() for part in stream]).numpy())
        stored = ["--source", f"{folder}/bytes.npy", "--samples", str(sizes[1]), *one, "--others"]
        report["rows"] += [
            timed(device, [*small, *rounds, *stored, "--method", method]) for method in ("auto", "dense")
        ]
    return report


if __name__ == "__main__":
    sys.exit(main())
