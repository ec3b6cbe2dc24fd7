"""Signals that ask a run to stop. They are noted for the loop, which saves a checkpoint and stops between two steps."""

import signal
import threading
from time import perf_counter
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal after saving a checkpoint; the message says how to go on."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class Signals:
    """Within it the first SIGINT, SIGTERM or SIGHUP (unless nohup has it ignored) is only noted, as `received`. Another
    acts at once, but not within a second: `timeout` and terminals send the same one twice."""

    def __init__(self):
        self.received: int | None = None
        self.received_at = 0.0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # in others Python takes no handlers
            self.before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                self.before[signal.SIGHUP] = signal.getsignal(signal.SIGHUP)
        for s in self.before:
            signal.signal(s, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def _receive(self, signum: int, frame: object) -> None:
        if self.received is None:
            self.received, self.received_at = signum, perf_counter()
        elif perf_counter() - self.received_at > 1:
            self.__exit__()
            signal.raise_signal(signum)
