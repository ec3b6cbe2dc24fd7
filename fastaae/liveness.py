"""What ranks of torch.distributed say to each other between collectives, so that none waits for one that is gone."""

from __future__ import annotations

import contextlib
import itertools
import time

from torch import distributed

LOOK_EVERY = 1.0  # seconds between looks at the other ranks


class Heartbeat:
    """How far every rank is with its share of something, through the store that they met at: one that fails or falls
    silent stops the others. All ranks make their Heartbeat in the same order.

    Args:
        unit: of what they count: "steps", "samples".
        timeout: seconds after which a rank that has counted no more is taken for dead. Those in which the listening
            rank itself was busy do not count.
    """

    numbers = itertools.count()

    def __init__(self, unit: str, timeout: float):
        meeting = distributed.distributed_c10d._get_default_store()
        self.store = distributed.distributed_c10d.PrefixStore(f"fastaae-{next(self.numbers)}", meeting)
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.unit, self.timeout, self.looked, self.n = unit, timeout, time.monotonic(), 0
        self.heard = {k: ("0", self.looked) for k in range(self.world) if k != self.rank}

    def beat(self, n: int) -> None:
        """Say that this rank has counted n and hear the others, every second.

        Raises:
            RuntimeError: one has failed, or has counted nothing new for too long.
        """
        self.n = n
        if time.monotonic() - self.looked >= LOOK_EVERY:
            self._exchange(str(n))

    def wait(self) -> None:
        """Until all are done. Raises as beat()."""
        while not self._exchange("done"):
            time.sleep(0.05)

    def fail(self, error: BaseException) -> None:
        """Say how this rank failed, if the store is still there."""
        with contextlib.suppress(RuntimeError):
            self.store.set(str(self.rank), f"failed after {self.n} {self.unit}: {type(error).__name__}: {error}")

    def _exchange(self, said: str) -> bool:
        """Say how far this rank is and hear the others. Returns: whether all of them are done."""
        now = time.monotonic()
        deaf = max(now - self.looked - 2 * LOOK_EVERY, 0)  # nobody's silence: this rank was busy
        self.looked = now
        try:
            self.store.set(str(self.rank), said)
            words = {k: self.store.get(str(k)).decode() for k in self.heard if self.store.check([str(k)])}
        except distributed.DistError as error:
            expected = "expected rank 0 and its launcher to be there"
            raise RuntimeError(f"no rank is heard any more, {expected}: {str(error).splitlines()[0]}") from None
        for k, (before, since) in self.heard.items():
            word = words.get(k, "0")
            if word.startswith("failed"):
                raise RuntimeError(f"rank {k} {word}")
            self.heard[k] = (word, since + deaf) if word == before else (word, now)
            if word != "done" and now - self.heard[k][1] > self.timeout:
                silent = f"{word} {self.unit} and no more for timeout={self.timeout:g} s"
                raise RuntimeError(f"rank {k} has reached {silent}, expected it to go on")
        return all(word == "done" for word, _ in self.heard.values())
