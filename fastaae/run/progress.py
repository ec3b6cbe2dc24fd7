"""How far a run is: a tqdm bar on a terminal; elsewhere a line every 30 s."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

from tqdm.auto import tqdm


class Progress(contextlib.AbstractContextManager["Progress"]):
    def __init__(self, total: int, done: int, wanted: bool):
        wanted = wanted and sys.stderr is not None  # it is None in a process without a terminal
        self.screen = Screen()
        self.bar = tqdm(total=total, initial=done, unit="step", disable=None if wanted else True, file=self.screen)
        self.advance = self.bar.update  # by so many steps that were launched
        self.lines = wanted and self.bar.disable
        self.total, self.first = total, done
        self.started = self.printed = time.monotonic()

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def show(self, done: int, epoch: int, losses: dict[str, float]) -> None:
        """The mean losses of the last steps, by phase."""
        now = time.monotonic()
        if self.lines and now - self.printed >= 30:
            self.printed = now
            rate = (done - self.first) / (now - self.started)
            text = " ".join(f"{name} {value:.4g}" for name, value in losses.items())
            line = f"epoch {epoch + 1}: step {done}/{self.total}, {rate:.1f} steps/s, {text}"
            print(line, file=self.screen, flush=True)
        elif not self.bar.disable:  # initials, so that the bar keeps its room: R, D, G, C
            text = " ".join(f"{name[0].upper()} {value:.3g}" for name, value in losses.items())
            self.bar.set_postfix_str(text, refresh=False)


class Screen:
    """Standard error, whose reader may go away without ending the training."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
