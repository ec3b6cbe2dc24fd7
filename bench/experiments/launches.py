"""A training step as the list of its launches, which tensors each of them reads and writes, and whether another list
does the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest.mock import patch

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastaae.kernels.step import draws, layers, losses


class Work(NamedTuple):
    """A part of a launch that has its own reads and writes: a product, the update of a layer, anything else whole."""

    key: tuple  # what it is: a name and where its tensors lie
    reads: list[Tensor]
    writes: list[Tensor]
    programs: tuple[int, int, int] = (0, 1, 1)  # from, up to, of so many
    turn: int = 0  # works of a launch with another one come before or behind


class Launch(NamedTuple):
    """A launch of a kernel.

    Args:
        options: constants of the kernel by name, and the launch's own (num_warps and so on).
        parts: what of it is works(), if it is none of the step's own kernels.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: tuple
    options: dict[str, Any]
    parts: Callable[[Any], list[Work]] | None = None

    def __call__(self) -> None:
        self.kernel[self.grid](*self.args, **self.options)

    @property
    def name(self) -> str:
        return self.kernel.__name__.strip("_").removesuffix("_kernel")

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments of the kernel, by name."""
        names = inspect.signature(self.kernel.fn).parameters
        given = dict(zip(names, self.args, strict=False))
        return given | {name: self.options[name] for name in names if name not in given}

    def split(self) -> tuple[tuple, dict[str, Any], dict[str, Any]]:
        """The arguments that are no constants of the compiled code, those that are, and the launch's own options."""
        parameters, values = inspect.signature(self.kernel.fn).parameters, self.arguments
        constant = [name for name, p in parameters.items() if "constexpr" in str(p.annotation)]
        given = tuple(value for name, value in values.items() if name not in constant)
        own = {name: value for name, value in self.options.items() if name not in values}
        return given, {name: values[name] for name in constant}, own


class _OnlyViews(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns):
            raise ValueError(f"{function}: not by a kernel of Triton's, so that launches alone are not the whole step")
        return function(*args, **(kwargs or {}))


def recorded(step: Callable[[], None], times: int = 1) -> list[Launch]:
    """The launches of so many steps, which are not done.

    Raises:
        ValueError: the step has other work, too.
    """
    found: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any):
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **options: found.append(Launch(self.kernel, grid, args, options))

    kernels = [(m, n) for m in (draws, layers, losses) for n in vars(m) if n.endswith("_kernel")]
    with ExitStack() as patches:
        for module, name in kernels:
            patches.enter_context(patch.object(module, name, Recorder(getattr(module, name))))
        patches.enter_context(_OnlyViews())
        for _ in range(times):
            step()
    return found


def tensors(some: Any) -> Iterator[Tensor]:
    """Those in arguments, in order."""
    if isinstance(some, Tensor):
        yield some
    elif isinstance(some, (tuple, list)):
        for part in some:
            yield from tensors(part)


