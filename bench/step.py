"""How long is one training step, against an idiomatic PyTorch loop, pythae, and the matrix products alone?

    python bench/step.py [--presets mnist-likelihood mnist-100] [--replicas 1 4] [--rounds 15] [--threads N]
    python bench/step.py --precision bf16 [--replicas 1]      on a processor with avx512_bf16
    python bench/step.py --device cuda [--precision bf16] [--replicas 1 4 16 64]
    python bench/step.py --breakdown [--device cuda]          which phase takes how long, and what train() adds

All contenders run in one process on the same batches and thread count, a few steps each in turn, since machines drift:
trust the ratios. Before any timing, fastaae's steps are compared with the idiomatic ones in float64; a mismatch
stops.
- floor: only the matrix products of the fastaae step, same shapes, layouts and library (oneDNN for large layers).
- floor-state: the same, and one pass of torch's fused optimiser over everything that is updated, from memory: Adam's
  two moments are bytes that no product hides.
- floor-torch: the products by torch.bmm, which calls MKL: what bounds every loop written with nn.Linear.
- idiomatic: nn.Linear, autograd, one torch.optim.SGD per cost (foreach, or fused), the same arithmetic.
  In bf16 it and the careful one run under autocast, and floors multiply bf16; fastaae's float32 step runs beside.
- careful: the same, with one encoder pass for D and G, frozen discriminators in G, and the fused SGD.
- pythae: its Adversarial_AE under its AdversarialTrainer, if it is importable (no label head: unsupervised only). Its
  step is another one, with less work: one encoder pass and update serve reconstruction and generator together.
R replicas cost the others R runs, so their times are multiplied by R. The last line is JSON.

On a GPU the times are those of long runs of steps between two synchronisations, and the others are the careful step in
eager mode (float32, and under autocast), with its four losses compiled by torch.compile, and that captured whole in a
CUDA graph; their batches lie ready, fastaae draws its own. floor is then the time in which the bytes of the update
alone move, 18 a parameter (weight and momentum read and written, the 16-bit copy written; 16 in float32), at the rate
that an addition of large tensors reaches in the same run.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastaae import preset
from fastaae.data import Data, from_arrays
from fastaae.engine.replay import Replay
from fastaae.engine.step import Step
from fastaae.kernels import onednn
from fastaae.run import provenance
from fastaae.run.progress import Progress
from fastaae.run.resume import Checkpoints
from fastaae.run.signals import Signals
from fastaae.run.training import Training

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from idiomatic import Idiomatic, check, drawn, twin  # noqa: E402


def by_torch(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    torch.bmm(a, b, out=out)


def by_onednn(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    for r in range(len(a)):  # the result is dropped: oneDNN returns a new tensor
        onednn.product(a[r], b[r].T)


def products(step: Step, as_step: bool = True) -> tuple[Callable[[], None], int]:
    """A function that runs only the step's matrix products, in the step's library or in PyTorch's, and their FLOPs."""
    calls, flops = [], 0

    def passes(mlp, tape, forward=1, update=True, input_gradient=False):
        nonlocal flops
        for i, weight in enumerate(mlp.shadows):
            x, y, gx, gy = (t.to(weight.dtype) for t in (tape.x[i], tape.x[i + 1], tape.g[i], tape.g[i + 1]))
            cost = 2 * x.shape[1] * weight.numel()
            multiply = by_onednn if as_step and onednn.takes(weight) else by_torch
            back = by_onednn if as_step and onednn.takes(weight, backward=True) else by_torch
            m = torch.zeros_like(weight)
            forwards = [lambda f=multiply, x=x, w=weight, y=y: f(x, w.transpose(1, 2), y)] * forward
            backwards = []
            if update:
                backwards.append(lambda f=multiply, g=gy, x=x, m=m: f(g.transpose(1, 2), x, m))
            if update is not None and (i > 0 or input_gradient):
                backwards.append(lambda f=back, g=gy, w=weight, gx=gx: f(g, w, gx))
            calls.extend(forwards + backwards)
            flops += cost * (len(forwards) + len(backwards))

    every = step.player.passes
    both = "decoder" in every and bool(step.discriminators)
    if "encoder" in every:
        passes(*every["encoder"], forward=1 + both)  # reconstruction, and the codes that D and G share
    if "decoder" in every:
        passes(*every["decoder"], input_gradient="encoder" in every)
    for name, network in step.discriminators.items():
        passes(network, step.judging[name])
        passes(network, step.fooling[name], update=False, input_gradient=True)
    if "encoder" in every and both:
        passes(*every["encoder"], forward=0)  # generator
    if "labeled" in every:
        passes(*every["labeled"])

    def run() -> None:
        for call in calls:
            call()

    return run, flops


