"""An update and the next forward in one launch: a program owns the rows of the weight that make its outputs. It steps
them, and multiplies by what it has just written.

Only where the forward takes the same inputs as the update, which is the encoder's first layer after the reconstruction
phase. After the generator phase draw() has put the next batch in their place: that needs a second buffer of images, and
is not built.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl

from fastaae.kernels.step.layers import _as_loaded, _dot, _loaded, _stepped
from fastaae.kernels.step.layers import own as _own

from .launches import Job, Launch, Work, jobs, of_job, of_kernel
from .riders import of_jobs

TILE = {"BO": 16, "BK": 64, "num_warps": 4, "num_stages": 2}


@triton.jit
def _owner_kernel(
    tensors,  # of a layer: x, grad, weight, bias, shadow, and the state of weight and bias
    strides,  # from one replica to the next in x, grad, shadow and out
    rates,  # rate, float32 [R], Adam's correction or None, None, and momentum
    out_ptr, M, N_O: tl.constexpr, N_I: tl.constexpr, G_M: tl.constexpr, X_M: tl.constexpr, S_O: tl.constexpr,
    OUT_M: tl.constexpr, RELU: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr,
    POLICY: tl.constexpr,
):  # fmt: skip
    pid, r = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x_ptr, g_ptr, w_ptr, b_ptr, s_ptr, state, b_state = tensors
    how = tl.load(rates[0] + r), rates[1], rates[2], _own(rates[3], r)
    o, k, m = pid * BO + tl.arange(0, BO), tl.arange(0, BK), tl.arange(0, BM)
    mine = (m < M)[:, None] & (o < N_O)[None, :]
    g = tl.load(g_ptr + r * strides[1] + m[:, None] * G_M + o[None, :], mask=mine, other=0)
    bias = _loaded(b_ptr, b_state, r * N_O, o, o < N_O, POLICY)
    bias = _stepped(tl.sum(g.to(tl.float32), 0), bias, b_ptr, b_state, r * N_O, o, o < N_O, how, POLICY)
    x_ptr += r * strides[0] + m[:, None] * X_M + k[None, :]
    s_ptr += r * strides[2] + o[None, :] * S_O + k[:, None]
    acc = tl.zeros([BM, BO], tl.float32)
    for start in range(0, N_I, BK):
        x = tl.load(x_ptr + start, mask=(m < M)[:, None] & (k < N_I - start)[None, :], other=0).to(g.dtype)
        at, mask = o[None, :] * N_I + (start + k)[:, None], (o < N_O)[None, :] & (k < N_I - start)[:, None]
        before = _loaded(w_ptr, state, r * N_O * N_I, at, mask, POLICY)
        grad = _as_loaded(_dot(x.T, g, tl.zeros([BK, BO], tl.float32)))
        stepped = _stepped(grad, before, w_ptr, state, r * N_O * N_I, at, mask, how, POLICY)
        shadow = stepped[0].to(s_ptr.dtype.element_ty)
        tl.store(s_ptr + start, shadow, mask=mask)
        acc = _dot(x, shadow, acc)
    acc += bias[0][None, :]
    if RELU:
        acc = tl.where(acc < 0, 0, acc)
    out_ptr += r * strides[3] + m[:, None] * OUT_M + o[None, :]
    tl.store(out_ptr, acc.to(out_ptr.dtype.element_ty), mask=mine)


def owned(launches: Sequence[Launch]) -> list[Launch]:
    """The same launches, but that where an update comes right before the forward of one of its layers, on the same
    inputs, programs that own rows do both."""
    found: list[Launch] = []
    for launch in launches:
        a, job = launch.arguments, None
        behind = launch.name == "forward" and found and found[-1].name == "update"
        if behind and a["sums"] is None and a["then"] is None:
            mine, before = (a["x_ptr"][0].data_ptr(), a["w_ptr"][0].data_ptr()), jobs(found[-1])
            at = [(j.tensors[0].data_ptr(), j.tensors[4].data_ptr()) for j in before]
            if mine in at and launch.grid[2] == 1 and a["M"] <= 128:
                job = before.pop(at.index(mine))
        if job is not None and job.how[2] is None:  # where a gradient overflows, a shadow must stay
            rest = of_jobs(found.pop(), before)
            found += [rest] if rest else []
            launch = _owner(job, launch)
        found.append(launch)
    return found


def _owner(job: Job, forward: Launch) -> Launch:
    a = forward.arguments
    out = a["out_ptr"][0]
    args = (job.tensors, (*job.strides, out.stride(0)), job.how, out, job.rows, *job.shape, out.stride(1), a["RELU"])
    options = TILE | {"BM": triton.next_power_of_2(max(16, job.rows)), "POLICY": "evict_first"}
    grid = (-(-job.shape[0] // TILE["BO"]), forward.grid[1])

    def parts(new: Launch) -> list[Work]:
        b = new.arguments
        updated = Job(b["tensors"], b["strides"][:3], b["rates"], b["M"], job.shape)
        some = {"x_ptr": b["tensors"][:1], "w_ptr": b["tensors"][4:5], "b_ptr": b["tensors"][3:4]}
        return [of_job(updated), of_kernel("forward", a | some | {"out_ptr": (b["out_ptr"],)})._replace(turn=1)]

    return Launch(_owner_kernel, grid, args, options, parts)
