"""Any step function as a CUDA graph: warm up, restore, capture, replay. Knows nothing of autoencoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Replay:
    """Runs a step function many times. On a GPU the host launches one graph per `size` steps; elsewhere it calls.

    The step must be capture-safe: static buffers, nothing read back, no shape that depends on data, learning rates and
    counters on the device. Capturing leaves no trace: what the warm-up changed is put back.

    Args:
        step: called without arguments.
        state: every tensor the step reads from an earlier step.
        generators: CUDA generators it draws from.
        device: where it runs.
        size: steps in one graph; what does not fill one is run by a graph of a single step.
        graph: False calls the step on a GPU, too.
    """

    def __init__(
        self, step: Callable[[], None], state: Sequence[Tensor], generators: Sequence[torch.Generator],
        device: torch.device, size: int = 10, graph: bool = True,
    ):  # fmt: skip
        self.step, self.size = step, size
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        if device.type != "cuda" or not graph:
            return
        saved, drawn = [t.clone() for t in state], [g.get_state() for g in generators]
        stream = torch.cuda.Stream(device)  # the default one cannot be captured
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(stream):
            step()  # compiles kernels, makes workspaces
            stream.synchronize()
            pool = None
            for steps in {size, 1}:  # one pool for both: they never run at once
                captured = self.graphs[steps] = torch.cuda.CUDAGraph()
                for generator in generators:
                    captured.register_generator_state(generator)
                with torch.cuda.graph(captured, pool=pool, stream=stream):
                    for _ in range(steps):
                        step()
                pool = captured.pool()
            for tensor, before in zip(state, saved, strict=True):
                tensor.copy_(before)
            for generator, before in zip(generators, drawn, strict=True):
                generator.set_state(before)
        torch.cuda.current_stream(device).wait_stream(stream)

    def __call__(self, steps: int) -> None:
        """Run so many steps. On a GPU this returns at once."""
        if not self.graphs:
            for _ in range(steps):
                self.step()
            return
        for _ in range(steps // self.size):
            self.graphs[self.size].replay()
        for _ in range(steps % self.size):
            self.graphs[1].replay()