def optimisers(step: Step) -> Callable[[], None]:
    """A function that runs only the optimisers, torch's fused ones, with gradients that lie in memory."""
    calls = []
    for o in step.optimizers.values():
        named = o.network.parameters()
        weights, grads = list(named.values()), [torch.zeros_like(p) for p in named.values()]
        moments = [list(part) for part in zip(*(o.moments[name] for name in named), strict=True)]
        options = {"lr": 1e-3, "weight_decay": 0.0, "maximize": False}
        if o.correction is None:
            options |= {"momentum": 0.9, "dampening": 0.0, "nesterov": False, "is_first_step": False}
            calls.append(partial(torch._fused_sgd_, weights, grads, *moments, **options))
        else:
            options |= {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
            steps = [torch.ones(()) for _ in weights]
            calls.append(partial(torch._fused_adam_, weights, grads, *moments, [], steps, **options))

    def run() -> None:
        for call in calls:
            call()

    return run


def pythae_step(batch: int, cfg) -> Callable[[], None] | None:
    """One training step of pythae's Adversarial_AE with the same MLPs, or None where pythae is missing."""
    try:
        import pythae.trainers as trainers
        from pythae.data.datasets import BaseDataset
        from pythae.models import Adversarial_AE, Adversarial_AE_Config
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder
    except ImportError:
        return None

    def layers(sizes):
        parts = [part for i, o in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(i, o), nn.ReLU())]
        return nn.Sequential(*parts[:-1])

    logging.disable(logging.INFO)  # it tells every step of its preparation

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.net = layers((784, *cfg.hidden))
            self.mean, self.log_var = (nn.Linear(cfg.hidden[-1], cfg.style_dim) for _ in range(2))

        def forward(self, x):
            h = self.net(x.flatten(1)).relu()
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.net = layers((cfg.style_dim, *cfg.hidden, 784))

        def forward(self, z):
            return ModelOutput(reconstruction=self.net(z).sigmoid().reshape(-1, 1, 28, 28))

    class Discriminator(BaseDiscriminator):
        def __init__(self):
            super().__init__()
            self.net = layers((cfg.style_dim, *cfg.hidden, 1))

        def forward(self, z):
            return ModelOutput(embedding=self.net(z).sigmoid())

    model_config = Adversarial_AE_Config(input_dim=(1, 28, 28), latent_dim=cfg.style_dim, reconstruction_loss="mse")
    model = Adversarial_AE(model_config, Encoder(), Decoder(), Discriminator())
    x = torch.rand(batch, 1, 28, 28)
    training = trainers.AdversarialTrainerConfig(
        output_dir=tempfile.mkdtemp(prefix="pythae-"),
        no_cuda=True,
        autoencoder_optimizer_cls="SGD",
        autoencoder_optimizer_params={"momentum": 0.9},
        discriminator_optimizer_cls="SGD",
        discriminator_optimizer_params={"momentum": 0.1},
        autoencoder_learning_rate=1e-3,
        discriminator_learning_rate=1e-3,
        per_device_train_batch_size=batch,
    )
    dataset = BaseDataset(x, torch.zeros(batch))
    trainer = trainers.AdversarialTrainer(model, dataset, training_config=training)
    trainer.prepare_training()
    trainer.callback_handler.callbacks.clear()
    return lambda: trainer.train_step(1)