class Job(NamedTuple):
    """The update of a layer, or some of its programs: tiles of the weight, then blocks of the bias."""

    tensors: tuple  # as layers.update() takes them: x, grad, weight, bias, shadow, and the state of weight and bias
    strides: tuple[int, int, int]  # from one replica to the next in x, grad and shadow
    how: tuple  # rate, correction, scale, momentum
    rows: int  # of x
    shape: tuple[int, ...]  # O, I, and the pitches of grad, x and shadow

    def programs(self, tile: dict[str, int]) -> tuple[int, int]:
        """Of the weight, and of the bias, in tiles of BO outputs and BI inputs."""
        blocks = -(-self.shape[0] // tile["BO"])
        return blocks * -(-self.shape[1] // tile["BI"]), blocks


def jobs(launch: Launch) -> list[Job]:
    """The layers that a launch of the step's own update does."""
    a = launch.arguments
    how = tuple(a[name] for name in ("rate_ptr", "correction_ptr", "scale_ptr", "momentum"))
    each = zip(a["tensors"], a["strides"], a["SHAPES"], strict=True)
    return [Job(some, strides, how, a["M"], shape[:5]) for some, strides, shape in each]


def of_job(job: Job, programs: tuple[int, int, int] = (0, 1, 1)) -> Work:
    """Where a gradient overflows, jobs also set a flag beside the scale: in whatever order, but before finish()."""
    x, grad, weight, bias, shadow, *state = job.tensors
    kept = [weight, bias, *tensors(tuple(state))]
    key = ("update", *(t.data_ptr() for t in tensors(job.tensors)))
    return Work(key, [x, grad, *kept, *tensors(job.how)], [*kept, shadow], programs)


def of_kernel(name: str, a: dict[str, Any]) -> Work:
    """Of a launch with these arguments; not of an update, which is several jobs."""
    reads, writes = [a.get("scale_ptr")], []
    if name in ("forward", "backward"):
        forward = name == "forward"
        x, out, then, sums = a["x_ptr" if forward else "g_ptr"], a["out_ptr"], a["then"], a["sums"]
        reads += [x, a["w_ptr"], a["b_ptr"] if forward else a["a_ptr"], sums]
        writes += [out]
        if sums is not None:  # which are written down where they belong in x
            last = sums[2] if forward else x[0].shape[1]
            reads[1], writes = x[0][:, : x[0].shape[1] - last], [out, x[0][:, x[0].shape[1] - last :]]
        if then is not None:
            loss = forward and a["LOSS"] is not None
            reads += [then[0], then[3] if loss else None]
            writes += [then[1] if loss else then[4]]
    elif name == "judge":
        reads += [a["h_ptr"], a["w_ptr"], a["b_ptr"]]
        writes += [a["grad_ptr"], a["below_ptr"], a["terms_ptr"]]
    elif name == "draw":
        labeled = a["LABELED"] > 0  # else other tensors stand in
        reads += [a[f"{n}_ptr"] for n in ("data", "y", "count", "seeds", "order")] + [a["noise"], a["std"]]
        reads += [a["labeled_order_ptr"]] if labeled else []
        writes += [a["clean_ptr"], a["noisy_ptr"], a["codes_ptr"]]
        writes += [a["labeled_ptr"], a["labels_ptr"]] if labeled else []
    elif name == "finish":
        writes = [a[f"{n}_ptr"] for n in ("losses", "slot", "count", "scale")]
        reads += [a["terms_ptr"], *writes]
    elif name == "classes":
        writes = [a["code_ptr"], a["grad_ptr"], a["terms_ptr"]]
        reads += [*writes, a["labels_ptr"]]
    else:
        raise ValueError(f"kernel={name!r}: what it reads and writes is not known, say it here")
    key = (name, *(t.data_ptr() for t in tensors(tuple(a.values()))))
    return Work(key, list(tensors(reads)), list(tensors(writes)))


def works(launch: Launch) -> list[Work]:
    """What a launch does side by side."""
    if launch.parts is not None:
        return launch.parts(launch)
    if launch.name == "update":
        return [of_job(job) for job in jobs(launch)]
    return [of_kernel(launch.name, launch.arguments)]


def spans(some: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Addresses of the first and behind the last byte, of each replica's part of [R, ., .], in order."""
    found = []
    for t in some:
        for part in t if t.dim() > 2 else [t]:
            size = 1 + sum((n - 1) * s for n, s in zip(part.shape, part.stride(), strict=True)) if part.numel() else 0
            found.append((part.data_ptr(), part.data_ptr() + size * part.element_size()))
    return sorted(set(found))


def meet(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> bool:
    """Whether two of spans() have a byte in common."""
    return any(start < other_stop and other < stop for start, stop in a for other, other_stop in b)


class Sets(NamedTuple):
    """The spans() of a Work."""

    reads: list[tuple[int, int]]
    writes: list[tuple[int, int]]

    def meets(self, other: Sets) -> bool:
        """Whether the order of the two matters."""
        both = meet(self.writes, other.writes), meet(self.writes, other.reads), meet(self.reads, other.writes)
        return any(both)


def sets(work: Work) -> Sets:
    return Sets(spans(work.reads), spans(work.writes))


def conflicts(plain: Sequence[Launch], other: Sequence[Launch]) -> list[str]:
    """What other does not do as plain does, a line each; of both, launches follow each other, and the works of one
    launch go side by side. Said are programs that are left out or done twice, and works that change places or meet in a
    launch though one writes what the other reads or writes."""
    first = [work for launch in plain for work in works(launch)]
    left: dict[tuple, list[int]] = {}
    for k, work in enumerate(first):
        left.setdefault(work.key, []).append(k)
    at: dict[int, list[tuple[int, int]]] = {}  # of each work of plain, the launches of other with its programs
    said: list[str] = []
    done: dict[tuple, list[tuple[int, int]]] = {}
    for place, launch in enumerate(other):
        for work in works(launch):
            start, stop, of = work.programs
            before = done.setdefault(work.key, [])
            if not left.get(work.key) or meet(before, [(start, stop)]):
                said.append(f"launch {place}: {work.key[0]}, programs {start} to {stop} of {of}: not expected here")
                continue
            at.setdefault(left[work.key][0], []).append((place, work.turn))
            before.append((start, stop))
            if sum(b - a for a, b in before) == of:
                left[work.key].pop(0)
                before.clear()
    said += [f"{key[0]}, work {k}: left out, or in part" for key, some in left.items() for k in some]
    known = [sets(work) for work in first]
    for k, work in enumerate(first):
        for j in range(k):
            if j in at and k in at and max(at[j]) >= min(at[k]) and known[j].meets(known[k]):
                names = f"{first[j].key[0]}, work {j}, and {work.key[0]}, work {k}"
                said.append(
                    f"{names}: in launches {max(at[j])[0]} and {min(at[k])[0]}, the one writes what the other needs"
                )
    return said
