"""Every operation of fastaae.kernels against float64 autograd or the textbook formula."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from test_phases import Recorder
from torch.nn import functional as F

from fastaae import kernels
from fastaae.kernels import onednn, reference

D64 = torch.float64
OPS, LOSSES = (choose(torch.empty(1, 1, 1, dtype=D64)) for choose in (kernels.choose_products, kernels.choose_losses))
UPDATE = kernels.choose_update(*[torch.empty(1, 1, 1, dtype=D64)] * 2, adam=False)
SHAPES = [pytest.param(1, 1, 1, 1, id="ones"), pytest.param(1, 5, 7, 3, id="r1"), pytest.param(3, 4, 11, 13, id="r3")]


def randn(*shape):
    return torch.randn(*shape, dtype=D64)


def close(a, b, rtol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("r,b,i,o", SHAPES)
def test_linear_and_its_gradients(r, b, i, o, relu):
    x, w, bias, upstream = randn(r, b, i).relu().requires_grad_(), randn(r, o, i), randn(r, 1, o), randn(r, b, o)
    w.requires_grad_(), bias.requires_grad_()
    expected = torch.einsum("rbi,roi->rbo", x, w) + bias
    gx, gw, gb = torch.autograd.grad(expected, (x, w, bias), upstream)

    out, gin = torch.empty(r, b, o, dtype=D64), torch.empty(r, b, i, dtype=D64)
    OPS.linear(x.detach(), w.detach(), bias.detach(), out, relu)
    close(out, expected.detach().relu() if relu else expected.detach())
    OPS.linear_backward(upstream, w.detach(), gin, x.detach() if relu else None)
    close(gin, gx * (x > 0) if relu else gx)

    weight, offset = w.detach().clone(), bias.detach().clone()
    wm, bm = torch.zeros_like(weight), torch.zeros_like(offset)
    layer = (x.detach(), upstream, weight, offset, weight, (wm,), (bm,))
    UPDATE([layer], torch.full((r, 1, 1), 0.5, dtype=D64), None, 0.9)
    close(wm, gw)
    close(bm, gb)
    close(weight, w.detach() - 0.5 * gw)
    close(offset, bias.detach() - 0.5 * gb)


@pytest.mark.skipif(not onednn.AVAILABLE, reason="this PyTorch or processor is without oneDNN")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("r,b,i,o", [(1, 1, 200, 170), (3, 37, 181, 191), (2, 100, 784, 1000)])
def test_onednn_is_as_exact_as_torch(r, b, i, o, relu):
    """Against float64: at most twice the error of reference.py in float32."""
    x, w, bias, grad = randn(r, b, i).relu(), randn(r, o, i), randn(r, 1, o), randn(r, b, o)
    momentum = [randn(r, o, i), randn(r, 1, o)]
    rate = torch.full((r, 1, 1), 0.01, dtype=D64)

    def results(module, dtype):
        a, v, c, g, n = (t.to(dtype) for t in (x, w, bias, grad, rate))
        out, gin = torch.empty_like(g), torch.empty_like(a)
        module.linear(a, v, c, out, relu)
        module.linear_backward(g, v, gin, a if relu else None)
        buffers = [v.clone(), c.clone(), *(m.to(dtype) for m in momentum)]
        weight, offset, *states = buffers
        module.update([(a, g, weight, offset, weight, *((t,) for t in states))], n, None, 0.9)
        adam = [v.clone(), c.clone(), *(m.to(dtype).abs() for m in momentum for _ in range(2))]
        weight, offset, *moments = adam
        layer = (a, g, weight, offset, weight, tuple(moments[:2]), tuple(moments[2:]))
        module.update([layer], n, torch.tensor([0.1, 0.001, 1], dtype=dtype))
        return [out, gin, *buffers, *adam]

    assert onednn.takes(w.float()) and not onednn.takes(w)
    for exact, theirs, ours in zip(
        *(results(*m) for m in ((reference, D64), (reference, torch.float32), (onednn, torch.float32))), strict=True
    ):
        worst = (theirs - exact).abs().max()
        assert (ours - exact).abs().max() <= 2 * worst + 1e-6 * exact.abs().max()
        assert torch.equal(ours == 0, theirs == 0) or not relu


@pytest.mark.skipif(not onednn.BF16, reason="this PyTorch or processor does not multiply bfloat16")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("r,b,i,o", [(1, 1, 200, 170), (3, 37, 181, 191), (2, 100, 784, 1000)])
def test_onednn_multiplies_bfloat16_and_sums_in_float32(r, b, i, o, relu, monkeypatch):
    """Against float64 on the same operands: results, and gradients of weights and biases, round once to 16 bits."""
    x, shadow, grad = (t.bfloat16() for t in (randn(r, b, i).relu(), randn(r, o, i), randn(r, b, o)))
    bias, rate = randn(r, 1, o).float(), torch.full((r, 1, 1), 0.01)
    assert onednn.takes(shadow) and kernels.choose_products(shadow).linear is onednn.linear

    def rounded_once(found, exact):
        size = exact.abs().max()
        assert ((found.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-5 * size).all()

    for dtype in (torch.bfloat16, torch.float32):
        out, exact = torch.empty(r, b, o, dtype=dtype), torch.empty(r, b, o, dtype=D64)
        reference.linear(x.double(), shadow.double(), bias.double(), exact, relu)
        onednn.linear(x, shadow, bias, out, relu)
        rounded_once(out, exact)
    below, exact = torch.empty_like(x), torch.empty(r, b, i, dtype=D64)
    reference.linear_backward(grad.double(), shadow.double(), exact, x.double() if relu else None)
    onednn.linear_backward(grad, shadow, below, x if relu else None)
    rounded_once(below, exact)
    both = []
    for switched in (True, False):  # as torch.backends.mkldnn.flags does
        monkeypatch.setattr(torch._C, "_get_mkldnn_enabled", lambda switched=switched: switched)
        both.append(onednn.product(grad[0].T, x[0].T))
    assert torch.equal(*both)

    monkeypatch.setattr(onednn, "PART", 50 * i)  # parts of 50 rows, the last one smaller
    gradient = grad.double().mT @ x.double()
    for adam in (False, True):
        w, c = shadow.float(), bias.clone()
        state = [[torch.zeros_like(p) for _ in range(1 + adam)] for p in (w, c)]
        correction = torch.tensor([0.1, 0.001, 1]) if adam else None
        own = torch.empty_like(shadow)
        update = kernels.choose_update(w, shadow, adam)
        update([(x, grad, w, c, own, tuple(state[0]), tuple(state[1]))], rate, correction, 0.9)
        rounded_once(state[0][0], 0.1 * gradient if adam else gradient)
        step = 0.01 * (gradient / (gradient.abs() + 1e-8) if adam else gradient)
        assert ((shadow.double() - w.double() - step).abs() <= 2**-7 * step.abs() + 1e-6).all()
        assert torch.equal(own, w.bfloat16())
        offset = grad.double().sum(1, keepdim=True)
        step = 0.01 * (offset / (offset.abs() + 1e-8) if adam else offset)
        assert ((bias.double() - c.double() - step).abs() <= 2**-7 * step.abs() + 1e-6).all()


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE", "AVX512_CORE_BF16", ""])
def test_bfloat16_is_emulated_where_onednn_may_not_multiply_it(isa):
    code = "from fastaae.kernels import onednn; print(onednn.BF16)"
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == str(onednn.BF16 and isa not in ("AVX2", "AVX512_CORE")), done.stderr


@pytest.mark.skipif(not onednn.BF16, reason="this PyTorch or processor does not multiply bfloat16")
def test_threads_change_no_bit_of_bfloat16():
    x, shadow, grad = (t.bfloat16() for t in (randn(2, 100, 784), randn(2, 1000, 784), randn(2, 100, 1000)))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out, below, w, c = torch.empty_like(grad), torch.empty_like(x), shadow.float(), torch.zeros(2, 1, 1000)
            state, own = [torch.zeros_like(w), torch.zeros_like(c)], shadow.clone()
            onednn.linear(x, shadow, c, out, relu=True)
            onednn.linear_backward(grad, shadow, below, x)
            onednn.update([(x, grad, w, c, own, state[:1], state[1:])], torch.full((2, 1, 1), 0.1), None, 0.9)
            found.append([t.clone() for t in (out, below, w, c, own, *state)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*both) for both in zip(*found, strict=True))


@pytest.mark.skipif(not onednn.AVAILABLE, reason="this PyTorch or processor is without oneDNN")
def test_gradients_in_parts_are_those_of_the_whole(monkeypatch):
    x, grad, w, c = torch.randn(2, 60, 300), torch.randn(2, 60, 500), torch.randn(2, 500, 300), torch.randn(2, 1, 500)
    found = []
    for part in (2**20, 120 * 300):
        monkeypatch.setattr(onednn, "PART", part)
        weight, bias, *state = (t.clone() for t in (w, c, w, c))
        layer = (x, grad, weight, bias, weight, (state[0],), (state[1],))
        onednn.update([layer], torch.full((2, 1, 1), 0.1), None, 0.5)
        found.append((weight, bias, *state))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-4)


EVERYTHING = """
import numpy as np
from fastaae import preset, parzen_log_likelihood
from fastaae.data import from_arrays
from fastaae.engine.step import Step

