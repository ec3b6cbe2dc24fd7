"""What a run says as it goes, on standard error: a line of what it is, then a bar; off a terminal, lines every 30 s."""

import contextlib
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ..files import printable
from ..kernels import onednn
from .resume import Checkpoints

BAR = "{desc} {percentage:3.0f}%|{bar}| {remaining} left, {rate_noinv_fmt}"


class Progress(contextlib.AbstractContextManager["Progress"]):
    """That of a run which has done so many steps, if it is wanted."""

    def __init__(self, checkpoints: Checkpoints, done: int, wanted: bool):
        cfg, wanted = checkpoints.cfg, wanted and sys.stderr is not None  # it is None in a process without a terminal
        self.screen, self.examples, self.ran = Screen(), cfg.batch_size * cfg.replicas, 0  # of a step; steps
        self.epochs, self.total = cfg.epochs, cfg.epochs * checkpoints.step.steps_per_epoch
        if wanted:
            print(printable(opening(checkpoints)), file=self.screen, flush=True)
        options: dict[str, Any] = {"disable": None if wanted else True, "file": self.screen}
        options["ncols"] = shutil.get_terminal_size().columns - 1  # of a size of 0 tqdm would print nothing
        size = {"total": self.total, "initial": done, "unit": " examples", "unit_scale": self.examples}
        self.bar = tqdm(desc=self.epoch(done), bar_format=BAR, **size, **options)
        self.losses = tqdm(bar_format="{desc}", position=1, leave=False, **options)  # a line below the bar
        self.lines, self.shown = wanted and self.bar.disable, {}
        self.started, self.printed = time.monotonic(), -np.inf

    def __exit__(self, *_: Any) -> None:
        self.losses.close()
        self.bar.close()

    def epoch(self, done: int) -> str:
        """The one that the last of these steps was in."""
        return f"epoch {-(-done * self.epochs // self.total) or 1}/{self.epochs}"

    def advance(self, steps: int) -> None:
        """Count steps that were launched; below 0, that a restart goes back."""
        self.ran += max(steps, 0)
        self.bar.update(steps)

    def show(self, done: int, numbers: Mapping[str, Sequence[float]]) -> None:
        """The mean losses of the last steps by phase, or one of the metrics on validation examples, an error if any."""
        valid = sorted((name for name in numbers if name.startswith("valid_")), key=lambda n: not n.endswith("error"))
        self.shown |= {name: np.mean(v) for name, v in numbers.items() if name not in valid[1:]}
        self.bar.set_description_str(self.epoch(done), refresh=False)
        if (now := time.monotonic()) - self.printed < (30 if self.lines else 0.1):
            return
        self.printed = now
        first = sorted(self.shown, key=lambda name: not name.startswith("valid_"))  # a narrow terminal cuts the end
        values = ((name, f"{self.shown[name]:.3g}{' %' * name.endswith('error')}") for name in first)
        text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values)
        if self.lines:
            rate = max(self.ran, 1) / max(now - self.started, 1e-9)
            speed = f"{tqdm.format_interval((self.total - done) / rate)} left, {self.examples * rate:.0f} examples/s"
            print(f"{self.epoch(done)}: step {done}/{self.total}, {speed}, {text}", file=self.screen, flush=True)
        self.losses.set_description_str(text)

    def clear(self) -> None:
        """Make room for a line of others."""
        self.losses.clear()
        self.bar.clear()


def opening(checkpoints: Checkpoints) -> str:
    """What is trained on which data, where, and who computes it, in a line."""
    cfg, data, step = checkpoints.cfg, checkpoints.data, checkpoints.step
    (low, high), whats = data.range, {"train": "examples", "valid": "to validate", "test": "to test"}
    counts, labels = [], "no labels"
    known = {part: int((y >= 0).sum()) for part, y in data.labels.items() if y is not None}
    for part, rows in data.parts.items():
        some = cfg.needs_labels and part != "train" and rows is not None and known.get(part, 0) < len(rows)
        counts += [f"{len(rows):,} {whats[part]}" + f" ({known.get(part, 0)} labelled)" * some] if rows else []
    if "train" in known:
        used = min(cfg.n_labeled or known["train"], known["train"]) if cfg.needs_labels else 0
        labels = f"{data.n_classes} classes, {used:,} labels used"
    why = "emulated" if cfg.precision in ("bf16", "fp16") else f"no other for {cfg.precision} here"
    why = "small layers" if onednn.fits(step.networks["decoder"].shadows[0]) else why
    why = "products='torch'" if (cfg.products, cfg.precision) == ("torch", "fp32") else why
    by = {"layers": "Triton (16 bits)", "onednn": "oneDNN (large layers)", "reference": f"PyTorch ({why})"}
    modules = {p.linear.__module__.split(".")[-1] for network in step.networks.values() for p in network.products}
    computed = " and ".join(name for module, name in by.items() if module in modules)
    shape = f"{'x'.join(map(str, data.shape))} from {low:.4g} to {high:.4g}"
    steps = f"{cfg.epochs:,} epoch{'s' * (cfg.epochs > 1)} of {(n := step.steps_per_epoch):,} step{'s' * (n > 1)}"
    what = f"{data.name}: {', '.join(counts)}, {shape}, {labels}; {steps}"
    return f"{what}; {step.device}, {cfg.precision} by {computed}; {cfg.out_dir}"


class Screen:
    """Standard error, whose reader may go away without ending the training."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        with contextlib.suppress(OSError):
            sys.stderr.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