def measure(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds per call of every contender, in turn, after two rounds of warm-up.

    A turn is four calls in a row, as in training, and counts the last three: the first finds the caches and the heap as
    another contender has left them.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for k in range(rounds + 2):
        for name, call in contenders.items():
            call()
            started = time.perf_counter()
            for _ in range(3):
                call()
            if k >= 2:
                times[name].append(1e3 * (time.perf_counter() - started) / 3)
    return times


def stepping(step: Step) -> Callable[[], None]:
    """Calls a step, over and over through an epoch."""
    step.start_epoch(0)

    def call() -> None:
        step.batches.cursor.remainder_(step.steps_per_epoch)
        step.slot.zero_()
        step()

    return call


def row(name: str, replicas: int, precision: str, data: Data, rounds: int) -> list[dict]:
    cfg = preset(name, replicas=replicas, precision=precision, log_every=1_000)
    step = Step(cfg, data, torch.device("cpu"))
    floor, flops = products(Step(cfg, data, torch.device("cpu")))
    full = replace(cfg, precision="fp32")
    single = Step(replace(full, replicas=1), data, torch.device("cpu"))
    single.start_epoch(0)
    idiomatic = {
        "idiomatic": twin(single, foreach=True),
        "idiomatic-fused": twin(single, fused=True),
        "careful": twin(single, careful=True, fused=True),
    }

    def loop(contender: Idiomatic) -> Callable[[], None]:
        def run() -> None:
            single.batches.cursor.zero_()
            single.batches.draw()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
                contender(drawn(single))

        return run

    floor_torch, _ = products(Step(cfg, data, torch.device("cpu")), as_step=False)
    optimise = optimisers(Step(cfg, data, torch.device("cpu")))
    contenders = {"fastaae": stepping(step), "floor": floor, "floor-state": lambda: (floor(), optimise())}
    contenders["floor-torch"] = floor_torch
    if precision != "fp32":
        contenders["fastaae, fp32"] = stepping(Step(full, data, torch.device("cpu")))
    contenders |= {k: loop(v) for k, v in idiomatic.items()}
    pythae = pythae_step(cfg.batch_size, cfg) if cfg.task == "unsupervised" else None
    if pythae:
        contenders["pythae"] = pythae
    elif cfg.task == "unsupervised":
        print("pythae: not installed")
    times = measure(contenders, rounds)
    scale = {k: 1 if k.startswith(("fastaae", "floor")) else replicas for k in times}
    times = {k: np.array(values) * scale[k] for k, values in times.items()}
    return summaries(times, {"preset": name, "replicas": replicas, "precision": precision, "gflop": flops / 1e9})


def summaries(times: dict[str, Any], common: dict[str, Any]) -> list[dict]:
    """A row for each contender: its median time, 20 % and 80 % quantiles, and median ratio to fastaae's."""
    rows = []
    for contender, values in times.items():
        p20, p50, p80 = np.percentile(values, [20, 50, 80]).tolist()
        ratio = float(np.median(np.array(values) / np.array(times["fastaae"])))
        rows.append(common | {"contender": contender, "ms": p50, "p20": p20, "p80": p80, "ratio": ratio})
    return rows


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(device: torch.device) -> float:
    """Bytes per second that y += x moves, of 1 GiB each (on a CPU, 1 MiB)."""
    n = 2**28 if device.type == "cuda" else 2**18
    x, y = (torch.ones(n, device=device) for _ in range(2))
    times = []
    for _ in range(10):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(10):
            y.add_(x)
        synchronize(device)
        times.append(time.perf_counter() - started)
    return 10 * 12 * n / min(times)


def on_gpu(
    name: str, replicas: int, precision: str, others: bool, data: Data, rounds: int, device: torch.device
) -> list[dict]:
    """As row, on a GPU, or a rehearsal of that with a tiny network on a CPU, where nothing is compiled or captured."""
    gpu = device.type == "cuda"
    cfg = preset(name, replicas=replicas, precision=precision, log_every=500)
    cfg = cfg if gpu else replace(cfg, hidden=(24, 16), n_labeled=cfg.n_labeled and 50)
    step = Step(cfg, data, device)
    step.start_epoch(0)
    replay = Replay(step, step.carried(), step.batches.generators, device)

    many = 50 if gpu else 1

    def fastaae() -> None:
        step.batches.cursor.zero_()
        step.slot.zero_()
        replay(many)

    contenders: dict[str, tuple[Callable[[], None], int]] = {"fastaae": (fastaae, many)}
    if others:
        contenders["fastaae, eager"] = (lambda: (step.batches.cursor.zero_(), step.slot.zero_(), step()), 1)
        single = Step(replace(cfg, replicas=1, precision="fp32"), data, device)
        single.start_epoch(0)
        single.batches.draw()
        batch = drawn(single)
        for label, autocast, compiled in (
            ("eager, fp32", False, False),
            ("eager, autocast", True, False),
            ("torch.compile", True, True),
            ("torch.compile, graph", True, True),
        ):
            model = twin(single, careful=True, fused=True)
            if compiled and gpu:
                for loss in ("reconstruction", "discriminator", "generator", "classification"):
                    setattr(model, loss, torch.compile(getattr(model, loss)))

            def run(model: Idiomatic = model, autocast: bool = autocast) -> None:
                with torch.autocast(device.type, torch.bfloat16, enabled=autocast, cache_enabled=False):
                    model(batch)

            try:
                for _ in range(3):  # compiles
                    run()
                if "graph" in label:
                    run = partial(Replay(run, [], [], device, size=1), 1)
            except RuntimeError as error:
                print(f"{label}: {error}", file=sys.stderr)
                continue
            contenders[label] = (run, 1)
    times = {label: [] for label in contenders}
    for k in range(rounds + 1):
        for label, (call, steps) in contenders.items():
            calls = max(1, (100 if gpu else 1) // steps)
            synchronize(device)
            started = time.perf_counter()
            for _ in range(calls):
                call()
            synchronize(device)
            if k:
                scale = 1 if label.startswith("fastaae") else replicas
                times[label].append(1e3 * scale * (time.perf_counter() - started) / calls / steps)
    updated = sum(p.numel() for o in step.optimizers.values() for p in o.network.state().values())
    moved = updated * (18 if precision in ("bf16", "fp16") else 16)
    times["floor"] = [1e3 * moved / bandwidth(device)] * rounds
    return summaries(times, {"preset": name, "replicas": replicas, "precision": precision, "update_bytes": moved})


def breakdown(step: Step, rounds: int) -> dict[str, float]:
    """Milliseconds of each part of an eager step, and of the whole, medians."""
    parts = {"draw": step.batches.draw}
    parts |= {p.__name__: lambda p=p, t=t: p(step, t) for p, t in zip(step.phases, step.terms, strict=True)}
    parts["finish"] = lambda: step.ops.finish(step.terms, step.losses, step.slot, step.batches.count, step.scale)
    parts["whole step"] = step
    times: dict[str, list[float]] = {name: [] for name in parts}
    for k in range(rounds + 2):
        for name, part in parts.items():
            step.batches.cursor.zero_()
            step.slot.zero_()
            synchronize(step.device)
            started = time.perf_counter()
            part()
            synchronize(step.device)
            if k >= 2:
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: float(np.median(values)) for name, values in times.items()}


def around(step: Step, data: Data, rounds: int, whole: float) -> dict[str, float]:
    """Milliseconds per step that train() adds to steps of `whole` each, for reliability alone: its loop, the losses
    read, checked and written every 100 steps, weights checked and checkpoints written after epochs of 500, MNIST's."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = replace(step.cfg, log_every=100, epochs=1_000, out_dir=folder)
        checkpoints = Checkpoints(step, cfg, data, False)
        training = Training(checkpoints, Signals(), Progress(checkpoints, 0, False), None, None)

        def loop() -> None:
            end = training.done + 100
            while training.done < end:
                training.run_steps(lambda n: None)
                training.pause(0)

        parts = {"loop": (loop, 100), "losses": (lambda: training.log(0), 100)}
        parts["weights"] = lambda: checkpoints.check(step.parameters(), training.done), 500
        parts["checkpoint"] = lambda: checkpoints.save(training.done), 500
        times: dict[str, list[float]] = {name: [] for name in parts}
        with training.progress:
            for _ in range(rounds):
                for name, (part, steps) in parts.items():
                    synchronize(step.device)
                    started = time.perf_counter()
                    part()
                    times[name].append(1e3 * (time.perf_counter() - started) / steps)
    added = {name: float(np.median(values)) for name, values in times.items()}
    if checkpoints.seconds:  # of a large state, at most so often
        added["checkpoint"] = min(added["checkpoint"], whole / 200)
    return added


def table(title: str, rows: list[dict], digits: int) -> None:
    print(f"\n{title}\n{'':22}{'ms/step':>10}{'20 %':>9}{'80 %':>9}{'/ fastaae':>11}")
    for r in rows:
        print(
            f"{r['contender']:22}{r['ms']:10.{digits}f}{r['p20']:9.{digits}f}{r['p80']:9.{digits}f}{r['ratio']:11.2f}",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["mnist-likelihood", "mnist-100"])
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16", "fp16"], help="default: fp32, on a GPU bf16")
    parser.add_argument("--breakdown", action="store_true", help="where an eager step's time goes, instead")
    parser.add_argument("--rehearse", action="store_true", help="a GPU's way through this file, tiny, on a CPU")
    parser.add_argument("--others", nargs="*", type=int, default=[1], help="on a GPU: replicas beside which others run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.precision = options.precision or ["bf16" if options.device == "cuda" or options.rehearse else "fp32"]
    rng = np.random.default_rng(0)  # the time of a step does not depend on the images, so none are needed
    shape = (15000, 20 if options.rehearse else 784)
    images = (rng.random(shape) < 0.2).astype(np.float32) * rng.random(shape, np.float32)
    data = from_arrays(((255 * images).astype(np.uint8), np.arange(15000) % 10))

    machine = provenance.describe(options.device)
    print(" ".join(f"{k}={v}" for part in machine.values() for k, v in part.items()))
    rows = []
    if options.breakdown:
        for name in options.presets:
            for r in options.replicas:
                precision = options.precision[0]
                cfg = preset(name, replicas=r, precision=precision, log_every=1_000)
                step = Step(cfg, data, torch.device(options.device))
                step.start_epoch(0)
                parts = breakdown(step, 4 * options.rounds)
                print(f"\n{name}, replicas {r}, {precision}, ms")
                parts |= {f"+ {k}": ms for k, ms in around(step, data, options.rounds, parts["whole step"]).items()}
                for part, ms in parts.items():
                    print(f"{part:18}{ms:10.3f}{ms / parts['whole step']:10.1%}")
                rows.append({"preset": name, "replicas": r, "precision": precision, "ms": parts})
        print(json.dumps({"machine": machine, "rows": rows}))
        return 0
    if options.device == "cuda" or options.rehearse:
        for name in options.presets:
            for precision in options.precision:
                for r in options.replicas:
                    others = r in options.others and precision == options.precision[0]
                    new = on_gpu(name, r, precision, others, data, options.rounds, torch.device(options.device))
                    table(f"{name}, replicas {r}, {precision}", new, 4)
                    rows += new
        print(json.dumps({"machine": machine, "rows": rows}))
        return 0
    for name in options.presets:
        error = max(check(preset(name), data, careful=careful) for careful in (False, True))
        print(f"{name}: two steps in float64 against idiomatic and careful: {error:.1e}")
        if not error < 1e-9:
            print("the steps differ: no timing", file=sys.stderr)
            return 1
        for replicas, precision in product(options.replicas, options.precision):
            new = row(name, replicas, precision, data, options.rounds)
            rows += new
            table(f"{name}, replicas {replicas}, {precision}, {new[0]['gflop']:.2f} GFLOP per step", new, 1)
            floor, state = (next(r for r in new if r["contender"] == name) for name in ("floor", "floor-state"))
            rate = floor["gflop"] / floor["ms"]
            print(
                f"fastaae = {1 / floor['ratio']:.3f} x the floor of its matrix products, {rate:.3f} TFLOP/s, "
                f"{1 / state['ratio']:.3f} x that with its optimiser's pass over memory"
            )
    print(json.dumps({"machine": machine, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