rng = np.random.default_rng(0)
x = rng.random((300, 784), np.float32)
for name in ("mnist-100", "mnist-likelihood"):
    for optimizer, precision in (("sgd", "fp32"), ("adam", "fp32"), ("sgd", "bf16")):
        cfg = preset(name, replicas=2, optimizer=optimizer, precision=precision)
        step = Step(cfg, from_arrays((x, np.arange(300) % 10)), "cpu")
        step.start_epoch(0)
        step()
parzen_log_likelihood(x[:9], x, 0.2)
"""


@pytest.mark.skipif(not onednn.AVAILABLE, reason="this PyTorch or processor is without oneDNN")
def test_no_product_is_left_to_the_reference_loop_of_onednn():
    env = {**os.environ, "ONEDNN_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", EVERYTHING], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if ",exec," in line and "inner_product" in line]
    assert len(lines) > 100 and not [line for line in lines if "ref:" in line]


@pytest.mark.skipif(not onednn.AVAILABLE, reason="this PyTorch or processor is without oneDNN")
def test_onednn_carries_nan():
    x, w, bias, out = torch.ones(1, 4, 256), torch.ones(1, 256, 256), torch.zeros(1, 1, 256), torch.empty(1, 4, 256)
    x[0, 1, 3] = float("nan")
    kernels.choose_products(w).linear(x, w, bias, out, relu=True)
    assert out[0, 1].isnan().all() and out[0, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("scale", [1, 30, 300], ids=lambda s: f"x{s}")
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("r,b,d", [(1, 1, 1), (3, 5, 7)])
def test_squared_error(r, b, d, sigmoid, scale):
    logits, target = (scale * randn(r, b, d)).requires_grad_(), torch.rand(r, b, d, dtype=D64)
    output = logits.sigmoid() if sigmoid else logits
    expected = 0.5 * (output - target).square().sum(-1).mean(-1)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    grad, terms = torch.empty_like(target), torch.empty(r, b, dtype=D64)
    kind = "sigmoid" if sigmoid else "linear"
    LOSSES.reconstruction_loss(logits.detach().clone(), target, grad, terms, kind, "squared_error")
    close(terms.sum(1), expected.detach())
    close(grad, gradient)


@pytest.mark.parametrize("scale", [1, 30, 1000], ids=lambda s: f"x{s}")
@pytest.mark.parametrize("r,b,d", [(1, 1, 1), (3, 5, 7)])
def test_cross_entropy(r, b, d, scale):
    logits, target = (scale * randn(r, b, d)).requires_grad_(), torch.rand(r, b, d, dtype=D64)
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1).mean(-1)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    grad, terms = torch.empty_like(target), torch.empty(r, b, dtype=D64)
    LOSSES.reconstruction_loss(logits.detach().clone(), target, grad, terms, "sigmoid", "cross_entropy")
    close(terms.sum(1), expected.detach())
    close(grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, D64], ids=str)
@pytest.mark.parametrize("logit", [15.0, 25.0, 45.0, 100.0, 1e4])
@pytest.mark.parametrize(
    "output,loss", [("sigmoid", "squared_error"), ("linear", "squared_error"), ("sigmoid", "cross_entropy")]
)
def test_losses_of_extreme_logits(output, loss, logit, dtype):
    """To the rounding of what is summed."""
    logits = torch.tensor([[logit, logit, logit, -logit, -logit, -logit]], dtype=D64)
    target = torch.tensor([[0, 0.25, 1, 0, 0.25, 1]], dtype=D64)
    if loss == "cross_entropy":
        exact, size = F.binary_cross_entropy_with_logits(logits, target, reduction="sum"), 12 * logit
    else:
        error = (logits.sigmoid() if output == "sigmoid" else logits) - target
        exact, size = 0.5 * error.square().sum(), error.square().sum()
    grad, terms = torch.empty(1, 1, 6, dtype=dtype), torch.empty(1, 1, dtype=dtype)
    LOSSES.reconstruction_loss(logits[None].to(dtype), target[None].to(dtype), grad, terms, output, loss)
    assert abs(terms.double().item() - exact) <= 4 * torch.finfo(dtype).eps * size


@pytest.mark.parametrize("scale", [1, 30, 10_000], ids=lambda s: f"x{s}")
@pytest.mark.parametrize("real", [0, 2, 5])
@pytest.mark.parametrize("r", [1, 3])
def test_a_discriminators_last_layer_and_loss(r, real, scale):
    b, h = 5, 7
    hidden, weight, bias = scale * randn(r, b, h).relu(), randn(r, 1, h), randn(r, 1, 1)
    hidden.requires_grad_()
    z = torch.baddbmm(bias, hidden, weight.transpose(1, 2))
    expected = -torch.cat([F.logsigmoid(z[:, :real]), F.logsigmoid(-z[:, real:])], 1).mean((1, 2))
    gz, gh = torch.autograd.grad(expected.sum(), (z, hidden))
    logits, grad, below, terms = (torch.empty(r, b, n, dtype=D64) for n in (1, 1, h, 1))
    LOSSES.judge(hidden.detach(), (weight, bias), (logits, grad), below, terms[..., 0], real)
    close(logits, z.detach())
    close(terms.sum((1, 2)), expected.detach())
    close(grad, gz)
    close(below, gh * (hidden > 0))
    LOSSES.judge(hidden.detach(), (weight, bias), (logits, grad), None, terms[..., 0], real)
    close(grad, gz)


@pytest.mark.parametrize("scale", [1, 30, 1000], ids=lambda s: f"x{s}")
@pytest.mark.parametrize("r,b,k", [(1, 1, 2), (3, 5, 10)])
def test_softmax_losses(r, b, k, scale):
    logits, labels = (scale * randn(r, b, k)).requires_grad_(), torch.randint(k, (r, b))
    expected = torch.stack([F.cross_entropy(logits[j], labels[j]) for j in range(r)])
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    grad, terms = torch.empty(r, b, k, dtype=D64), torch.empty(r, b, dtype=D64)
    LOSSES.softmax_cross_entropy(logits.detach(), labels, grad, terms)
    close(terms.sum(1), expected.detach())
    close(grad, gradient)
    LOSSES.softmax_cross_entropy(logits.detach(), labels, grad, terms, torch.tensor([8.0, 0, 0], dtype=D64))
    close(grad, 8 * gradient)

    y, upstream = logits.softmax(-1), randn(r, b, k)
    work = logits.detach().clone()
    LOSSES.softmax_(work)
    close(work, y.detach())
    (gradient,) = torch.autograd.grad(y, logits, upstream)
    LOSSES.softmax_backward_(upstream, y.detach())
    close(upstream, gradient)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_gather_takes_the_rows_and_scales_bytes(dtype):
    data = torch.randint(0, 256, (9, 6)).to(dtype)
    index = torch.tensor([[8, 0, 3], [3, 3, 1]], dtype=torch.int32)
    out = torch.empty(2, 3, 6, dtype=torch.float32 if dtype == torch.uint8 else dtype)
    staging = torch.empty(6, 6, dtype=torch.uint8) if dtype == torch.uint8 else None
    reference.gather(data, index, out, staging)
    expected = data[index.long()].to(out.dtype)
    assert torch.equal(out, expected / 255 if dtype == torch.uint8 else expected)


REPLICAS = [pytest.param(1, 5, 4, id="r1"), pytest.param(3, 6, 2, id="r3"), pytest.param(3, 9, 11, id="r3-wide")]


def empty(*shape):
    return torch.full(shape, float("nan"), dtype=D64)


@pytest.mark.parametrize("scale", [1e-6, 1, 6], ids=lambda s: f"x{s}")
@pytest.mark.parametrize("std", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("r,b,d", REPLICAS)
def test_kl(r, b, d, std, scale):
    mean, log_variance = (scale * randn(r, b, d)).requires_grad_(), (scale * randn(r, b, d)).requires_grad_()
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros((), dtype=D64), torch.tensor(std, dtype=D64))
    expected = torch.distributions.kl_divergence(posterior, prior).sum(-1).mean(-1)
    gradients = torch.autograd.grad(expected.sum(), (mean, log_variance))
    grads = [empty(r, b, d), empty(r, b, d)]
    loss = reference.kl(mean.detach(), log_variance.detach(), std, *grads)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-12)
    close(grads[0], gradients[0])
    close(grads[1], gradients[1])


def test_kl_is_zero_at_the_prior_and_known_beside_it():
    zero, grads = torch.zeros(1, 2, 3, dtype=D64), [empty(1, 2, 3), empty(1, 2, 3)]
    assert reference.kl(zero, zero, 1.0, *grads).item() == 0 and not torch.stack(grads).any()
    # KL(N(3, 2²) | N(0, 5²)) = log(5 / 2) + (4 + 9) / 50 - 1 / 2, in each of three dimensions
    loss = reference.kl(zero + 3, zero + 2 * math.log(2), 5.0, *grads)
    assert loss.item() == pytest.approx(3 * (math.log(2.5) + 13 / 50 - 0.5), rel=1e-14)
    small = torch.full((1, 1, 1), 1e-4)  # float32: exp(t) - 1 - t would have no digit left
    close(
        reference.kl(0 * small, small, 1.0, small.clone(), small.clone()).double(),
        torch.tensor([2.5e-9]).double(),
        2e-3,
    )


@pytest.mark.parametrize("r,b,d", REPLICAS)
def test_reparameterization(r, b, d):
    mean, log_variance = randn(r, b, d).requires_grad_(), randn(r, b, d).requires_grad_()
    noise, upstream = randn(r, b, d), randn(r, b, d)
    expected = mean + (log_variance / 2).exp() * noise
    to_mean, to_log_variance = torch.autograd.grad(expected, (mean, log_variance), upstream)
    out, grad = empty(r, b, d), empty(r, b, d)
    reference.reparameterize(mean.detach(), log_variance.detach(), noise, out)
    reference.reparameterize_backward(upstream, log_variance.detach(), noise, grad)
    close(out, expected.detach())
    close(grad, to_log_variance)
    assert torch.equal(to_mean, upstream)


def naive_mmd(codes, prior, scales):
    """From every pair of points, one at a time. codes [B, D], prior [M, D]."""

    def k(x, y):
        return sum(torch.exp(-(x - y).square().sum() / (2 * s**2)) for s in scales)

    def within(points):
        pairs = [k(x, y) for x in points for y in points]
        return sum(pairs) / len(pairs)

    return within(codes) + within(prior) - 2 * sum(k(x, y) for x in codes for y in prior) / (len(codes) * len(prior))


@pytest.mark.parametrize("r,b,m,d", [(1, 5, 5, 4), (3, 4, 7, 2), (3, 2, 2, 1)])
def test_mmd(r, b, m, d):
    codes, prior, scales = (2 * randn(r, b, d) + 1).requires_grad_(), randn(r, m, d), (0.5, 1.0, 4.0)
    expected = torch.stack([naive_mmd(codes[j], prior[j], scales) for j in range(r)])
    (gradient,) = torch.autograd.grad(expected.sum(), codes)
    grad = empty(r, b, d)
    close(reference.mmd(codes.detach(), prior, scales, grad), expected.detach())
    close(grad, gradient)


def test_mmd_tells_two_distributions_apart():
    x, y = randn(2, 300, 3), randn(2, 300, 3)
    y[1] += 1
    grad = empty(2, 300, 3)
    same, other = reference.mmd(x, y, (1.0, 2.0), grad).tolist()
    itself = 2 * 2 / 300  # of pairs of a point with itself, two kernels, two sets
    assert abs(same - itself) < 0.01 < 0.1 < other - itself
    assert (grad[1].mean(0) < 0).all()  # descent moves the codes towards the samples
    assert reference.mmd(x, x, (1.0, 2.0), grad).abs().max() < 1e-12 and grad.abs().max() < 1e-12
    one = randn(1, 1, 3)
    assert reference.mmd(one, one.clone(), (1.0,), empty(1, 1, 3)).item() == pytest.approx(0, abs=1e-15)


def test_mmd_in_float32_far_from_the_origin():
    codes, prior = 1000 + torch.randn(1, 50, 3), 1000 + torch.randn(1, 50, 3)
    grads = torch.empty(1, 50, 3), empty(1, 50, 3)
    loss = reference.mmd(codes, prior, (0.5,), grads[0])
    exact = reference.mmd(codes.double(), prior.double(), (0.5,), grads[1])
    assert abs(loss.item() - exact.item()) < 1e-6
    assert (grads[0] - grads[1]).abs().max() < 1e-5


@pytest.mark.parametrize("eta", [0.1, 2.0, 100.0])
@pytest.mark.parametrize("r,k,d", [(1, 2, 2), (3, 10, 2), (3, 7, 10)])
def test_head_separation(r, k, d, eta):
    heads = randn(r, k, d).requires_grad_()
    pairs = [(i, j) for i in range(k) for j in range(i)]
    expected = sum((eta - (heads[:, i] - heads[:, j]).norm(dim=-1)).clamp_min(0) for i, j in pairs)
    (gradient,) = torch.autograd.grad(expected.sum(), heads)
    grad = empty(r, k, d)
    close(reference.head_separation(heads.detach(), eta, grad), expected.detach())
    close(grad, gradient)


def test_head_separation_by_hand():
    heads = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [30.0, 0.0], [0.0, 6.0]]], dtype=D64)
    grad = empty(2, 3, 2)
    loss = reference.head_separation(heads, 6.0, grad)
    assert loss.tolist() == [6 + 1 + 1, 0]  # at a distance of exactly eta there is no cost
    expected = [[[0.6, 0.8], [-1.2, -1.6], [0.6, 0.8]], [[0, 0]] * 3]  # nothing between the two heads at one point
    close(grad, torch.tensor(expected, dtype=D64))
    close(
        reference.head_separation(10 * torch.eye(10, dtype=D64)[None], 15.0, empty(1, 10, 10)),
        torch.tensor([45 * (15 - 10 * math.sqrt(2))], dtype=D64),
    )


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("in_place", [False, True], ids=["", "in-place"])
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("r,b,d", [*REPLICAS, pytest.param(1, 2, 3, id="two-rows")])
def test_batch_norm(r, b, d, momentum, in_place, relu):
    x, weight, bias = (randn(*s).requires_grad_() for s in ((r, b, d), (r, 1, d), (r, 1, d)))
    mean, variance, upstream = randn(r, 1, d), randn(r, 1, d).square(), randn(r, b, d)
    expected_mean, expected_variance = mean.clone(), variance.clone()
    expected = torch.stack(
        [
            F.batch_norm(
                x[j], expected_mean[j, 0], expected_variance[j, 0], weight[j, 0], bias[j, 0], True, momentum,
                reference.BATCH_NORM_EPS,
            )
            for j in range(r)
        ]
    )  # fmt: skip
    gradients = torch.autograd.grad(expected, (x, weight, bias), upstream)
    x, weight, bias = x.detach().clone(), weight.detach(), bias.detach()
    out = x if in_place else empty(r, b, d)
    normalized, inverse_std = empty(r, b, d), empty(r, 1, d)
    reference.batch_norm(x, weight, bias, (mean, variance), momentum, (normalized, inverse_std), out, relu)
    close(out, expected.detach().relu() if relu else expected.detach())
    close(mean, expected_mean)
    close(variance, expected_variance)
    gx, gw, gb = upstream if in_place else empty(r, b, d), empty(r, 1, d), empty(r, 1, d)
    reference.batch_norm_backward(upstream, weight, normalized, inverse_std, gx, gw, gb)
    for ours, theirs in zip((gx, gw, gb), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("r,b,d", [(1, 1, 1), (3, 5, 7)])
def test_batch_norm_inference(r, b, d):
    x, weight, bias, mean, variance = randn(r, b, d), *(randn(r, 1, d) for _ in range(3)), randn(r, 1, d).square()
    out = empty(r, b, d)
    reference.batch_norm_inference(x, weight, bias, mean, variance, out)
    statistics = zip(x, mean[:, 0], variance[:, 0], weight[:, 0], bias[:, 0], strict=True)
    close(out, torch.stack([F.batch_norm(*s, False, 0.1, reference.BATCH_NORM_EPS) for s in statistics]))


def test_batch_norm_of_constant_and_of_distant_values():
    x = torch.full((1, 4, 2), 3.0)
    x[0, :, 1] = torch.tensor([0.0, 1.0, 2.0, 3.0]) + 4096  # a variance from squares in float32 would be lost
    one, zero = torch.ones(1, 1, 2), torch.zeros(1, 1, 2)
    normalized, inverse_std, out = torch.empty_like(x), torch.empty_like(one), torch.empty_like(x)
    reference.batch_norm(x, one, zero, (zero.clone(), one.clone()), 0.1, (normalized, inverse_std), out, False)
    assert not out[0, :, 0].any()
    close(out[0, :, 1], (torch.arange(4) - 1.5) / 1.25**0.5, rtol=1e-5)
    with pytest.raises(ValueError, match="batch_norm of 1 row: expected at least 2"):
        reference.batch_norm(x[:, :1], one, zero, (zero, one), 0.1, (normalized, inverse_std), out, False)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("dtype", [D64, torch.bool, torch.uint8], ids=str)
@pytest.mark.parametrize("r,b,d", REPLICAS)
def test_dropout(r, b, d, dtype, p):
    x, mask, upstream = randn(r, b, d).requires_grad_(), (torch.rand(r, b, d) >= p).to(dtype), randn(r, b, d)
    expected = x * mask.double() / (1 - p)
    (gradient,) = torch.autograd.grad(expected, x, upstream)
    out = empty(r, b, d)
    reference.dropout(x.detach(), mask, p, out)
    close(out, expected.detach())
    reference.dropout(upstream, mask, p, upstream)
    close(upstream, gradient)


def test_losses_and_layers_are_capture_safe():
    x, y, row, k = torch.randn(2, 6, 3), torch.randn(2, 6, 3), torch.ones(2, 1, 3), torch.randn(2, 5, 3)
    a, b, c, d = (torch.zeros_like(x) for _ in range(4))
    g, w, v = torch.zeros_like(k), row.clone(), row.clone()
    recorded = []
    for _ in range(2):
        x.mul_(30)
        with Recorder() as recorder:
            reference.kl(x, y, 1.0, a, b)
            reference.reparameterize(x, y, a, b)
            reference.reparameterize_backward(x, y, a, b)
            reference.mmd(x, y, (1.0, 2.0), a)
            reference.head_separation(k, 1.0, g)
            reference.batch_norm(x, row, row, (w, v), 0.1, (a, row.clone()), b, True)
            reference.batch_norm_backward(x, row, a, row, c, w, v)
            reference.batch_norm_inference(x, row, row, row, row, c)
            reference.dropout(x, a > 0, 0.2, d)
        recorded.append(recorder.calls)
    assert recorded[0] == recorded[1] and len(recorded[0]) > 50
